package xdp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/sock"
)

// TestRefused: an error names its destination. Where junk fills the buffer and the kernel has dropped the error, that is known, too.
func TestRefused(t *testing.T) {
	u := newUnderlay(t)
	local := addrsA[0]
	u.a.Do(func() {
		s, err := openSources([]netip.Addr{local})
		if err != nil {
			t.Error(err)
			return
		}
		defer s.close()
		c := s.sockets[0]
		refuse := func() (to map[netip.Addr]bool, lost bool) {
			if err := unix.Sendto(c.FD(), []byte("x"), 0, sock.Sockaddr(netip.AddrPortFrom(local, 9))); err != nil { // where nobody listens
				t.Error(err)
			}
			to = map[netip.Addr]bool{}
			return to, refused(c.FD(), to)
		}
		if to, lost := refuse(); lost || !to[local] {
			t.Errorf("refused by %v, lost %v", to, lost)
		}
		for range 64 {
			_ = unix.Sendto(c.FD(), make([]byte, 1000), 0, sock.Sockaddr(c.Bound()))
		}
		if to, lost := refuse(); !lost || len(to) > 0 {
			t.Errorf("with a full buffer: refused by %v, lost %v", to, lost)
		}
		if to, lost := map[netip.Addr]bool{}, false; refused(c.FD(), to) != lost || len(to) > 0 {
			t.Errorf("and once more: %v", to)
		}
	})
}
