package hostnet

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMarkFlows: the bit comes to the flows that are to have it, by where they end up behind DNAT, and goes from the others; other bits stay.
func TestMarkFlows(t *testing.T) {
	b := newBench(t)
	h, _ := b.open("test")
	if h.ct == nil {
		t.Fatal("there is no connection tracking")
	}
	const bit, other = 1 << 29, 0x40
	tuple := func(src, dst string, a, b uint16, p uint8) netlink.IPTuple {
		return netlink.IPTuple{SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(), SrcPort: a, DstPort: b, Protocol: p}
	}
	flow := func(src, dst, end string, port uint16, p uint8) {
		f := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 100, Mark: other, Forward: tuple(src, dst, 4000, port, p), Reverse: tuple(end, src, port+1000, 4000, p)}
		if netip.MustParseAddr(src).Is6() {
			f.FamilyType = unix.AF_INET6
		}
		if err := h.ct.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.FamilyType), f); err != nil {
			t.Fatal(err)
		}
	}
	flow("10.244.1.2", "10.96.0.1", "10.244.2.2", 80, unix.IPPROTO_UDP) // a service
	flow("10.244.1.2", "10.244.2.2", "10.244.2.2", 81, unix.IPPROTO_UDP)
	flow("fd00::2", "fd00::3", "fd00::3", 82, unix.IPPROTO_UDP)
	marked := func() map[uint16]uint32 {
		t.Helper()
		all := map[uint16]uint32{}
		for _, fam := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			list, err := h.ct.ConntrackTableList(netlink.ConntrackTable, fam)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range list {
				all[f.Forward.DstPort] = f.Mark
			}
		}
		return all
	}
	for _, c := range []struct {
		to    Flow // that is to have the bit; its source and protocol are those of all
		given int
		taken int
		want  map[uint16]uint32
	}{
		{Flow{Dst: netip.MustParseAddr("10.244.2.2"), Port: 1080}, 1, 0, map[uint16]uint32{80: other | bit, 81: other, 82: other}},
		{Flow{Dst: netip.MustParseAddr("10.244.2.2"), Port: 1080}, 0, 0, map[uint16]uint32{80: other | bit, 81: other, 82: other}},
		{Flow{Dst: netip.MustParseAddr("fd00::3"), Port: 1082}, 1, 1, map[uint16]uint32{80: other, 81: other, 82: other | bit}},
		{Flow{}, 0, 1, map[uint16]uint32{80: other, 81: other, 82: other}},
	} {
		given, taken, err := h.MarkFlows(bit, func(f Flow) bool { return f.Dst == c.to.Dst && f.Port == c.to.Port && f.Protocol == unix.IPPROTO_UDP })
		if err != nil || given != c.given || taken != c.taken {
			t.Errorf("%+v: given to %d and taken from %d, want %d and %d, %v", c.to, given, taken, c.given, c.taken, err)
		}
		for port, mark := range marked() {
			if mark != c.want[port] {
				t.Errorf("%+v: flow to port %d has mark %#x, want %#x", c.to, port, mark, c.want[port])
			}
		}
	}
}
