package policy

import (
	"net/netip"
	"slices"
	"testing"
)

// TestWithAttached: a pod has the addresses that it was given here, and nobody else has them; one that runs elsewhere keeps its own, whatever an
// attachment of the same name says that is not gone yet.
func TestWithAttached(t *testing.T) {
	address := netip.MustParseAddr
	given, moved, other := address("10.0.1.1"), address("10.0.1.2"), address("10.0.2.1")
	c := Cluster{Pods: []Pod{
		{Namespace: "x", Name: "here", Node: "a"},
		{Namespace: "x", Name: "unsaid", Addresses: []netip.Addr{address("10.0.9.9")}},
		{Namespace: "x", Name: "moved", Node: "b", Addresses: []netip.Addr{other}},
		{Namespace: "x", Name: "before", Node: "a", Addresses: []netip.Addr{given, address("10.0.1.9")}},
	}}
	here := []Attached{{"x", "here", []netip.Addr{given}}, {"x", "unsaid", []netip.Addr{address("10.0.1.3")}}, {"x", "moved", []netip.Addr{moved}}}
	for node, want := range map[string][][]netip.Addr{
		"a": {{given}, {address("10.0.1.3")}, {other}, {address("10.0.1.9")}},
		"":  {{given}, {address("10.0.1.3")}, {moved}, {address("10.0.1.9")}}, // of a node whose name nobody knows what is here is here
	} {
		for i, p := range c.WithAttached(node, here) {
			if !slices.Equal(p.Addresses, want[i]) {
				t.Errorf("node %q: %s has %v, want %v", node, &p, p.Addresses, want[i])
			}
		}
	}
}
