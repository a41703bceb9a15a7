package tun

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
	"weft/packet/packettest"
)

// TestScatterModel, FuzzScatterModel: whatever a device hands over, in whatever order, runs of whatever length,
// and whatever a lane does to its slots between two reads: each packet comes once, in order, with its own bytes
// and nothing of what was learnt from another.
func TestScatterModel(t *testing.T) { packettest.Sequences(t, 1_000_000, playScatter) }
func FuzzScatterModel(f *testing.F) { packettest.FuzzSequences(f, playScatter) }

// expected is a packet that Recv must hand over.
type expected struct {
	data          []byte
	state         packet.ChecksumState
	start, offset int // of an unfinished checksum
	drop          packet.Drop
}

// scatterModel is a scatter, its device, and what must come of it.
type scatterModel struct {
	t           *packettest.Tape
	mtu         int
	least, most int // room of the smallest slot and of the largest
	batch       *packet.Batch
	scatter     *scatter
	dev         *fakeDevice
	spare       []byte // memory that changes places with a slot's
	due         []expected
	err         error // the first
}

func playScatter(t *packettest.Tape) error {
	m := &scatterModel{t: t, mtu: packettest.Pick(t, 576, 1280, 1450), dev: &fakeDevice{}}
	m.scatter = newScatter(m.mtu)
	m.slots()
	flows := []*packettest.Flow{t.Flow(), t.Flow(), t.Flow()}
	for t.More() && m.err == nil {
		f := packettest.Pick(t, flows...)
		switch t.N(8) {
		case 0, 1:
			m.supers(f)
		case 2, 3, 4:
			m.plain(f)
		case 5:
			m.broken(f)
		case 6:
			f.Flags ^= packettest.Pick[uint8](t, packet.TCPFlagPSH, packet.TCPFlagFIN, packet.TCPFlagCWR, packet.TCPFlagECE)
		case 7:
			flows[t.N(len(flows))] = t.Flow()
		}
		m.read(t.N(4))
	}
	for len(m.due) > 0 && m.err == nil {
		m.read(1)
	}
	return m.err
}

// slots makes the batch: few slots or many, as large as the MTU needs, larger, of different sizes, or too small.
func (m *scatterModel) slots() {
	room := m.mtu + packettest.Pick(m.t, 64, 0, 1, -200)
	m.batch = packet.NewBatch(packettest.Pick(m.t, 1, 2, 3, 20, 47, packet.BatchSize-1, packet.BatchSize), room)
	m.spare = make([]byte, packet.Headroom+room+packet.Tailroom)
	m.least, m.most = room, room
	if room < m.mtu || !m.t.Chance(4) {
		return
	}
	m.most = room + 300
	for i := range m.batch.Slots() {
		if m.t.Chance(4) {
			large := make([]byte, packet.Headroom+room+m.t.N(301)+packet.Tailroom)
			m.batch.Slots()[i].Exchange(large, packet.Headroom, packet.Headroom)
		}
	}
}

// put gives the device a frame, and reads when much is due.
func (m *scatterModel) put(frame []byte, due ...expected) {
	m.dev.in = append(m.dev.in, frame)
	m.due = append(m.due, due...)
	m.t.Step(len(due))
	for len(m.due) > 400 && m.err == nil {
		m.read(1)
	}
}

// supers is a run of super-packets of one shape.
func (m *scatterModel) supers(f *packettest.Flow) {
	t, h := m.t, f.Headers()
	size := min(m.least-h, packettest.Pick(t, m.least-h, m.mtu-h, 500, 1+t.N(100), 1+t.N(m.least)))
	last := t.N(size)
	if t.Chance(10) { // more than any slot takes
		size, last = m.most-h+1+t.N(1000), 0
	}
	segments := 1 + t.N(60)
	if t.Chance(40) { // more than a batch, or one readv, takes
		segments = 600 + t.N(600)
	}
	segments = min(segments, (65535-h)/size)
	for range 1 + min(t.Run(), 2000/segments) {
		s := f.Super(size*segments-last, size)
		frame := s.Vnet()
		if f.TCP {
			s.Size = min(size, m.mtu-h, m.least-h)
		}
		pieces, err := packettest.SplitUnfinished(s)
		if err != nil {
			panic(err)
		}
		due := make([]expected, len(pieces))
		for i, b := range pieces {
			due[i] = m.fits(expected{data: b, state: packet.ChecksumPartial, start: s.Start, offset: s.Offset})
		}
		m.put(frame, due...)
	}
}

// plain is a run of packets without segments.
func (m *scatterModel) plain(f *packettest.Flow) {
	t, h := m.t, f.Headers()
	n := min(m.least-h, packettest.Pick(t, m.mtu-h, t.N(m.mtu-h), t.N(100)))
	if t.Chance(20) {
		n = m.most - h + 1 + t.N(20000)
	}
	kind := t.N(5)
	for range t.Run() {
		e := expected{}
		var frame []byte
		switch kind {
		case 0:
			e.data = f.Packet(n)
			frame = packettest.Super{Packet: e.data}.Vnet()
		case 1:
			e.data, e.state = f.Packet(n), packet.ChecksumVerified
			frame = packettest.Super{Packet: e.data}.Vnet()
			frame[0] = unix.VIRTIO_NET_HDR_F_DATA_VALID
		case 2:
			e.data, _ = f.Odd(min(n, m.least-h-24)) // SACK makes it longer
			frame = packettest.Super{Packet: e.data}.Vnet()
		default:
			s := f.Super(n, 0)
			e.data, e.state, e.start, e.offset = s.Packet, packet.ChecksumPartial, s.Start, s.Offset
			frame = s.Vnet()
		}
		m.put(frame, m.fits(e))
	}
}

