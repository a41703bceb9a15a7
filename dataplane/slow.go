package dataplane

import (
	"time"

	"weft/packet"
)

// ahead bounds what a slow stage may have spun too long and makes up for later: more than that was no reading of the clock but somebody
// else's turn on the core.
const ahead = time.Microsecond

// slow is a stage with a fault: it takes longer than the one it wraps. One lane uses it.
type slow struct {
	packet.Stage
	perPacket time.Duration
	owed      time.Duration // still to spin; below zero after a spin that was too long
}

// Slow returns a stage that does what s does and then spins for perPacket for each packet it was given, in either direction. It keeps the
// name, so that what a lane's ledger charges to it is what the fault costs. It is for finding out whether a measurement finds
// such a fault: nothing else wraps a stage.
func Slow(s packet.Stage, perPacket time.Duration) packet.Stage {
	return &slow{Stage: s, perPacket: perPacket}
}

// bare is the stage itself, where Slow has wrapped it.
func bare(s packet.Stage) packet.Stage {
	if wrapped, is := s.(*slow); is {
		return wrapped.Stage
	}
	return s
}

func (s *slow) Out(b *packet.Batch) {
	n := b.Len()
	s.Stage.Out(b)
	s.spin(n)
}

func (s *slow) In(b *packet.Batch) {
	n := b.Len()
	s.Stage.In(b)
	s.spin(n)
}

// spin keeps the thread busy for n packets.
func (s *slow) spin(n int) {
	s.owed += time.Duration(n) * s.perPacket
	for begin := now(); s.owed > 0; {
		end := now()
		s.owed, begin = max(s.owed-(end-begin), -ahead), end
	}
}
