package tun

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
	"weft/packet/packettest"
)

// The queues whole, with the waiting, on a socket that keeps packets apart as a device does. What a kernel would have
// done to packets in between is not here: the stream tests have real devices.

// TestPlainQueueModel and the other models of queues: what comes out is what went in, in both directions, while single
// packets and floods take turns, packets find the queue full, and the port is closed and opened again. A queue never
// waits for a packet while it holds one.
func TestPlainQueueModel(t *testing.T)   { packettest.Sequences(t, 200_000, playPlainQueue) }
func TestTAPQueueModel(t *testing.T)     { packettest.Sequences(t, 200_000, playTAPQueue) }
func TestOffloadQueueModel(t *testing.T) { packettest.Sequences(t, 400_000, playOffloadQueue) }

func FuzzPlainQueueModel(f *testing.F)   { packettest.FuzzSequences(f, playPlainQueue) }
func FuzzTAPQueueModel(f *testing.F)     { packettest.FuzzSequences(f, playTAPQueue) }
func FuzzOffloadQueueModel(f *testing.F) { packettest.FuzzSequences(f, playOffloadQueue) }

func playPlainQueue(t *packettest.Tape) error   { return playQueue(t, false, 0) }
func playTAPQueue(t *packettest.Tape) error     { return playQueue(t, false, packet.EthernetHeader) }
func playOffloadQueue(t *packettest.Tape) error { return playQueue(t, true, 0) }

// queueModel is a queue, and a socket in place of its device.
type queueModel struct {
	*receiveModel
	offload bool
	stop    *wait.Stop
	queue   packet.Queue
	near    int
	far     int
	pushed  int // packets in what the socket holds for the queue, and the queue itself
	single  bool
	sent    []leaving
	out     *packet.Batch
	buf     []byte
}

// leaving is a packet that was sent.
type leaving struct {
	link  []byte
	parts [][]byte // it is written in
	drop  packet.Drop
}

func playQueue(t *packettest.Tape, offload bool, link int) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	m := &queueModel{receiveModel: newReceiveModel(t), offload: offload, near: fds[0], far: fds[1], buf: make([]byte, 1<<17)}
	m.link, m.bare, m.receiveModel.receive = link, !offload, m.receive
	m.out = packet.NewBatch(packet.BatchSize, m.mtu+64)
	if err := m.open(); err != nil {
		return err
	}
	defer func() { m.stop.Close() }()

	flows := []*packettest.Flow{t.Flow(), t.Flow(), t.Flow(), t.Flow()}
	for t.More() && m.err == nil {
		switch t.N(16) {
		case 0:
			m.singles(flows)
		case 1:
			m.err = m.reopen()
		case 2, 3, 4, 5, 6:
			m.err = m.send(flows)
		case 7:
			m.err = m.arrived()
		default:
			m.some(flows)
			m.read(t.N(4))
		}
	}
	return errors.Join(m.rest(), m.arrived())
}

func (m *queueModel) open() (err error) {
	if m.stop, err = wait.NewStop(); err != nil {
		return err
	}
	in, out := m.stop.Waiter(wait.Readable, m.near), m.stop.Gate()
	if m.offload {
		dev := device(m.near)
		m.queue = &offloadQueue{name: "model", dev: dev, in: in, scatter: newScatter(m.mtu),
			out: out, gather: newGather(dev, m.mtu, &fakeDevice{})}
	} else {
		m.queue = &plainQueue{name: "model", fd: m.near, mtu: m.mtu, link: m.link, in: in, out: out, segment: make([]byte, m.link+m.mtu)}
	}
	return nil
}

// reopen closes the port, and lets a new one go on where the old one has ended.
func (m *queueModel) reopen() error {
	if m.rest(); m.err != nil {
		return m.err
	}
	if err := m.stop.Close(); err != nil {
		return err
	}
	if err := m.queue.Recv(m.batch); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("a closed queue receives: %w", err)
	}
	if err := m.queue.Send(m.out); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("a closed queue sends: %w", err)
	}
	return m.open()
}

// receive lets some frames arrive, and receives if the queue has any: there is nobody else who could wake it.
func (m *queueModel) receive(int) (int, error) {
	if m.single && m.pushed == 0 && len(m.frames) > 0 {
		next := m.frames[0]
		m.frames, m.pushed = m.frames[1:], next.packets
		arrived := make(chan unix.Errno)
		go func() { // late, so that the queue sleeps
			time.Sleep(200 * time.Microsecond)
			arrived <- write(m.far, next.bytes)
		}()
		n, err := m.recv()
		if errno := <-arrived; errno != 0 {
			return n, errors.Join(err, errno)
		}
		return n, err
	}
	n := packettest.Pick(m.t, 0, 1, m.t.N(100))
	if m.pushed == 0 {
		n++
	}
	if err := m.push(n); err != nil || m.pushed == 0 {
		return 0, err
	}
	return m.recv()
}

// recv receives. Should the queue wait for more than there is, closing it ends that.
func (m *queueModel) recv() (int, error) {
	timer := time.AfterFunc(patience, func() { m.stop.Close() })
	defer timer.Stop()
	if err := m.queue.Recv(m.batch); err != nil {
		return 0, fmt.Errorf("with %d packets in the queue: %w", m.pushed, err)
	}
	m.pushed -= m.batch.Len()
	return m.batch.Len(), nil
}

