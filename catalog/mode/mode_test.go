package mode

import (
	"strings"
	"testing"
)

// TestAll: the list does not contradict itself.
func TestAll(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range All() {
		switch {
		case m.Name == "" || strings.ContainsAny(m.Name, " +,|") || seen[m.Name]:
			t.Errorf("%q is no name, or another mode's", m.Name)
		case m.About == "" || m.For == "":
			t.Errorf("%s: nothing is said of it", m.Name)
		case (m.Wire == Direct) != (m.Port == 0):
			t.Errorf("%s: %s on the wire, port %d", m.Name, m.Wire, m.Port)
		case (m.Inside == Kernel) != (m.Outside == Kernel):
			t.Errorf("%s: %s inside, %s outside", m.Name, m.Inside, m.Outside)
		case m.Lanes() && len(m.Needs) == 0:
			t.Errorf("%s: its ports need nothing of the kernel", m.Name)
		}
		seen[m.Name] = true
		if got, ok := Find(All(), m.Name); !ok || got.About != m.About {
			t.Errorf("%s is not found", m.Name)
		}
	}
	if !seen[Default] || len(Names(All())) != len(seen) {
		t.Errorf("%d modes, the default is %s", len(seen), Default)
	}
	if _, ok := Find(All(), "ipip"); ok {
		t.Error("a mode that nobody has built is found")
	}
}

func TestInnerMTU(t *testing.T) {
	for _, c := range []struct {
		wire       Wire
		v6, sealed bool
		want       int
	}{{Direct, true, false, 1500}, {VXLAN, false, false, 1450}, {VXLAN, true, false, 1430}, {VXLAN, false, true, 1418}, {IPUDP, false, false, 1472}, {IPUDP, true, true, 1420}} {
		if got := c.wire.InnerMTU(1500, c.v6, c.sealed); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
