package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// transport is a network for memberlist on which nobody without the password is heard. Its bytes reach memberlist's decoders only after
// the sealer has opened them.
type transport struct {
	memberlist.NodeAwareTransport // the network itself
	sealer                        *sealer
	traffic                       *traffic
	advertise                     netip.AddrPort
	refused                       func(from string, why error) // told of each stranger; must not block

	packets chan *memberlist.Packet
	streams chan net.Conn
	stop    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup

	mu    sync.Mutex
	joins string // whom a join dials, HOST:PORT
	cause error  // why it could not: memberlist hands on the text alone
}

// greetPatience bounds how long a greeting may take.
const greetPatience = 5 * time.Second

// traffic counts bytes, sealed as they go over the wire, of packets and streams together, without what is around them of IP, UDP and TCP.
type traffic struct{ sent, received atomic.Uint64 }

// counted is a connection whose bytes are counted.
type counted struct {
	net.Conn
	*traffic
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.received.Add(uint64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(uint64(n))
	return n, err
}

func newTransport(under memberlist.NodeAwareTransport, s *sealer, count *traffic, advertise netip.AddrPort, refused func(string, error)) *transport {
	t := &transport{NodeAwareTransport: under, sealer: s, traffic: count, advertise: advertise, refused: refused,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), stop: make(chan struct{})}
	t.wg.Go(t.open)
	return t
}

// open hands on what is of this cluster.
func (t *transport) open() {
	for {
		select {
		case p := <-t.NodeAwareTransport.PacketCh():
			t.traffic.received.Add(uint64(len(p.Buf)))
			plain, _, err := t.sealer.open(p.Buf)
			if err != nil || len(plain) == 0 {
				t.refused(p.From.String(), errOr(err, errPassword))
				continue
			}
			select {
			case t.packets <- &memberlist.Packet{Buf: plain, From: p.From, Timestamp: p.Timestamp}:
			case <-t.stop:
				return
			}
		case conn := <-t.NodeAwareTransport.StreamCh():
			t.wg.Go(func() { t.greet(conn) })
		case <-t.stop:
			return
		}
	}
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (t *transport) greet(conn net.Conn) {
	sealed, err := t.sealer.answer(counted{conn, t.traffic}, greetPatience)
	if err != nil {
		if wrong := (clockError{}); errors.Is(err, errPassword) || errors.As(err, &wrong) {
			t.refused(conn.RemoteAddr().String(), err)
		}
		_ = conn.Close() // nothing was said on it
		return
	}
	select {
	case t.streams <- sealed:
	case <-t.stop:
		_ = sealed.Close() // nothing was said on it
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// seal makes a packet that is about to be sent.
func (t *transport) seal(b []byte) []byte {
	packet := t.sealer.seal(b)
	t.traffic.sent.Add(uint64(len(packet)))
	return packet
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.NodeAwareTransport.WriteTo(t.seal(b), addr)
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.NodeAwareTransport.WriteToAddress(t.seal(b), a)
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// joining runs a join of one address, and returns the error that dialling it ended with, where that is why it failed. One join at a time.
func (t *transport) joining(addr string, join func() error) error {
	note := func(addr string) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		cause := t.cause
		t.joins, t.cause = addr, nil
		return cause
	}
	_ = note(addr) // none is under way
	err := join()
	if cause := note(""); err != nil && cause != nil {
		return cause
	}
	return err
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. Who is not of this cluster is an error that says why.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.dial(a, timeout)
	if err != nil {
		t.mu.Lock()
		if a.Addr == t.joins {
			t.cause = err
		}
		t.mu.Unlock()
	}
	return conn, err
}

func (t *transport) dial(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	conn, err := t.NodeAwareTransport.DialAddressTimeout(a, timeout)
	if err != nil {
		return nil, err
	}
	sealed, err := t.sealer.call(counted{conn, t.traffic}, min(timeout, greetPatience))
	if err != nil {
		_ = conn.Close() // nothing was said on it
		return nil, err
	}
	return sealed, nil
}

// Shutdown implements memberlist.Transport. The network goes first: what it still has to hand on is taken meanwhile.
func (t *transport) Shutdown() (err error) {
	t.once.Do(func() {
		err = t.NodeAwareTransport.Shutdown()
		close(t.stop)
		t.wg.Wait()
	})
	return err
}

// openNetwork opens the network of this machine: UDP and TCP on one port of all its addresses.
func openNetwork(port uint16) (memberlist.NodeAwareTransport, error) {
	all := "::"
	if probe, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback}); err != nil {
		all = "0.0.0.0" // a machine without IPv6
	} else {
		_ = probe.Close() // it was only to see
	}
	t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{all}, BindPort: int(port), Logger: quiet})
	if err != nil {
		return nil, fmt.Errorf("mesh: port %d, UDP and TCP: %w: stop who has it, or set control.mesh.port on all nodes", port, err)
	}
	return t, nil
}
