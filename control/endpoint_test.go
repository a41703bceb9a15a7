package control_test

import (
	"net/netip"
	"testing"

	"weft/control"
)

func TestEndpoint(t *testing.T) {
	addrs := func(text ...string) (n control.Node) {
		for _, s := range text {
			n.Endpoints = append(n.Endpoints, netip.MustParseAddr(s))
		}
		return n
	}
	for _, c := range []struct {
		name       string
		self, peer control.Node
		want       string // "" = none
	}{
		{"both v4", addrs("192.0.2.1"), addrs("192.0.2.2"), "192.0.2.2"},
		{"self's order, not the peer's", addrs("192.0.2.1", "2001:db8::1"), addrs("2001:db8::2", "192.0.2.2"), "192.0.2.2"},
		{"self prefers v6", addrs("2001:db8::1", "192.0.2.1"), addrs("192.0.2.2", "2001:db8::2"), "2001:db8::2"},
		{"the family the peer has", addrs("192.0.2.1", "2001:db8::1"), addrs("2001:db8::2"), "2001:db8::2"},
		{"the peer's first of it", addrs("192.0.2.1"), addrs("2001:db8::2", "192.0.2.3", "192.0.2.2"), "192.0.2.3"},
		{"none in common", addrs("192.0.2.1"), addrs("2001:db8::2"), ""},
		{"no endpoints", control.Node{}, addrs("192.0.2.2"), ""},
	} {
		got, ok := control.Endpoint(c.self, c.peer)
		if ok != (c.want != "") || ok && got != netip.MustParseAddr(c.want) {
			t.Errorf("%s: Endpoint = %v, %v; want %q", c.name, got, ok, c.want)
		}
	}
}
