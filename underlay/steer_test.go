package underlay

import (
	"net/netip"
	"testing"
	"time"

	"weft/internal/nettest"
	"weft/internal/sock"
	"weft/internal/steer"
	"weft/packet"
)

// TestSteer: packets of one lane come to one queue whatever port they were sent from, the rest to
// the handshakes' socket, and what arrives at the plain port to some queue.
func TestSteer(t *testing.T) {
	for _, local := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")} {
		t.Run(local.String(), func(t *testing.T) {
			ns := nettest.New(t)
			const queues = 2
			p := open(t, ns, Config{Local: []netip.Addr{local}, Port: 8473, PlainPort: 4789, Batch: true, Offload: true,
				Steer: &steer.Rule{Type: 4, Lane: 3}}, queues)
			handshakes := p.(packet.Handshakes).Handshakes()
			if len(handshakes) != 1 {
				t.Fatalf("%d sockets of handshakes", len(handshakes))
			}
			type seen struct {
				queue int
				first byte
				lane  byte
			}
			arrived := make(chan seen, 1024)
			for i, q := range p.Queues() {
				go func() {
					b := packet.NewBatch(16, 1500)
					for q.Recv(b) == nil {
						for k := range b.Packets() {
							data := b.Packets()[k].Bytes()
							arrived <- seen{i, data[0], data[3]}
						}
					}
				}()
			}
			for range 8 { // as many source ports
				from := peer(t, ns, local)
				for lane := range 4 {
					if _, err := from.WriteToUDPAddrPort([]byte{4, 0, 0, byte(lane), 0}, netip.AddrPortFrom(local, 8473)); err != nil {
						t.Fatal(err)
					}
					if got := <-arrived; got.queue != lane%queues || got.lane != byte(lane) || got.first != 4 {
						t.Fatalf("lane %d: %+v", lane, got)
					}
				}
				for _, first := range []byte{1, 2, 3, 5, 8, 0x45} {
					if _, err := from.WriteToUDPAddrPort([]byte{first, 0, 0, 1}, netip.AddrPortFrom(local, 8473)); err != nil {
						t.Fatal(err)
					}
					buf := make([]byte, 16)
					handshakes[0].(*sock.Conn).SetReadDeadline(time.Now().Add(patience))
					n, at, err := handshakes[0].ReadFromUDPAddrPort(buf)
					if err != nil || n != 4 || buf[0] != first || at.Port() != addrOf(from).Port() {
						t.Fatalf("first byte %d: %d bytes from %v, %v", first, n, at, err)
					}
				}
				if _, err := from.WriteToUDPAddrPort([]byte{8, 0, 0, 0}, netip.AddrPortFrom(local, 4789)); err != nil {
					t.Fatal(err)
				}
				if got := <-arrived; got.first != 8 {
					t.Fatalf("plain port: %+v", got)
				}
			}
			// An answer from the handshakes' socket leaves from the tunnel's own port.
			to := peer(t, ns, local)
			if _, err := handshakes[0].WriteToUDPAddrPort([]byte{2}, addrOf(to)); err != nil {
				t.Fatal(err)
			}
			to.SetReadDeadline(time.Now().Add(patience))
			if _, at, err := to.ReadFromUDPAddrPort(make([]byte, 16)); err != nil || at.Port() != 8473 {
				t.Errorf("from %v, %v", at, err)
			}
			// Somebody else cannot have the port.
			if other, err := listen(ns, Config{Local: []netip.Addr{local}, Port: 8473}, 1); err == nil {
				other.Close()
				t.Error("a second port shares the first one's")
			}
		})
	}
}
