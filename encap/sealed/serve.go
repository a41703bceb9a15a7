package sealed

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
)

// stepEvery is how often the manager looks what is due.
const stepEvery = 250 * time.Millisecond

// Conn is a socket that handshake messages arrive at, and leave from: *net.UDPConn is one.
type Conn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
}

// Serve receives from conns until they are closed, by somebody else, and sends by them. The returned
// function waits for that end and must be called before Serve is called again.
func (m *Manager) Serve(conns []Conn) (wait func()) {
	var done sync.WaitGroup
	stop := make(chan struct{})
	m.mu.Lock()
	m.write = func(msg []byte, to netip.AddrPort) {
		for _, c := range conns {
			at, ok := c.LocalAddr().(*net.UDPAddr)
			if ok && (at.AddrPort().Addr().Unmap().Is4() == to.Addr().Unmap().Is4()) {
				// A handshake message that is not sent is one that is lost: it comes again.
				_, _ = c.WriteToUDPAddrPort(msg, to)
				return
			}
		}
	}
	m.mu.Unlock()
	for _, c := range conns {
		done.Go(func() { m.receiveAll(c) })
	}
	var steps sync.WaitGroup
	steps.Go(func() { m.stepAll(stop) })
	m.poke()
	return func() {
		done.Wait()
		close(stop)
		steps.Wait()
		m.mu.Lock()
		m.write = func([]byte, netip.AddrPort) {}
		m.mu.Unlock()
	}
}

func (m *Manager) receiveAll(c Conn) {
	buf := make([]byte, 2*initiationLen)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // what an ICMP message left on the socket, say
			m.cfg.Log.Debug("receive a handshake message", zap.Error(err))
			time.Sleep(time.Millisecond) // a socket that only fails must not take a core
		default:
			m.Receive(buf[:n], from)
		}
	}
}

func (m *Manager) stepAll(stop <-chan struct{}) {
	tick := time.NewTicker(stepEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		case <-m.wake:
		}
		m.Step()
	}
}
