package trace

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"weft/dataplane"
	"weft/insight/filter"
	"weft/packet"
)

const (
	maxSteps = 8   // of a lane, Recv and Send included: the longest has 6
	ringSize = 512 // walks of a lane that wait for the reader; a power of two
)

// Walk is what became of one packet in one lane.
type Walk struct {
	Time      time.Time
	Lane      string
	Direction dataplane.Direction
	Key       Key
	From      netip.AddrPort // in: the outer source
	Hop       packet.Hop     // the peer it goes to or comes from, as far as one was found: else Peer.ID is Self and Path nil
	Copy      bool           // made by the lane to flood a frame
	Steps     [maxSteps]Step
	N         int // of Steps
	Drop      packet.Drop
}

// Step is one step of a Walk.
type Step struct {
	Name   string // as in `weft stages`
	Length int    // bytes of the packet behind it, all headers that it has there included; 0 = not known
}

// Recorder is a dataplane.Observer that keeps the walks of the packets that a filter chooses. On the lane it neither blocks nor
// allocates: a lane writes into a ring of its own, and what finds that full is lost and counted.
type Recorder struct {
	filter *filter.Filter
	ends   packet.Drop // the filter asks about ends below this one: 1 where it asks about none
	lanes  map[string]*lane
	lost   atomic.Uint64
}

// lane is a lane's part. All but the ring belongs to the lane's goroutine.
type lane struct {
	batch, copies track
	ring          [ringSize]Walk
	head, tail    atomic.Uint64 // written up to, read up to
}

// track follows the packets of one batch through a turn, by packet.Packet.Index.
type track struct {
	walks [packet.BatchSize]Walk
	known [packet.BatchSize]bool   // the inner packet has been looked at
	wants [packet.BatchSize]uint64 // bit d: the filter wants it if it ends so (packet.Drop)

	view  filter.View // here, since a lane may not allocate
	outer [packet.IPv6Header]byte
}

// NewRecorder makes a recorder for lanes of these names; others it does not know.
func NewRecorder(f *filter.Filter, lanes []string) *Recorder {
	r := &Recorder{filter: f, ends: 1, lanes: map[string]*lane{}}
	if strings.Contains(f.String(), "drop") {
		r.ends = packet.NumDrops
	}
	for _, name := range lanes {
		r.lanes[name] = &lane{}
	}
	return r
}

// Observe implements dataplane.Observer.
func (r *Recorder) Observe(p *dataplane.Point, b *packet.Batch) {
	l := r.lanes[p.Lane]
	if l == nil {
		return
	}
	t := &l.batch
	if p.Copies {
		t = &l.copies
	}
	pkts := b.Packets()
	if p.Place == dataplane.Recv || p.Copies && p.Place == dataplane.Flood {
		t.begin(p, len(pkts))
	}
	for i := range pkts {
		r.step(l, t, pkts[i].Index(), p, &pkts[i])
	}
}

// begin starts over with n packets.
func (t *track) begin(p *dataplane.Point, n int) {
	now := time.Now()
	for i := range n {
		t.known[i] = false
		w := &t.walks[i]
		w.Time, w.Lane, w.Direction, w.Key, w.From, w.Copy = now, p.Lane, p.Direction, Key{}, netip.AddrPort{}, p.Copies
		w.Hop, w.N, w.Drop = packet.Hop{Peer: packet.Peer{ID: packet.Self}}, 0, packet.Alive
	}
}

// step writes down what a step did to a packet, and hands its walk over when it was the last.
func (r *Recorder) step(l *lane, t *track, at int, p *dataplane.Point, pkt *packet.Packet) {
	if t.known[at] && t.wants[at] == 0 {
		return
	}
	w := &t.walks[at]
	dead, last := pkt.Drop != packet.Alive, p.Place == dataplane.Send
	if w.From = pkt.From; pkt.Hop.Dst().IsValid() {
		w.Hop = *pkt.Hop
	}
	if w.N < maxSteps {
		w.Steps[w.N].Name, w.Steps[w.N].Length = p.Name, 0
		if dead || !last { // what Send took may be elsewhere
			w.Steps[w.N].Length = pkt.Len()
		}
		w.N++
	}
	if !t.known[at] {
		if p.Inner < 0 && !dead {
			return // not unwrapped yet
		}
		r.look(t, at, p, pkt)
	}
	if !dead && !last {
		return
	}
	if w.Drop = pkt.Drop; r.ends == 1 && t.wants[at] != 0 || t.wants[at]&(1<<w.Drop) != 0 {
		r.push(l, w)
	}
}

// look finds out which packet it is and whether the filter wants it.
func (r *Recorder) look(t *track, at int, p *dataplane.Point, pkt *packet.Packet) {
	w := &t.walks[at]
	t.view = filter.View{}
	in := p.Direction == dataplane.In
	if in && pkt.From.IsValid() {
		t.view.Add(outerHeader(t.outer[:], pkt.From.Addr()), packet.IP)
	}
	switch {
	case p.Inner < 0 || in && pkt.Drop != packet.Alive: // it died wrapped, or by being unwrapped: all there is to know is where it came from
		w.Key = Key{Src: pkt.From.Addr(), Length: pkt.Len()}
	case p.Inner == 0:
		w.Key = ReadKey(pkt.Bytes(), 0)
		t.view.Add(pkt.Bytes(), packet.IP)
	default:
		w.Key = ReadKey(pkt.Bytes(), p.Inner)
		t.view.Add(pkt.Bytes(), packet.Ethernet)
	}
	t.known[at], t.wants[at] = true, 0
	for d := range r.ends {
		if t.view.Drop = d; r.filter.Match(&t.view) {
			t.wants[at] |= 1 << d
		}
	}
}

func (r *Recorder) push(l *lane, w *Walk) {
	head := l.head.Load()
	if head-l.tail.Load() == ringSize {
		r.lost.Add(1)
		return
	}
	l.ring[head%ringSize] = *w
	l.head.Store(head + 1)
}

// Take appends the walks that wait to list. One goroutine at a time may call it.
func (r *Recorder) Take(list []Walk) []Walk {
	for _, l := range r.lanes {
		tail, head := l.tail.Load(), l.head.Load()
		for ; tail != head; tail++ {
			list = append(list, l.ring[tail%ringSize])
		}
		l.tail.Store(tail)
	}
	return list
}

// Lost counts the walks that found no room.
func (r *Recorder) Lost() uint64 { return r.lost.Load() }
