package packettest

import (
	"bytes"
	"fmt"

	"weft/packet"
)

// StageSequence drives a stage that is no cipher as Stage does, with batch after batch of any shape: packets and super-packets of several flows, whole,
// unfinished and verified, some odd, some that are dead when they come; on the wire some are lost, damaged, cut off or change places.
// What nobody has touched comes out as it went in, its checksum finished; what was dead is left alone.
func StageSequence(newStage func() packet.Stage, hop *packet.Hop, layer packet.Layer) Play {
	const room = 9000
	out, in := packet.NewBatch(packet.BatchSize, room), packet.NewBatch(packet.BatchSize, room)
	again := *hop
	front := linkHeader(layer)
	return func(t *Tape) error {
		s, flows := newStage(), []*Flow{t.Flow(), t.Flow(), t.Flow()}
		for more := true; more; more = t.More() {
			count := Pick(t, 1, 2, 1+t.N(packet.BatchSize), packet.BatchSize)
			var due []stageDue
			for len(due) < count {
				f, size := Pick(t, flows...), Pick(t, 0, 1, 100, max(0, hop.Path.MTU()-f0(flows)), t.N(hop.Path.MTU()-100))
				for range min(t.Run(), count-len(due)) {
					p := &out.Slots()[len(due)]
					d := stageDue{sound: true}
					if d.whole = f.Packet(size); t.Chance(12) {
						d.whole, d.sound = f.Odd(size)
					}
					state := packet.ChecksumComplete
					if d.sound {
						state = Pick(t, packet.ChecksumComplete, packet.ChecksumPartial, packet.ChecksumVerified)
					}
					Load(p, d.whole, state)
					if layer == packet.Ethernet {
						copy(p.Prepend(front), Ethernet(hop.Peer.MAC, [6]byte{2, 0, 0, 0, 0, 1}, d.whole)[:front])
						d.whole = append(bytes.Clone(p.Bytes()[:front]), d.whole...)
					}
					p.Hop, p.Flow = Pick(t, hop, &again), uint32(t.N(9))
					if t.Chance(24) {
						p.Drop, d.dead = packet.NoRoute, bytes.Clone(p.Bytes())
					}
					due = append(due, d)
				}
			}
			out.SetLen(count)
			s.Out(out)
			t.Step(count)
			if due = stageSent(due, out); due == nil {
				return fmt.Errorf("of %d packets a dead one was changed", count)
			}
			for i, d := range due {
				p, o := &out.Packets()[i], s.Overhead()
				if d.dead != nil || !d.sound {
					continue
				}
				if p.Drop != packet.Alive || p.Len() != len(d.whole)+o.Total() {
					return fmt.Errorf("out: packet %d of %d, %d bytes of %d: %v", i, count, p.Len(), len(d.whole), p.Drop)
				}
				if hop.Peer.RCO {
					continue
				}
				if err := Same(p.Bytes()[o.Front:p.Len()-o.Tail], d.whole); err != nil { // nobody behind the wire has to finish anything
					return fmt.Errorf("out: packet %d of %d: %w", i, count, err)
				}
			}
			if err := stageCross(t, s, out, in, hop, layer, due); err != nil {
				return err
			}
		}
		return nil
	}
}

// f0 is the most that flows put in front of a payload.
func f0(flows []*Flow) (most int) {
	for _, f := range flows {
		most = max(most, f.Headers())
	}
	return most
}

// stageDue is a packet on its way through a stage.
type stageDue struct {
	whole []byte // with its checksum finished
	sound bool   // nothing is odd about it
	dead  []byte // it was dead before, and looked like this
}

// stageSent says that Out has left the dead alone; nil if not.
func stageSent(due []stageDue, out *packet.Batch) []stageDue {
	for i, d := range due {
		if p := &out.Packets()[i]; d.dead != nil && (p.Drop != packet.NoRoute || !bytes.Equal(p.Bytes(), d.dead)) {
			return nil
		}
	}
	return due
}

// stageCross carries what Out has made over the wire, to In.
func stageCross(t *Tape, s packet.Stage, out, in *packet.Batch, hop *packet.Hop, layer packet.Layer, due []stageDue) error {
	var come []stageDue
	for i, d := range due {
		p := &out.Packets()[i]
		if p.Drop != packet.Alive {
			continue
		}
		data := bytes.Clone(p.Bytes())
		switch t.N(24) {
		case 0:
			continue // lost
		case 1:
			data, d.sound = data[:t.N(len(data))], false
		case 2:
			data[t.N(len(data))] ^= 1 << t.N(8)
			d.sound = false
		case 3: // the network pads, and a frame is carried as it is
			pad := make([]byte, 1+t.N(50))
			if data = append(data, pad...); layer == packet.Ethernet {
				d.whole = append(bytes.Clone(d.whole), pad...)
			}
		}
		k := len(come)
		q := &in.Slots()[k]
		q.Resize(copy(q.Reset(), data))
		q.From = hop.Path.Dst
		come = append(come, d)
		if k > 0 && t.Chance(10) { // neighbours change places
			other := &in.Slots()[k-1]
			before := bytes.Clone(other.Bytes())
			other.Resize(copy(other.Reset(), data))
			q.Resize(copy(q.Reset(), before))
			other.From, q.From = hop.Path.Dst, hop.Path.Dst
			come[k], come[k-1] = come[k-1], come[k]
		}
	}
	in.SetLen(len(come))
	s.In(in)
	for i, d := range come {
		p := &in.Packets()[i]
		if !d.sound {
			continue
		}
		if p.Drop != packet.Alive {
			return fmt.Errorf("in: packet %d of %d, %d bytes: %v", i, len(come), len(d.whole), p.Drop)
		}
		if err := Same(Whole(p), d.whole); err != nil {
			return fmt.Errorf("in: packet %d of %d: %w", i, len(come), err)
		}
	}
	return nil
}
