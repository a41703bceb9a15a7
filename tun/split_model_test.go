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

// frame is what a device hands over by one read.
type frame struct {
	bytes   []byte
	packets int // it becomes
}

// receiveModel is what a device hands over, and what must come of it.
type receiveModel struct {
	t           *packettest.Tape
	mtu         int
	least, most int // room of the smallest slot and of the largest
	batch       *packet.Batch
	spare       []byte // memory that changes places with a slot's
	bare        bool   // the device has no virtio header
	link        int    // bytes in front of each IP packet
	frames      []frame
	due         []expected
	err         error // the first

	// receive is the part: it makes at most that many reads, of m.frames from the first, and returns how many packets
	// it has put into m.batch.
	receive func(reads int) (int, error)
}

func newReceiveModel(t *packettest.Tape) *receiveModel {
	m := &receiveModel{t: t, mtu: packettest.Pick(t, 576, 1280, 1450)}
	m.slots()
	return m
}

func playScatter(t *packettest.Tape) error {
	m := newReceiveModel(t)
	s := newScatter(m.mtu)
	m.receive = func(reads int) (int, error) {
		before := len(m.frames)
		n, errno := s.fill(m.batch, reads, (*modelDevice)(m))
		if took := before - len(m.frames); took > reads {
			return n, fmt.Errorf("%d reads, of %d", took, reads)
		}
		if errno != 0 && (errno != unix.EAGAIN || len(m.frames) > 0) {
			return n, errno
		}
		return n, nil
	}
	flows := []*packettest.Flow{t.Flow(), t.Flow(), t.Flow()}
	for t.More() && m.err == nil {
		m.some(flows)
		m.read(t.N(4))
	}
	return m.rest()
}

// modelDevice hands over the model's frames.
type modelDevice receiveModel

func (d *modelDevice) readv(iovs []unix.Iovec) (int, unix.Errno) {
	if len(d.frames) == 0 {
		return 0, unix.EAGAIN
	}
	b, n := d.frames[0].bytes, 0
	d.frames = d.frames[1:]
	for _, v := range iovs {
		n += copy(unsafeBytes(v), b[n:])
	}
	return n, 0
}

func (d *modelDevice) writev([]unix.Iovec) unix.Errno { return unix.EIO }

// some puts a run of one kind of packet into the device.
func (m *receiveModel) some(flows []*packettest.Flow) {
	t := m.t
	i := t.N(len(flows))
	f := flows[i]
	switch kind := t.N(8); kind {
	default:
		switch {
		case kind > 2 || m.bare:
			m.plain(f)
		case kind == 2:
			m.broken(f)
		default:
			m.supers(f)
		}
	case 6:
		f.Flags ^= packettest.Pick[uint8](t, packet.TCPFlagPSH, packet.TCPFlagFIN, packet.TCPFlagCWR, packet.TCPFlagECE)
	case 7:
		flows[i] = t.Flow()
	}
}

// rest receives all that is due.
func (m *receiveModel) rest() error {
	for len(m.due) > 0 && m.err == nil {
		m.read(1)
	}
	return m.err
}

