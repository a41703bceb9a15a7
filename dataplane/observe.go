package dataplane

import (
	"slices"

	"weft/packet"
)

// Point is a place in a lane where observers see a batch: behind one of its steps.
type Point struct {
	Lane      string // its name: "out/0"
	Direction Direction
	Place     Place
	Row, Rows int            // of the step in LaneStats.Stages, and how many there are
	Name      string         // of the step: "recv tun", "route", …
	Inside    bool           // the living are as pods sent them, or will get them
	Wire      bool           // they are what comes from or goes to the outside port
	Inner     int            // where the packets' inner IP header is, bytes from their front; -1 while an encapsulation is around it, as it may still be around what died while it was taken off
	Dead      int            // the same for those that died in this step, which leaves alone what it lets die; of Send: what the living were
	Outer     packet.Outward // out: of the queue to send to; nil where it cannot say, or it is not chosen yet
	Copies    bool           // the batch holds copies that the lane makes to flood frames: seen first behind Flood, while that step still runs
}

// Observer sees what passes a lane. Observe is called on the lane's goroutine behind every step, while the batch still holds
// those that died in it, with their Drop. Neither batch nor bytes may be changed, or kept beyond the call; it must not block,
// log or allocate. A packet is told from others of its batch by packet.Packet.Index, which it keeps from Recv to Send: batches lose
// the dead from one call to the next, and come apart where ways part.
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

// observe shows a batch to the observers behind a step, and numbers the packets where they are seen first. The caller holds l.mu.
func (l *Lane) observe(s *step, b *packet.Batch) {
	at := &s.at
	if l.copying {
		at = &s.copied
	}
	if at.Place == Recv || at.Copies && at.Place == Flood {
		for i := range b.Packets() {
			b.Packets()[i].SetIndex(i)
		}
	}
	for _, o := range l.observers {
		o.Observe(at, b)
	}
}
