package kernel

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/catalog/mode"
)

// TestProbe: what is tried leaves nothing behind, and says what is wrong.
func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range table() {
		a := k.ability
		if a.Remedy() == "" || a.String() == "" {
			t.Errorf("%q: nothing is said of it", string(a))
		}
		if err := a.Probe(); err != nil {
			t.Logf("%s: %v", a, err)
			if errors.Is(err, unix.EINVAL) || strings.Contains(err.Error(), "namespace") {
				t.Errorf("%s was not tried: %v", a, err)
			}
		}
	}
	after, err := net.Interfaces()
	if err != nil || len(after) != len(before) {
		t.Errorf("interfaces %v, then %v, %v", before, after, err)
	}
}

func TestWhatNoKernelHas(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	if err := tryLink("nosuchkind")(); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a device of a kind that does not exist: %v", err)
	}
	if err := tryUDP(12345)(); !errors.Is(err, unix.ENOPROTOOPT) {
		t.Errorf("a socket option that does not exist: %v", err)
	}
	if err := Need("nosuchability"); err == nil {
		t.Error("an ability that does not exist works")
	}
	if err := Need(Veth, "nosuchability"); err == nil || strings.Contains(err.Error(), "veth") {
		t.Errorf("%v", err)
	}
}

// TestModesNeedWhatIsKnown: every name in the list of modes is an ability.
func TestModesNeedWhatIsKnown(t *testing.T) {
	for _, m := range mode.All() {
		for _, need := range m.Needs {
			if strings.Contains(find(Ability(need)).remedy, "weft version") {
				t.Errorf("mode %s needs %q: no such ability", m.Name, need)
			}
		}
	}
}
