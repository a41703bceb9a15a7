package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
	"weft/packet/packettest"
)

// ringModel is two ports over rings without a kernel: the test plays its part, as slow as the driver of a card with zero-copy may be.
// It writes into a frame long before it says so, and reads one until it has given it back. So a frame that is in two places, or used
// by us while it is the kernel's, is seen by its bytes; and after every operation each frame must be in exactly one place.
type ringModel struct {
	t       *packettest.Tape
	stop    *wait.Stop
	size    uint64
	mtu     int // of inner packets
	sides   [2]*ringSide
	inside  *insideQueue
	outside *outsideQueue
	hops    []*packet.Hop
	batches [2]*packet.Batch // of the lanes out and in
	flow    *packettest.Flow
}

// ringSide is a device's rings as the kernel sees them.
type ringSide struct {
	name     string
	p        *pair
	written  []arrival // frames filled, not announced yet
	arrivals []arrival // announced, not received
	due      [][]byte  // what was staged, as frames must be, in order
	taken    []flight  // from the TX ring, not given back
}

type arrival struct {
	desc  unix.XDPDesc
	data  []byte // what Recv must make of it
	drop  packet.Drop
	from  netip.AddrPort
	frame []byte // as it was written
}

type flight struct {
	desc unix.XDPDesc
	data []byte
}

const modelRing = 16 // entries of a ring: small, so that everything runs out

func newRingModel(t *packettest.Tape) (m *ringModel, err error) {
	m = &ringModel{t: t, mtu: 1400, size: packettest.Pick(t, uint64(smallFrame), smallFrame, largeFrame)}
	if m.stop, err = wait.NewStop(); err != nil {
		return m, err
	}
	frames := 4*modelRing + 2*8
	shared, err := newUMEM(frames, m.size)
	if err != nil {
		return m, err
	}
	other := shared
	if t.Chance(4) { // a driver's zero-copy keeps its memory to itself
		if other, err = newUMEM(frames, m.size); err != nil {
			return m, err
		}
	}
	m.sides = [2]*ringSide{{name: "inside", p: modelPair(shared)}, {name: "outside", p: modelPair(other)}}
	for i, s := range m.sides {
		if t.Chance(6) { // of another port
			m.batches[i] = packet.NewBatch(8, int(m.size)-packet.Headroom-packet.Tailroom)
		} else {
			m.batches[i] = s.p.umem.batch(8)
		}
	}
	q := func(s *ringSide) queue {
		return queue{Rings: s.p, wait: m.stop.Waiter(wait.Readable), send: m.stop.Gate()}
	}
	m.inside = &insideQueue{queue: q(m.sides[0]), port: &port{}, mtu: m.mtu, piece: packet.NewBatch(1, m.mtu)}
	packet.PutEthernet(m.inside.header4[:], hostMAC, portMAC, packet.EtherTypeIPv4)
	packet.PutEthernet(m.inside.header6[:], hostMAC, portMAC, packet.EtherTypeIPv6)
	none := &kernelPath{fds: [2]int{-1, -1}, port: testPort}
	m.outside = &outsideQueue{queue: q(m.sides[1]), port: &port{}, kernel: none, verify: true,
		resolver: &resolver{wake: -1, known: map[netip.AddrPort]*destination{}}}
	m.flow = t.Flow()
	m.move()
	return m, nil
}

