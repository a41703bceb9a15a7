// Package packettest holds in-memory ports and the conformance suites every Port and every Stage
// must pass.
package packettest

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"weft/packet"
)

// pipeDepth is how many packets one direction of a Pipe queue holds before Send drops.
const pipeDepth = 1024

// Pipe returns two ports whose queues are connected pairwise: what queue i of one sends, queue i
// of the other receives. Each direction holds 1024 packets; more are dropped as QueueFull. Closing
// one port wakes its own receivers and leaves the other port open, as with a wire.
func Pipe(layer packet.Layer, queues, room int) (a, b packet.Port) {
	pa, pb := &pipe{name: "pipe-a", layer: layer}, &pipe{name: "pipe-b", layer: layer}
	for range queues {
		ab, ba := newWire(room), newWire(room)
		pa.queues = append(pa.queues, &pipeQueue{in: ba, out: ab})
		pb.queues = append(pb.queues, &pipeQueue{in: ab, out: ba})
	}
	return pa, pb
}

type pipe struct {
	name   string
	layer  packet.Layer
	queues []packet.Queue
}

func (p *pipe) Name() string           { return p.name }
func (p *pipe) Layer() packet.Layer    { return p.layer }
func (p *pipe) Queues() []packet.Queue { return p.queues }

func (p *pipe) Close() error {
	for _, q := range p.queues {
		q.(*pipeQueue).close()
	}
	return nil
}

type pipeQueue struct{ in, out *wire }

func (q *pipeQueue) Recv(b *packet.Batch) error { return q.in.recv(b) }

func (q *pipeQueue) Send(b *packet.Batch) error {
	if q.in.isClosed() {
		return net.ErrClosed
	}
	packets := b.Packets()
	for i := range packets {
		if p := &packets[i]; p.Drop == packet.Alive {
			q.out.send(p)
		}
	}
	return nil
}

func (q *pipeQueue) close() { q.in.close() }

// wire is one direction of a pipe: a ring of datagrams in memory of their own.
type wire struct {
	mu     sync.Mutex
	filled sync.Cond
	slots  [][]byte         // memory of the datagrams
	lens   []int            // their lengths; larger than the memory = truncated
	from   []netip.AddrPort // where they came from: the sender's Hop.Path.Dst
	head   int              // the oldest
	n      int
	closed bool
}

func newWire(room int) *wire {
	w := &wire{slots: make([][]byte, pipeDepth), lens: make([]int, pipeDepth), from: make([]netip.AddrPort, pipeDepth)}
	w.filled.L = &w.mu
	arena := make([]byte, pipeDepth*room)
	for i := range w.slots {
		w.slots[i] = arena[i*room : (i+1)*room]
	}
	return w
}

func (w *wire) send(p *packet.Packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.n == pipeDepth || w.closed {
		p.Drop = packet.QueueFull
		return
	}
	i := (w.head + w.n) % pipeDepth
	copy(w.slots[i], p.Bytes())
	w.lens[i] = p.Len()
	w.from[i] = p.Hop.Dst()
	w.n++
	w.filled.Signal()
}

func (w *wire) recv(b *packet.Batch) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.SetLen(0)
	if w.n == 0 && !w.closed {
		start := time.Now()
		for w.n == 0 && !w.closed {
			w.filled.Wait()
		}
		b.Waited += time.Since(start)
	}
	if w.closed {
		return net.ErrClosed
	}
	slots := b.Slots()
	n := min(w.n, len(slots))
	for i := range slots[:n] {
		p := &slots[i]
		mem := w.slots[w.head][:min(w.lens[w.head], len(w.slots[w.head]))]
		p.Resize(copy(p.Reset(), mem))
		p.From = w.from[w.head]
		if p.Len() < w.lens[w.head] {
			p.Drop = packet.Truncated
		}
		w.head = (w.head + 1) % pipeDepth
	}
	w.n -= n
	b.SetLen(n)
	return nil
}

func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.filled.Broadcast()
}

func (w *wire) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// Source is a queue that receives the same packets for ever: every Recv fills the batch with
// Packets in turn. What it is asked to send it forgets.
type Source struct {
	Packets [][]byte
	From    netip.AddrPort
	next    int
}

// Recv fills every slot of b. A packet larger than its slot arrives Truncated.
func (s *Source) Recv(b *packet.Batch) error {
	slots := b.Slots()
	for i := range slots {
		p, data := &slots[i], s.Packets[s.next]
		p.Resize(copy(p.Reset(), data))
		p.From = s.From
		if p.Len() < len(data) {
			p.Drop = packet.Truncated
		}
		if s.next++; s.next == len(s.Packets) {
			s.next = 0
		}
	}
	b.SetLen(len(slots))
	return nil
}

// Send takes everything.
func (s *Source) Send(*packet.Batch) error { return nil }

// Sink is a queue that counts what it is given and never receives anything: Recv returns
// net.ErrClosed at once.
type Sink struct{ Packets, Bytes uint64 }

// Recv returns net.ErrClosed.
func (s *Sink) Recv(b *packet.Batch) error {
	b.SetLen(0)
	return net.ErrClosed
}

// Send counts the living packets of b.
func (s *Sink) Send(b *packet.Batch) error {
	packets := b.Packets()
	for i := range packets {
		if p := &packets[i]; p.Drop == packet.Alive {
			s.Packets++
			s.Bytes += uint64(p.Len())
		}
	}
	return nil
}
