package packet

import (
	"net/netip"
	"testing"
)

// TestPath: what is learnt of a path's MTU holds for every endpoint of the peer, whichever was told.
func TestPath(t *testing.T) {
	src, home, away := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddrPort("192.0.2.2:4789"), netip.MustParseAddrPort("[2001:db8::2]:8473")
	p := NewPath(src, home, 1450)
	q := p.To(away)
	if p.Src != src || p.Dst != home || q.Src != src || q.Dst != away || q.MTU() != 1450 {
		t.Fatalf("%+v and %+v", p, q)
	}
	p.SetMTU(1400)
	if q.MTU() != 1400 {
		t.Errorf("%d bytes, want what was learnt at home", q.MTU())
	}
	if q.To(home).SetMTU(1500); p.MTU() != 1500 {
		t.Errorf("%d bytes, want what was learnt away", p.MTU())
	}
	for _, h := range []*Hop{nil, {}} {
		if h.Dst().IsValid() {
			t.Errorf("%v leads to %v", h, h.Dst())
		}
	}
	if h := (&Hop{Path: q}); h.Dst() != away {
		t.Errorf("leads to %v", h.Dst())
	}
}
