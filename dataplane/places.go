package dataplane

import "weft/packet"

// Place is what a step is for.
type Place uint8

const (
	Recv    Place = iota // a queue receives
	Unwrap               // a stage takes off what is around the packets
	Forward              // Route or Bridge: whose they are
	Flood                // the lane copies what is for everyone
	Choose               // the lane tells packets apart by their ways
	Wrap                 // a stage puts something around them
	Send                 // a queue sends
)

// places are the steps of a lane, by what they are for.
type places struct {
	recv    *step
	unwrap  []*step // in, the outermost first
	forward *step
	flood   *step // nil where nothing is flooded
	choose  *step // nil where there is one exit
	exits   []exit

	way     [packet.BatchSize]uint8 // of packet i, for choose
	scratch []packet.Packet         // the batch while choose puts it in order; nil where there is one exit
}

// exit is how packets leave: out, a Way each; in, the inside.
type exit struct {
	wrap  []*step
	send  *step
	queue packet.Queue

	around int           // bytes that are around the inner packets when they are sent, but for those of the opaque stage
	opaque packet.Opaque // the one that may have added more or nothing; nil = there is none

	first, count int          // the part of the batch that leaves by it, as choose says
	part         packet.Batch // the same
}

// step is one place in a lane where packets can die: what happens there, and what is told of it.
type step struct {
	run    func(*packet.Batch) // nil where a queue works
	before *step               // the one that a packet passed before it; nil = none
	added  packet.Overhead     // by a stage that wraps and is not opaque
	opaque packet.Opaque       // a stage that wraps and is; nil = it is not

	stats      *StageStats // its row
	at, copied Point       // what observers are told of it, and of copies there
}

// lay lays out the steps of the lane's configuration.
func (l *Lane) lay() {
	var all []*step // in the order of the report
	add := func(place Place, name string, before *step, run func(*packet.Batch)) *step {
		s := &step{run: run, before: before, at: Point{Lane: l.cfg.Name, Direction: l.cfg.Direction, Place: place, Row: len(all), Name: name, Inner: -1, Dead: -1}}
		all = append(all, s)
		return s
	}
	if l.cfg.Direction == Out {
		l.layOut(add)
	} else {
		l.layIn(add)
	}
	l.stats.Stages = make([]StageStats, len(all))
	for i, s := range all {
		s.stats = &l.stats.Stages[i]
		s.stats.Name, s.at.Rows = s.at.Name, len(all)
		s.copied = s.at
		s.copied.Copies = true
	}
}

// adder adds a step to the report.
type adder func(place Place, name string, before *step, run func(*packet.Batch)) *step

func (l *Lane) layOut(add adder) {
	c := &l.cfg
	whole := func(s *step) *step { // the packets are as they came
		s.at.Inner, s.at.Dead = c.Link, c.Link
		return s
	}
	l.recv = whole(add(Recv, "recv "+c.Inside.Port, nil, nil))
	l.recv.at.Inside = true
	l.forward = whole(add(Forward, c.Forward.Name(), l.recv, c.Forward.Out))
	last := l.forward
	if c.Flood != nil {
		l.flood = whole(add(Flood, "flood", last, l.floods))
		last = l.flood
	}
	if len(c.Ways) > 1 {
		l.choose = whole(add(Choose, "way", last, l.chooses))
		l.scratch = make([]packet.Packet, len(l.batch.Slots()))
		last = l.choose
	}
	l.exits = make([]exit, len(c.Ways))
	for i, w := range c.Ways {
		l.exits[i] = layWay(add, &w, last, c.Link, len(c.Ways) == 1)
	}
}

// layWay lays out a way behind the step before it. only says that it is the lane's only one.
func layWay(add adder, w *Way, before *step, link int, only bool) exit {
	x := exit{queue: w.Outside.Queue, around: link}
	outer, _ := w.Outside.Queue.(packet.Outward)
	prefix := ""
	if w.Name != "" {
		prefix = w.Name + ": "
	}
	last, front := before, link // front is where the inner IP header is; -1 = nobody can read it any more
	for _, s := range w.Wrap {
		st := add(Wrap, prefix+s.Name(), last, s.Out)
		st.at.Dead, st.at.Outer = front, outer
		if opaque, is := bare(s).(packet.Opaque); is {
			st.opaque, x.opaque, front = opaque, opaque, -1
		} else {
			st.added = s.Overhead()
			x.around += st.added.Total()
			if front >= 0 {
				front += st.added.Front
			}
		}
		x.wrap, last = append(x.wrap, st), st
	}
	if len(w.Wrap) > 0 || only {
		last.at.Wire, last.at.Outer = true, outer
	}
	x.send = add(Send, prefix+"send "+w.Outside.Port, last, nil)
	x.send.at.Outer = outer
	return x
}

func (l *Lane) layIn(add adder) {
	c := &l.cfg
	w := &c.Ways[0]
	l.recv = add(Recv, "recv "+w.Outside.Port, nil, nil)
	l.recv.at.Wire = true
	last := l.recv
	for i := len(w.Wrap) - 1; i >= 0; i-- {
		last = add(Unwrap, w.Wrap[i].Name(), last, w.Wrap[i].In)
		l.unwrap = append(l.unwrap, last)
	}
	last.at.Inner = c.Link // unwrapped; what died of that may still be wrapped
	if last == l.recv {
		last.at.Dead = c.Link
	}
	l.forward = add(Forward, c.Forward.Name(), last, c.Forward.In)
	l.forward.at.Inner, l.forward.at.Dead, l.forward.at.Inside = c.Link, c.Link, true
	send := add(Send, "send "+c.Inside.Port, l.forward, nil)
	send.at.Inner, send.at.Dead = c.Link, c.Link
	l.exits = []exit{{send: send, queue: c.Inside.Queue, around: c.Link}}
}

// chooses is the step in which packets part: it puts those of one way side by side, in their order, and says which part of the batch
// is whose. Dropped are no-endpoint (the hop names no way of this lane); they end up last.
func (l *Lane) chooses(b *packet.Batch) {
	for i := range l.exits {
		l.exits[i].count = 0
	}
	live := b.Packets()
	nowhere := uint8(len(l.exits))
	var hop *packet.Hop
	way, highest, mixed := nowhere, uint8(0), false
	for i := range live {
		p := &live[i]
		if p.Hop != hop || hop == nil { // packets come in runs of one flow
			if hop, way = p.Hop, nowhere; hop != nil && hop.Path != nil {
				way = min(hop.Path.Way, nowhere)
			}
			mixed, highest = mixed || way < highest, way
		}
		if l.way[i] = way; way == nowhere {
			p.Drop = packet.NoEndpoint
			continue
		}
		l.exits[way].count++
	}
	end := 0
	for i := range l.exits {
		x := &l.exits[i]
		x.first = end
		end += x.count
	}
	if !mixed {
		return
	}
	scratch := l.scratch[:copy(l.scratch, live)]
	for i := range l.exits {
		l.exits[i].count = 0
	}
	for i := range scratch {
		to := end
		if way := l.way[i]; way == nowhere {
			end++
		} else {
			x := &l.exits[way]
			to = x.first + x.count
			x.count++
		}
		live[to] = scratch[i]
	}
}
