package dataplane

import (
	"slices"

	"weft/packet"
)

// Point is a place in a lane where observers see a batch: behind one of its steps.
type Point struct {
	Lane      string // its name: "out/0"
	Direction Direction
	Step      int            // index into LaneStats.Stages: 0 is Recv
	Steps     int            // how many there are: the last is Send
	Name      string         // of the step: "recv tun", "route", …
	Inner     int            // where the packets' inner IP header is, bytes from their front; -1 while an encapsulation is around it, as it may still be around what died while it was taken off
	Dead      int            // the same for those that died in this step, which leaves alone what it lets die; of Send: what the living were
	Outer     packet.Outward // out: of the queue to send to; nil where it cannot say
	Copies    bool           // the batch holds copies that the lane makes to flood frames: seen first behind "flood", while that step still runs
}

// Wire says whether the batch holds what comes from or goes to the outside port.
func (p Point) Wire() bool {
	if p.Direction == Out {
		return p.Step == p.Steps-2
	}
	return p.Step == 0
}

// Observer sees what passes a lane. Observe is called on the lane's goroutine behind every step, while the batch still holds
// those that died in it, with their Drop. Neither batch nor bytes may be changed, or kept beyond the call; it must not block,
// log or allocate. From one call to the next the living keep their order and the dead are gone.
//
// Behind Send only the packets that died there have bytes: others may be elsewhere already.
type Observer interface {
	Observe(at *Point, b *packet.Batch)
}

// Attach lets o see what passes, from the next turn on. A lane without observers pays one comparison for each step.
func (l *Lane) Attach(o Observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observers = append(slices.Clone(l.observers), o)
}

// Detach ends that. When it returns, o is not called by this lane any more.
func (l *Lane) Detach(o Observer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observers = slices.DeleteFunc(slices.Clone(l.observers), func(x Observer) bool { return x == o })
}

// observe shows a batch to the observers behind step i. The caller holds l.mu.
func (l *Lane) observe(b *packet.Batch, i int) {
	at := &l.points[i]
	if b == l.copies {
		at = &l.copyPoints[i]
	}
	for _, o := range l.observers {
		o.Observe(at, b)
	}
}

// makePoints lays out the points of a lane whose steps have these names.
func (l *Lane) makePoints(names []string) {
	bare := func(step int) bool { // out, nothing is wrapped until the stages behind the forwarder (and its flood)
		forward := 1
		if l.copies != nil {
			forward = floodStep + 1
		}
		return step <= forward
	}
	if l.cfg.Direction == In {
		bare = func(step int) bool { return step >= len(l.cfg.Stages)-1 }
	}
	for i, name := range names {
		p := Point{Lane: l.cfg.Name, Direction: l.cfg.Direction, Step: i, Steps: len(names), Name: name, Inner: -1, Dead: -1}
		if l.cfg.Direction == Out {
			p.Outer, _ = l.cfg.To.(packet.Outward)
		}
		if bare(i) {
			p.Inner = l.cfg.Link
		}
		switch {
		case i == 0 || i == len(names)-1:
			p.Dead = p.Inner
		case bare(i - 1):
			p.Dead = l.cfg.Link
		case l.cfg.Direction == Out: // behind what the stages before this one have put in front
			p.Dead = l.cfg.Link
			for s := 0; s < i-1 && p.Dead >= 0; s++ {
				if p.Dead += l.steps[s].overhead.Front; l.steps[s].opaque != nil {
					p.Dead = -1
				}
			}
		}
		l.points = append(l.points, p)
		p.Copies = true
		l.copyPoints = append(l.copyPoints, p)
	}
}
