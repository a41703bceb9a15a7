package underlay

import (
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/packet"
)

func TestNames(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1:4789":          "192.0.2.1:4789",
		"[2001:db8::1]:65535":     "[2001:db8::1]:65535",
		"[::ffff:192.0.2.1]:4660": "192.0.2.1:4660",
	} {
		var n name
		size := setName(&n, netip.MustParseAddrPort(text))
		if got := nameOf(&n); got != netip.MustParseAddrPort(want) {
			t.Errorf("%s became %v", text, got)
		}
		// The bytes are the kernel's: family in host order, port in network order.
		raw := (*[28]byte)(unsafe.Pointer(&n))
		if got := uint16(raw[2])<<8 | uint16(raw[3]); got != netip.MustParseAddrPort(text).Port() {
			t.Errorf("%s: port bytes % x", text, raw[2:4])
		}
		if v4 := netip.MustParseAddrPort(want).Addr().Is4(); (size == unix.SizeofSockaddrInet4) != v4 {
			t.Errorf("%s: length %d", text, size)
		}
	}
	if got := nameOf(&name{Family: unix.AF_UNIX}); got.IsValid() {
		t.Errorf("an address of no IP family became %v", got)
	}
}

// No datagram is larger than a slot and its overflow, so the kernel never says MSG_TRUNC here; a
// packet for which it does must not pass for whole.
func TestTruncatedMessageIsDropped(t *testing.T) {
	r, b := newReceiver(Config{Batch: true}), packet.NewBatch(1, 100)
	p := &b.Slots()[0]
	r.offer(0, p)
	r.msgs[0].moved, r.msgs[0].Flags = 100, unix.MSG_TRUNC
	r.accept(&inlet{}, b.Slots(), 0, 1)
	if p.Drop != packet.Truncated || p.Len() != 100 {
		t.Errorf("drop %v, %d bytes", p.Drop, p.Len())
	}
}
