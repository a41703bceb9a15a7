package lib

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	asavie "github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
	"weft/xdp"
)

const (
	port     = 4789
	innerMTU = 1450
	patience = nettest.Patience
)

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("192.0.2.2")
)

func underlay(t *testing.T) (a, b *nettest.NS) {
	nettest.RequireKernel(t, kernel.AFXDP, kernel.Veth)
	a, b = nettest.New(t), nettest.New(t)
	nettest.Pair(t, nettest.End{NS: a, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24")},
		nettest.End{NS: b, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24")}, 1500)
	return a, b
}

func config() xdp.Config {
	return xdp.Config{Inside: "weft0", InnerMTU: innerMTU, Device: "eth0", Local: []netip.Addr{here}, Port: port, Rings: Open}
}

func socket(t *testing.T, ns *nettest.NS, addr netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	var err error
	ns.Do(func() { c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestOutsideConforms holds the library to the suite of every port: with its faults contained it passes.
func TestOutsideConforms(t *testing.T) {
	packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
		a, b := underlay(t)
		var out *xdp.Outside
		var err error
		a.Do(func() { out, err = xdp.OpenOutside(config()) })
		if err != nil {
			t.Fatal(err)
		}
		far := socket(t, b, there)
		hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(there, port), 0)}
		warm(t, out, far, hop)
		return out, packettest.Far{
			MTU: 1450, Hop: hop, From: there,
			Write: func(p []byte) error {
				_, err := far.WriteToUDPAddrPort(p, netip.AddrPortFrom(here, port))
				return err
			},
			Read: func() ([]byte, error) {
				buf := make([]byte, 1<<16)
				if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
					return nil, err
				}
				n, err := far.Read(buf)
				return buf[:n], err
			},
		}
	})
}

// warm sends until a packet has come by the ring: from a port that is not the tunnel's.
func warm(t *testing.T, out *xdp.Outside, far *net.UDPConn, hop *packet.Hop) {
	t.Helper()
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, innerMTU)
	buf := make([]byte, 1500)
	for deadline := time.Now().Add(patience); ; {
		p := &b.Slots()[0]
		p.Resize(copy(p.Reset(), "warm"))
		p.Hop, p.Flow = hop, 1
		b.SetLen(1)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		_ = far.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, from, err := far.ReadFromUDPAddrPort(buf)
		if err == nil && from.Port() != port {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the way to the far side is not found")
		}
	}
}

// TestPairCarries moves a packet each way and opens the same queues again at once, several times: Close frees them.
func TestPairCarries(t *testing.T) {
	a, b := underlay(t)
	far := socket(t, b, there)
	hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(there, port), 0)}
	for round := range 3 {
		var in *xdp.Inside
		var out *xdp.Outside
		var err error
		a.Do(func() { in, out, err = xdp.OpenPair(config()) })
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		warm(t, out, far, hop)
		if _, err := far.WriteToUDPAddrPort([]byte("back"), netip.AddrPortFrom(here, port)); err != nil {
			t.Fatal(err)
		}
		q := out.Queues()[0]
		batch := packettest.NewBatch(q, 4, innerMTU)
		if err := q.Recv(batch); err != nil || string(batch.Packets()[0].Bytes()) != "back" {
			t.Fatalf("%v: %q", err, batch.Packets()[0].Bytes())
		}
		for _, p := range []packet.Port{in, out} {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestFrames: after many packets both ways, some of them while the link is down, no frame is missing: the fill ring is
// as full as at first and everything else can be sent from.
func TestFrames(t *testing.T) {
	a, b := underlay(t)
	c := config()
	c.RingSize = 256
	var l *rings
	c.Rings = func(r xdp.Request) (xdp.Rings, error) {
		opened, err := Open(r)
		if err == nil {
			l = opened.(*rings)
		}
		return opened, err
	}
	var out *xdp.Outside
	var err error
	a.Do(func() { out, err = xdp.OpenOutside(c) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	far := socket(t, b, there)
	hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(there, port), 0)}
	warm(t, out, far, hop)
	q := out.Queues()[0]
	batch := packettest.NewBatch(q, 64, innerMTU)
	carried, turns := 0, 0
	for ; carried < 20_000; turns++ {
		for range 64 {
			_, _ = far.WriteToUDPAddrPort([]byte("there"), netip.AddrPortFrom(here, port))
		}
		if err := q.Recv(batch); err != nil {
			t.Fatal(err)
		}
		carried += batch.Len()
		for i := range batch.Packets() {
			batch.Packets()[i].Hop = hop
		}
		switch turns {
		case 50:
			a.MustRun(t, "ip", "link", "set", "eth0", "down")
		}
		if err := q.Send(batch); err != nil {
			t.Fatal(err)
		}
		if turns == 50 {
			a.MustRun(t, "ip", "link", "set", "eth0", "up")
		}
	}
	l.again()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		l.socket.Complete(l.socket.NumCompleted())
		free, inside := len(l.socket.GetDescs(512)), 256-l.socket.NumFreeFillSlots()+l.socket.NumReceived()
		l.mu.Unlock()
		if free == 256 && inside == 256 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("of 512 frames %d are free to send from and %d in the receiving rings, want 256 and 256", free, inside)
		}
	}
}

// TestFaults documents what is contained: if one of these passes no more, the library has changed.
func TestFaults(t *testing.T) {
	a, _ := underlay(t)
	index := func() int {
		l, err := a.Netlink().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		return l.Attrs().Index
	}()
	options := &asavie.SocketOptions{NumFrames: 8, FrameSize: 2048, FillRingNumDescs: 4, CompletionRingNumDescs: 4, RxRingNumDescs: 4, TxRingNumDescs: 4}
	var s *asavie.Socket
	var err error
	a.Do(func() { s, err = asavie.NewSocket(index, 0, options) })
	if err != nil {
		t.Fatal(err)
	}
	a.MustRun(t, "ip", "link", "set", "eth0", "down")
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), fmt.Sprintf("errno=%d", unix.ENETDOWN)) && !strings.Contains(fmt.Sprint(p), "network is down") {
				t.Errorf("Transmit over a link that is down: %v", p)
			}
		}()
		s.Transmit(s.GetDescs(1))
	}()
	a.MustRun(t, "ip", "link", "set", "eth0", "up")
	if err := unmap(s, 4); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// With the mappings gone the queue is free again, as soon as the kernel has cleaned up.
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		a.Do(func() { s, err = asavie.NewSocket(index, 0, options) })
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	// Closed by the library alone, it is not: one more socket on the queue is refused.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a.Do(func() { _, err = asavie.NewSocket(index, 0, options) })
	if err == nil || !strings.Contains(err.Error(), unix.EBUSY.Error()) {
		t.Errorf("a queue whose socket the library has closed: %v", err)
	}
}
