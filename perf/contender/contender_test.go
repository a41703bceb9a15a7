package contender

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/perf/testbed"
)

func TestParse(t *testing.T) {
	list, err := Parse("bare, vxlan,tun,tun+aes-256-gcm")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range list {
		got = append(got, c.Name+"/"+c.Cipher)
	}
	if want := "bare/none vxlan/none tun/none tun+aes-256-gcm/aes-256-gcm"; strings.Join(got, " ") != want {
		t.Errorf("parsed %v, want %s", got, want)
	}
	for list, remedy := range map[string]string{
		"":                  "there are bare",
		"bare,carrier":      "there are bare",
		"bare,vxlan,bare":   "named twice",
		"tun+rot13":         "there are auto",
		"tun+":              "there are auto",
		"bare+aes-128-gcm":  "takes no cipher",
		"vxlan+aes-128-gcm": "takes no cipher",
	} {
		if _, err := Parse(list); err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%q: %v, want an error that says %q", list, err, remedy)
		}
	}
}

func TestKernelLink(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireKernel(t, nettest.Veth)
	if err := kernelLink("veth")(); err != nil {
		t.Error(err)
	}
	if err := kernelLink("nosuchkind")(); err == nil {
		t.Error("the kernel makes devices of a kind that does not exist")
	}
}

func TestDevice(t *testing.T) {
	if err := device("/dev/null")(); err != nil {
		t.Error(err)
	}
	if err := device("/dev/nosuchdevice")(); err == nil {
		t.Error("a device that does not exist was opened")
	}
}

func TestSocket(t *testing.T) {
	if err := socket(unix.AF_UNIX, "unix sockets")(); err != nil {
		t.Error(err)
	}
	if err := socket(unix.AF_MAX, "a family that does not exist")(); err == nil {
		t.Error("the kernel has a family that does not exist")
	}
}

func TestLabels(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range Rows() {
		l := testbed.Label(r.Name)
		if seen[l] || strings.ContainsAny(l, "/ ") {
			t.Errorf("label %q of %s", l, r.Name)
		}
		seen[l] = true
	}
}
