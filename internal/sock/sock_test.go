package sock_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/internal/sock"
)

// in calls fn in a namespace with both loopback addresses and a small MTU, for each.
func in(t *testing.T, fn func(t *testing.T, local netip.Addr)) {
	for _, local := range []string{"127.0.0.1", "::1"} {
		t.Run(local, func(t *testing.T) {
			ns := nettest.New(t)
			ns.MustRun(t, "ip", "link", "set", "lo", "mtu", "1500")
			ns.Do(func() { fn(t, netip.MustParseAddr(local)) })
		})
	}
}

func must(t *testing.T, s *sock.Socket, err error) *sock.Socket {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// receive waits for a datagram.
func receive(fd int) (string, error) {
	buf := make([]byte, 2000)
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 5000); n == 0 || err != nil {
		return "", fmt.Errorf("nothing came: %w", err)
	}
	n, _, err := unix.Recvfrom(fd, buf, 0)
	return string(buf[:max(n, 0)]), err
}

// TestNeverFragments: what does not fit is refused, and the option that says so is the same everywhere.
func TestNeverFragments(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		level, option, want, header := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, 28
		if local.Is6() {
			level, option, want, header = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, 48
		}
		to, err := sock.Listen(netip.AddrPortFrom(local, 4789), false)
		must(t, to, err)
		from, err := sock.Source(local)
		must(t, from, err)
		for _, s := range []*sock.Socket{to, from} {
			if got, err := unix.GetsockoptInt(s.FD(), level, option); err != nil || got != want {
				t.Errorf("path MTU discovery is %d, %v, want %d", got, err, want)
			}
			if err := unix.Sendto(s.FD(), make([]byte, 1500-header), 0, sock.Sockaddr(to.Bound())); err != nil {
				t.Errorf("a datagram that fits: %v", err)
			}
			if err := unix.Sendto(s.FD(), make([]byte, 1501-header), 0, sock.Sockaddr(to.Bound())); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("one that does not: %v", err)
			}
		}
	})
}

// TestAlone: an endpoint is one socket's until that shares it.
func TestAlone(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		at := netip.AddrPortFrom(local, 4789)
		first, err := sock.Listen(at, false)
		must(t, first, err)
		for _, join := range []bool{false, true} {
			if s, err := sock.Listen(at, join); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "set network.port") {
				t.Errorf("a second one, join %v: %v, %v", join, s, err)
			}
		}
		if err := first.Share(); err != nil {
			t.Fatal(err)
		}
		second, err := sock.Listen(at, true)
		must(t, second, err)
		if _, err := sock.Listen(at, false); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a third one that does not share: %v", err)
		}
		nobody := netip.MustParseAddr("192.0.2.77")
		if _, err := sock.Listen(netip.AddrPortFrom(nobody, 4789), false); !errors.Is(err, unix.EADDRNOTAVAIL) || !strings.Contains(err.Error(), "no interface") {
			t.Errorf("an address that nobody has: %v", err)
		}
		if p := first.Bound(); p != at {
			t.Errorf("bound to %v", p)
		}
		source, err := sock.Source(local)
		must(t, source, err)
		if p := source.Bound().Port(); p < sock.FirstSourcePort {
			t.Errorf("a source port %d", p)
		}
	})
}

// TestFilterAndSteer: programs see what they are said to see.
func TestFilterAndSteer(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		at := netip.AddrPortFrom(local, 4789)
		one, err := sock.Listen(at, false)
		must(t, one, err)
		if err := one.Share(); err != nil {
			t.Fatal(err)
		}
		two, err := sock.Listen(at, true)
		must(t, two, err)
		steer, err := bpf.Assemble([]bpf.Instruction{bpf.LoadAbsolute{Off: 0, Size: 1}, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: 2}, bpf.RetA{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := two.Steer(steer); err != nil {
			t.Fatal(err)
		}
		filter, err := bpf.Assemble([]bpf.Instruction{bpf.LoadAbsolute{Off: 9, Size: 1}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 'x', SkipFalse: 1},
			bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 1 << 16}})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(one.Filter(filter), one.Filter(nil)); err != nil {
			t.Fatal(err)
		}
		from, err := sock.Source(local)
		must(t, from, err)
		for _, text := range []string{"\x00x", "\x00y", "\x01x"} {
			if err := unix.Sendto(from.FD(), []byte(text), 0, sock.Sockaddr(at)); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := receive(one.FD()); got != "\x00y" {
			t.Errorf("the first got %q, %v", got, err)
		}
		if got, err := receive(two.FD()); got != "\x01x" {
			t.Errorf("the second got %q, %v", got, err)
		}
	})
}

// TestHandOver: a descriptor that was handed over goes on receiving without the one it was made from.
func TestHandOver(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		at := netip.AddrPortFrom(local, 4789)
		s, err := sock.Listen(at, false)
		must(t, s, err)
		file, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		from, err := sock.Source(local)
		must(t, from, err)
		if err := unix.Sendto(from.FD(), []byte("hello"), 0, sock.Sockaddr(at)); err != nil {
			t.Fatal(err)
		}
		if got, err := receive(int(file.Fd())); got != "hello" {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := sock.Listen(at, false); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("the endpoint was free in between: %v", err)
		}
	})
}

// TestConn: a socket in Go's poller is still the same.
func TestConn(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		at := netip.AddrPortFrom(local, 4789)
		s, err := sock.Listen(at, false)
		must(t, s, err)
		c, err := s.Conn()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		from, err := sock.Source(local)
		must(t, from, err)
		if err := unix.Sendto(from.FD(), []byte("hello"), 0, sock.Sockaddr(at)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, who, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "hello" || netip.AddrPortFrom(who.Addr().Unmap(), who.Port()) != from.Bound() {
			t.Errorf("%q from %v, %v", buf[:n], who, err)
		}
		if _, err := c.WriteToUDPAddrPort(make([]byte, 1500), from.Bound()); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("what does not fit: %v", err)
		}
	})
}

// TestBuffers: as root, they are as large as wanted.
func TestBuffers(t *testing.T) {
	in(t, func(t *testing.T, local netip.Addr) {
		s, err := sock.Listen(netip.AddrPortFrom(local, 4789), false)
		must(t, s, err)
		for option, enlarge := range map[int]func() error{unix.SO_RCVBUF: s.ReceiveBuffer, unix.SO_SNDBUF: s.SendBuffer} {
			if err := enlarge(); err != nil {
				t.Error(err)
			}
			if got, err := unix.GetsockoptInt(s.FD(), unix.SOL_SOCKET, option); err != nil || got < 2*sock.Buffer {
				t.Errorf("%d bytes, %v", got, err)
			}
		}
		if n := s.Overflow(); n != 0 {
			t.Errorf("%d datagrams dropped at a new socket", n)
		}
	})
}
