package underlay

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"weft/internal/sockmem"
)

const (
	// bufferSize is what a socket may hold, in bytes of packet data; the kernel doubles it for its
	// own bookkeeping. At 10 Gbit/s it is 6 ms: what a lane may be held up by the scheduler.
	bufferSize = 8 << 20

	// Source ports: RFC 7348 §5 recommends the dynamic range of RFC 6335.
	firstSourcePort = 49152
	lastSourcePort  = 65535
	// bindTries bounds the search for a free source port; of 16384 ports most are free.
	bindTries = 64
)

// socket is one of the port's descriptors and what the kernel has dropped at it.
type socket struct {
	fd    int
	drops sockmem.Drops
}

// listen opens the receiving socket of queue i on at; shared says whether there will be others.
func (p *port) listen(at netip.AddrPort, i int, shared bool) (int, error) {
	fd, err := p.open(at.Addr())
	if err != nil {
		return 0, err
	}
	p.setBuffer(fd, "receive-buffer", unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, "net.core.rmem_max")
	// The first socket binds without SO_REUSEPORT and shares the port only afterwards: so another
	// process that listens here, with SO_REUSEPORT or not, is an error and not a silent sharing.
	if i > 0 {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"); err != nil {
			return 0, err
		}
	}
	if err := unix.Bind(fd, sockaddrOf(at)); err != nil {
		return 0, fmt.Errorf("underlay: bind UDP %v: %w%s", at, err, remedy(err))
	}
	if i == 0 && shared {
		if err := setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"); err != nil {
			return 0, err
		}
	}
	return fd, nil
}

// remedy says what to do about an error of bind, as the end of a sentence.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return ": another weft or a kernel vxlan device has this UDP port in this network namespace" +
			" (see `ss -lunp` and `ip -d link show type vxlan`): stop it or choose another port"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return ": no interface of this network namespace has the address, or duplicate address detection has not finished"
	case errors.Is(err, unix.EACCES):
		return ": run as root or grant CAP_NET_BIND_SERVICE"
	}
	return ""
}

// sendSocket opens a sending socket, bound to local and a free source port, and returns that too. What arrives there is
// nobody's; the kernel drops it beyond a minimal buffer.
func (p *port) sendSocket(local netip.Addr) (fd int, port uint16, err error) {
	if fd, err = p.open(local); err != nil {
		return 0, 0, err
	}
	p.setBuffer(fd, "send-buffer", unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, "net.core.wmem_max")
	if err := setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0, "SO_RCVBUF"); err != nil {
		return 0, 0, err
	}
	for range bindTries {
		port = uint16(firstSourcePort + rand.IntN(lastSourcePort-firstSourcePort+1))
		err = unix.Bind(fd, sockaddrOf(netip.AddrPortFrom(local, port)))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if errors.Is(err, unix.EADDRINUSE) {
		return 0, 0, fmt.Errorf("underlay: bind a source port on %v: %w: %d random ports of %d–%d were all taken",
			local, err, bindTries, firstSourcePort, lastSourcePort)
	} else if err != nil {
		return 0, 0, fmt.Errorf("underlay: bind a source port on %v: %w%s", local, err, remedy(err))
	}
	return fd, port, nil
}

// open makes a non-blocking UDP socket of local's family that the port owns from here on.
func (p *port) open(local netip.Addr) (int, error) {
	family, level, discover, do := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if local.Is6() {
		family, level, discover, do = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0, fmt.Errorf("underlay: open a UDP socket for %v: %w", local, err)
	}
	p.sockets = append(p.sockets, socket{fd: fd})
	if local.Is6() {
		if err := setInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"); err != nil {
			return 0, err
		}
	}
	return fd, setInt(fd, level, discover, do, "IP_MTU_DISCOVER")
}

// setBuffer makes a socket's buffer large, beyond the administrator's limit where we may.
func (p *port) setBuffer(fd int, feature string, force, ask int, limit string) {
	p.features[feature] = "on"
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, bufferSize)
	if err == nil {
		return
	}
	reason := err
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, ask, bufferSize); err != nil {
		reason = err
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, ask)
	if err != nil {
		reason = err
	}
	if got/2 < bufferSize { // the kernel reports its doubled figure
		p.features[feature] = fmt.Sprintf("%d bytes instead of %d: %v: raise %s or grant CAP_NET_ADMIN",
			got/2, bufferSize, reason, limit)
	}
}

func setInt(fd, level, option, value int, name string) error {
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		return fmt.Errorf("underlay: set %s: %w", name, err)
	}
	return nil
}

func sockaddrOf(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// attach puts a socket filter on fd (SO_ATTACH_FILTER, socket(7)).
func attach(fd int, filter []bpf.RawInstruction) error {
	if len(filter) == 0 {
		return nil
	}
	prog := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	if err != nil {
		return fmt.Errorf("underlay: attach the socket filter: %w", err)
	}
	return nil
}
