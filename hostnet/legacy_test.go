package hostnet

import (
	"fmt"
	"testing"

	"weft/internal/nettest"
)

// TestLegacy: rules and policies of iptables-legacy that may stop what is forwarded are seen, and others are not taken for such.
func TestLegacy(t *testing.T) {
	nettest.RequireTool(t, "iptables-legacy", "ip6tables-legacy")
	b := newBench(t)
	for _, c := range []struct{ do, want string }{
		{"true", "[]"},
		{"iptables-legacy -S; ip6tables-legacy -S", "[]"}, // makes the tables
		{"iptables-legacy -P FORWARD DROP", "[iptables-legacy]"},
		{"iptables-legacy -P FORWARD ACCEPT", "[]"},
		{"ip6tables-legacy -A FORWARD -i eth0 -j DROP", "[ip6tables-legacy]"},
		{"iptables-legacy -A INPUT -j DROP; ip6tables-legacy -F; ip6tables-legacy -P FORWARD DROP", "[ip6tables-legacy]"},
		{"ip6tables-legacy -P FORWARD ACCEPT", "[]"},
	} {
		b.ns.MustRun(t, "sh", "-ec", c.do)
		if got := fmt.Sprint(b.host.Legacy()); got != c.want {
			t.Errorf("%s: %s, want %s", c.do, got, c.want)
		}
	}
}

// FuzzPolicyDrops: the kernel's table is read within its bounds.
func FuzzPolicyDrops(f *testing.F) {
	f.Add(make([]byte, 200), 0, true)
	f.Fuzz(func(_ *testing.T, table []byte, at int, v6 bool) {
		family := legacyFamilies[0]
		if v6 {
			family = legacyFamilies[1]
		}
		family.policyDrops(table, at)
	})
}
