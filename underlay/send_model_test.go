package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// sendModel drives the sending half of a queue through a real kernel, to peers that know nothing of offloads. What is reported as
// sent comes once, whole, in the order of its flow and from the port that Outer named; what is reported as dropped never comes,
// and its reason is the one that the way there gives.
type sendModel struct {
	ns    *nettest.NS
	far   [4]*rawPeer // two of each family, the IPv4 ones first
	batch *packet.Batch
	buf   []byte

	tape  *packettest.Tape
	cfg   Config
	port  packet.Port
	large bool // the device's MTU
	deaf  bool // a socket refuses to join, or did
	due   packettest.Ledger
}

const (
	smallMTU, largeMTU = 1500, 65536
	deniedPort         = 4242
)

// Ways that lead nowhere: what the routing table refuses, and what a firewall does.
var nowhere = [...]netip.AddrPort{
	netip.MustParseAddrPort("198.51.100.1:1"), netip.MustParseAddrPort("[2001:db8:1::1]:1"), // unreachable
	netip.MustParseAddrPort("198.51.100.2:1"), netip.MustParseAddrPort("[2001:db8:1::2]:1"), // blackholes
	netip.AddrPortFrom(loopback4, deniedPort), netip.AddrPortFrom(loopback6, deniedPort),
}

func newSendModel(t testing.TB) *sendModel {
	m := &sendModel{ns: nettest.New(t), batch: packet.NewBatch(packet.BatchSize, 9000), buf: make([]byte, 1<<16)}
	for i, at := range []netip.Addr{loopback4, loopback4, loopback6, loopback6} {
		m.far[i] = newRawPeer(t, m.ns, at)
		if err := errors.Join(unix.SetsockoptInt(m.far[i].fd, unix.SOL_UDP, unix.UDP_GRO, 0), unix.SetNonblock(m.far[i].fd, true)); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"ip", "route", "add", "unreachable", "198.51.100.1"}, {"ip", "route", "add", "unreachable", "2001:db8:1::1"},
		{"ip", "route", "add", "blackhole", "198.51.100.2"}, {"ip", "route", "add", "blackhole", "2001:db8:1::2"},
		{"nft", "add table inet weft-test"}, {"nft", "add chain inet weft-test out { type filter hook output priority 0; }"},
		{"nft", fmt.Sprint("add rule inet weft-test out udp dport ", deniedPort, " drop")},
	} {
		m.ns.MustRun(t, args[0], args[1:]...)
	}
	return m
}

// play implements packettest.Play.
func (m *sendModel) play(t *packettest.Tape) (err error) {
	m.tape, m.port, m.due = t, nil, packettest.Ledger{}
	release, err := pinned()
	if err != nil {
		return err
	}
	defer release()
	if err := errors.Join(m.reopen(), m.setMTU(true)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.port.Close()) }()
	hops := m.hops()
	for t.More() {
		switch t.N(40) {
		default:
			if err := errors.Join(m.send(hops), m.came()); err != nil {
				return err
			}
		case 1:
			err = m.reopen()
		case 2:
			err = m.setMTU(!m.large)
		case 3: // a socket that does not sum refuses to join
			m.deaf = true
			err = unix.SetsockoptInt(packettest.Pick(t, m.queue().send.fds[0]...), unix.SOL_SOCKET, unix.SO_NO_CHECK, t.N(2))
		case 4: // peers move: other hops, also where the old ones lay
			hops = m.hops()
		}
		if err != nil {
			return err
		}
	}
	return m.due.Empty()
}

func (m *sendModel) queue() *queue { return m.port.Queues()[0].(*queue) }

func (m *sendModel) reopen() error {
	if m.port != nil {
		if err := m.port.Close(); err != nil {
			return err
		}
	}
	t := m.tape
	m.cfg = offloadConfig(loopback4)
	m.cfg.Local = packettest.Pick(t, []netip.Addr{loopback4, loopback6}, []netip.Addr{loopback6, loopback4}, []netip.Addr{loopback4})
	m.cfg.SendSockets = packettest.Pick(t, 1, 2, 4)
	if t.Chance(5) {
		m.cfg.Offload = false
		m.cfg.Batch = t.Chance(2)
	}
	m.deaf = false
	var err error
	m.port, err = listen(m.ns, m.cfg, 1)
	return err
}

