package contender

import (
	"strings"
	"testing"

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
