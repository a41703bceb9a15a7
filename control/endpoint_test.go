package control_test

import (
	"fmt"
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

func TestOfNetwork(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.2")}
	v4, v6 := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")
	for want, network := range map[string][]netip.Prefix{
		"[192.0.2.1 192.0.2.2]": {v4}, "[2001:db8::1]": {v6}, "[192.0.2.1 2001:db8::1 192.0.2.2]": {v6, v4},
	} {
		if got := fmt.Sprint(control.OfNetwork(addrs, network)); got != want {
			t.Errorf("of %v: %s, want %s", network, got, want)
		}
	}
	if len(addrs) != 3 || addrs[1].Is4() {
		t.Errorf("the addresses that were given are edited: %v", addrs)
	}
}
