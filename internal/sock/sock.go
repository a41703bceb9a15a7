// Package sock opens the UDP sockets of tunnels. Every one is non-blocking, ends with exec, speaks one IP version, and sends in one
// piece or not at all: IPv4 has DF set, and what does not fit the device is an error (EMSGSIZE; RFC 7348 §4.3: VTEPs must not fragment). What
// somebody has told the kernel of the path's MTU does not count: anybody may, who guesses a port; what pods send is made small by their routes. Sockets belong to the network namespace of the calling thread.
package sock

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"weft/internal/holder"
)

// Socket is a bound UDP socket. Methods are safe for concurrent use; who reads and writes by FD sees to it that nobody closes meanwhile.
type Socket struct {
	fd    int
	bound netip.AddrPort

	mu     sync.Mutex
	closed bool
	sends  bool // it is in senders
	drops  drops
}

// senders are the addresses and ports that tunnel packets of this process leave from, and how many sockets have each: two may, in two
// network namespaces.
var senders = struct {
	sync.Mutex
	at map[netip.AddrPort]int
}{at: map[netip.AddrPort]int{}}

// Sends says whether a socket that packets leave by is bound to an address and port. What somebody says of a packet from elsewhere is not
// about one of ours.
func Sends(from netip.AddrPort) bool {
	senders.Lock()
	defer senders.Unlock()
	return senders.at[from] > 0
}

// Sending takes note that packets leave by the socket, for Sends. By those of Source they do.
func (s *Socket) Sending() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.sends {
		return
	}
	s.sends = true
	senders.Lock()
	defer senders.Unlock()
	senders.at[s.bound]++
}

// Listen opens a socket that receives at an address and port. It is alone there: what others have bound is an error, and what they
// would bind is one for them, until Share. With join it is one more beside those that were shared.
func Listen(at netip.AddrPort, join bool) (*Socket, error) {
	s, err := open(at.Addr())
	if err != nil {
		return nil, err
	}
	if join {
		err = s.Share()
	}
	if err == nil {
		err = s.bind(at)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Source ports: RFC 7348 §5 recommends the dynamic range of RFC 6335.
const (
	FirstSourcePort = 49152
	LastSourcePort  = 65535
	// bindTries bounds the search for a free source port; of 16384 ports most are free.
	bindTries = 64
)

// Source opens a socket to send from, bound to a free port of the range. What arrives there is nobody's; the kernel drops it
// beyond a minimal buffer.
func Source(local netip.Addr) (*Socket, error) {
	s, err := open(local)
	if err != nil {
		return nil, err
	}
	if err = s.Set(unix.SOL_SOCKET, unix.SO_RCVBUF, 0, "SO_RCVBUF"); err == nil {
		for range bindTries {
			port := uint16(FirstSourcePort + rand.IntN(LastSourcePort-FirstSourcePort+1))
			if err = s.bind(netip.AddrPortFrom(local, port)); !errors.Is(err, unix.EADDRINUSE) {
				break
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.Sending()
	return s, nil
}

func open(local netip.Addr) (*Socket, error) {
	family, level, discover, probe := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if local.Is6() {
		family, level, discover, probe = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket for %v: %w", local, err)
	}
	s := &Socket{fd: fd}
	err = s.Set(level, discover, probe, "IP_MTU_DISCOVER")
	if local.Is6() {
		err = errors.Join(err, s.Set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"))
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Socket) bind(at netip.AddrPort) error {
	if err := unix.Bind(s.fd, Sockaddr(at)); err != nil {
		return fmt.Errorf("bind UDP %v: %w%s", at, err, remedy(err, at.Port()))
	}
	s.bound = at
	return nil
}

// remedy says what to do about an error of bind, as the end of a sentence.
func remedy(err error, port uint16) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		by := "somebody" // who has gone meanwhile
		if list, err := holder.UDP(port); err == nil && len(list) > 0 {
			by = strings.Join(list, " and ")
		}
		return fmt.Sprintf(": %s has UDP port %d in this network namespace: stop that, or set network.port (encryption.port where traffic is sealed) on all nodes", by, port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return ": no interface of this network namespace has the address, or duplicate address detection has not finished"
	case errors.Is(err, unix.EACCES):
		return ": run as root or grant CAP_NET_BIND_SERVICE"
	}
	return ""
}

// Sockaddr is a socket address as package unix has it.
func Sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// FD is the descriptor; the Socket keeps owning it.
func (s *Socket) FD() int { return s.fd }

// Bound is where it is bound.
func (s *Socket) Bound() netip.AddrPort { return s.bound }

// Set sets an option; its name is for the error.
func (s *Socket) Set(level, option, value int, name string) error {
	if err := unix.SetsockoptInt(s.fd, level, option, value); err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// Share lets sockets that join be bound to the same address and port from now on.
func (s *Socket) Share() error { return s.Set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT") }

// Filter refuses datagrams for which a program returns 0; it sees them from the UDP header on (SO_ATTACH_FILTER, socket(7)). An empty
// program refuses none.
func (s *Socket) Filter(program []bpf.RawInstruction) error {
	return s.attach(program, unix.SO_ATTACH_FILTER, "SO_ATTACH_FILTER")
}

// Steer has a program return the number of the socket to deliver to, in the order in which those that share the port were bound. It
// sees the datagram's payload (SO_ATTACH_REUSEPORT_CBPF, socket(7)).
func (s *Socket) Steer(program []bpf.RawInstruction) error {
	return s.attach(program, unix.SO_ATTACH_REUSEPORT_CBPF, "SO_ATTACH_REUSEPORT_CBPF")
}

func (s *Socket) attach(program []bpf.RawInstruction, option int, name string) error {
	if len(program) == 0 {
		return nil
	}
	filter := make([]unix.SockFilter, len(program))
	for i, f := range program {
		filter[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_SOCKET, option, &prog); err != nil {
		return fmt.Errorf("attach a program to UDP %v (%s): %w: Linux 4.5 or newer is needed", s.bound, name, err)
	}
	return nil
}

// File is a second descriptor of the same socket, for somebody else to own: another process, say.
func (s *Socket) File() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of UDP %v: %w", s.bound, err)
	}
	return os.NewFile(uintptr(fd), "udp"), nil
}

// Conn hands the socket over to Go's network poller. The Socket is closed by it, also on an error.
func (s *Socket) Conn() (*Conn, error) {
	file, err := s.File()
	if err = errors.Join(err, s.Close()); err != nil {
		return nil, err
	}
	defer file.Close() // the connection has a descriptor of its own
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, err
	}
	return &Conn{UDPConn: c.(*net.UDPConn)}, nil
}

// Overflow is how many datagrams found the socket's buffer full, or were unreadable; after Close, how many had.
func (s *Socket) Overflow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.drops.sample(s.fd)
	}
	return s.drops.total
}

// Close closes the socket. Only the first call does.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.sends {
		senders.Lock()
		if senders.at[s.bound]--; senders.at[s.bound] == 0 {
			delete(senders.at, s.bound)
		}
		senders.Unlock()
	}
	s.drops.sample(s.fd)
	if err := unix.Close(s.fd); err != nil {
		return fmt.Errorf("close UDP %v: %w", s.bound, err)
	}
	return nil
}
