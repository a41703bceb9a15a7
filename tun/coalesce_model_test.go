package tun

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
	"weft/packet/packettest"
)

// TestGatherModel, FuzzGatherModel: batch after batch through one gather, to a device that is full now and then, or
// refuses what it had agreed to. What is written, cut again, is what was sent and not dropped, flow by flow in order;
// what is wrong leaves as wrong as it was, or not; what is dropped is as it was; and a gather that has seen other
// batches writes what a new one does.
func TestGatherModel(t *testing.T) { packettest.Sequences(t, 1_000_000, playGather) }
func FuzzGatherModel(f *testing.F) { packettest.FuzzSequences(f, playGather) }

// outgoing is one packet of a batch.
type outgoing struct {
	whole   []byte
	state   packet.ChecksumState
	super   bool
	segment int  // of a super-packet: the payload of each part, as its sender says; 0 = he does not
	dead    bool // on arrival
	damaged bool // a super-packet with a wrong checksum, or any whose unfinished one is another's
}

type gatherModel struct {
	t        *packettest.Tape
	mtu      int
	dev      *fakeDevice
	gather   *gather
	flows    []*packettest.Flow
	batch    []outgoing
	full     bool // the device has no room for some packets of this batch
	fickle   bool // it refuses a type that it has agreed to
	refusals int
}

func playGather(t *packettest.Tape) error {
	m := &gatherModel{t: t, mtu: packettest.Pick(t, 576, 1280, 1450), dev: &fakeDevice{}}
	m.gather = newGather(m.dev, m.mtu, m.dev)
	for range 1 + t.N(24) { // 16 are put together side by side
		m.flows = append(m.flows, t.Flow())
	}
	mine, other := packet.NewBatch(packet.BatchSize, m.mtu+64), packet.NewBatch(packet.BatchSize, m.mtu+64)
	for t.More() {
		m.trouble()
		m.fill()
		m.load(mine)
		if errno := m.gather.send(mine); errno != 0 {
			return fmt.Errorf("send: %w", errno)
		}
		if err := m.check(mine); err != nil {
			return err
		}
		if m.refusals == 0 {
			m.load(other)
			if err := m.asNew(mine, other); err != nil {
				return err
			}
		}
		m.dev.out = nil
	}
	return nil
}

// trouble decides what the device will say: mostly yes.
func (m *gatherModel) trouble() {
	t := m.t
	if t.Chance(12) { // opened again
		m.dev.off = 0
		m.gather = newGather(m.dev, m.mtu, m.dev)
	}
	kind := t.N(10)
	m.full, m.fickle, m.refusals, m.dev.refuses = kind == 0, kind == 1, 0, nil
	first, gso := t.N(20), packettest.Pick[uint8](t, unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6, unix.VIRTIO_NET_HDR_GSO_UDP_L4)
	errno := packettest.Pick(t, unix.EAGAIN, unix.ENOBUFS, unix.EIO)
	switch {
	case m.full:
		m.dev.refuses = func(wire) unix.Errno {
			if first--; first >= 0 || first < -5 {
				return 0
			}
			m.refusals++
			return errno
		}
	case m.fickle:
		m.dev.refuses = func(w wire) unix.Errno {
			if w.v.gso != gso {
				return 0
			}
			m.refusals++
			return unix.EINVAL
		}
	}
}

// fill makes the next batch: runs of the flows' packets, among them odd ones and super-packets.
func (m *gatherModel) fill() {
	t := m.t
	m.batch = m.batch[:0]
	n := packettest.Pick(t, packet.BatchSize, 1+t.N(packet.BatchSize), 1+t.N(8))
	for len(m.batch) == 0 || len(m.batch) < n && t.More() {
		f := packettest.Pick(t, m.flows...)
		size := packettest.Pick(t, 1+t.N(60), 1+t.N(m.mtu-100), m.mtu-100)
		state := packet.ChecksumState(t.N(3))
		if t.Chance(8) && !(m.full && m.dev.off != 0) { // then some parts are written before one is not
			m.super(f, state)
			continue
		}
		odd := packettest.Pick(t, 1, 1, 1, 6, 20) // Chance(1) is never
		for range min(t.Run(), n-len(m.batch)) {
			o := outgoing{state: state}
			if !t.Chance(odd) {
				o.whole = f.Packet(size)
			} else if b, sound := f.Odd(size); sound {
				o.whole, o.damaged = b, state == packet.ChecksumPartial && t.Chance(4)
			} else {
				o.whole, o.state = b, packet.ChecksumComplete
			}
			m.batch = append(m.batch, o)
		}
	}
	if t.Chance(3) {
		for range 1 + t.N(4) {
			m.batch[t.N(len(m.batch))].dead = true
		}
	}
	t.Step(len(m.batch))
}

