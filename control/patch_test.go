package control

import (
	"net/netip"
	"slices"
	"testing"
)

// TestPut: nodes come, change and go, and stay in order.
func TestPut(t *testing.T) {
	var nodes []Node
	for _, c := range []struct {
		name string
		gone bool
		want []string
	}{
		{"b", false, []string{"b"}}, {"a", false, []string{"a", "b"}}, {"c", false, []string{"a", "b", "c"}},
		{"b", false, []string{"a", "b", "c"}}, {"b", true, []string{"a", "c"}}, {"b", true, []string{"a", "c"}},
	} {
		n := Node{Name: c.name}
		if c.gone {
			n = Node{}
		}
		nodes = Put(nodes, c.name, n)
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		if !slices.Equal(names, c.want) {
			t.Fatalf("%v, want %v", names, c.want)
		}
		if _, ok := Find(nodes, c.name); ok == c.gone {
			t.Errorf("%s: found %v", c.name, ok)
		}
	}
}

// TestTakes: a node with what is free is taken, one with another's prefix or with none of the network's is not.
func TestTakes(t *testing.T) {
	node := func(name, endpoint, prefix string) Node {
		return Node{Name: name, Endpoints: []netip.Addr{netip.MustParseAddr(endpoint)}, Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}}
	}
	network := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	self := node("a", "192.0.2.1", "10.244.1.0/24")
	x := NewIndex([]Node{self, node("b", "192.0.2.2", "10.244.2.0/24")})
	for _, c := range []struct {
		n    Node
		want bool
	}{
		{node("c", "192.0.2.3", "10.244.3.0/24"), true},
		{node("c", "192.0.2.3", "10.244.2.0/25"), false},
		{node("c", "192.0.2.2", "10.244.3.0/24"), false},
		{node("c", "192.0.2.3", "10.99.3.0/24"), false},
	} {
		if got := x.Takes(self, network, c.n); got != c.want {
			t.Errorf("%+v: %v", c.n, got)
		}
	}
}
