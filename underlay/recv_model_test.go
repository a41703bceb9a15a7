package underlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// datagram is one that was sent and has not come yet.
type datagram struct {
	data   []byte
	inner  int  // what Segment must say of it
	joined bool // with others
}

// recvModel drives the receiving half of a queue through a real kernel. The oracle learns nothing: it is the list of the datagrams
// that were sent, in their order, for each sender.
type recvModel struct {
	ns      *nettest.NS
	far     [2]*rawPeer // IPv4, IPv6
	batches []*packet.Batch
	garbage []byte

	tape  *packettest.Tape
	cfg   Config
	port  packet.Port
	due   [2][]datagram
	lossy bool // some of them were lost to a full socket
}

// superMagic begins a datagram that says how long it is: an inner super-packet, in one piece whatever the kernel calls its segments.
const superMagic = 0x5eafbeef

func superLength(b []byte) int {
	if len(b) < 6 || binary.BigEndian.Uint32(b) != superMagic {
		return 0
	}
	return int(binary.BigEndian.Uint16(b[4:]))
}

func newRecvModel(t testing.TB) *recvModel {
	m := &recvModel{ns: nettest.New(t), garbage: make([]byte, 1<<17)}
	m.far = [2]*rawPeer{newRawPeer(t, m.ns, loopback4), newRawPeer(t, m.ns, loopback6)}
	for i := range m.garbage {
		m.garbage[i] = byte(0xa0 + i%7)
	}
	for _, shape := range [][2]int{{packet.BatchSize, 1500}, {packet.BatchSize, 2000}, {packet.BatchSize, 100}, {40, 9000}, {7, 1500}, {2, 600}, {1, 1500}} {
		m.batches = append(m.batches, packet.NewBatch(shape[0], shape[1]))
	}
	return m
}

// play implements packettest.Play.
func (m *recvModel) play(t *packettest.Tape) (err error) {
	m.tape, m.port = t, nil
	release, err := pinned()
	if err != nil {
		return err
	}
	defer release()
	if err := m.reopen(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.port.Close()) }()
	batch := m.batches[0]
	for t.More() {
		switch t.N(12) {
		default:
			if err = m.send(); err != nil {
				return err
			}
		case 5, 6, 7, 8, 9:
			for range t.Run() {
				if !m.ready() {
					break
				}
				if err = m.recv(batch); err != nil {
					return err
				}
			}
		case 10:
			batch = packettest.Pick(t, m.batches...)
		case 11:
			switch {
			case t.Chance(4):
				err = m.reopen()
			case t.Chance(4):
				err = m.overflow()
			}
			if err != nil {
				return err
			}
		}
	}
	return m.settle(batch)
}

// pinned keeps the caller's thread on one processor. Loopback delivers by a queue of each processor: in order, but on a busy machine
// after the sender was told that it has sent.
func pinned() (release func(), err error) {
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return nil, err
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &all) // it was that before
		runtime.UnlockOSThread()
	}, nil
}

// settle receives all that is under way. Where some of it was lost, the last datagrams of each sender, sent now, say when that is.
func (m *recvModel) settle(b *packet.Batch) error {
	if m.lossy {
		for family, far := range m.far {
			for _, in := range m.queue().recv.inlets {
				if err := unix.SetsockoptInt(in.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
					return err
				}
			}
			last := make([]byte, 40)
			m.tape.Fill(last)
			if err := far.sendTo(netip.AddrPortFrom(m.cfg.Local[family], testPort), last, 0); err != nil {
				return err
			}
			m.due[family] = append(m.due[family], datagram{last, 0, false})
		}
	}
	for len(m.due[0])+len(m.due[1]) > 0 {
		if err := m.recv(b); err != nil { // it waits for what is late
			return err
		}
	}
	return nil
}

func (m *recvModel) reopen() error {
	if m.port != nil { // what is late would come to the next port
		if err := errors.Join(m.settle(m.batches[0]), m.port.Close()); err != nil {
			return err
		}
	}
	m.due, m.lossy = [2][]datagram{}, false
	m.cfg = offloadConfig(loopback4)
	m.cfg.Local = []netip.Addr{loopback4, loopback6}
	m.cfg.Length = superLength
	if m.tape.Chance(6) {
		m.cfg.Offload = false
		m.cfg.Batch = m.tape.Chance(2)
	}
	var err error
	m.port, err = listen(m.ns, m.cfg, 1)
	return err
}

func (m *recvModel) queue() *queue { return m.port.Queues()[0].(*queue) }

