package ipnet

import (
	"net"
	"net/netip"
	"testing"
)

func TestThereAndBack(t *testing.T) {
	for _, text := range []string{"10.0.0.0/8", "192.0.2.1/24", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::1/64", "::/0", "fd00::1/128", "::ffff:192.0.2.1/120"} {
		p := netip.MustParsePrefix(text)
		n := Of(p)
		if got := Prefix(n); got != p {
			t.Errorf("%s came back as %v", text, got)
		}
		if p.Addr().Is4In6() {
			continue // package net writes it as IPv4
		}
		if n.String() != text {
			t.Errorf("%s is %v", text, n)
		}
	}
	if got := Prefix(&net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}); got != netip.MustParsePrefix("0.0.0.0/0") {
		t.Errorf("16 bytes and an IPv4 mask: %v", got)
	}
	if Prefix(nil).IsValid() || Addr(nil).IsValid() {
		t.Error("nothing became something")
	}
	for text, want := range map[string]string{"192.0.2.1": "192.0.2.1/32 0.0.0.0/0", "2001:db8::1": "2001:db8::1/128 ::/0"} {
		a := netip.MustParseAddr(text)
		if got := Host(a).String() + " " + Everything(a).String(); got != want || Addr(a.AsSlice()) != a {
			t.Errorf("%s: %s", text, got)
		}
	}
}
