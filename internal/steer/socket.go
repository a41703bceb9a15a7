package steer

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"weft/internal/sockmem"
	"weft/packet"
)

// Socket is the socket of one address for what is not for lanes. It implements packet.Conn.
type Socket struct {
	*net.UDPConn

	mu    sync.Mutex
	drops sockmem.Drops
}

// WriteToUDPAddrPort sends b, or fails: it never waits for room in the socket's buffer. That fills with datagrams for neighbours that do
// not answer, which are anybody's to name.
func (s *Socket) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (n int, err error) {
	e := s.control(func(fd int) { err = unix.Sendto(fd, b, unix.MSG_DONTWAIT, sockaddr(to)) })
	if e != nil {
		err = e
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Crowded says whether half of the socket's buffer is taken by datagrams that have not left.
func (s *Socket) Crowded() (yes bool) {
	_ = s.control(func(fd int) {
		unsent, limit := sockmem.Unsent(fd)
		yes = unsent > limit/2
	})
	return yes
}

// Overflow is how many datagrams found the socket's buffer full; after Close, how many had.
func (s *Socket) Overflow() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.control(func(fd int) { s.drops.Sample(fd) }) // a closed socket drops no more
	return s.drops.Total()
}

// Close closes the socket.
func (s *Socket) Close() error {
	s.Overflow()
	return s.UDPConn.Close()
}

func (s *Socket) control(do func(fd int)) error {
	c, err := s.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { do(int(fd)) })
}

// Conns are sockets as packet.Aside has them.
func Conns(sockets []*Socket) []packet.Conn {
	list := make([]packet.Conn, len(sockets))
	for i, s := range sockets {
		list[i] = s
	}
	return list
}

// AddOverflow adds to a port's drops what died at its sockets, where there are any.
func AddOverflow(drops map[string]uint64, sockets []*Socket) {
	for _, s := range sockets {
		drops["handshake-overflow"] += s.Overflow()
	}
}