func (m *sendModel) setMTU(large bool) error {
	mtu := map[bool]int{true: largeMTU, false: smallMTU}[large]
	m.large = large
	lo, err := m.ns.Netlink().LinkByName("lo")
	if err != nil {
		return err
	}
	return m.ns.Netlink().LinkSetMTU(lo, mtu)
}

// hops are some peers, several with one address, and some that cannot be reached.
func (m *sendModel) hops() (hops []*packet.Hop) {
	for range 1 + m.tape.N(4) {
		hops = append(hops, hopTo(packettest.Pick(m.tape, m.far[0].addr, m.far[1].addr, m.far[2].addr, m.far[3].addr)))
	}
	if m.tape.Chance(3) {
		hops = append(hops, hopTo(packettest.Pick(m.tape, nowhere[:]...)))
	}
	if m.tape.Chance(5) {
		hops = append(hops, packettest.Pick(m.tape, nil, &packet.Hop{}))
	}
	return hops
}

// send sends a batch of runs, and notes what is to come of it.
func (m *sendModel) send(hops []*packet.Hop) error {
	t, b := m.tape, m.batch
	n := packettest.Pick(t, 1, 2, 1+t.N(packet.BatchSize), packet.BatchSize)
	ports := make([]uint16, n)
	for i := 0; i < n; {
		hop, flow := packettest.Pick(t, hops...), uint32(t.N(6))
		size := packettest.Pick(t, 1400, 1400, 100, 1472, 1473, 1452, 1453, t.N(1500), t.N(9000), 0)
		for k := range min(t.Run(), n-i) {
			p := &b.Slots()[i]
			room := p.Reset()
			if k > 0 && t.Chance(24) { // the one that ends a run, or one too large for it
				size = max(0, min(size+t.N(40)-30, len(room)))
			}
			t.Fill(room[:size])
			p.Resize(size)
			p.Hop, p.Flow = hop, flow
			if t.Chance(60) {
				p.Drop = packet.NoRoute
			}
			i++
		}
	}
	b.SetLen(n)
	for i := range b.Packets() {
		p := &b.Packets()[i]
		ports[i] = m.queue().Outer(p).Port
	}
	if err := m.queue().Send(b); err != nil {
		return err
	}
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if want := m.verdict(p); p.Drop != want {
			return fmt.Errorf("packet %d of %d, %d bytes to %+v: %v, want %v", i, n, p.Len(), p.Hop, p.Drop, want)
		}
		if p.Drop == packet.Alive {
			m.due.Sent(key(p.Hop.Path.Dst, ports[i]), append([]byte(nil), p.Bytes()...))
		}
	}
	if s := m.queue().send; m.cfg.Offload && !s.gso && !m.deaf {
		return fmt.Errorf("nothing is joined any more, after %v", unix.Errno(s.refusal.Load()))
	}
	t.Step(n)
	return nil
}

func key(to netip.AddrPort, from uint16) string { return fmt.Sprint(from, " → ", to) }

// verdict is what must become of a packet, by the way to its peer.
func (m *sendModel) verdict(p *packet.Packet) packet.Drop {
	if p.Drop == packet.NoRoute {
		return packet.NoRoute // it was dead before
	}
	if !p.Hop.Dst().IsValid() || p.Hop.Path.Dst.Addr().Is6() && len(m.cfg.Local) == 1 {
		return packet.NoEndpoint
	}
	headers, mtu := packet.IPv4Header+packet.UDPHeader, smallMTU
	if p.Hop.Path.Dst.Addr().Is6() {
		headers = packet.IPv6Header + packet.UDPHeader
	}
	if m.large {
		mtu = largeMTU
	}
	for i, to := range nowhere {
		if p.Hop.Path.Dst == to && (i < 4 || p.Len()+headers <= mtu) {
			return packet.Refused
		}
	}
	if p.Len()+headers > mtu {
		return packet.TooBig
	}
	return packet.Alive
}