// super adds what a far kernel left uncut.
func (m *gatherModel) super(f *packettest.Flow, state packet.ChecksumState) {
	t, h := m.t, f.Headers()
	o := outgoing{super: true, state: state, segment: packettest.Pick(t, 0, 100+t.N(m.mtu-180), 2000)}
	if f.TCP && (m.full || m.fickle || !m.dev.maySend(unix.VIRTIO_NET_HDR_GSO_TCPV4) || !m.dev.maySend(unix.VIRTIO_NET_HDR_GSO_TCPV6)) {
		o.segment = 0 // whoever cuts, the parts are the same
	}
	n := max(m.mtu, o.segment) + 1 + t.N(4000) // of at most 64 datagrams
	o.whole = f.Packet(n)
	if size := m.size(o, h); size > 0 {
		f.ID += uint16((n - 1) / size)
	}
	o.damaged = state != packet.ChecksumVerified && t.Chance(8)
	m.batch = append(m.batch, o)
}

// size is the payload of a super-packet's parts: of TCP never more than the MTU takes.
func (m *gatherModel) size(o outgoing, h int) int {
	if transport(o.whole) == packet.ProtoTCP && (o.segment == 0 || o.segment > m.mtu-h) {
		return m.mtu - h
	}
	return o.segment
}

func (m *gatherModel) load(b *packet.Batch) {
	for i, o := range m.batch {
		p := &b.Slots()[i]
		packettest.Load(p, o.whole, o.state)
		p.SetSegment(o.segment)
		if start, offset, partial := p.Partial(); o.damaged && partial {
			p.Bytes()[start+offset] ^= 1
		} else if o.damaged {
			p.Bytes()[p.Len()-1] ^= 1
		}
		if o.dead {
			p.Drop = packet.NoRoute
		}
	}
	b.SetLen(len(m.batch))
}

// check compares what was written with what was sent.
func (m *gatherModel) check(b *packet.Batch) error {
	var sent [][]byte
	for i, o := range m.batch {
		p := &b.Packets()[i]
		if err := m.reason(o, p.Drop); err != nil {
			return fmt.Errorf("packet %d of %d bytes: %w", i, len(o.whole), err)
		}
		switch {
		case p.Drop != packet.Alive:
			if err := packettest.Same(packettest.Whole(p), o.whole); err != nil && !o.damaged {
				return fmt.Errorf("packet %d, dropped as %v, was changed: %w", i, p.Drop, err)
			}
		case o.super:
			s := packettest.Super{Packet: bytes.Clone(o.whole), NeedsChecksum: true}
			s.Start, s.Offset = packettest.Unfinish(s.Packet)
			_, h := headerLengths(o.whole)
			if s.Size, s.GSO = m.size(o, h), packettest.GSOUDP; transport(o.whole) == packet.ProtoTCP {
				s.GSO = map[byte]packettest.GSO{4: packettest.GSOTCPv4, 6: packettest.GSOTCPv6}[o.whole[0]>>4]
			}
			parts, err := packettest.SplitOracle(s)
			if err != nil {
				panic(err)
			}
			sent = append(sent, parts...)
		default:
			sent = append(sent, o.whole)
		}
	}
	supers := make([]packettest.Super, len(m.dev.out))
	for i, w := range m.dev.out {
		supers[i] = packettest.Super{
			Packet: w.data, GSO: packettest.GSO(w.v.gso), Size: w.v.size,
			NeedsChecksum: w.v.partial(), Start: w.v.start, Offset: w.v.offset,
		}
	}
	return packettest.CoalesceLegal(sent, supers)
}

// reason says whether a packet may have this Drop.
func (m *gatherModel) reason(o outgoing, drop packet.Drop) error {
	udp := transport(o.whole) == packet.ProtoUDP
	ok := false
	switch {
	case o.dead:
		ok = drop == packet.NoRoute
	case drop == packet.QueueFull, drop == packet.Refused:
		ok = m.refusals > 0 && !(m.fickle && o.super && !udp) // which is cut up then
	case o.damaged:
		ok = drop == packet.BadChecksum || drop == packet.TooBig && o.super
	case drop == packet.TooBig:
		ok = o.super && udp && (o.segment == 0 || !m.dev.maySend(unix.VIRTIO_NET_HDR_GSO_UDP_L4))
	default:
		ok = drop == packet.Alive && !(o.super && udp && o.segment == 0)
	}
	if !ok {
		return fmt.Errorf("%v, of a device that said no %d times: %+v", drop, m.refusals, outgoing{nil, o.state, o.super, o.segment, o.dead, o.damaged})
	}
	return nil
}

// asNew compares with what a gather makes of the same batch that has never seen another.
func (m *gatherModel) asNew(mine, other *packet.Batch) error {
	dev := &fakeDevice{off: m.dev.off}
	newGather(dev, m.mtu, dev).send(other)
	for i := range mine.Packets() {
		if is, new := mine.Packets()[i].Drop, other.Packets()[i].Drop; is != new {
			return fmt.Errorf("packet %d: %v, by a new gather %v", i, is, new)
		}
	}
	if len(m.dev.out) != len(dev.out) {
		return fmt.Errorf("%d writes, by a new gather %d", len(m.dev.out), len(dev.out))
	}
	for i, w := range m.dev.out {
		if w.v != dev.out[i].v {
			return fmt.Errorf("write %d: %+v, by a new gather %+v", i, w.v, dev.out[i].v)
		}
		if err := packettest.Same(w.data, dev.out[i].data); err != nil {
			return fmt.Errorf("write %d is not a new gather's: %w", i, err)
		}
	}
	return nil
}
