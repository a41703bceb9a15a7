package xdp

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"weft/internal/sock"
	"weft/internal/steer"
	"weft/packet"
)

// TestSteer: only what is for lanes is taken past the kernel; the rest reaches the handshakes' socket, and
// the plain port has no rule.
func TestSteer(t *testing.T) {
	for i, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			u := newUnderlay(t)
			c := testConfig()
			c.Port, c.PlainPort, c.Steer = 8473, testPort, &steer.Rule{Type: 4, Lane: 3}
			out := openIn(t, u.a, OpenOutside, c)
			timer := time.AfterFunc(patience, func() { out.Close() })
			t.Cleanup(func() { timer.Stop() })
			handshakes := out.Handshakes()
			if len(handshakes) != len(addrsA) {
				t.Fatalf("%d sockets of handshakes", len(handshakes))
			}
			var far *net.UDPConn
			var err error
			u.b.Do(func() {
				far, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrsB[i], 0)))
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { far.Close() })
			sealed, plain := netip.AddrPortFrom(addrsA[i], 8473), netip.AddrPortFrom(addrsA[i], testPort)
			b := out.Queues()[0].(packet.Batcher).NewBatch(16)
			inLane := func(first byte, to netip.AddrPort) {
				t.Helper()
				if _, err := far.WriteToUDPAddrPort([]byte{first, 0, 0, 1, 0, 0, 0, 0}, to); err != nil {
					t.Fatal(err)
				}
				if err := out.Queues()[0].Recv(b); err != nil || b.Len() != 1 || b.Packets()[0].Bytes()[0] != first {
					t.Fatalf("to %v, first byte %d: %d packets, %v", to, first, b.Len(), err)
				}
			}
			for range 5 {
				inLane(4, sealed)
				inLane(8, plain)
				inLane(4, plain)
				for _, first := range []byte{1, 2, 3, 5, 8} {
					if _, err := far.WriteToUDPAddrPort([]byte{first, 0, 0, 1}, sealed); err != nil {
						t.Fatal(err)
					}
					buf := make([]byte, 16)
					handshakes[i].(*sock.Conn).SetReadDeadline(time.Now().Add(patience))
					if n, err := handshakes[i].(*sock.Conn).Read(buf); err != nil || n != 4 || buf[0] != first {
						t.Fatalf("handshakes' socket, first byte %d: %d bytes, %v", first, n, err)
					}
				}
			}
		})
	}
}
