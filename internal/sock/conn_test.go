package sock_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/internal/sock"
)

// TestNeverWaits sends to neighbours that do not exist until the socket's buffer is full: that is an error, not a wait.
func TestNeverWaits(t *testing.T) {
	near, far := nettest.New(t), nettest.New(t)
	local := netip.MustParsePrefix("192.0.2.1/24")
	if err := nettest.Join(nettest.End{NS: near, Dev: "eth0", Addrs: []netip.Prefix{local}}, nettest.End{NS: far, Dev: "eth0"}, 1500); err != nil {
		t.Fatal(err)
	}
	at := netip.AddrPortFrom(local.Addr(), 8473)
	var s *sock.Conn
	var err error
	near.Do(func() {
		var open *sock.Socket
		if open, err = sock.Listen(at, false); err == nil {
			s, err = open.Conn()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Crowded() {
		t.Error("a new socket is crowded")
	}
	for i := 0; ; i++ {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + i%200)}), 8473)
		_, err := s.WriteToUDPAddrPort(make([]byte, 64), to)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || i > 1e6 {
			t.Fatalf("after %d datagrams: %v", i, err)
		}
	}
	if !s.Crowded() {
		t.Error("a full socket is not crowded")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.WriteToUDPAddrPort(make([]byte, 64), at); err == nil {
		t.Error("a closed socket sends")
	}
	if n := s.Overflow(); n != 0 {
		t.Errorf("%d datagrams dropped at a socket that nothing was sent to", n)
	}
}
