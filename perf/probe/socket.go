package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tick bounds every blocking system call on a data socket, so that a stop is seen without
	// closing descriptors under a thread that uses them.
	tick = 100 * time.Millisecond

	// udpBuffer is the socket buffer asked for, in bytes. The kernel doubles it and charges about 768
	// bytes for a small packet: some 10,000 packets, a scheduling hiccup at any rate seen here, yet
	// too few to hide a receiver that is too slow from a trial.
	udpBuffer = 4 << 20
)

// socket is a blocking descriptor outside Go's poller: a system call on it sleeps in the kernel
// on the caller's own thread, as iperf3's and sockperf's do.
type socket int

// detach takes the socket out of a connection or listener and closes that.
func detach(c interface {
	syscall.Conn
	Close() error
}) (socket, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(s uintptr) {
		fd, dupErr = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	if dupErr != nil {
		return -1, fmt.Errorf("duplicate socket: %w", dupErr)
	}
	s := socket(fd)
	if err := s.prepare(); err != nil {
		s.close()
		return -1, err
	}
	return s, nil
}

func (s socket) prepare() error {
	if err := unix.SetNonblock(int(s), false); err != nil {
		return fmt.Errorf("make socket blocking: %w", err)
	}
	tv := unix.NsecToTimeval(tick.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(int(s), unix.SOL_SOCKET, opt, &tv); err != nil {
			return fmt.Errorf("set socket timeout: %w", err)
		}
	}
	return nil
}

func (s socket) close() { unix.Close(int(s)) }

// again says whether a system call should be repeated after looking at the stop flag.
func again(err error) bool { return err == unix.EAGAIN || err == unix.EINTR || err == unix.EINPROGRESS }

// readFull fills buf; stopped is true when stop was set first.
func (s socket) readFull(buf []byte, stop *atomic.Bool) (stopped bool, err error) {
	for len(buf) > 0 {
		if stop.Load() {
			return true, nil
		}
		n, err := unix.Read(int(s), buf)
		switch {
		case err != nil && again(err):
		case err != nil:
			return false, err
		case n == 0:
			return false, errClosed
		default:
			buf = buf[n:]
		}
	}
	return false, nil
}

// writeFull writes all of buf; stopped is true when stop was set first.
func (s socket) writeFull(buf []byte, stop *atomic.Bool) (stopped bool, err error) {
	for len(buf) > 0 {
		if stop.Load() {
			return true, nil
		}
		n, err := unix.Write(int(s), buf)
		switch {
		case err != nil && again(err):
		case err != nil:
			return false, err
		default:
			buf = buf[n:]
		}
	}
	return false, nil
}

var errClosed = errors.New("the peer closed the connection")

// tcpOptions sets what both ends of a TCP test want before connect or listen.
func tcpOptions(congestion string) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
				return
			}
			if congestion == HostCongestion {
				return
			}
			switch err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, congestion); {
			case errors.Is(err, unix.ENOENT):
				err = fmt.Errorf("TCP congestion control %q: %w: choose one of net.ipv4.tcp_available_congestion_control", congestion, err)
			case errors.Is(err, unix.EPERM):
				err = fmt.Errorf("TCP congestion control %q: %w: without CAP_NET_ADMIN choose one of net.ipv4.tcp_allowed_congestion_control, or %q for what the host uses", congestion, err, HostCongestion)
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}
}

func dialTCP(ctx context.Context, s Spec, to netip.AddrPort) (socket, error) {
	d := s.dialer("tcp")
	d.Control, d.KeepAlive = tcpOptions(s.Congestion), -1
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return -1, err
	}
	return detach(c.(*net.TCPConn))
}

// listenTCP listens at an address; accepted sockets inherit the congestion control.
func listenTCP(at netip.AddrPort, congestion string) (*net.TCPListener, error) {
	lc := net.ListenConfig{Control: tcpOptions(congestion), KeepAlive: -1}
	lc.SetMultipathTCP(false) // measured is TCP
	l, err := lc.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// udpOptions asks for large buffers and forbids fragments: a packet that is too large is an error
// here and not two packets on the wire.
func udpOptions(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = setUDPOptions(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

func setUDPOptions(fd int) error {
	for force, plain := range map[int]int{
		unix.SO_RCVBUFFORCE: unix.SO_RCVBUF,
		unix.SO_SNDBUFFORCE: unix.SO_SNDBUF,
	} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, udpBuffer) == nil {
			continue
		}
		// Without CAP_NET_ADMIN: as much as net.core.[rw]mem_max allows.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, udpBuffer); err != nil {
			return fmt.Errorf("set UDP socket buffer: %w", err)
		}
	}
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("read socket domain: %w", err)
	}
	return fragmentation(fd, domain == unix.AF_INET, false)
}

// fragmentation says whether datagrams of a socket may become fragments.
func fragmentation(fd int, v4, allowed bool) error {
	level, option, value := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	if v4 {
		level, option = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER // the values are the same
	}
	if allowed {
		value = unix.IPV6_PMTUDISC_DONT
	}
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("allow or forbid fragments: %w", err)
	}
	return nil
}

func dialUDP(ctx context.Context, s Spec, to netip.AddrPort) (socket, error) {
	d := s.dialer("udp")
	d.Control = udpOptions
	c, err := d.DialContext(ctx, "udp", to.String())
	if err != nil {
		return -1, err
	}
	return detach(c.(*net.UDPConn))
}

func listenUDP(at netip.AddrPort) (socket, uint16, error) {
	lc := net.ListenConfig{Control: udpOptions}
	network := "udp6"
	if at.Addr().Is4() {
		network = "udp4"
	}
	c, err := lc.ListenPacket(context.Background(), network, at.String())
	if err != nil {
		return -1, 0, err
	}
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	s, err := detach(c.(*net.UDPConn))
	return s, port, err
}

// pathMTU is the largest IP packet the kernel would send on a connected socket, bytes.
func (s socket) pathMTU(to netip.Addr) (int, error) {
	if to.Unmap().Is4() {
		return unix.GetsockoptInt(int(s), unix.IPPROTO_IP, unix.IP_MTU)
	}
	return unix.GetsockoptInt(int(s), unix.IPPROTO_IPV6, unix.IPV6_MTU)
}

// overflow is how many packets the kernel dropped because this socket's buffer was full (or their
// checksum wrong): the counter that SO_RXQ_OVFL sends along with packets, read directly, so that
// drops after the last packet received are counted too. 32 bits, wrapping.
func (s socket) overflow() uint32 {
	var info [9]uint32 // sock_diag.h: SK_MEMINFO_VARS
	const drops = 8    // SK_MEMINFO_DROPS
	if err := getsockopt(s, unix.SOL_SOCKET, unix.SO_MEMINFO, info[:]); err != nil {
		return 0
	}
	return info[drops]
}

// queued says whether datagrams wait to be received.
func (s socket) queued() bool {
	n, err := unix.IoctlGetInt(int(s), unix.TIOCINQ) // SIOCINQ, udp(7)
	return err == nil && n > 0
}

func (s socket) congestion() string {
	name, err := unix.GetsockoptString(int(s), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if err != nil {
		return "unknown"
	}
	return strings.TrimRight(name, "\x00")
}

func (s socket) tcpInfo() (*unix.TCPInfo, error) {
	info, err := unix.GetsockoptTCPInfo(int(s), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return nil, fmt.Errorf("read TCP_INFO: %w", err)
	}
	return info, nil
}

// remote is whom a connected socket sends to.
func (s socket) remote() (netip.AddrPort, error) {
	to, err := unix.Getpeername(int(s))
	return addrPort(to), err
}
