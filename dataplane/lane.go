// Package dataplane is the engine: lanes carry batches through stages along a route table.
//
//	out: inside.Recv  → route → vxlan → sealed → outside.Send
//	in:  outside.Recv → sealed → vxlan → route → inside.Send
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

// LaneConfig is what a lane is made of.
type LaneConfig struct {
	Name      string // e.g. "out/0"
	Direction Direction
	From, To  packet.Queue
	FromName  string         // the receiving port's name, for reports
	ToName    string         // the sending port's name
	Stages    []packet.Stage // outermost last; a lane in runs them backwards
	Room      int            // largest packet a slot must take, bytes
	Link      int            // bytes of the inner link header: 14 where the inside port has frames, else 0

	// Flood, if set, are the hops that a lane out copies a packet to which its first stage, a Bridge, wants to go to everyone.
	Flood func() []*packet.Hop

	// TooBig, if set, is given each packet that died as packet.TooBig, as a window that starts
	// with the inner IP header, while it is still valid, and the path it is too big for. It must not block and not keep the slice.
	TooBig func(ip []byte, path *packet.Path)
}

// Lane is one goroutine's work: one queue to receive from, one to send to, one direction, run to
// completion. Only Turn (or Run) touches the batch; Stats may be called from anywhere.
type Lane struct {
	cfg      LaneConfig
	steps    []step
	batch    *packet.Batch
	copies   *packet.Batch // of flooded packets; nil where there are none
	failed   error         // sending copies failed
	overhead int           // what the stages that are not opaque add, to tell inner bytes on the way out
	opaque   packet.Opaque // the one that may have added more or nothing; nil = there is none
	last     int           // size of the last batch: predicts whether to time Recv

	mu    sync.Mutex // held from Recv's return to Send's return: what Stats sees always adds up
	stats LaneStats
	peers []PeerStats   // by Hop.Peer.ID
	since time.Duration // when the last turn ended: from then on the lane is in Recv
	began time.Time

	observers          []Observer // guarded by mu
	points, copyPoints []Point    // by step
}

type step struct {
	run      func(*packet.Batch)
	overhead packet.Overhead // of a stage out that is not opaque
	opaque   packet.Opaque   // a stage out that is; nil = it is not
}

// NewLane builds a lane and its batch.
func NewLane(cfg LaneConfig) *Lane {
	l := &Lane{cfg: cfg, began: time.Now(), since: now()}
	names := []string{"recv " + cfg.FromName}
	if cfg.Direction == Out {
		for i, s := range cfg.Stages {
			st := step{run: s.Out}
			if opaque, is := bare(s).(packet.Opaque); is {
				st.opaque, l.opaque = opaque, opaque
			} else {
				st.overhead = s.Overhead()
				l.overhead += s.Overhead().Total()
			}
			l.steps = append(l.steps, st)
			names = append(names, s.Name())
			if i == 0 && cfg.Flood != nil {
				l.steps = append(l.steps, step{run: l.flood})
				names = append(names, "flood")
				l.copies = packet.NewBatch(packet.BatchSize, cfg.Room)
			}
		}
	} else {
		for i := len(cfg.Stages) - 1; i >= 0; i-- {
			l.steps = append(l.steps, step{run: cfg.Stages[i].In})
			names = append(names, cfg.Stages[i].Name())
		}
	}
	names = append(names, "send "+cfg.ToName)
	l.stats.Stages = make([]StageStats, len(names))
	for i, n := range names {
		l.stats.Stages[i].Name = n
	}
	l.makePoints(names)
	if q, ok := cfg.From.(packet.Batcher); ok {
		l.batch = q.NewBatch(packet.BatchSize)
	} else {
		l.batch = packet.NewBatch(packet.BatchSize, cfg.Room)
	}
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
	var start time.Duration
	if sampled || l.last >= timedBatch {
		start = now()
	}
	if err := l.cfg.From.Recv(b); err != nil {
		return err
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() { l.since = now() }()
	n := b.Len()
	l.last = n
	timed := sampled || n >= timedBatch
	l.stats.Turns++
	l.stats.Received += uint64(n)
	l.stats.Waited += b.Waited
	if start != 0 {
		l.stats.Stages[0].charge(n, now()-start-b.Waited)
	}
	l.account(b, 0, n)
	return l.carry(b, 0, timed)
}

// carry takes a batch through the steps from one on and sends what is left of it. The caller holds l.mu.
func (l *Lane) carry(b *packet.Batch, from int, timed bool) error {
	var t time.Duration
	if timed {
		t = now()
	}
	for i := from; i < len(l.steps); i++ {
		n := b.Len()
		l.steps[i].run(b)
		if timed {
			t = l.stats.Stages[i+1].lap(n, t)
		}
		l.account(b, i+1, n)
	}
	send := len(l.steps) + 1
	n := b.Len()
	if n == 0 {
		return l.failed
	}
	err := l.failed
	if err == nil {
		l.countPeers(b)
		err = l.cfg.To.Send(b)
	}
	if err != nil {
		// The port is dead, and what it held died with it: say so, or the lane would not add up.
		for i := range b.Packets() {
			if p := &b.Packets()[i]; p.Drop == packet.Alive {
				p.Drop = packet.Refused
			}
		}
		l.account(b, send, n)
		return err
	}
	if timed {
		l.stats.Stages[send].lap(n, t)
	}
	l.account(b, send, n)
	l.stats.Sent += uint64(b.Len())
	return nil
}

// account takes the dead out of the batch after a step that began with n packets.
func (l *Lane) account(b *packet.Batch, i, n int) {
	s := &l.stats.Stages[i]
	s.Calls++
	s.Packets += uint64(n)
	if len(l.observers) > 0 {
		l.observe(b, i)
	}
	b.Compact(&s.Drops)
	if b.Len() == n || l.cfg.TooBig == nil {
		return
	}
	for k := b.Len(); k < n; k++ { // Compact moved the dead behind the living
		p := &b.Slots()[k]
		if p.Drop == packet.TooBig && p.Hop != nil && p.Hop.Path != nil {
			l.reject(p, i)
		}
	}
}

// reject hands the inner packet of a TooBig one to whoever answers it. A packet that died in step i is what the steps before
// that one have made of it: that is taken off, the last first.
func (l *Lane) reject(p *packet.Packet, i int) {
	for s := min(i-1, len(l.steps)) - 1; s >= 0; s-- {
		if st := &l.steps[s]; st.opaque != nil {
			if !st.opaque.Undo(p) {
				return
			}
		} else if !shed(p, st.overhead) {
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

// countPeers charges the living packets to the peers they go to or come from.
func (l *Lane) countPeers(b *packet.Batch) {
	overhead := l.cfg.Link
	if l.cfg.Direction == Out {
		overhead += l.overhead
	}
	pkts := b.Packets()
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
		inner := p.Len() - overhead
		if l.opaque != nil {
			inner -= l.opaque.Added(p).Total()
		}
		l.peers[id].Packets++
		l.peers[id].Bytes += uint64(inner)
	}
}