var (
	hostMAC, portMAC = [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	ourMAC           = [6]byte{2, 0, 0, 0, 0, 3}
)

func modelPair(u *umem) *pair {
	r := &receiver{umem: u, rx: memoryRing[unix.XDPDesc](modelRing), fill: memoryRing[uint64](modelRing)}
	for _, f := range u.draw(modelRing) {
		r.fill.put(f)
	}
	r.fill.submit()
	s := &sender{umem: u, tx: memoryRing[unix.XDPDesc](modelRing), completion: memoryRing[uint64](modelRing), free: u.draw(modelRing)}
	return &pair{rx: r, tx: s, umem: u}
}

func (m *ringModel) close() error {
	err := m.stop.Close()
	for i, s := range m.sides {
		if i == 0 || s.p.umem != m.sides[0].p.umem {
			err = errors.Join(err, unix.Munmap(s.p.umem.mem))
		}
	}
	return err
}

func playRings(t *packettest.Tape) (err error) {
	m, err := newRingModel(t)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	m.write(m.sides[0])
	t.Step(1)
	for t.More() {
		s := m.sides[t.N(2)]
		switch t.N(14) {
		case 0, 1, 2:
			for range t.Run() {
				if !m.write(s) {
					break
				}
				t.Step(1)
			}
		case 3, 4:
			err = m.announce(s, 1+t.N(modelRing))
		case 5, 6, 7, 8:
			err = m.lane(s)
		case 9, 10:
			err = m.take(s, 1+t.N(modelRing))
		case 11, 12:
			err = m.give(s, 1+t.N(modelRing))
		case 13:
			if t.Chance(4) {
				m.move()
			}
		}
		if err = errors.Join(err, m.account()); err != nil {
			return err
		}
	}
	return m.finish()
}

// finish has all that is under way arrive: whatever was staged is sent, whatever was written is received.
func (m *ringModel) finish() error {
	for range 8 {
		for _, s := range m.sides {
			if err := errors.Join(m.announce(s, modelRing), m.lane(s), m.take(s, modelRing), m.give(s, modelRing), m.account()); err != nil {
				return err
			}
		}
	}
	for _, s := range m.sides {
		if len(s.written)+len(s.arrivals)+len(s.due)+len(s.taken) > 0 {
			return fmt.Errorf("%s: %d frames were never received, %d never sent, %d never given back", s.name, len(s.written)+len(s.arrivals), len(s.due), len(s.taken))
		}
		if n := atomic.LoadUint32(s.p.rx.fill.producer) - *s.p.rx.fill.consumer; n != modelRing {
			return fmt.Errorf("%s: the kernel has %d frames to receive into, want %d", s.name, n, modelRing)
		}
	}
	return nil
}

// move makes new peers and new ways to them, some in the place of others: other next hops, other addresses under the old numbers, and
// destinations that have no way, or only the kernel's.
func (m *ringModel) move() {
	t := m.t
	if len(m.hops) == 0 || t.Chance(2) {
		m.hops = nil
		for id := range uint32(1 + t.N(3)) {
			at := netip.AddrPortFrom(packettest.Pick(t, addrsB...), uint16(4000+t.N(3)))
			m.hops = append(m.hops, &packet.Hop{Peer: packet.Peer{ID: id}, Path: packet.NewPath(netip.Addr{}, at, 0)})
		}
	}
	for _, h := range m.hops {
		d := m.outside.to(h)
		switch t.N(8) {
		case 0:
			d.adjacency.Store(&adjacency{}) // no way
		case 1:
			d.adjacency.Store(&adjacency{kernel: true})
		default:
			source := addrsA[0]
			if h.Path.Dst.Addr().Is6() {
				source = addrsA[1]
			}
			d.adjacency.Store(&adjacency{template: newTemplate(ourMAC, [6]byte{2, 1, byte(t.N(256))}, source, h.Path.Dst, packettest.Pick(t, 1500, 1300), &testSources)})
		}
	}
}

// write has the kernel receive: it fills the next frame that it has been given, and says nothing yet. False if it has none: the
// device drops what arrives.
func (m *ringModel) write(s *ringSide) bool {
	fill := &s.p.rx.fill
	if *fill.consumer == atomic.LoadUint32(fill.producer) {
		return false
	}
	f := fill.entries[*fill.consumer&fill.mask] &^ (m.size - 1)
	*fill.consumer++
	var a arrival
	if s.name == "inside" {
		a = m.fromHost()
	} else {
		a = m.fromPeer()
	}
	mem := s.p.umem.mem[f : f+m.size]
	n := copy(mem[packet.Headroom:], a.frame)
	a.frame = a.frame[:n]
	m.t.Fill(mem[packet.Headroom+n:][:min(16, int(m.size)-packet.Headroom-n)]) // what a card leaves behind
	a.desc = unix.XDPDesc{Addr: f + packet.Headroom, Len: uint32(n)}
	s.written = append(s.written, a)
	return true
}

// fromHost is a frame that the host sends into the inside interface.
func (m *ringModel) fromHost() (a arrival) {
	ip := m.flow.Packet(packettest.Pick(m.t, 0, 10, 1300, m.t.N(1300)))
	a = arrival{data: ip, frame: packettest.Ethernet(portMAC, hostMAC, ip)}
	switch m.t.N(20) {
	case 0:
		a.frame[12], a.frame[13] = 0x08, 0x06 // ARP
		a.data, a.drop = a.frame, packet.NotIP
	case 1:
		a.frame = a.frame[:m.t.N(packet.EthernetHeader)]
		a.data, a.drop = a.frame, packet.TooShort
	}
	return a
}

// fromPeer is a frame that the underlay brings: a tunnel packet of any content in UDP.
func (m *ringModel) fromPeer() (a arrival) {
	t := m.t
	i := t.N(2)
	a.from = netip.AddrPortFrom(addrsB[i], uint16(50000+t.N(100)))
	payload := make([]byte, packettest.Pick(t, 0, 1, 60, 1300, t.N(1400), t.N(int(m.size)-packet.Headroom-packet.Tailroom-70)))
	t.Fill(payload)
	if t.N(2) == 0 { // an inner packet, larger than the inside takes or not, for Send
		f := *m.flow
		if n := len(payload) - f.Headers(); n > 0 {
			payload = f.Packet(n)
		}
	}
	a.data = payload
	a.frame = outerFrame(packettest.Pick[byte](t, 1, 2), ourMAC, a.from, netip.AddrPortFrom(addrsA[i], testPort), uint16(t.N(65536)), payload)
	udp := packet.EthernetHeader + packettest.IPHeader(a.from.Addr())
	switch t.N(20) {
	case 0: // damaged
		a.frame[udp+6+t.N(len(a.frame)-udp-6)] ^= 1 << t.N(8)
		a.drop = packet.BadChecksum
	case 1:
		a.frame[udp+4] ^= 0x40 // its length is not that of IP
		a.drop = packet.BadHeader
	case 2: // cut off
		a.frame = a.frame[:t.N(len(a.frame))]
		a.drop = packet.TooShort
	case 3: // Ethernet pads
		a.frame = append(a.frame, make([]byte, 1+t.N(20))...)
	}
	return a
}

// announce tells of the oldest n frames that were written.
func (m *ringModel) announce(s *ringSide, n int) error {
	rx := &s.p.rx.rx
	for _, a := range s.written[:min(n, len(s.written))] {
		if *rx.producer-atomic.LoadUint32(rx.consumer) == modelRing {
			return fmt.Errorf("%s: the RX ring is full, though no more frames circulate than it has entries", s.name)
		}
		rx.entries[*rx.producer&rx.mask] = a.desc
		*rx.producer++
		s.arrivals = append(s.arrivals, a)
	}
	s.written = s.written[min(n, len(s.written)):]
	return nil
}

// lane is a turn of the lane that receives from s: what it receives must be what was written, and is spoilt, dropped and sent on as a
// lane may.
func (m *ringModel) lane(s *ringSide) error {
	if len(s.arrivals) == 0 {
		return nil
	}
	b, err := m.batches[0], error(nil)
	if s.name == "inside" {
		err = m.inside.Recv(b)
	} else {
		b = m.batches[1]
		err = m.outside.Recv(b)
	}
	if err != nil {
		return err
	}
	if want := min(len(s.arrivals), 8); b.Len() != want {
		return fmt.Errorf("%s: %d packets were received, %d are there", s.name, b.Len(), want)
	}
	for i := range b.Packets() {
		p, a := &b.Packets()[i], s.arrivals[i]
		if p.Drop != a.drop {
			return fmt.Errorf("%s: packet %d: %v, want %v", s.name, i, p.Drop, a.drop)
		}
		if a.drop != packet.Alive {
			continue
		}
		if err := packettest.Same(p.Bytes(), a.data); err != nil {
			return fmt.Errorf("%s: packet %d: %w", s.name, i, err)
		}
		if p.From != a.from || p.Hop != nil || p.Flow != 0 || p.Checksum() != packet.ChecksumComplete || p.Segment() != 0 {
			return fmt.Errorf("%s: packet %d: from %v, want %v, or the slot still says of another", s.name, i, p.From, a.from)
		}
		if s.name == "outside" {
			if err := packettest.Same(p.Outer(), a.frame[:len(p.Outer())]); err != nil {
				return fmt.Errorf("outer headers: %w", err)
			}
		}
	}
	s.arrivals = s.arrivals[b.Len():]
	b.Compact(&packet.Drops{})
	return m.forward(b, s.name == "inside")
}

// forward does the work of the stages and sends b on.
func (m *ringModel) forward(b *packet.Batch, outward bool) error {
	t := m.t
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if t.Chance(8) {
			p.Drop = packet.NoRoute
			continue
		}
		if outward {
			p.Hop, p.Flow = packettest.Pick(t, m.hops...), uint32(t.N(5))<<14
			t.Fill(p.Prepend(packettest.Pick(t, 8, 22, 38)))
			if t.N(2) == 0 { // a seal's tag
				n := p.Len()
				p.Resize(n + packet.Tailroom)
				t.Fill(p.Bytes()[n:])
			}
		} else if v, drop := packet.ParseIP(p.Bytes()); drop == packet.Alive && v.Len() == p.Len() && t.N(2) == 0 {
			if start, _ := v.Transport(); v.VerifyTransport() && start > 0 { // a far kernel has left it unfinished
				p.SetPartial(packettest.Unfinish(p.Bytes()))
				if t.Chance(6) {
					p.Bytes()[start-1] ^= 1 // and it is another's now
				}
			}
		}
		if t.Chance(12) { // of another lender
			other := append(make([]byte, packet.Headroom), append(p.Bytes(), make([]byte, packet.Tailroom)...)...)
			start, offset, partial := p.Partial()
			p.Borrow(other, packet.Headroom, len(other)-packet.Tailroom)
			if partial {
				p.SetPartial(start, offset)
			}
		}
	}
	if t.N(2) == 0 {
		b.Compact(&packet.Drops{})
	}
	to, send := m.sides[0], m.inside.Send
	if outward {
		to, send = m.sides[1], m.outside.Send
	}
	want, frames := m.verdicts(b, to, outward)
	if err := send(b); err != nil {
		return err
	}
	for i := range b.Packets() {
		if p := &b.Packets()[i]; p.Drop != want[i] {
			return fmt.Errorf("%s: packet %d of %d, %d bytes to %+v: %v, want %v", to.name, i, b.Len(), p.Len(), p.Hop, p.Drop, want[i])
		}
	}
	to.due = append(to.due, frames...)
	return nil
}

