package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// timestamps is the option block of nearly all TCP on Linux: NOP, NOP, TS.
func timestamps(v byte) []byte { return []byte{1, 1, 8, 10, 0, 0, 0, v, 0, 0, 0, 1} }

// sack is timestamps and one SACK block.
func sack(v byte) []byte {
	return append(timestamps(v), 1, 1, 5, 10, 0, 0, 1, v, 0, 0, 2, v)
}

// received is one packet that Recv lent, its checksum finished.
func received(t testing.TB, p *packet.Packet) []byte {
	t.Helper()
	if p.Headroom() < packet.Headroom || cap(p.Tail())-p.Len() < packet.Tailroom {
		t.Fatalf("headroom %d, tailroom %d", p.Headroom(), cap(p.Tail())-p.Len())
	}
	b := bytes.Clone(p.Bytes())
	if start, offset, ok := p.Partial(); ok {
		return wire{vnet{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, start: start, offset: offset}, b}.finish()
	}
	return b
}

// randomWire is what a kernel may hand over on a device of this MTU.
func randomWire(r *rand.Rand, mtu int) wire {
	s := spec{
		v6: r.IntN(2) == 0, udp: r.IntN(4) == 0, host: byte(r.IntN(3)), port: uint16(r.IntN(3)),
		seq: r.Uint32(), ack: r.Uint32(), window: uint16(r.Uint32()), id: uint16(r.Uint32()), flags: packet.TCPFlagACK,
		seed: byte(r.Uint32()), tos: byte(r.Uint32()), label: r.Uint32N(1 << 20), noDF: r.IntN(4) == 0,
	}
	switch r.IntN(4) {
	case 0:
		s.options = timestamps(byte(r.Uint32()))
	case 1:
		s.options = sack(byte(r.Uint32()))
	}
	s.flags |= uint8(r.Uint32()) & (packet.TCPFlagFIN | packet.TCPFlagPSH | packet.TCPFlagECE | packet.TCPFlagCWR)
	s.ipOptions = !s.v6 && r.IntN(8) == 0
	empty := s
	empty.payload = 0
	h := len(empty.build())
	switch r.IntN(4) {
	case 0: // plain, whole
		s.payload = r.IntN(mtu - h + 1)
		return wire{data: s.build()}
	case 1: // plain, unfinished
		s.payload = r.IntN(mtu - h + 1)
		w := s.superOf(0)
		w.v.gso = unix.VIRTIO_NET_HDR_GSO_NONE
		return w
	}
	size := mtu - h
	switch r.IntN(4) {
	case 0:
		size = 1 + r.IntN(mtu-h)
	case 1:
		if !s.udp { // an MSS that was agreed on before the tunnel's MTU shrank
			size = mtu - h + 1 + r.IntN(1000)
		}
	}
	most := 65535 - h
	if s.udp {
		most = min(most, 128*size)
	}
	s.payload = 1 + r.IntN(most)
	return s.superOf(size)
}

// TestRecvCutsAsTheOracle: whatever comes, in whatever order and whatever number of slots, every
// packet is the one the slow splitter makes, its checksum right once finished.
func TestRecvCutsAsTheOracle(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		mtu := []int{576, 1280, 1418, 1450, 1500, 9000}[r.IntN(6)]
		dev, want := &fakeDevice{}, [][]byte(nil)
		for i := 0; i < 40; {
			w := randomWire(r, mtu)
			for range 1 + r.IntN(4) { // runs of one shape, so that predictions come true too
				dev.in = append(dev.in, w.frame())
				want = append(want, w.cut(mtu)...)
				i++
			}
		}
		slots := []int{1, 3, 20, packet.BatchSize}[r.IntN(4)]
		recvAll(t, fmt.Sprintf("seed %d, mtu %d, %d slots", seed, mtu, slots), newScatter(mtu), dev, packet.NewBatch(slots, mtu+64), want)
	}
}

func recvAll(t *testing.T, what string, s *scatter, dev *fakeDevice, b *packet.Batch, want [][]byte) {
	t.Helper()
	for k := 0; ; {
		n, errno := s.fill(b, len(b.Slots()), dev)
		if n == 0 {
			if errno != unix.EAGAIN || k != len(want) {
				t.Fatalf("%s: %v after %d of %d packets", what, errno, k, len(want))
			}
			return
		}
		for i := range b.Slots()[:n] {
			p := &b.Slots()[i]
			if k == len(want) {
				t.Fatalf("%s: a packet too many: %x", what, head(p.Bytes()))
			}
			if p.Drop != packet.Alive {
				t.Fatalf("%s: packet %d: %v", what, k, p.Drop)
			}
			mustEqual(t, fmt.Sprintf("%s: packet %d", what, k), received(t, p), want[k])
			k++
		}
	}
}