// slots makes the batch: few slots or many, as large as the MTU needs, larger, of different sizes, or too small.
func (m *receiveModel) slots() {
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
func (m *receiveModel) put(b []byte, due ...expected) {
	m.frames = append(m.frames, frame{b, len(due)})
	m.due = append(m.due, due...)
	m.t.Step(len(due))
	for len(m.due) > 400 && m.err == nil {
		m.read(1)
	}
}

// supers is a run of super-packets of one shape.
func (m *receiveModel) supers(f *packettest.Flow) {
	t, h := m.t, f.Headers()
	size := min(m.least-h, packettest.Pick(t, m.least-h, m.mtu-h, 500, 1+t.N(100), 1+t.N(m.least)))
	last := t.N(size)
	if t.Chance(10) { // more than any slot takes
		if size = m.most - h + 1 + t.N(1000); m.least < m.most {
			last = 0 // it depends on the slot whether that fits
		}
	}
	segments := 1 + t.N(60)
	if t.Chance(40) { // more than a batch, or one readv, takes
		segments = 600 + t.N(600)
	}
	segments = min(segments, (65535-h)/size)
	for range 1 + min(t.Run(), 2000/segments) {
		s := f.Super(size*segments-last, size)
		b := s.Vnet()
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
		m.put(b, due...)
	}
}

// plain is a run of packets without segments.
func (m *receiveModel) plain(f *packettest.Flow) {
	t, h := m.t, m.link+f.Headers()
	n := min(m.least-h, packettest.Pick(t, m.mtu-h, t.N(m.mtu-h), t.N(100)))
	if t.Chance(20) {
		n = m.most - h + 1 + t.N(20000)
	}
	kind := t.N(5)
	for range t.Run() {
		switch {
		case kind == 0:
			m.whole(f.Packet(n), packet.ChecksumComplete)
		case kind == 1:
			b, _ := f.Odd(min(n, m.least-h-24)) // SACK makes it longer
			m.whole(b, packet.ChecksumComplete)
		case kind == 2 || m.bare:
			m.whole(f.Packet(n), packet.ChecksumVerified)
		default:
			s := f.Super(n, 0)
			m.put(s.Vnet(), m.fits(expected{data: s.Packet, state: packet.ChecksumPartial, start: s.Start, offset: s.Offset}))
		}
	}
}

// whole puts a packet that has its checksum, which the device may have verified.
func (m *receiveModel) whole(ip []byte, state packet.ChecksumState) {
	if m.bare {
		b := append(make([]byte, m.link), ip...)
		m.t.Fill(b[:m.link])
		m.put(b, m.fits(expected{data: b}))
		return
	}
	b := packettest.Super{Packet: ip}.Vnet()
	if state == packet.ChecksumVerified {
		b[0] = unix.VIRTIO_NET_HDR_F_DATA_VALID
	}
	m.put(b, m.fits(expected{data: ip, state: state}))
}

func (m *receiveModel) fits(e expected) expected {
	if len(e.data) > m.least {
		return expected{drop: packet.Truncated}
	}
	return e
}

// broken is a frame of which no packet can be made.
func (m *receiveModel) broken(f *packettest.Flow) {
	t, drop := m.t, packet.BadHeader
	s := f.Super(5000, 500)
	b := s.Vnet()
	ip := b[vnetHeader:]
	switch t.N(8) {
	case 0:
		b[4], b[5] = 0, 0 // gso_size
	case 1:
		b[1] = unix.VIRTIO_NET_HDR_GSO_UDP
	case 2:
		b[1] = packettest.Pick[byte](t, 1, 4, 5)&^b[1] | 2
	case 3:
		ip[0] = 0x55
	case 4:
		b = b[:vnetHeader+1+t.N(f.Headers())]
	case 5: // shorter than a virtio header
		b, drop = b[:1+t.N(vnetHeader)], packet.TooShort
	case 6: // a sum outside
		b, drop = f.Super(20, 0).Vnet(), packet.BadHeader
		b[7] = 0xff
	case 7:
		b, drop = append(b, make([]byte, maxPacket)...), packet.Truncated
	}
	m.put(b, expected{drop: drop})
}

// read lets a lane receive so many times.
func (m *receiveModel) read(times int) {
	for range times {
		reads := packettest.Pick(m.t, packet.BatchSize, packet.BatchSize, 1, 2)
		n, err := m.receive(reads)
		if err != nil {
			m.err = fmt.Errorf("%w with %d frames left", err, len(m.frames))
			return
		}
		if n == 0 && len(m.due) > 0 {
			m.err = fmt.Errorf("no packet, with %d due and %d frames left", len(m.due), len(m.frames))
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
func (m *receiveModel) came(p *packet.Packet) error {
	if len(m.due) == 0 {
		return fmt.Errorf("a packet too many: %x", head(p.Bytes()))
	}
	want := m.due[0]
	m.due = m.due[1:]
	if p.Drop != want.drop {
		return fmt.Errorf("drop %v, want %v", p.Drop, want.drop)
	}
	if p.Hop != nil || p.Flow != 0 || p.RCO || p.Segment() != 0 {
		return fmt.Errorf("left of a packet before: hop %v, flow %d, RCO %v, segment %d", p.Hop, p.Flow, p.RCO, p.Segment())
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
func (m *receiveModel) lane(n int) {
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