// verdicts says what must become of each packet, and which frames of all. As many frames are under way as a ring has entries.
func (m *ringModel) verdicts(b *packet.Batch, to *ringSide, outward bool) (want []packet.Drop, frames [][]byte) {
	free := modelRing - len(to.due) - len(to.taken)
	put := func(p *packet.Packet, frame []byte) packet.Drop {
		f, mine := to.p.umem.owner(p.Memory())
		whole := mine && &p.Bytes()[0] == &to.p.umem.frame(f)[p.Headroom()]
		switch {
		case free == 0:
			return packet.QueueFull
		case !whole && p.Len() > int(m.size)-packet.Headroom: // it is copied behind a frame's headroom
			return packet.TooBig
		}
		free--
		frames = append(frames, frame)
		return packet.Alive
	}
	for i := range b.Packets() {
		p := &b.Packets()[i]
		want = append(want, p.Drop)
		verdict := &want[i]
		switch {
		case p.Drop != packet.Alive:
		case outward:
			*verdict = m.out(p, put)
		case p.Len() == 0:
			*verdict = packet.TooShort
		case packet.CheckPartial(p, 0) != packet.Alive:
			*verdict = packet.CheckPartial(p, 0)
		case p.Len() <= m.mtu:
			frame := packettest.Ethernet(hostMAC, portMAC, packettest.Whole(p))
			if p.Bytes()[0]>>4 != 6 { // what is no IP packet at all no route lets through
				frame[12], frame[13] = 0x08, 0x00
			}
			*verdict = put(p, frame)
		default:
			*verdict = m.cut(p, &free, &frames)
		}
	}
	return want, frames
}

