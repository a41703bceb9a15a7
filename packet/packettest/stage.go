package packettest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"weft/packet"
)

const stageRoom = 2048

// Stage is the suite for every stage. newStage returns a stage whose In accepts what its Out made
// for hop (its own MAC is hop's, for VXLAN); layer is what inner packets start with.
//
// Between Out and In the bytes cross a wire: In sees fresh packets with From = hop.Path.Dst and without
// a Hop or a checksum state.
func Stage(t *testing.T, newStage func() packet.Stage, hop *packet.Hop, layer packet.Layer) {
	inner := stagePackets(hop, layer)

	t.Run("RoundTrip", func(t *testing.T) {
		s, out, in := newStage(), packet.NewBatch(len(inner), stageRoom), packet.NewBatch(len(inner), stageRoom)
		load(out, inner, hop)
		s.Out(out)
		for i := range out.Packets() {
			p := &out.Packets()[i]
			if p.Drop != packet.Alive {
				t.Fatalf("packet %d (%d bytes): Out dropped it: %v", i, len(inner[i]), p.Drop)
			}
			if got, want := p.Len(), len(inner[i])+s.Overhead().Total(); got != want {
				t.Errorf("packet %d: %d bytes on the wire, want %d = %d + Overhead", i, got, want, len(inner[i]))
			}
			if got, want := packet.Headroom-p.Headroom(), s.Overhead().Front; got != want {
				t.Errorf("packet %d: %d bytes in front, Overhead says %d", i, got, want)
			}
		}
		cross(in, out, hop)
		s.In(in)
		same(t, in, inner)
	})

	t.Run("OverheadFitsHeadroom", func(t *testing.T) {
		if o := newStage().Overhead(); o.Front < 0 || o.Front > packet.Headroom || o.Tail < 0 || o.Tail > packet.Tailroom {
			t.Errorf("Overhead %+v, a slot has %d in front and %d behind", o, packet.Headroom, packet.Tailroom)
		}
	})

	t.Run("Empty", func(t *testing.T) {
		s, b := newStage(), packet.NewBatch(1, stageRoom)
		s.Out(b)
		s.In(b)
		if b.Len() != 0 {
			t.Errorf("an empty batch became %d packets", b.Len())
		}
	})

	// Whatever the network cuts off, In answers with a Drop or a shorter packet.
	t.Run("Truncated", func(t *testing.T) {
		s, in := newStage(), packet.NewBatch(1, stageRoom)
		for _, w := range onWire(newStage(), inner, hop) {
			for n := range len(w) + 1 {
				load(in, [][]byte{w[:n]}, nil)
				in.Packets()[0].From = hop.Path.Dst
				s.In(in)
				if p := &in.Packets()[0]; n < s.Overhead().Total() && p.Drop == packet.Alive {
					t.Errorf("In accepted %d bytes, less than its overhead of %d", n, s.Overhead().Total())
				} else if p.Drop == packet.Alive && p.Len() > n {
					t.Errorf("In made %d bytes of %d", p.Len(), n)
				}
			}
		}
	})

	// Inner packets of any length behind a whole IP header, which route has seen to.
	t.Run("TruncatedOut", func(t *testing.T) {
		s, out := newStage(), packet.NewBatch(1, stageRoom)
		for _, p := range inner {
			for n := headerLen(p, layer); n <= len(p); n++ {
				load(out, [][]byte{p[:n]}, hop)
				s.Out(out)
			}
		}
	})

	t.Run("Garbage", func(t *testing.T) {
		s, in, rnd := newStage(), packet.NewBatch(1, stageRoom), rand.New(rand.NewPCG(1, 2))
		wires := onWire(newStage(), inner, hop)
		for range 20000 {
			w := bytes.Clone(wires[rnd.IntN(len(wires))])
			w = w[:rnd.IntN(len(w)+1)]
			for range rnd.IntN(8) {
				if len(w) > 0 {
					w[rnd.IntN(min(len(w), 96))] = byte(rnd.Uint32())
				}
			}
			load(in, [][]byte{w}, nil)
			in.Packets()[0].From = hop.Path.Dst
			s.In(in)
			if p := &in.Packets()[0]; p.Drop == packet.Alive && p.Len() > len(w) {
				t.Fatalf("In made %d bytes of %x", p.Len(), w)
			}
		}
	})

	t.Run("NoAllocs", func(t *testing.T) {
		s, out, in := newStage(), packet.NewBatch(packet.BatchSize, stageRoom), packet.NewBatch(packet.BatchSize, stageRoom)
		full := make([][]byte, packet.BatchSize)
		for i := range full {
			full[i] = inner[i%len(inner)]
		}
		if n := testing.AllocsPerRun(100, func() {
			load(out, full, hop)
			s.Out(out)
			cross(in, out, hop)
			s.In(in)
		}); n != 0 {
			t.Errorf("%v allocations a batch", n)
		}
	})
}