func (m *scatterModel) fits(e expected) expected {
	if len(e.data) > m.least {
		return expected{drop: packet.Truncated}
	}
	return e
}

// broken is a frame of which no packet can be made.
func (m *scatterModel) broken(f *packettest.Flow) {
	t, drop := m.t, packet.BadHeader
	s := f.Super(5000, 500)
	frame := s.Vnet()
	ip := frame[vnetHeader:]
	switch t.N(8) {
	case 0:
		frame[4], frame[5] = 0, 0 // gso_size
	case 1:
		frame[1] = unix.VIRTIO_NET_HDR_GSO_UDP
	case 2:
		frame[1] = packettest.Pick[byte](t, 1, 4, 5)&^frame[1] | 2
	case 3:
		ip[0] = 0x55
	case 4:
		frame = frame[:vnetHeader+1+t.N(f.Headers())]
	case 5: // shorter than a virtio header
		frame, drop = frame[:1+t.N(vnetHeader)], packet.TooShort
	case 6: // a sum outside
		frame, drop = f.Super(20, 0).Vnet(), packet.BadHeader
		frame[7] = 0xff
	case 7:
		frame, drop = append(frame, make([]byte, maxPacket)...), packet.Truncated
	}
	m.put(frame, expected{drop: drop})
}

// read lets a lane receive so many times.
func (m *scatterModel) read(times int) {
	for range times {
		reads := packettest.Pick(m.t, packet.BatchSize, packet.BatchSize, 1, 2)
		before := len(m.dev.in)
		n, errno := m.scatter.fill(m.batch, reads, m.dev)
		if errno != 0 && (errno != unix.EAGAIN || len(m.dev.in) > 0) {
			m.err = fmt.Errorf("%v with %d frames left", errno, len(m.dev.in))
			return
		}
		if n == 0 && len(m.due) > 0 || before-len(m.dev.in) > reads {
			m.err = fmt.Errorf("%d packets of %d, by %d reads of %d", n, len(m.due), before-len(m.dev.in), reads)
			return
		}
		for i := range m.batch.Slots()[:n] {
			if err := m.came(&m.batch.Slots()[i]); err != nil {
				m.err = fmt.Errorf("packet %d of %d: %w", i, n, err)
				return
			}
		}
		m.lane(n)
	}
}

var rubbish = bytes.Repeat([]byte{0xdd}, 4096)

// came compares a packet with the one that is due.
func (m *scatterModel) came(p *packet.Packet) error {
	if len(m.due) == 0 {
		return fmt.Errorf("a packet too many: %x", head(p.Bytes()))
	}
	want := m.due[0]
	m.due = m.due[1:]
	if p.Drop != want.drop {
		return fmt.Errorf("drop %v, want %v", p.Drop, want.drop)
	}
	if p.Hop != nil || p.Flow != 0 || p.RCO || p.Segment() != 0 {
		return fmt.Errorf("something of a packet before it is left: %+v", p)
	}
	if p.Drop != packet.Alive {
		return nil
	}
	if p.Headroom() != packet.Headroom || cap(p.Tail())-p.Len() < packet.Tailroom {
		return fmt.Errorf("headroom %d, tailroom %d", p.Headroom(), cap(p.Tail())-p.Len())
	}
	if start, offset, partial := p.Partial(); p.Checksum() != want.state || partial && (start != want.start || offset != want.offset) {
		return fmt.Errorf("checksum %d at %d+%d, want %d at %d+%d", p.Checksum(), start, offset, want.state, want.start, want.offset)
	}
	return packettest.Same(p.Bytes(), want.data)
}

// lane does to the n packets what lanes do.
func (m *scatterModel) lane(n int) {
	m.batch.SetLen(n)
	slots := m.batch.Slots()
	for i := range slots[:n] { // what it learns
		p := &slots[i]
		p.Hop, p.Flow, p.RCO = &packet.Hop{}, 9, true
		p.SetSegment(77)
	}
	switch m.t.N(8) {
	case 0: // encrypts
		for i := range slots {
			copy(slots[i].Memory(), rubbish)
		}
	case 1: // drops
		var drops packet.Drops
		for i := range slots[:n] {
			if m.t.Chance(8) {
				slots[i].Drop = packet.NoRoute
			}
		}
		m.batch.Compact(&drops)
	case 2: // is lent
		slots[m.t.N(len(slots))].Borrow(make([]byte, 5000), 10, 4000)
	case 3: // gives memory away for other
		if p := &slots[m.t.N(len(slots))]; len(p.Memory()) == len(m.spare) {
			m.spare = p.Exchange(m.spare, 100, 200)
		}
	}
}