// ready says whether Recv will find something.
func (m *recvModel) ready() bool {
	r := m.queue().recv
	if r.restN > 0 {
		return true
	}
	for i := range r.inlets {
		fds := []unix.PollFd{{Fd: int32(r.inlets[i].fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 0); n > 0 {
			return true
		}
	}
	return false
}

// pending bounds what waits in the sockets, in bytes with what the kernel adds.
const pending = 3 << 20

func (m *recvModel) waiting() (n int) {
	for _, due := range m.due {
		for _, d := range due {
			n += len(d.data) + 1000
		}
	}
	return n
}

// send sends a run of messages of one shape.
func (m *recvModel) send() error {
	t, family := m.tape, m.tape.N(2)
	segment := packettest.Pick(t, 1400, 1400, 1448, 700, 1, 63, 64, 65, 1501, 8972, 1+t.N(1500), 1+t.N(9000))
	parts := packettest.Pick(t, 1, 1, 2, 3, 1+t.N(64), 64)
	last := segment
	if t.Chance(3) {
		last = t.N(segment + 1)
	}
	super := t.Chance(12)
	if t.Chance(12) { // one large datagram
		segment, parts = 0, 1
		last = t.N(65487)
	}
	room := pending - m.waiting()
	for range t.Run() {
		total := min((parts-1)*segment+last, 65400) // from 65521 on, loopback takes IPv6 apart
		if room -= total + 1000*parts; room < 0 {
			return nil
		}
		data := make([]byte, total)
		t.Fill(data)
		if segment >= total {
			segment = 0
		}
		if super = super && m.cfg.Offload && total >= 64 && segment >= 6; super {
			binary.BigEndian.PutUint32(data, superMagic)
			binary.BigEndian.PutUint16(data[4:], uint16(total))
		}
		if err := m.far[family].sendTo(netip.AddrPortFrom(m.cfg.Local[family], testPort), data, segment); err != nil {
			return err
		}
		switch {
		case segment == 0:
			m.due[family] = append(m.due[family], datagram{data, 0, false})
		case super:
			m.due[family] = append(m.due[family], datagram{data, segment, false})
		default:
			for at := 0; at < total; at += segment {
				m.due[family] = append(m.due[family], datagram{data[at:min(at+segment, total)], 0, m.cfg.Offload})
			}
		}
	}
	return nil
}

// overflow sends more than the sockets take, and makes them take little for that.
func (m *recvModel) overflow() error {
	for _, in := range m.queue().recv.inlets {
		if err := unix.SetsockoptInt(in.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 30000); err != nil {
			return err
		}
	}
	m.lossy = true
	return m.send()
}

// recv receives once, holds what came to what was due, and spoils it as a lane may.
func (m *recvModel) recv(b *packet.Batch) error {
	watchdog := time.AfterFunc(patience, func() { m.port.Close() }) // what never comes is a failure, not a hang
	defer watchdog.Stop()
	if err := m.queue().Recv(b); err != nil {
		return fmt.Errorf("%d are due: %w", len(m.due[0])+len(m.due[1]), err)
	}
	if b.Len() == 0 {
		return errors.New("Recv has found nothing")
	}
	for i := range b.Packets() {
		if err := m.came(&b.Packets()[i]); err != nil {
			return fmt.Errorf("packet %d of %d, stride %d and %d, %d left over: %w", i, b.Len(), m.queue().recv.inlets[0].stride,
				m.queue().recv.inlets[1].stride, m.queue().recv.restN, err)
		}
		m.spoil(&b.Packets()[i])
	}
	m.tape.Step(b.Len())
	b.Compact(&packet.Drops{})
	return nil
}

// came takes a packet out of what is due.
func (m *recvModel) came(p *packet.Packet) error {
	family := -1
	for f, far := range m.far {
		if p.From == far.addr {
			family = f
		}
	}
	if family < 0 {
		return fmt.Errorf("from %v, who has sent nothing", p.From)
	}
	due := m.due[family]
	if len(due) == 0 {
		return fmt.Errorf("nothing is due, %d bytes came", p.Len())
	}
	var err error
	for i, d := range due {
		if err = m.is(p, &d); err == nil {
			m.due[family] = due[i+1:]
			return nil
		}
		if !m.lossy {
			break
		}
	}
	return err
}

// is says what is wrong if p is to be d.
func (m *recvModel) is(p *packet.Packet, d *datagram) error {
	data := d.data
	switch {
	case p.Drop == packet.Truncated && d.joined && len(d.data) > p.Room():
		data = data[:p.Len()] // the rest of it has no place
	case p.Drop != packet.Alive:
		return fmt.Errorf("dropped as %v", p.Drop)
	}
	if err := packettest.Same(p.Bytes(), data); err != nil {
		return err
	}
	if p.Segment() != d.inner {
		return fmt.Errorf("segment %d, want %d", p.Segment(), d.inner)
	}
	_, _, partial := p.Partial()
	if partial || p.Checksum() != packet.ChecksumComplete || p.Hop != nil || p.Flow != 0 || p.RCO || len(p.Outer()) != 0 {
		return fmt.Errorf("the slot still says of another packet: partial %v, checksum %d, hop %v, flow %d, rco %v, %d outer bytes",
			partial, p.Checksum(), p.Hop, p.Flow, p.RCO, len(p.Outer()))
	}
	if p.Headroom() != packet.Headroom || cap(p.Tail())-p.Len() < packet.Tailroom {
		return fmt.Errorf("headroom %d, tailroom %d", p.Headroom(), cap(p.Tail())-p.Len())
	}
	return nil
}

// spoil does with a packet what its owner may until the next Recv: any byte from the headroom to the tailroom becomes another, and
// everything is said of it.
func (m *recvModel) spoil(p *packet.Packet) {
	n := p.Len()
	p.Prepend(packet.Headroom)
	p.Resize(packet.Headroom + n + packet.Tailroom)
	copy(p.Bytes(), m.garbage)
	p.Hop, p.Flow, p.RCO = &packet.Hop{}, 7, true
	p.SetPartial(1, 2)
	p.SetSegment(3)
	p.SetOuter(4)
	if m.tape.Chance(8) {
		p.Drop = packet.NoRoute
	}
	if m.tape.Chance(16) {
		p.Borrow(m.garbage, 500, 500) // of another lender
	}
}

func TestRecvModel(t *testing.T) { packettest.Sequences(t, 400_000, newRecvModel(t).play) }
func FuzzRecvModel(f *testing.F) { packettest.FuzzSequences(f, newRecvModel(f).play) }