// TestRecvDoesNotCopy: when a super-packet looks like the one before it, no byte of it goes through
// spill.
func TestRecvDoesNotCopy(t *testing.T) {
	const mtu = 1450
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			s := spec{v6: v6, udp: udp, payload: 60000, flags: packet.TCPFlagACK, options: timestamps(1)}
			_, h := headerLengths(s.build())
			w := s.superOf(mtu - h)
			sc, b := newScatter(mtu), packet.NewBatch(packet.BatchSize, mtu+64)
			dev := &fakeDevice{in: [][]byte{w.frame()}}
			sc.fill(b, len(b.Slots()), dev) // to learn from
			for i := range sc.spill {
				sc.spill[i] = 0xee
			}
			// The second super-packet goes behind the first in the same batch; a plain packet
			// in between changes nothing.
			plain := wire{data: spec{payload: 30, flags: packet.TCPFlagACK}.build()}
			dev.in = [][]byte{w.frame(), plain.frame(), w.frame()}
			want := append(append(w.cut(mtu), plain.data), w.cut(mtu)...)
			n, _ := sc.fill(b, len(b.Slots()), dev)
			if n != len(want) {
				t.Fatalf("v6 %v udp %v: %d packets, want %d", v6, udp, n, len(want))
			}
			for i := range n {
				mustEqual(t, fmt.Sprint("packet ", i), received(t, &b.Slots()[i]), want[i])
			}
			if bytes.Count(sc.spill, []byte{0xee}) != len(sc.spill) {
				t.Errorf("v6 %v udp %v: spill was used", v6, udp)
			}
		}
	}
}

// TestRecvForgets: the packet that ends the expectation of super-packets was itself read by a layout for
// them, as full-sized packets behind a burst of smaller datagrams are.
func TestRecvForgets(t *testing.T) {
	const mtu = 1450
	for _, v6 := range []bool{false, true} {
		burst := spec{v6: v6, udp: true, payload: 5000}.superOf(500)
		full := spec{v6: v6, flags: packet.TCPFlagACK, options: timestamps(1), payload: 1350}
		s, b, dev := newScatter(mtu), packet.NewBatch(packet.BatchSize, mtu+64), &fakeDevice{}
		var want [][]byte
		for range 3 {
			dev.in, want = append(dev.in, burst.frame()), append(want, burst.cut(mtu)...)
			for range forgetAfter + 3 {
				full.seed++
				w := full.superOf(0)
				w.v.gso = unix.VIRTIO_NET_HDR_GSO_NONE
				dev.in, want = append(dev.in, w.frame()), append(want, w.finish())
			}
		}
		recvAll(t, fmt.Sprint("v6 ", v6), s, dev, b, want)
	}
}

// TestRecvTooLarge: the kernel cuts off silently what the iovecs do not take.
func TestRecvTooLarge(t *testing.T) {
	large, good := spec{udp: true, payload: 60000}.superOf(1400), spec{payload: 100, flags: packet.TCPFlagACK}.build()
	for _, learnt := range []bool{false, true} {
		s, b := newScatter(1450), packet.NewBatch(packet.BatchSize, 1514)
		if learnt {
			s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{large.frame()}})
		}
		huge := wire{large.v, append(bytes.Clone(large.data), make([]byte, maxPacket)...)}
		n, _ := s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{huge.frame(), wire{data: good}.frame()}})
		if n != 2 || b.Slots()[0].Drop != packet.Truncated {
			t.Fatalf("learnt %v: %d packets, %v", learnt, n, b.Slots()[0].Drop)
		}
		mustEqual(t, "the packet behind", received(t, &b.Slots()[1]), good)
	}
}

// TestRecvLeavesWhatMayNotFit: a super-packet that finds too few slots waits in the device, where it
// costs no copy.
func TestRecvLeavesWhatMayNotFit(t *testing.T) {
	w := spec{payload: 60000, flags: packet.TCPFlagACK}.superOf(1410)
	sc, b := newScatter(1450), packet.NewBatch(packet.BatchSize, 1514)
	sc.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{w.frame()}})
	for i := range sc.spill {
		sc.spill[i] = 0xee
	}
	dev := &fakeDevice{in: [][]byte{w.frame(), w.frame(), w.frame()}}
	each := len(w.cut(0))
	for _, want := range []int{2 * each, each} {
		if n, _ := sc.fill(b, len(b.Slots()), dev); n != want {
			t.Errorf("%d packets, want %d", n, want)
		}
	}
	if bytes.Count(sc.spill, []byte{0xee}) != len(sc.spill) {
		t.Error("spill was used")
	}
}