func (m *ringModel) out(p *packet.Packet, put func(*packet.Packet, []byte) packet.Drop) packet.Drop {
	d := m.outside.resolver.known[p.Hop.Path.Dst]
	c := d.adjacency.Load()
	switch {
	case c.template == nil && c.kernel:
		return packet.NoEndpoint // there is no socket here
	case c.template == nil:
		return packet.Unresolved
	case p.Len()+packettest.IPHeader(p.Hop.Path.Dst.Addr())+packet.UDPHeader > c.template.mtu:
		return packet.TooBig
	}
	source := addrsA[0]
	if p.Hop.Path.Dst.Addr().Is6() {
		source = addrsA[1]
	}
	h := m.outside.Outer(p)
	frame := outerFrame(0, ourMAC, netip.AddrPortFrom(source, h.Port), p.Hop.Path.Dst, 0, p.Bytes())
	copy(frame, c.template.header[:6]) // the neighbour's MAC
	return put(p, frame)
}

// cut is what becomes of a packet above the inside's MTU.
func (m *ringModel) cut(p *packet.Packet, free *int, frames *[][]byte) packet.Drop {
	v, drop := packet.ParseIP(p.Bytes())
	if drop != packet.Alive || v.Protocol() != packet.ProtoTCP || !m.flow.TCP {
		return packet.TooBig
	}
	_, _, partial := p.Partial()
	if !partial && !v.VerifyTransport() || !v.IPv4ChecksumOK() || v.Len() <= m.mtu {
		return packet.TooBig
	}
	s := packettest.Super{Packet: append([]byte(nil), v.Bytes()...), NeedsChecksum: true, GSO: packettest.GSOTCPv4, Size: m.mtu - m.flow.Headers()}
	if v.Version() == 6 {
		s.GSO = packettest.GSOTCPv6
	}
	s.Start, s.Offset = packettest.Unfinish(s.Packet)
	pieces, err := packettest.SplitOracle(s)
	if err != nil {
		return packet.TooBig
	}
	for _, piece := range pieces {
		if *free == 0 {
			return packet.QueueFull
		}
		*free--
		*frames = append(*frames, packettest.Ethernet(hostMAC, portMAC, piece))
	}
	return packet.Alive
}

