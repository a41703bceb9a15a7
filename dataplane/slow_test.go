package dataplane

import (
	"testing"
	"time"

	"weft/packet"
)

// nop is a stage that only counts what it was given.
type nop struct{ out, in int }

func (*nop) Name() string              { return "nop" }
func (*nop) Overhead() packet.Overhead { return packet.Overhead{Front: 7} }
func (s *nop) Out(b *packet.Batch)     { s.out += b.Len() }
func (s *nop) In(b *packet.Batch)      { s.in += b.Len() }

// TestSlow: a slow stage does what the stage does, under its name, and the ledger charges the fault to it.
func TestSlow(t *testing.T) {
	const packets, perPacket = 8, 20 * time.Microsecond
	for _, d := range []Direction{Out, In} {
		work, other := &nop{}, &nop{}
		from := &feed{batches: [][][]byte{make([][]byte, packets)}}
		for i := range packets {
			from.batches[0][i] = ip4("10.0.0.1", "10.0.0.2", 40)
		}
		lane := NewLane(LaneConfig{Name: "x", Direction: d, Inside: End{Queue: from}, Forward: other,
			Ways: []Way{{Wrap: []packet.Stage{Slow(work, perPacket)}, Outside: End{Queue: from}}}, Room: 100})
		if err := lane.Turn(); err != nil {
			t.Fatal(err)
		}
		if want := map[Direction]nop{Out: {out: packets}, In: {in: packets}}[d]; *work != want || *other != want {
			t.Errorf("%s: the stages were given %+v and %+v, want %+v", d, *work, *other, want)
		}
		at := map[Direction]int{Out: 2, In: 1}[d] // behind Recv and, on the way out, the other
		if s := lane.Stats().Stages[at]; s.Name != "nop" || time.Duration(s.Nanos) < packets*perPacket {
			t.Errorf("%s: %d packets took stage %s %d ns", d, packets, s.Name, s.Nanos)
		}
	}
	if s := Slow(&nop{}, 1); s.Name() != "nop" || s.Overhead().Front != 7 {
		t.Errorf("a slow stage is %s with %+v bytes", s.Name(), s.Overhead())
	}
}
