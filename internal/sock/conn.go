package sock

import (
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Conn is a Socket in Go's network poller: for datagrams that are few, and not for lanes. It implements packet.Conn.
type Conn struct {
	*net.UDPConn

	mu    sync.Mutex
	drops drops
}

// WriteToUDPAddrPort sends b, or fails: it never waits for room in the socket's buffer. That fills with datagrams for neighbours that do
// not answer, which are anybody's to name.
func (c *Conn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (n int, err error) {
	e := c.control(func(fd int) { err = unix.Sendto(fd, b, unix.MSG_DONTWAIT, Sockaddr(to)) })
	if e != nil {
		err = e
	}
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Crowded says whether half of the socket's buffer is taken by datagrams that have not left.
func (c *Conn) Crowded() (yes bool) {
	_ = c.control(func(fd int) {
		waiting, limit := unsent(fd)
		yes = waiting > limit/2
	})
	return yes
}

// Overflow is how many datagrams found the socket's buffer full; after Close, how many had.
func (c *Conn) Overflow() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.control(func(fd int) { c.drops.sample(fd) }) // a closed socket drops no more
	return c.drops.total
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.Overflow()
	return c.UDPConn.Close()
}

func (c *Conn) control(do func(fd int)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { do(int(fd)) })
}