// take has the kernel begin to send n frames: they must be the next that are due.
func (m *ringModel) take(s *ringSide, n int) error {
	tx := &s.p.tx.tx
	c := &s.p.tx.completion
	for ; n > 0 && *tx.consumer != atomic.LoadUint32(tx.producer); n-- {
		if *c.producer-atomic.LoadUint32(c.consumer)+uint32(len(s.taken)) >= modelRing {
			return nil // no room to give it back by
		}
		d := tx.entries[*tx.consumer&tx.mask]
		*tx.consumer++
		if len(s.due) == 0 {
			return fmt.Errorf("%s: a frame was sent that is not due", s.name)
		}
		if d.Addr&(m.size-1)+uint64(d.Len) > m.size || d.Addr >= uint64(len(s.p.umem.mem)) {
			return fmt.Errorf("%s: descriptor %+v leaves its frame", s.name, d)
		}
		got := s.p.umem.mem[d.Addr:][:d.Len]
		if err := packettest.Same(got, s.due[0]); err != nil {
			return fmt.Errorf("%s: sent: %w", s.name, err)
		}
		s.taken = append(s.taken, flight{d, s.due[0]})
		s.due = s.due[1:]
	}
	return nil
}

// give has the kernel give frames back that it has sent, in any order. Until then nobody may have touched them.
func (m *ringModel) give(s *ringSide, n int) error {
	c := &s.p.tx.completion
	for ; n > 0 && len(s.taken) > 0; n-- {
		i := m.t.N(len(s.taken))
		f := s.taken[i]
		s.taken = append(s.taken[:i], s.taken[i+1:]...)
		if err := packettest.Same(s.p.umem.mem[f.desc.Addr:][:f.desc.Len], f.data); err != nil {
			return fmt.Errorf("%s: changed while it was being sent: %w", s.name, err)
		}
		c.entries[*c.producer&c.mask] = f.desc.Addr
		*c.producer++
	}
	return nil
}