// push writes up to n frames into the socket, as many as it takes.
func (m *queueModel) push(n int) error {
	for ; n > 0 && len(m.frames) > 0; n-- {
		next := m.frames[0]
		if errno := write(m.far, next.bytes); errno == unix.EAGAIN {
			return nil
		} else if errno != 0 {
			return fmt.Errorf("push %d bytes: %w", len(next.bytes), errno)
		}
		m.frames = m.frames[1:]
		m.pushed += next.packets
	}
	return nil
}

// singles is a few packets that come one at a time to a queue that sleeps, and then more.
func (m *queueModel) singles(flows []*packettest.Flow) {
	m.rest()
	m.single = true
	f := packettest.Pick(m.t, flows...)
	for range 3 + m.t.N(6) {
		m.whole(f.Packet(100), packet.ChecksumComplete)
		m.read(1)
	}
	if m.t.Chance(2) {
		m.some(flows)
		m.read(1 + m.t.N(4))
	}
	m.single = false
}

// send sends a batch: runs of the flows' packets, among them odd ones and super-packets of TCP.
func (m *queueModel) send(flows []*packettest.Flow) error {
	t := m.t
	n := packettest.Pick(t, packet.BatchSize, 1+t.N(packet.BatchSize), 1+t.N(8))
	empty, first := len(m.sent) == 0, len(m.sent)
	for k := 0; k < n; {
		f := packettest.Pick(t, flows...)
		size := packettest.Pick(t, 1+t.N(60), 1+t.N(m.mtu-100), m.mtu-100)
		super, odd := f.TCP && t.Chance(8), t.Chance(3)
		state := packet.ChecksumState(t.N(3))
		for range min(t.Run(), n-k) {
			o := leaving{link: make([]byte, m.link)}
			t.Fill(o.link)
			p := &m.out.Slots()[k]
			switch {
			case super:
				s := f.Super(m.mtu+t.N(8000), m.mtu-f.Headers())
				parts, err := packettest.SplitOracle(s)
				if err != nil {
					panic(err)
				}
				o.parts = parts
				b := bytes.Clone(s.Packet)
				packet.FinishChecksum(b, s.Start, s.Offset)
				packettest.Load(p, b, state)
			case odd && t.Chance(4):
				b, sound := f.Odd(size)
				if o.parts = [][]byte{b}; sound {
					packettest.Load(p, b, state)
				} else {
					packettest.Load(p, b, packet.ChecksumComplete)
				}
			default:
				b := f.Packet(size)
				o.parts = [][]byte{b}
				packettest.Load(p, b, state)
			}
			copy(p.Prepend(m.link), o.link)
			m.sent = append(m.sent, o)
			k++
		}
	}
	t.Step(n)
	dead := -1
	if t.Chance(4) {
		dead = t.N(n)
		m.out.Slots()[dead].Drop = packet.NoRoute
	}
	m.out.SetLen(n)
	if err := m.queue.Send(m.out); err != nil {
		return err
	}
	full := 0
	for i := range m.out.Packets() {
		o := &m.sent[first+i]
		switch o.drop = m.out.Packets()[i].Drop; {
		case i == dead && o.drop == packet.NoRoute:
			o.parts = nil
		case o.drop == packet.QueueFull:
			full++
		case o.drop != packet.Alive:
			return fmt.Errorf("packet %d of %d: %v", i, n, o.drop)
		}
	}
	if empty && full == n {
		return errors.New("an empty queue is said to be full")
	}
	if t.Chance(4) { // nobody reads, so that it becomes full
		return nil
	}
	return m.arrived()
}

// arrived reads all that was written and compares it with what was sent. Of a packet that is dropped some parts may have
// been written.
func (m *queueModel) arrived() error {
	var supers []packettest.Super
	k := 0 // parts of the first that have come
	for {
		n, errno := read(m.far, m.buf)
		if errno == unix.EAGAIN {
			break
		}
		if errno != 0 {
			return fmt.Errorf("read: %w", errno)
		}
		b := m.buf[:n]
		if m.offload {
			s, err := packettest.ParseVnet(bytes.Clone(b))
			if err != nil {
				return err
			}
			supers = append(supers, s)
			continue
		}
		for len(m.sent) > 0 && m.sent[0].drop != packet.Alive && !m.sent[0].is(k, b) {
			m.sent, k = m.sent[1:], 0
		}
		if len(m.sent) == 0 {
			return fmt.Errorf("a packet too many: %x", head(b))
		}
		if o := &m.sent[0]; !o.is(k, b) {
			return fmt.Errorf("part %d of %d: %w", k, len(o.parts), packettest.Same(b, append(bytes.Clone(o.link), o.parts[k]...)))
		}
		if k++; k == len(m.sent[0].parts) {
			m.sent, k = m.sent[1:], 0
		}
	}
	var living [][]byte
	for _, o := range m.sent {
		if o.drop == packet.Alive {
			living = append(living, o.parts...)
		}
	}
	m.sent = m.sent[:0]
	if m.offload {
		return packettest.CoalesceLegal(living, supers)
	}
	if len(living) > 0 {
		return fmt.Errorf("%d packets were never written", len(living))
	}
	return nil
}

// is says whether b is part k of the packet.
func (o *leaving) is(k int, b []byte) bool {
	return k < len(o.parts) && bytes.HasPrefix(b, o.link) && bytes.Equal(b[len(o.link):], o.parts[k])
}