// TestRecvUnevenSlots: slots need not be of one size.
func TestRecvUnevenSlots(t *testing.T) {
	w := spec{udp: true, payload: 20000}.superOf(1000)
	s, b := newScatter(1450), packet.NewBatch(40, 1514)
	small := make([]byte, packet.Headroom+500+packet.Tailroom)
	b.Slots()[5].Exchange(small, packet.Headroom, packet.Headroom)
	want := w.cut(0)
	for round := range 3 {
		n, _ := s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{w.frame()}})
		if n != len(want) {
			t.Fatalf("round %d: %d packets, want %d", round, n, len(want))
		}
		for i := range want {
			p := &b.Slots()[i]
			if i == 5 {
				if p.Drop != packet.Truncated {
					t.Errorf("round %d: %v, want truncated", round, p.Drop)
				}
				continue
			}
			mustEqual(t, fmt.Sprint("round ", round, " packet ", i), received(t, p), want[i])
		}
	}
}

// TestRecvMoreSegmentsThanSlots: 744 segments into 16 slots; and a lane that changes a packet it was
// lent must not change the ones to come.
func TestRecvMoreSegmentsThanSlots(t *testing.T) {
	w := spec{payload: 65400, flags: packet.TCPFlagACK | packet.TCPFlagPSH}.superOf(88)
	want := w.cut(0)
	dev := &fakeDevice{in: [][]byte{w.frame(), w.frame()}}
	s, b := newScatter(576), packet.NewBatch(16, 640)
	for k := 0; k < 2*len(want); {
		n, errno := s.fill(b, len(b.Slots()), dev)
		if n == 0 {
			t.Fatalf("%v after %d packets", errno, k)
		}
		for i := range b.Slots()[:n] {
			p := &b.Slots()[i]
			mustEqual(t, fmt.Sprint("packet ", k), received(t, p), want[k%len(want)])
			for j := range p.Memory() {
				p.Memory()[j] = 0xdd
			}
			k++
		}
	}
}

// TestRecvFollowsTheSlots: Compact changes which memory a slot has, and a packet may have borrowed
// another buffer; Recv looks anew each time.
func TestRecvFollowsTheSlots(t *testing.T) {
	w := spec{payload: 20000, flags: packet.TCPFlagACK}.superOf(1410)
	want := w.cut(1450)
	s, b := newScatter(1450), packet.NewBatch(40, 1500)
	var drops packet.Drops
	for range 4 {
		n, _ := s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{w.frame()}})
		b.SetLen(n)
		for i := range b.Packets() {
			mustEqual(t, fmt.Sprint("packet ", i), received(t, &b.Packets()[i]), want[i])
		}
		b.Packets()[0].Drop, b.Packets()[3].Drop = packet.NoRoute, packet.NoRoute
		b.Packets()[5].Borrow(make([]byte, 100), 10, 20)
		b.Compact(&drops)
	}
}

func TestRecvDrops(t *testing.T) {
	good := spec{payload: 5000, flags: packet.TCPFlagACK}.superOf(1410)
	change := func(f func(w *wire)) wire {
		w := wire{good.v, bytes.Clone(good.data)}
		f(&w)
		return w
	}
	for _, c := range []struct {
		name string
		w    wire
		want packet.Drop
		n    int
	}{
		{"no size", change(func(w *wire) { w.v.size = 0 }), packet.BadHeader, 1},
		{"unknown type", change(func(w *wire) { w.v.gso = unix.VIRTIO_NET_HDR_GSO_UDP }), packet.BadHeader, 1},
		{"TCP of the other family", change(func(w *wire) { w.v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6 }), packet.BadHeader, 1},
		{"UDP type, TCP packet", change(func(w *wire) { w.v.gso = unix.VIRTIO_NET_HDR_GSO_UDP_L4 }), packet.BadHeader, 1},
		{"IP header length", change(func(w *wire) { w.data[0] = 0x44 }), packet.BadHeader, 1},
		{"TCP header length", change(func(w *wire) { w.data[32] = 0x40 }), packet.BadHeader, 1},
		{"version", change(func(w *wire) { w.data[0] = 0x55 }), packet.BadHeader, 1},
		{"no payload", change(func(w *wire) { w.data = w.data[:40] }), packet.BadHeader, 1},
		{"cut in the header", change(func(w *wire) { w.data = w.data[:30] }), packet.BadHeader, 1},
		{"one byte", change(func(w *wire) { w.data = w.data[:1] }), packet.BadHeader, 1},
		{"nothing", wire{}, packet.TooShort, 1},
		{"checksum outside", wire{vnet{flags: 1, start: 30, offset: 16}, spec{udp: true, payload: 10}.build()}, packet.BadHeader, 1},
		{"larger than a slot", wire{data: spec{payload: 3000}.build()}, packet.Truncated, 1},
		{"datagrams larger than a slot", spec{udp: true, payload: 6500}.superOf(3000), packet.Truncated, 2},
	} {
		for _, learnt := range []bool{false, true} {
			s, b := newScatter(1450), packet.NewBatch(64, 1500)
			if learnt {
				s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{good.frame()}})
			}
			n, _ := s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{c.w.frame(), good.frame()}})
			dead := 0
			for i := range b.Slots()[:n] {
				switch b.Slots()[i].Drop {
				case packet.Alive:
				case c.want:
					dead++
				default:
					t.Errorf("%s: %v, want %v", c.name, b.Slots()[i].Drop, c.want)
				}
			}
			if dead != c.n {
				t.Errorf("%s: %d dead, want %d", c.name, dead, c.n)
			}
			last := good.cut(0)
			mustEqual(t, c.name+": the packet behind", received(t, &b.Slots()[n-1]), last[len(last)-1])
		}
	}
}

