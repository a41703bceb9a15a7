package probe

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSuperPackets: the kernel cuts super-packets into the datagrams they were made of, none lost, none twice, of whatever
// size and family.
func TestSuperPackets(t *testing.T) {
	h := newHosts(t, 1500)
	for _, c := range []struct{ size, family, gro float64 }{
		{64, 4, 0}, {64, 6, 0}, {1360, 4, 0}, {1500, 6, 0}, {64, 4, 1}, {64, 6, 1}, {1360, 4, 1}, {1500, 6, 1},
	} {
		target := h.v4
		if c.family == 6 {
			target = h.v6
		}
		r, err := h.run(Spec{Test: "udp-stream", Target: target, Duration: 300 * time.Millisecond,
			Params: Params{"size": c.size, "rate": 2e7, "gso": 1, "gro": c.gro}})
		if err != nil {
			t.Fatal(err)
		}
		if lost := r.Generated - r.Delivered - r.KernelDrops[socketOverflow]; lost != 0 || r.Delivered == 0 || r.Duplicates+r.Reordered > 0 || len(r.SendErrors) > 0 {
			t.Errorf("%+v: %+v", c, r)
		}
		if want := r.Delivered * uint64(r.Payload); r.Bytes != want {
			t.Errorf("%+v: %d bytes in %d datagrams of %d", c, r.Bytes, r.Delivered, r.Payload)
		}
	}
}

// TestSegmentBounds: a super-packet is no longer than a datagram may be.
func TestSegmentBounds(t *testing.T) {
	h := newHosts(t, 9000)
	r, err := h.run(Spec{Test: "udp-stream", Duration: 200 * time.Millisecond, Params: Params{"size": 9000, "gso": 1}})
	if err != nil || r.Delivered == 0 || len(r.SendErrors) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestJoined: a super-packet that arrives whole is one message and all of its datagrams, the shorter one at its end too.
func TestJoined(t *testing.T) {
	near, port, err := listenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer near.close()
	b, err := near.joined()
	if err != nil {
		t.Fatal(err)
	}
	far, err := dialUDP(t.Context(), Spec{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	if err != nil {
		t.Fatal(err)
	}
	defer far.close()
	if err := unix.SetsockoptInt(int(far), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 40); err != nil {
		t.Fatal(err)
	}
	const datagrams = 10
	p := newPattern(7)
	var super []byte
	for seq := range uint64(datagrams) {
		data := make([]byte, 40)
		if seq == datagrams-1 {
			data = data[:32]
		}
		p.put(data, toServer, header{trial: 1, seq: seq})
		super = append(super, data...)
	}
	rx := &receiver{pattern: p}
	for range 2 { // the second time with memory used before
		if _, err := unix.Write(int(far), super); err != nil {
			t.Fatal(err)
		}
		n, errno := near.recv(b, 0)
		if errno != 0 || n != 1 {
			t.Fatalf("%d messages, %v", n, errno)
		}
		rx.count(b, n, time.Now())
	}
	if got := rx.total(); got.Packets != datagrams || got.Duplicates != datagrams || got.Bytes != datagrams*40-8 || got.Corrupt != 0 {
		t.Errorf("%+v", got)
	}
}
