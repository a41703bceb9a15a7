package egress

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// message4 is what a raw socket gives of a router's "fragmentation needed" for a UDP packet.
func message4(to netip.Addr, port, mtu uint16) []byte {
	b := make([]byte, 20+8+20+8)
	b[0], b[9] = 0x45, 1
	b[20], b[21] = 3, 4
	binary.BigEndian.PutUint16(b[26:], mtu)
	quoted := b[28:]
	quoted[0], quoted[9] = 0x45, 17
	copy(quoted[16:], to.AsSlice())
	binary.BigEndian.PutUint16(quoted[22:], port)
	return b
}

func message6(to netip.Addr, port uint16, mtu uint32) []byte {
	b := make([]byte, 8+40+8)
	b[0] = 2
	binary.BigEndian.PutUint32(b[4:], mtu)
	b[8], b[14] = 0x60, 17
	copy(b[8+24:], to.AsSlice())
	binary.BigEndian.PutUint16(b[8+42:], port)
	return b
}

func TestTooBig(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	edited := func(b []byte, at int, to byte) []byte { b[at] = to; return b }
	for name, c := range map[string]struct {
		in  []byte
		v4  bool
		to  netip.Addr
		mtu int // 0 = it is not one
	}{
		"v4":                      {message4(v4, 4789, 1400), true, v4, 1400},
		"v6":                      {message6(v6, 4789, 1400), false, v6, 1400},
		"less than any path":      {message4(v4, 4789, 68), true, v4, 0},
		"an old router's":         {message4(v4, 4789, 0), true, v4, 0},
		"less than IPv6 has":      {message6(v6, 4789, 1279), false, v6, 0},
		"port unreachable":        {edited(message4(v4, 4789, 1400), 21, 3), true, v4, 0},
		"about TCP":               {edited(message4(v4, 4789, 1400), 28+9, 6), true, v4, 0},
		"a header beyond the end": {edited(message4(v4, 4789, 1400), 28, 0x4f), true, v4, 0},
		"cut":                     {message4(v4, 4789, 1400)[:50], true, v4, 0},
		"nothing":                 {nil, true, v4, 0},
		"nothing, v6":             {nil, false, v6, 0},
	} {
		to, port, mtu, ok := tooBig(c.in, c.v4)
		if ok != (c.mtu > 0) || ok && (to != c.to || port != 4789 || mtu != c.mtu) {
			t.Errorf("%s: %v %d %d %v", name, to, port, mtu, ok)
		}
	}
}

func FuzzTooBig(f *testing.F) {
	f.Add(message4(netip.MustParseAddr("192.0.2.2"), 4789, 1400), true)
	f.Add(message6(netip.MustParseAddr("2001:db8::2"), 4789, 1400), false)
	f.Fuzz(func(t *testing.T, b []byte, v4 bool) {
		if to, _, mtu, ok := tooBig(b, v4); ok && (mtu < least4 || to.Is4() != v4) {
			t.Errorf("%v %d", to, mtu)
		}
	})
}

// TestLimit: what was heard counts for the path it was said of, and for a while.
func TestLimit(t *testing.T) {
	to, now := netip.MustParseAddr("192.0.2.2"), time.Now()
	e := &Ear{heard: map[netip.Addr]word{}}
	path := func(dev string, mtu int, at time.Duration) int {
		p := Path{Device: dev, MTU: mtu}
		e.limit(to, &p, now.Add(at))
		return p.MTU
	}
	hear := func() { e.heard[to] = word{mtu: 1400, until: now.Add(believed)} }
	for i, c := range []struct {
		hear bool
		dev  string
		mtu  int
		at   time.Duration
		want int
	}{
		{false, "eth0", 1500, 0, 1500}, {true, "eth0", 1500, 0, 1400}, {false, "eth0", 1500, time.Second, 1400},
		{false, "eth1", 1500, time.Second, 1500}, // by another device
		{false, "eth0", 1500, time.Second, 1500}, // and back: it would be said again
		{true, "eth0", 1500, 0, 1400}, {false, "eth0", 9000, 0, 9000},
		{true, "eth0", 1500, 0, 1400}, {false, "eth0", 1500, believed + time.Second, 1500}, {false, "eth0", 1500, 0, 1500},
		{true, "eth0", 1300, 0, 1300},
	} {
		if c.hear {
			hear()
		}
		if got := path(c.dev, c.mtu, c.at); got != c.want {
			t.Errorf("step %d: %d, want %d", i, got, c.want)
		}
	}
}
