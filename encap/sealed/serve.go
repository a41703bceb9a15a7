package sealed

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/packet"
)

// stepEvery is how often the manager looks what is due.
const stepEvery = 250 * time.Millisecond

// Serve receives handshake messages from conns until they are closed, by somebody else, and sends by them. The returned
// function waits for that end and must be called before Serve is called again.
func (m *Manager) Serve(conns []packet.Conn) (wait func()) {
	var done sync.WaitGroup
	stop := make(chan struct{})
	m.mu.Lock()
	m.write = func(msg []byte, to netip.AddrPort) {
		for _, c := range conns {
			at, ok := c.LocalAddr().(*net.UDPAddr)
			if ok && (at.AddrPort().Addr().Unmap().Is4() == to.Addr().Unmap().Is4()) {
				// Cookies go to whatever address a stranger names; where they pile up, for neighbours that do not answer, the
				// rest of the room is for peers. A handshake message that is not sent is one that is lost: it comes again.
				if msg[0] != typeCookie || !c.Crowded() {
					_, _ = c.WriteToUDPAddrPort(msg, to)
				}
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

// patience is the nice value of threads that receive handshakes: where there is not processor time for all, a flood of
// them gets a tenth of what a lane gets (sched(7)), and that is more than the cluster's own need.
const patience = 10

func (m *Manager) receiveAll(c packet.Conn) {
	runtime.LockOSThread() // for good: the thread ends with its priority
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, patience); err != nil {
		m.cfg.Log.Info("a flood of handshakes may slow down traffic", zap.Error(err))
	}
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
