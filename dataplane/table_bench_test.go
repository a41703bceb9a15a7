package dataplane

import (
	"net/netip"
	"testing"

	"weft/packet"
)

// BenchmarkTableChange is what it costs that one node of 5,000 comes and goes.
func BenchmarkTableChange(b *testing.B) {
	node := func(i int) (*packet.Hop, netip.Addr, []netip.Prefix) {
		at := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
		h := &packet.Hop{Peer: packet.Peer{ID: uint32(i), MAC: [6]byte{2, 0, 0, 0, byte(i >> 8), byte(i)}}, Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(at, 1), 1450)}
		return h, at, []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 2, 0x44, byte(0x10 + i>>8), byte(i)}), 64)}
	}
	join := func(t *Table, i int) {
		h, at, prefixes := node(i)
		t.InsertPeer(at, h)
		for _, p := range prefixes {
			t.Insert(p, h)
		}
	}
	const others = 5000
	t := NewTable()
	for i := range others {
		join(t, i)
	}
	_, at, prefixes := node(others)
	b.ReportAllocs()
	for b.Loop() {
		t = t.Clone()
		join(t, others)
		t = t.Clone()
		t.RemovePeer(at)
		for _, p := range prefixes {
			t.Remove(p)
		}
	}
}