// TestRecvExtensionHeaders: behind IPv6 extension headers the kernel's own pseudo-header sum is
// adjusted, not made anew.
func TestRecvExtensionHeaders(t *testing.T) {
	plain := spec{v6: true, payload: 5000, flags: packet.TCPFlagACK}
	insert := func(b []byte) []byte {
		ext := append(bytes.Clone(b[:40]), packet.ProtoTCP, 0, 1, 4, 0, 0, 0, 0) // destination options: PadN
		ext[6] = 60
		ext = append(ext, b[40:]...)
		binary.BigEndian.PutUint16(ext[4:], uint16(len(ext)-40))
		return ext
	}
	w := plain.superOf(1300)
	want := w.cut(0)
	w.data = insert(w.data)
	w.v.start += 8
	s, b := newScatter(1450), packet.NewBatch(64, 1500)
	n, _ := s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{w.frame()}})
	if n != len(want) {
		t.Fatalf("%d packets, want %d", n, len(want))
	}
	for i := range want {
		mustEqual(t, fmt.Sprint("packet ", i), received(t, &b.Slots()[i]), insert(want[i]))
	}
	w.v.flags = 0 // without the sum nothing can be known
	n, _ = s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{w.frame()}})
	if n != 1 || b.Slots()[0].Drop != packet.BadHeader {
		t.Errorf("%d packets, %v", n, b.Slots()[0].Drop)
	}
}

func TestRecvChecksumStates(t *testing.T) {
	whole := spec{payload: 100, flags: packet.TCPFlagACK}
	valid := wire{vnet{flags: unix.VIRTIO_NET_HDR_F_DATA_VALID}, whole.build()}
	partial := whole.superOf(0)
	partial.v.gso = 0
	s, b := newScatter(1450), packet.NewBatch(4, 1500)
	s.fill(b, len(b.Slots()), &fakeDevice{in: [][]byte{wire{data: whole.build()}.frame(), valid.frame(), partial.frame()}})
	for i, want := range []packet.ChecksumState{packet.ChecksumComplete, packet.ChecksumVerified, packet.ChecksumPartial} {
		if got := b.Slots()[i].Checksum(); got != want {
			t.Errorf("packet %d: %d, want %d", i, got, want)
		}
	}
	// Super-packets that somebody has verified already (no NEEDS_CSUM) are cut all the same.
	verified := spec{payload: 5000, flags: packet.TCPFlagACK}
	w := verified.superOf(1300)
	w.data, w.v.flags = verified.build(), unix.VIRTIO_NET_HDR_F_DATA_VALID
	recvAll(t, "verified", s, &fakeDevice{in: [][]byte{w.frame()}}, b, w.cut(0))
}

