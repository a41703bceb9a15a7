package steer_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/internal/sock"
	"weft/internal/steer"
)

var rule = steer.Rule{Type: 4, Lane: 3}

// TestEveryFirstByteAndLane sends datagrams of every kind and looks which socket gets them.
func TestEveryFirstByteAndLane(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		for _, lanes := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%s/%d", local, lanes), func(t *testing.T) {
				ns := nettest.New(t)
				var sockets []*sock.Socket
				var handshakes *sock.Conn
				var from *net.UDPConn
				var err error
				at := netip.AddrPortFrom(netip.MustParseAddr(local), 8473)
				ns.Do(func() {
					for i := range lanes {
						var s *sock.Socket
						if s, err = listen(at, i); err != nil {
							return
						}
						sockets = append(sockets, s)
						t.Cleanup(func() { s.Close() })
					}
					if handshakes, err = rule.Handshakes(at, lanes); err != nil {
						return
					}
					from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { handshakes.Close(); from.Close() })
				for first := range 256 {
					for lane := range 8 {
						want := lanes // the handshakes'
						if first == int(rule.Type) {
							want = lane % lanes
						}
						msg := []byte{byte(first), 0, 0, byte(lane), 0, 0, 0, 0}
						if _, err := from.Write(msg); err != nil {
							t.Fatal(err)
						}
						if got := receiver(t, sockets, handshakes); got != want {
							t.Fatalf("first byte %d, lane %d: socket %d got it, want %d", first, lane, got, want)
						}
					}
				}
			})
		}
	}
}

// TestShort: the program itself on datagrams too short to say.
func TestShort(t *testing.T) {
	vm, err := bpf.NewVM(rule.Program(3))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		data []byte
		want int
	}{{nil, 0}, {[]byte{4}, 0}, {[]byte{4, 0, 0}, 0}, {[]byte{1}, 3}, {[]byte{4, 0, 0, 255}, 0}, {[]byte{4, 0, 0, 254}, 2}} {
		if got, err := vm.Run(c.data); err != nil || got != c.want {
			t.Errorf("%v: %d, %v, want %d", c.data, got, err, c.want)
		}
	}
}

// listen binds a lane's socket.
func listen(at netip.AddrPort, i int) (*sock.Socket, error) {
	s, err := sock.Listen(at, i > 0)
	if err == nil {
		err = s.Share()
	}
	return s, err
}

// receiver waits until a socket has a datagram, takes it and says which socket it was.
func receiver(t *testing.T, lanes []*sock.Socket, handshakes *sock.Conn) (got int) {
	t.Helper()
	buf := make([]byte, 64)
	nettest.Eventually(t, nettest.Patience, func() error {
		for i, s := range lanes {
			if _, _, err := unix.Recvfrom(s.FD(), buf, unix.MSG_DONTWAIT); err == nil {
				got = i
				return nil
			}
		}
		handshakes.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := handshakes.Read(buf); err == nil {
			got = len(lanes)
			return nil
		}
		return fmt.Errorf("no socket has the datagram")
	})
	return got
}
