// Package dataplane is the engine: lanes carry batches through stages along a route table.
//
//	out: inside.Recv  → route → vxlan → sealed → outside.Send
//	in:  outside.Recv → sealed → vxlan → route → inside.Send
//
// A lane out with several ways to the peers parts behind route: places.go lays lanes out, lane.go runs them.
//
// It names no device, no encapsulation and no control plane: it knows packet's interfaces only.
package dataplane

import (
	"runtime"
	"sync"
	"time"

	"weft/packet"
)

const (
	// timedBatch is the batch size from which every turn is timed; of the smaller ones, one in
	// timedEvery is. A clock read costs some 25 ns: 2 ns a packet at 64, but more than the work
	// itself on a batch of one.
	timedBatch = 8
	timedEvery = 16
)

// Direction says which way a lane carries.
type Direction uint8

const (
	Out Direction = iota // inside → underlay
	In                   // underlay → inside
)

func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// LaneConfig is what a lane is made of:
//
//	out: Inside → Forward → (Flood) → one of the Ways: Wrap, Outside
//	in:  the Way: Outside, Wrap backwards → Forward → Inside
type LaneConfig struct {
	Name      string // e.g. "out/0"
	Direction Direction
	Inside    End          // where inner packets are
	Forward   packet.Stage // knows whose they are: a Route or a Bridge
	Ways      []Way        // to the peers. Out, packet.Path.Way says which a packet takes; a lane in has one
	Room      int          // largest packet a slot must take, bytes
	Link      int          // bytes of the inner link header: 14 where the inside port has frames, else 0

	// Flood, if set, are the hops that a lane out copies a packet to which Forward, a Bridge, wants to go to everyone.
	Flood func() []*packet.Hop

	// TooBig, if set, is given each packet that died as packet.TooBig, as a window that starts
	// with the inner IP header, while it is still valid, and the path it is too big for. It must not block and not keep the slice.
	TooBig func(ip []byte, path *packet.Path)
}

// End is where a lane begins or ends.
type End struct {
	Port  string // its name, for reports
	Queue packet.Queue
}

// Way is one way to carry packets to peers: what is put around them, and by which port they leave.
type Way struct {
	Name    string         // for reports; may be empty where a lane has no other
	Wrap    []packet.Stage // innermost first
	Outside End
}

// Lane is one goroutine's work: a batch is received at one end, run to completion and sent at the others. Only Turn (or Run)
// touches the batch; Stats may be called from anywhere.
type Lane struct {
	cfg    LaneConfig
	from   packet.Queue
	places // of cfg

	batch   *packet.Batch
	copies  *packet.Batch // of flooded packets; nil where there are none
	copying bool          // they are on their way
	failed  error         // of a Send: the lane ends with this turn
	last    int           // size of the last batch: predicts whether to time Recv

	mu    sync.Mutex // held from Recv's return to Send's return: what Stats sees always adds up
	stats LaneStats
	peers []PeerStats   // by Hop.Peer.ID
	since time.Duration // when the last turn ended: from then on the lane is in Recv
	began time.Time

	observers []Observer // guarded by mu
}

// NewLane builds a lane and its batch.
func NewLane(cfg LaneConfig) *Lane {
	l := &Lane{cfg: cfg, began: time.Now(), since: now()}
	if cfg.Direction == Out {
		l.from = cfg.Inside.Queue
	} else {
		l.from = cfg.Ways[0].Outside.Queue
	}
	if q, ok := l.from.(packet.Batcher); ok {
		l.batch = q.NewBatch(packet.BatchSize)
	} else {
		l.batch = packet.NewBatch(packet.BatchSize, cfg.Room)
	}
	if cfg.Direction == Out && cfg.Flood != nil {
		l.copies = packet.NewBatch(packet.BatchSize, cfg.Room)
	}
	l.lay()
	return l
}

// Run turns until a port fails or closes. It locks its OS thread: the queues block in system
// calls, and a lane that moved between threads would pay for it on every wake-up.
func (l *Lane) Run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		if err := l.Turn(); err != nil {
			return err
		}
	}
}