func TestRecvNoAllocs(t *testing.T) {
	w := spec{payload: 60000, flags: packet.TCPFlagACK}.superOf(1410)
	other := spec{payload: 60000, flags: packet.TCPFlagACK, v6: true}.superOf(1000)
	frames := [][]byte{w.frame(), w.frame(), other.frame(), wire{data: spec{payload: 10}.build()}.frame()}
	s, b, dev := newScatter(1450), packet.NewBatch(packet.BatchSize, 1500), &fakeDevice{}
	if n := testing.AllocsPerRun(100, func() {
		dev.in = frames
		for {
			if n, _ := s.fill(b, len(b.Slots()), dev); n == 0 {
				return
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRecv: frames a hostile or broken kernel might hand over. Whatever is not dropped is what the
// oracle makes of it.
func FuzzRecv(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		w := randomWire(r, 576)
		w.data = w.data[:min(len(w.data), 3000)]
		f.Add(w.frame(), w.v.size, uint8(r.IntN(40)))
	}
	f.Fuzz(func(t *testing.T, frame []byte, size int, slots uint8) {
		const mtu = 1450
		if len(frame) > vnetHeader+maxPacket {
			frame = frame[:vnetHeader+maxPacket]
		}
		if len(frame) < vnetHeader {
			return
		}
		s, b := newScatter(mtu), packet.NewBatch(int(slots%130)+1, mtu+64)
		s.learnt = shape{40 + size&31, max(0, min(size, 4000))} // from anything
		for round := range 2 {
			dev := &fakeDevice{in: [][]byte{bytes.Clone(frame)}}
			w := unframe(frame)
			var got [][]byte
			dropped := false
			for {
				n, _ := s.fill(b, len(b.Slots()), dev)
				if n == 0 {
					break
				}
				for i := range b.Slots()[:n] {
					if p := &b.Slots()[i]; p.Drop != packet.Alive {
						dropped = true
					} else {
						got = append(got, received(t, p))
					}
				}
			}
			if dropped {
				continue
			}
			if v6 := len(w.data) > 40 && w.data[0]>>4 == 6; v6 && w.v.gso != 0 && transport(w.data) != 6 && transport(w.data) != 17 {
				continue // extension headers: the oracle knows none
			}
			want := w.cut(mtu)
			if len(got) != len(want) {
				t.Fatalf("round %d: %d packets, want %d", round, len(got), len(want))
			}
			for i := range want {
				mustEqual(t, fmt.Sprint("round ", round, " packet ", i), got[i], want[i])
			}
		}
	})
}

func benchmarkRecv(b *testing.B, w wire, mtu int) {
	s, batch, dev := newScatter(mtu), packet.NewBatch(packet.BatchSize, mtu+64), &still{frame: w.frame()}
	segments := 0
	b.ReportAllocs()
	for b.Loop() {
		n, _ := s.fill(batch, len(batch.Slots()), dev)
		segments += n
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(segments), "ns/segment")
}

// still is a device that always has the same packet, and does not even copy it once it has.
type still struct {
	frame []byte
	seen  int
}

func (d *still) readv(iovs []unix.Iovec) (int, unix.Errno) {
	rest := d.frame
	for i := range iovs {
		b := unsafeBytes(iovs[i])
		if d.seen > 8 {
			b = b[:min(len(b), 128)] // headers must be fresh
		}
		copy(b, rest)
		rest = rest[min(len(rest), int(iovs[i].Len)):]
	}
	d.seen++
	return len(d.frame), 0
}

func (d *still) writev([]unix.Iovec) unix.Errno { return 0 }

func BenchmarkSplitTCP4(b *testing.B) {
	benchmarkRecv(b, spec{payload: 62000, flags: packet.TCPFlagACK, options: timestamps(1)}.superOf(1398), 1450)
}

func BenchmarkSplitTCP6(b *testing.B) {
	benchmarkRecv(b, spec{v6: true, payload: 62000, flags: packet.TCPFlagACK, options: timestamps(1)}.superOf(1378), 1450)
}

// BenchmarkSplitWrongGuess is the price of two shapes taking turns: every guess is wrong.
func BenchmarkSplitWrongGuess(b *testing.B) {
	shapes := [2][]byte{
		spec{payload: 62000, flags: packet.TCPFlagACK, options: timestamps(1)}.superOf(1398).frame(),
		spec{v6: true, payload: 62000, flags: packet.TCPFlagACK, options: timestamps(1)}.superOf(1378).frame(),
	}
	s, batch, dev := newScatter(1450), packet.NewBatch(packet.BatchSize, 1514), &still{}
	segments := 0
	for i := 0; b.Loop(); i++ {
		dev.frame = shapes[i&1]
		l, vecs := s.layout(batch.Slots())
		got, _ := dev.readv(s.iovs[:vecs])
		segments += s.place(batch.Slots(), l, got-vnetHeader)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(segments), "ns/segment")
}

func BenchmarkSplitUDP64(b *testing.B) {
	benchmarkRecv(b, spec{udp: true, payload: 128 * 36}.superOf(36), 1450)
}
