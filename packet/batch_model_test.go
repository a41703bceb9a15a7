package packet_test

import (
	"bytes"
	"fmt"
	"testing"
	"unsafe"

	"weft/packet"
	"weft/packet/packettest"
)

// slow is what a packet is, without windows: its bytes, and what was learnt.
type slow struct {
	data    []byte
	id      uint32 // Flow
	start   int    // of an unfinished checksum, from the front; meaningful while partial
	partial bool
	segment int
	drop    packet.Drop
}

// TestBatchModel drives a batch and its packets with all that ports and stages do to them, against copies. Behind Compact the living
// are in their order, the dead behind them, and every slot's memory is still there, once.
func TestBatchModel(t *testing.T) { packettest.Sequences(t, 60_000, playBatch) }
func FuzzBatchModel(f *testing.F) { packettest.FuzzSequences(f, playBatch) }

func playBatch(t *packettest.Tape) error {
	const room, slots = 300, 12
	b := packet.NewBatch(slots, room)
	spare := make([]byte, packet.Headroom+room+packet.Tailroom) // for Exchange
	memories := map[*byte]bool{unsafe.SliceData(spare): true}
	for i := range b.Slots() {
		memories[unsafe.SliceData(b.Slots()[i].Memory())] = true
	}
	var want []slow
	id := uint32(0)
	for more := true; more; more = t.More() {
		if len(want) == 0 || t.Chance(12) { // a Recv
			n := 1 + t.N(slots)
			want = want[:0]
			for i := range n {
				p := &b.Slots()[i]
				id++
				w := slow{data: make([]byte, t.N(room+1)), id: id}
				t.Fill(w.data)
				if space := p.Reset(); len(space) != room {
					return fmt.Errorf("%d bytes of room, want %d", len(space), room)
				}
				if _, _, partial := p.Partial(); partial || p.Hop != nil || p.Flow != 0 || p.Drop != packet.Alive || p.Segment() != 0 || len(p.Outer()) != 0 || p.RCO {
					return fmt.Errorf("a slot that was reset still says something: %+v", p)
				}
				p.Resize(copy(p.Reset(), w.data))
				p.Flow = id
				want = append(want, w)
			}
			b.SetLen(n)
		}
		i := t.N(len(want))
		p, w := &b.Packets()[i], &want[i]
		t.Step(1)
		switch t.N(10) {
		case 0:
			if n := t.N(60); n <= p.Headroom() {
				h := p.Prepend(n)
				t.Fill(h)
				w.data = append(bytes.Clone(h), w.data...)
				w.start += n
			}
		case 1:
			n := t.N(len(w.data) + 1)
			p.Strip(n)
			w.data, w.start = w.data[n:], w.start-n
		case 2:
			n := t.N(len(w.data) + 1)
			p.Resize(n)
			w.data = w.data[:n]
		case 3: // into the spare capacity, as an AEAD does
			tail := p.Tail()
			n := min(cap(tail)-len(tail), t.N(20))
			t.Fill(tail[len(tail) : len(tail)+n])
			w.data = append(bytes.Clone(w.data), tail[len(tail):len(tail)+n]...)
			p.Resize(len(w.data))
		case 4:
			w.start, w.partial = t.N(50), true
			p.SetPartial(w.start, 6)
		case 5:
			w.segment = 1 + t.N(100)
			p.SetSegment(w.segment)
		case 6: // a port lends a buffer, or takes the slot's memory and gives another
			fresh := make([]byte, t.N(room))
			t.Fill(fresh)
			if t.N(2) == 0 {
				p.Borrow(append(append(make([]byte, packet.Headroom), fresh...), make([]byte, packet.Tailroom)...), packet.Headroom, packet.Headroom+len(fresh))
			} else {
				copy(spare[packet.Headroom:], fresh)
				spare = p.Exchange(spare, packet.Headroom, packet.Headroom+len(fresh))
			}
			w.data, w.partial, w.segment = fresh, false, 0
		case 7:
			w.drop = packet.Drop(1 + t.N(int(packet.NumDrops)-1))
			p.Drop = w.drop
		case 8:
			var drops, died packet.Drops
			living := []slow{}
			for _, w := range want {
				if w.drop == packet.Alive {
					living = append(living, w)
				} else {
					died[w.drop]++
				}
			}
			before := b.Len()
			b.Compact(&drops)
			if drops != died || b.Len() != len(living) {
				return fmt.Errorf("%d live of %d and %v died, want %d and %v", b.Len(), before, drops.Map(), len(living), died.Map())
			}
			for k := b.Len(); k < before; k++ {
				if b.Slots()[k].Drop == packet.Alive {
					return fmt.Errorf("slot %d, behind the living, is alive", k)
				}
			}
			want = living
		}
		for i, w := range want {
			p := &b.Packets()[i]
			if err := packettest.Same(p.Bytes(), w.data); err != nil {
				return fmt.Errorf("packet %d of %d: %w", i, len(want), err)
			}
			start, _, partial := p.Partial()
			if p.Flow != w.id || p.Drop != w.drop || partial != w.partial || partial && start != w.start || p.Segment() != w.segment || p.Len() != len(w.data) {
				return fmt.Errorf("packet %d of %d: flow %d, drop %v, partial %v at %d, segment %d; want %+v", i, len(want), p.Flow, p.Drop, partial, start, p.Segment(), w)
			}
		}
		here := map[*byte]bool{unsafe.SliceData(spare): true}
		for i := range b.Slots() {
			here[unsafe.SliceData(b.Slots()[i].Memory())] = true
		}
		if len(here) != len(memories) {
			return fmt.Errorf("%d memories of %d", len(here), len(memories))
		}
		for m := range here {
			if !memories[m] {
				return fmt.Errorf("a slot has memory that is nobody's")
			}
		}
	}
	return nil
}