// Turn carries one batch all the way, from Recv to Send.
func (l *Lane) Turn() error {
	b := l.batch
	b.Waited = 0
	sampled := l.stats.Turns%timedEvery == 0 // only Turn writes stats, so it may read them unlocked
	var start, t time.Duration
	if sampled || l.last >= timedBatch {
		start = now()
	}
	if err := l.from.Recv(b); err != nil {
		return err
	}

	l.mu.Lock()
	n := b.Len()
	l.last = n
	l.stats.Turns++
	l.stats.Received += uint64(n)
	l.stats.Waited += b.Waited
	if start != 0 {
		l.recv.stats.charge(n, now()-start-b.Waited)
	}
	l.account(l.recv, b, n)
	if sampled || n >= timedBatch {
		t = now()
	}
	for _, s := range l.unwrap {
		t = l.pass(s, b, t)
	}
	t = l.pass(l.forward, b, t)
	if l.flood != nil {
		t = l.pass(l.flood, b, t)
	}
	l.leave(b, t)
	err := l.failed
	l.since = now()
	l.mu.Unlock()
	return err
}

// pass takes a batch through a step. t is when it got there, 0 where nobody wants to know; what is returned is when it has passed.
func (l *Lane) pass(s *step, b *packet.Batch, t time.Duration) time.Duration {
	n := b.Len()
	s.run(b)
	if t != 0 {
		t = s.stats.lap(n, t)
	}
	l.account(s, b, n)
	return t
}

// leave sends a batch, each packet by its way, and notes in l.failed if that ends the lane. The caller holds l.mu.
func (l *Lane) leave(b *packet.Batch, t time.Duration) {
	if l.choose == nil {
		l.by(&l.exits[0], b, t)
		return
	}
	t = l.pass(l.choose, b, t)
	for i := range l.exits {
		if x := &l.exits[i]; x.count > 0 {
			x.part.View(b, x.first, x.count)
			t = l.by(x, &x.part, t)
		}
	}
}

// by sends a batch by an exit.
func (l *Lane) by(x *exit, b *packet.Batch, t time.Duration) time.Duration {
	for _, s := range x.wrap {
		t = l.pass(s, b, t)
	}
	n := b.Len()
	if n == 0 {
		return t
	}
	if l.failed == nil {
		l.countPeers(x, b)
		l.failed = x.queue.Send(b)
	}
	if l.failed != nil {
		// The port is dead, and what it held died with it, and what was to follow: say so, or the lane would not add up.
		for i := range b.Packets() {
			if p := &b.Packets()[i]; p.Drop == packet.Alive {
				p.Drop = packet.Refused
			}
		}
		l.account(x.send, b, n)
		return t
	}
	if t != 0 {
		t = x.send.stats.lap(n, t)
	}
	l.account(x.send, b, n)
	l.stats.Sent += uint64(b.Len())
	return t
}

// account takes the dead out of the batch after a step that began with n packets.
func (l *Lane) account(s *step, b *packet.Batch, n int) {
	s.stats.Calls++
	s.stats.Packets += uint64(n)
	if len(l.observers) > 0 {
		l.observe(s, b)
	}
	b.Compact(&s.stats.Drops)
	if b.Len() == n || l.cfg.TooBig == nil {
		return
	}
	for k := b.Len(); k < n; k++ { // Compact moved the dead behind the living
		p := &b.Slots()[k]
		if p.Drop == packet.TooBig && p.Hop != nil && p.Hop.Path != nil {
			l.reject(s, p)
		}
	}
}

// reject hands the inner packet of a TooBig one to whoever answers it. A packet that died in a step is what the steps before
// that one have made of it: that is taken off, the last first.
func (l *Lane) reject(at *step, p *packet.Packet) {
	for s := at.before; s != nil; s = s.before {
		if s.opaque != nil {
			if !s.opaque.Undo(p) {
				return
			}
		} else if !shed(p, s.added) {
			return
		}
	}
	if b := p.Bytes(); len(b) > l.cfg.Link {
		l.cfg.TooBig(b[l.cfg.Link:], p.Hop.Path)
	}
}

// shed takes an overhead off a packet; false if it does not have that much.
func shed(p *packet.Packet, o packet.Overhead) bool {
	if p.Len() < o.Total() {
		return false
	}
	p.Strip(o.Front)
	p.Resize(p.Len() - o.Tail)
	return true
}

// countPeers charges the living packets to the peers they go to or come from, in inner bytes.
func (l *Lane) countPeers(x *exit, b *packet.Batch) {
	pkts, around, opaque := b.Packets(), x.around, x.opaque
	for i := range pkts {
		p := &pkts[i]
		if p.Hop == nil {
			continue
		}
		id := int(p.Hop.Peer.ID)
		if id >= len(l.peers) {
			if p.Hop.Peer.ID == packet.Self {
				continue
			}
			l.peers = append(l.peers, make([]PeerStats, id+64-len(l.peers))...)
		}
		inner := p.Len() - around
		if opaque != nil {
			inner -= opaque.Added(p).Total()
		}
		l.peers[id].Packets++
		l.peers[id].Bytes += uint64(inner)
	}
}