// Checksums is the suite for stages that meet packets whose transport checksum is unfinished
// (ChecksumPartial): behind the wire the checksum is right, or In says that it is still partial and
// where. A wrong checksum stays wrong.
func Checksums(t *testing.T, newStage func() packet.Stage, hop *packet.Hop, layer packet.Layer) {
	for i, whole := range stagePackets(hop, layer) {
		t.Run(fmt.Sprintf("Partial/%d", i), func(t *testing.T) {
			front := linkHeader(layer)
			start := headerLen(whole, layer)
			l4 := len(whole) - start
			partial := bytes.Clone(whole)
			binary.BigEndian.PutUint16(partial[start+6:], PseudoSum(partial[front:], l4))

			s, out, in := newStage(), packet.NewBatch(1, stageRoom), packet.NewBatch(1, stageRoom)
			load(out, [][]byte{partial}, hop)
			out.Packets()[0].SetPartial(start, 6)
			s.Out(out)
			cross(in, out, hop)
			s.In(in)
			p := &in.Packets()[0]
			if p.Drop != packet.Alive {
				t.Fatalf("In dropped it: %v", p.Drop)
			}
			if gotStart, gotOffset, ok := p.Partial(); ok {
				if gotStart != start || gotOffset != 6 || !bytes.Equal(p.Bytes(), partial) {
					t.Errorf("partial at %d+%d, want %d+6, and the bytes unchanged", gotStart, gotOffset, start)
				}
			} else if !bytes.Equal(p.Bytes(), whole) {
				t.Errorf("got %x, want %x", p.Bytes(), whole)
			}
		})
		t.Run(fmt.Sprintf("WrongStaysWrong/%d", i), func(t *testing.T) {
			wrong := bytes.Clone(whole)
			wrong[headerLen(whole, layer)+6] ^= 0x55
			s, out, in := newStage(), packet.NewBatch(1, stageRoom), packet.NewBatch(1, stageRoom)
			load(out, [][]byte{wrong}, hop)
			s.Out(out)
			if out.Packets()[0].Drop != packet.Alive {
				return // refusing it is right too
			}
			cross(in, out, hop)
			s.In(in)
			if p := &in.Packets()[0]; p.Drop == packet.Alive && !bytes.Equal(p.Bytes(), wrong) {
				t.Errorf("a wrong checksum became %x, was %x", p.Bytes(), wrong)
			}
		})
	}
}

// stagePackets returns inner packets of both families and several sizes, the largest hop's MTU.
func stagePackets(hop *packet.Hop, layer packet.Layer) [][]byte {
	largest := 1400
	if hop.Path.MTU() > 0 {
		largest = hop.Path.MTU()
	}
	var all [][]byte
	for _, flow := range [][2]netip.AddrPort{
		{netip.MustParseAddrPort("10.244.1.2:1000"), netip.MustParseAddrPort("10.244.2.3:2000")},
		{netip.MustParseAddrPort("[fd00:10:244:1::2]:1000"), netip.MustParseAddrPort("[fd00:10:244:2::3]:2000")},
	} {
		headers := IPHeader(flow[0].Addr()) + packet.UDPHeader
		for seed, payload := range []int{0, 1, 64, 1001, largest - headers} {
			p := UDP(flow[0], flow[1], payload, byte(seed))
			if layer == packet.Ethernet {
				p = Ethernet(hop.Peer.MAC, [6]byte{2, 0, 0, 0, 0, 1}, p)
			}
			all = append(all, p)
		}
	}
	return all
}

func linkHeader(layer packet.Layer) int {
	if layer == packet.Ethernet {
		return packet.EthernetHeader
	}
	return 0
}

// headerLen is the length of the link and IP headers of p.
func headerLen(p []byte, layer packet.Layer) int {
	front := linkHeader(layer)
	if p[front]>>4 == 4 {
		return front + packet.IPv4Header
	}
	return front + packet.IPv6Header
}

// load puts packets into b, on their way to hop.
func load(b *packet.Batch, packets [][]byte, hop *packet.Hop) {
	for i, data := range packets {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.Hop = hop
		p.Flow = uint32(i + 1)
	}
	b.SetLen(len(packets))
}

// cross carries the bytes of out to in, as the network would.
func cross(in, out *packet.Batch, hop *packet.Hop) {
	for i := range out.Packets() {
		p := &in.Slots()[i]
		p.Resize(copy(p.Reset(), out.Packets()[i].Bytes()))
		p.From = hop.Path.Dst
	}
	in.SetLen(out.Len())
}

// onWire returns what Out makes of packets.
func onWire(s packet.Stage, packets [][]byte, hop *packet.Hop) [][]byte {
	b := packet.NewBatch(len(packets), stageRoom)
	load(b, packets, hop)
	s.Out(b)
	var wires [][]byte
	for i := range b.Packets() {
		wires = append(wires, bytes.Clone(b.Packets()[i].Bytes()))
	}
	return wires
}

func same(t *testing.T, b *packet.Batch, want [][]byte) {
	t.Helper()
	if b.Len() != len(want) {
		t.Fatalf("%d packets, want %d", b.Len(), len(want))
	}
	for i := range b.Packets() {
		if p := &b.Packets()[i]; p.Drop != packet.Alive {
			t.Errorf("packet %d (%d bytes): dropped: %v", i, len(want[i]), p.Drop)
		} else if !bytes.Equal(p.Bytes(), want[i]) {
			t.Errorf("packet %d: got %x, want %x", i, p.Bytes(), want[i])
		}
	}
}