// came reads what is there at the peers, until all of it is.
func (m *sendModel) came() error {
	for deadline := time.Now().Add(patience); ; {
		for _, far := range m.far {
			if err := m.read(far); err != nil {
				return err
			}
		}
		if m.due.Due() == 0 || time.Now().After(deadline) {
			return m.due.Empty()
		}
		var fds []unix.PollFd
		for _, far := range m.far {
			fds = append(fds, unix.PollFd{Fd: int32(far.fd), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// read takes all that a peer has got.
func (m *sendModel) read(far *rawPeer) error {
	for {
		n, from, err := unix.Recvfrom(far.fd, m.buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		} else if err != nil {
			return err
		}
		var port int
		switch from := from.(type) {
		case *unix.SockaddrInet4:
			port = from.Port
		case *unix.SockaddrInet6:
			port = from.Port
		}
		if err := m.due.Came(key(far.addr, uint16(port)), m.buf[:n]); err != nil {
			return err
		}
	}
}

func TestSendModel(t *testing.T) { packettest.Sequences(t, 400_000, newSendModel(t).play) }
func FuzzSendModel(f *testing.F) { packettest.FuzzSequences(f, newSendModel(f).play) }

// TestFullSocketModel drives what is behind the choice of a socket through one that fills up and takes no large messages: a UNIX
// one, which answers as a UDP socket does whose packets wait in a device's queue. A run arrives as one message there.
func TestFullSocketModel(t *testing.T) {
	packettest.Sequences(t, 400_000, playFullSocket)
}

func FuzzFullSocketModel(f *testing.F) { packettest.FuzzSequences(f, playFullSocket) }

func playFullSocket(t *packettest.Tape) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10); err != nil { // no message above that
		return err
	}
	s := newSender(Config{Batch: t.N(4) > 0})
	s.gso = true
	s.add(fds[0], 1, false)
	b, buf := packet.NewBatch(packet.BatchSize, 20000), make([]byte, 1<<16)
	hops := []*packet.Hop{hopTo(nowhere[0]), hopTo(nowhere[0]), hopTo(nowhere[2])}
	var due []byte // what was sent, end to end: messages keep their order, and a run's packets theirs
	drain := func(most int) error {
		for range most {
			n, err := unix.Read(fds[1], buf)
			if errors.Is(err, unix.EAGAIN) {
				return nil
			} else if err != nil {
				return err
			}
			if n > len(due) {
				return fmt.Errorf("%d bytes came, %d are due", n, len(due))
			}
			if err := packettest.Same(buf[:n], due[:n]); err != nil {
				return err
			}
			due = due[n:]
		}
		return nil
	}
	for t.More() {
		n := packettest.Pick(t, 1, 1+t.N(packet.BatchSize), packet.BatchSize)
		for i := 0; i < n; {
			hop, size := packettest.Pick(t, hops...), packettest.Pick(t, 100, 1400, 1+t.N(1500), 1+t.N(20000))
			for range min(t.Run(), n-i) {
				p := &b.Slots()[i]
				t.Fill(p.Reset()[:size])
				p.Resize(size)
				p.Hop = hop
				if s.via[i] = 0; t.Chance(40) {
					s.via[i] = noSocket
				}
				i++
			}
		}
		b.SetLen(n)
		packets := b.Packets()
		count := s.gather(packets, 0)
		for i := range count {
			s.msgs[i].Name, s.msgs[i].Namelen = nil, 0
		}
		if err := s.through(fds[0], count, packets); err != nil {
			return err
		}
		for i := range packets {
			p := &packets[i]
			switch {
			case s.via[i] == noSocket && p.Drop != packet.Alive:
				return fmt.Errorf("packet %d was not this socket's: %v", i, p.Drop)
			case s.via[i] == noSocket:
			case p.Drop == packet.Alive:
				due = append(due, p.Bytes()...)
			case p.Drop == packet.TooBig && p.Len() > 4<<10, p.Drop == packet.QueueFull:
			default:
				return fmt.Errorf("packet %d of %d bytes: %v", i, p.Len(), p.Drop)
			}
		}
		t.Step(n)
		if err := drain(packettest.Pick(t, 0, 1, 3, 1000)); err != nil {
			return err
		}
	}
	if err := drain(1 << 20); err != nil {
		return err
	}
	if len(due) > 0 {
		return fmt.Errorf("%d bytes never came", len(due))
	}
	return nil
}