// account finds every frame in one place. What the kernel has written and not told of must be as it was written.
func (m *ringModel) account() error {
	shared := m.sides[0].p.umem == m.sides[1].p.umem
	for i, s := range m.sides {
		var pairs []*pair
		var kernels []uint64
		for _, o := range m.sides {
			if o == s || shared {
				pairs = append(pairs, o.p)
				for _, a := range o.written {
					kernels = append(kernels, a.desc.Addr)
					if err := packettest.Same(o.p.umem.mem[a.desc.Addr:][:a.desc.Len], a.frame); err != nil {
						return fmt.Errorf("%s: changed while it was the kernel's: %w", o.name, err)
					}
				}
				for _, f := range o.taken {
					kernels = append(kernels, f.desc.Addr)
				}
			}
		}
		if i == 1 && shared {
			continue
		}
		if _, err := places(s.p.umem, pairs, kernels, m.batches[:]...); err != nil {
			return err
		}
	}
	return nil
}

// outerFrame builds a frame of the underlay slowly. mac is the last byte of the sender's; 0: the frame is ours, as templates make it.
func outerFrame(mac byte, us [6]byte, src, dst netip.AddrPort, id uint16, payload []byte) []byte {
	them, proto := [6]byte{2, 9, 0, 0, 0, mac}, byte(packet.ProtoUDP)
	to, from := us, them
	if mac == 0 {
		to, from = them, us
	}
	udp := make([]byte, packet.UDPHeader, packet.UDPHeader+len(payload))
	binary.BigEndian.PutUint16(udp, src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(packet.UDPHeader+len(payload)))
	udp = append(udp, payload...)
	ip := make([]byte, packettest.IPHeader(src.Addr()))
	if src.Addr().Is4() {
		ip[0], ip[8], ip[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(udp)))
		binary.BigEndian.PutUint16(ip[4:], id)
		if mac == 0 {
			ip[6] = 0x40 // DF: the identification means nothing
		}
		copy(ip[12:], src.Addr().AsSlice())
		copy(ip[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^packettest.Sum(ip, 0))
	} else {
		ip[0], ip[6], ip[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
		copy(ip[8:], src.Addr().AsSlice())
		copy(ip[24:], dst.Addr().AsSlice())
	}
	sum := ^packettest.Sum(udp, packettest.PseudoSum(ip, len(udp)))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
	return packettest.Ethernet(to, from, append(ip, udp...))
}

func TestRingsModel(t *testing.T) { packettest.Sequences(t, 150_000, playRings) }
func FuzzRingsModel(f *testing.F) { packettest.FuzzSequences(f, playRings) }
