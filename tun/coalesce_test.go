package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"weft/packet"
	"weft/packet/packettest"
)

// sending is one packet on its way into Send.
type sending struct {
	data  []byte // as it lies in the slot
	state packet.ChecksumState
	whole []byte // what a receiver must get: checksum finished, or as wrong as it was
}

func whole(b []byte) sending { return sending{data: b, whole: b} }

func verified(b []byte) sending {
	return sending{data: b, whole: b, state: packet.ChecksumVerified}
}

func partial(b []byte) sending {
	data := bytes.Clone(b)
	unfinish(data)
	return sending{data: data, whole: b, state: packet.ChecksumPartial}
}

func load(b *packet.Batch, in []sending) {
	for i, s := range in {
		p := &b.Slots()[i]
		p.Reset()
		if len(s.data) > p.Room() {
			big := make([]byte, packet.Headroom+len(s.data)+packet.Tailroom)
			copy(big[packet.Headroom:], s.data)
			p.Borrow(big, packet.Headroom, packet.Headroom+len(s.data))
		} else {
			p.Resize(copy(p.Reset(), s.data))
		}
		if p.SetChecksum(s.state); s.state == packet.ChecksumPartial {
			start, _ := headerLengths(s.data)
			offset := 16
			if transport(s.data) == packet.ProtoUDP {
				offset = 6
			}
			p.SetPartial(start, offset)
		}
	}
	b.SetLen(len(in))
}

// sendAll sends one batch through a fresh gather and returns what the device was given.
func sendAll(t testing.TB, dev *fakeDevice, mtu int, in []sending) *packet.Batch {
	t.Helper()
	b := packet.NewBatch(max(len(in), 1), 1600)
	load(b, in)
	if errno := newGather(dev, mtu, dev).send(b); errno != 0 {
		t.Fatal(errno)
	}
	return b
}

// checkJoined compares what was written with the oracle's runs: within every flow the same packets
// in the same order, put together exactly as the oracle does.
func checkJoined(t *testing.T, what string, out []wire, in []sending) {
	t.Helper()
	var packets [][]byte
	for _, s := range in {
		packets = append(packets, s.whole)
	}
	// The room next door has another oracle; it knows what is legal, not what is wanted.
	var supers []packettest.Super
	for _, w := range out {
		s := packettest.Super{
			Packet: w.data, GSO: packettest.GSO(w.v.gso), Size: w.v.size,
			NeedsChecksum: w.v.partial(), Start: w.v.start, Offset: w.v.offset,
		}
		supers = append(supers, s)
	}
	if err := packettest.CoalesceLegal(packets, supers); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	want := join(packets)
	got := map[string][]wire{}
	for _, w := range out {
		f := flowOf(w.data)
		got[f] = append(got[f], w)
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d flows written, want %d", what, len(got), len(want))
	}
	for f, runs := range want {
		if len(got[f]) != len(runs) {
			t.Fatalf("%s: flow %q: %d writes, want %d", what, f, len(got[f]), len(runs))
		}
		for k, run := range runs {
			checkRun(t, fmt.Sprintf("%s: flow %q: write %d", what, f, k), got[f][k], packets, run)
		}
	}
}

func checkRun(t *testing.T, what string, w wire, packets [][]byte, run []int) {
	t.Helper()
	pieces := w.cut(0)
	if len(pieces) != len(run) {
		t.Fatalf("%s: %d packets, want %d", what, len(pieces), len(run))
	}
	if len(run) > 1 && len(w.data) > 65535 {
		t.Fatalf("%s: %d bytes", what, len(w.data))
	}
	for i, k := range run {
		want := packets[k]
		if i > 0 && want[0]>>4 == 4 && want[6]&0x40 != 0 && bytes.Equal(want[4:6], packets[run[0]][4:6]) {
			// A fixed identification becomes a counting one, as with every device that does not
			// have NETIF_F_TSO_MANGLEID; RFC 6864 gives it no meaning.
			want = bytes.Clone(want)
			binary.BigEndian.PutUint16(want[4:], binary.BigEndian.Uint16(want[4:])+uint16(i))
			complete(want)
		}
		mustEqual(t, fmt.Sprintf("%s: packet %d of %d", what, i, len(run)), pieces[i], want)
	}
}

// randomTraffic is a batch of interleaved flows with everything that happens to flows.
func randomTraffic(r *rand.Rand, n, flows, mtu int) (in []sending) {
	type state struct {
		spec
		fixedID bool
		mss     int
	}
	fs := make([]state, flows)
	for i := range fs {
		fs[i] = state{spec: spec{
			v6: r.IntN(2) == 0, udp: r.IntN(3) == 0, host: byte(r.IntN(2)), port: uint16(i),
			seq: r.Uint32(), ack: 77, window: 500, id: uint16(r.Uint32()), flags: packet.TCPFlagACK,
			tos: byte(r.IntN(4)), noDF: r.IntN(3) == 0, ttl: 60, label: uint32(r.IntN(2)),
		}, fixedID: r.IntN(3) == 0, mss: 20 + r.IntN(mtu-140)}
		if r.IntN(2) == 0 {
			fs[i].options = timestamps(3)
		}
	}
	calm := r.IntN(12) // how rarely anything happens
	for len(in) < n {
		f := &fs[r.IntN(flows)]
		for range 1 + r.IntN(6) {
			s := f.spec
			s.payload, s.seed = f.mss, byte(r.Uint32())
			if r.IntN(calm+1) == 0 {
				switch r.IntN(24) {
				case 0:
					s.payload = r.IntN(f.mss + 1) // short, or none
				case 1:
					s.payload = f.mss + r.IntN(60)
				case 2:
					s.flags |= packet.TCPFlagPSH
				case 3:
					s.flags |= []uint8{packet.TCPFlagFIN, packet.TCPFlagSYN, packet.TCPFlagRST, packet.TCPFlagURG,
						packet.TCPFlagECE, packet.TCPFlagCWR}[r.IntN(6)]
				case 4:
					s.ack++
				case 5:
					s.window++
				case 6:
					s.options = timestamps(4)
				case 7:
					s.options = sack(byte(r.IntN(3)))
				case 8:
					s.tos ^= 3 // congestion experienced
				case 9:
					s.ttl--
				case 10:
					s.label ^= 1
				case 11:
					s.noDF = !s.noDF
				case 12:
					s.id += uint16(r.IntN(3)) - 1
				case 13:
					s.seq -= uint32(f.mss) // retransmitted
				case 14:
					s.seq += uint32(f.mss) // a gap: one was lost
				case 15:
					s.fragment = !s.v6
				case 16:
					s.ipOptions = !s.v6
				case 17:
					s.noUDPChecksum = s.udp && !s.v6
				case 18:
					s.badChecksum = s.payload > 0
				case 19:
					s.badIPChecksum = !s.v6
				case 20:
					if len(in) > 0 { // two change places
						in = append(in, in[len(in)-1])
						in[len(in)-2] = whole(s.build())
					}
				case 21:
					s.flags = 0
				}
			}
			b := s.build()
			switch {
			case s.badChecksum, s.noUDPChecksum, s.fragment, r.IntN(3) == 0:
				in = append(in, whole(b))
			case r.IntN(2) == 0:
				in = append(in, verified(b))
			default:
				in = append(in, partial(b))
			}
			f.seq = s.seq + uint32(s.payload)
			if !f.fixedID {
				f.id++
			}
		}
	}
	return in[:n]
}

// TestSendJoinsAsTheOracle: up to as many flows as there are groups, what is written is exactly what
// the slow coalescer makes.
func TestSendJoinsAsTheOracle(t *testing.T) {
	joined, lone := 0, 0
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 3))
		mtu := []int{576, 1280, 1450, 9000}[r.IntN(4)]
		in := randomTraffic(r, 1+r.IntN(packet.BatchSize), 1+r.IntN(maxGroups), mtu)
		dev := &fakeDevice{}
		sendAll(t, dev, mtu+100, in)
		checkJoined(t, fmt.Sprint("seed ", seed), dev.out, in)
		for _, w := range dev.out {
			if w.v.gso != 0 {
				joined++
			} else {
				lone++
			}
		}
	}
	if joined < 1000 || lone < 1000 { // or the traffic proves nothing
		t.Errorf("%d joined, %d lone writes", joined, lone)
	}
}

// TestSendManyFlows: with more flows than groups some are written early; nothing else changes.
func TestSendManyFlows(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 4))
		in := randomTraffic(r, packet.BatchSize, 60, 1450)
		dev := &fakeDevice{}
		sendAll(t, dev, 1550, in)
		byFlow := map[string][][]byte{}
		for _, s := range in {
			byFlow[flowOf(s.whole)] = append(byFlow[flowOf(s.whole)], s.whole)
		}
		for _, w := range dev.out {
			f := flowOf(w.data)
			n := len(w.cut(0))
			if n > len(byFlow[f]) {
				t.Fatalf("seed %d: flow %q: more packets than were sent", seed, f)
			}
			members := byFlow[f][:n]
			byFlow[f] = byFlow[f][n:]
			run := make([]int, n)
			for i := range members {
				run[i] = i
				if i > 0 && !(mayHead(members[0]) && mayHead(members[i]) && mayFollow(members[:i], members[i])) {
					t.Fatalf("seed %d: flow %q: packet %d may not be merged", seed, f, i)
				}
			}
			checkRun(t, fmt.Sprintf("seed %d: flow %q", seed, f), w, members, run)
		}
		for f, rest := range byFlow {
			if len(rest) > 0 {
				t.Fatalf("seed %d: flow %q: %d packets never written", seed, f, len(rest))
			}
		}
	}
}

// stream is a run of full segments, the last one short and with PSH.
func stream(s spec, n, mss int) (in []sending) {
	for i := range n {
		p := s
		p.payload, p.seed = mss, byte(i)
		p.seq += uint32(i * mss)
		p.id += uint16(i)
		if i == n-1 {
			p.payload = (mss + 1) / 2
			p.flags |= packet.TCPFlagPSH
		}
		in = append(in, verified(p.build()))
	}
	return in
}

// TestSendStreams says in plain numbers what the property tests only compare.
func TestSendStreams(t *testing.T) {
	ack := spec{flags: packet.TCPFlagACK, options: timestamps(1)}
	ack6 := ack
	ack6.v6, ack6.port = true, 9
	udp := spec{udp: true, port: 5}
	lone := []sending{whole(spec{flags: packet.TCPFlagACK}.build())}
	both := []sending{}
	for i, a := 0, stream(ack, 40, 1398); i < 40; i++ {
		both = append(both, a[i], stream(ack6, 40, 1378)[i], stream(udp, 40, 1200)[i])
	}
	for _, c := range []struct {
		name   string
		in     []sending
		writes int
	}{
		{"TCP", stream(ack, 40, 1398), 1},
		{"TCP over 64 KB", stream(ack, 60, 1398), 2},
		{"TCP over IPv6", stream(ack6, 40, 1378), 1},
		{"UDP", stream(udp, 64, 500), 1},
		{"more datagrams than GRO joins", stream(udp, 100, 500), 2},
		{"small datagrams", stream(udp, 128, 36), 2},
		{"interleaved", both, 3},
		{"a lone acknowledgment", lone, 1},
		{"nothing", nil, 0},
	} {
		dev := &fakeDevice{}
		sendAll(t, dev, 1450, c.in)
		checkJoined(t, c.name, dev.out, c.in)
		if len(dev.out) != c.writes {
			t.Errorf("%s: %d writes, want %d", c.name, len(dev.out), c.writes)
		}
	}
}

// TestSendVirtioHeader pins what the kernel reads.
func TestSendVirtioHeader(t *testing.T) {
	ack := spec{flags: packet.TCPFlagACK, options: timestamps(1)}
	ack6 := ack
	ack6.v6 = true
	for _, c := range []struct {
		in   []sending
		want vnet
	}{
		{stream(ack, 3, 1000), vnet{flags: 1, gso: 1, size: 1000, start: 20, offset: 16}},
		{stream(ack6, 3, 1000), vnet{flags: 1, gso: 4, size: 1000, start: 40, offset: 16}},
		{stream(spec{udp: true}, 3, 1000), vnet{flags: 1, gso: 5, size: 1000, start: 20, offset: 6}},
		{stream(spec{udp: true, v6: true}, 3, 1000), vnet{flags: 1, gso: 5, size: 1000, start: 40, offset: 6}},
		{stream(ack, 1, 1000), vnet{}},
		{[]sending{partial(ack6.build())}, vnet{flags: 1, start: 40, offset: 16}},
	} {
		dev := &fakeDevice{}
		sendAll(t, dev, 1450, c.in)
		if len(dev.out) != 1 || dev.out[0].v != c.want {
			t.Errorf("got %+v, want %+v", dev.out, c.want)
		}
	}
}

// TestSendNeverLaunders: a wrong checksum is written as it came, alone, whatever is around it. An unfinished one that is not the
// pseudo-header's kills the packet: the kernel asks no more of such a packet on its way to a pod of this node.
func TestSendNeverLaunders(t *testing.T) {
	for _, udp := range []bool{false, true} {
		for _, v6 := range []bool{false, true} {
			for bad := range 4 {
				in := stream(spec{udp: udp, v6: v6, flags: packet.TCPFlagACK}, 4, 500)
				for i := range in {
					in[i].state = packet.ChecksumComplete
				}
				in[bad].data = bytes.Clone(in[bad].data)
				in[bad].data[200] ^= 1
				in[bad].whole = in[bad].data
				dev := &fakeDevice{}
				sendAll(t, dev, 1450, in)
				checkJoined(t, fmt.Sprint("bad ", bad), dev.out, in)
				found := 0
				for _, w := range dev.out {
					if bytes.Equal(w.data, in[bad].data) && !w.v.partial() && w.v.gso == 0 {
						found++
					}
				}
				if found != 1 {
					t.Errorf("udp %v v6 %v: packet %d was not written as it came", udp, v6, bad)
				}
			}
		}
	}
	in := stream(spec{flags: packet.TCPFlagACK}, 3, 500)
	for i := range in {
		in[i] = partial(in[i].whole)
	}
	in[1].data[37] ^= 1
	dev, b := &fakeDevice{}, packet.NewBatch(len(in), 1500)
	load(b, in)
	newGather(dev, 1450, dev).send(b)
	if d := b.Packets()[1].Drop; d != packet.BadChecksum || len(dev.out) != 2 || !bytes.Equal(dev.out[1].data, in[2].data) {
		t.Errorf("%v, %+v", d, dev.out)
	}
}

// TestSendSuper: what a far kernel left uncut reaches ours as one packet with a size to cut to.
func TestSendSuper(t *testing.T) {
	const mtu = 1450
	tcp := spec{payload: 30000, flags: packet.TCPFlagACK | packet.TCPFlagPSH, options: timestamps(1), id: 9}
	tcp6, ece := tcp, tcp
	tcp6.v6 = true
	ece.flags |= packet.TCPFlagCWR
	udp := spec{udp: true, payload: 12345}
	for _, c := range []struct {
		name string
		in   sending
		size int // told by the packet
		want int // gso_size
		drop packet.Drop
	}{
		{"TCP", partial(tcp.build()), 0, mtu - 52, packet.Alive},
		{"TCP over IPv6", partial(tcp6.build()), 0, mtu - 72, packet.Alive},
		{"TCP, size known", partial(tcp.build()), 1000, 1000, packet.Alive},
		{"TCP, size above the MTU", partial(tcp.build()), 8000, mtu - 52, packet.Alive},
		{"TCP, whole checksum", whole(tcp.build()), 0, mtu - 52, packet.Alive},
		{"TCP, CWR", partial(ece.build()), 0, mtu - 52, packet.Alive},
		{"UDP, size known", partial(udp.build()), 1200, 1200, packet.Alive},
		{"UDP, size not known", partial(udp.build()), 0, 0, packet.TooBig},
		{"wrong checksum", whole(spec{payload: 30000, flags: packet.TCPFlagACK, badChecksum: true}.build()), 0, 0, packet.BadChecksum},
	} {
		dev := &fakeDevice{}
		b := packet.NewBatch(1, 1600)
		load(b, []sending{c.in})
		b.Packets()[0].SetSegment(c.size)
		if errno := newGather(dev, mtu, dev).send(b); errno != 0 {
			t.Fatal(errno)
		}
		if d := b.Packets()[0].Drop; d != c.drop {
			t.Errorf("%s: drop %v, want %v", c.name, d, c.drop)
			continue
		}
		if c.drop != packet.Alive {
			if len(dev.out) != 0 {
				t.Errorf("%s: written all the same", c.name)
			}
			continue
		}
		if len(dev.out) != 1 || dev.out[0].v.size != c.want {
			t.Errorf("%s: %+v", c.name, dev.out)
			continue
		}
		w := dev.out[0]
		if w.v.congestible != (c.name == "TCP, CWR") {
			t.Errorf("%s: ECN bit %v", c.name, w.v.congestible)
		}
		mustEqual(t, c.name, w.finish(), c.in.whole)

		// The same on a device without segmentation offload.
		dev = &fakeDevice{off: ^uint32(1)}
		load(b, []sending{c.in})
		b.Packets()[0].SetSegment(c.size)
		newGather(dev, mtu, dev).send(b)
		if c.in.data[9] == packet.ProtoUDP || c.in.data[6] == packet.ProtoUDP {
			if d := b.Packets()[0].Drop; d != packet.TooBig {
				t.Errorf("%s: without offload: %v", c.name, d)
			}
			continue
		}
		want := wire{vnet{gso: w.v.gso, size: w.v.size}, w.data}.cut(mtu)
		if c.want == 1000 { // nobody can say more than the MTU to the software cutter
			want = wire{vnet{gso: w.v.gso, size: 65535}, w.data}.cut(mtu)
		}
		if len(dev.out) != len(want) {
			t.Errorf("%s: without offload: %d packets, want %d", c.name, len(dev.out), len(want))
			continue
		}
		for i := range want {
			mustEqual(t, c.name+": without offload", dev.out[i].data, want[i])
		}
	}
}

// TestSendOrderWithSuper: a super-packet does not overtake what its flow has waiting.
func TestSendOrderWithSuper(t *testing.T) {
	s := spec{flags: packet.TCPFlagACK, payload: 1000}
	one, big, three := s, s, s
	big.seq, big.payload = 1000, 20000
	three.seq = 21000
	in := []sending{partial(one.build()), partial(big.build()), partial(three.build())}
	dev := &fakeDevice{}
	sendAll(t, dev, 1450, in)
	var seqs []uint32
	for _, w := range dev.out {
		seqs = append(seqs, binary.BigEndian.Uint32(w.data[24:]))
	}
	if fmt.Sprint(seqs) != "[0 1000 21000]" {
		t.Errorf("written in the order %v", seqs)
	}
}

// TestSendDegrades: a device that refuses a joined packet gets the same packets one by one, then
// and ever after, and says so once.
func TestSendDegrades(t *testing.T) {
	in := stream(spec{flags: packet.TCPFlagACK, options: timestamps(1)}, 20, 1000)
	for i := range in {
		in[i].state = packet.ChecksumComplete
	}
	in6 := stream(spec{v6: true, flags: packet.TCPFlagACK}, 20, 1000)
	dev := &fakeDevice{}
	dev.refuses = func(w wire) unix.Errno {
		if w.v.gso == unix.VIRTIO_NET_HDR_GSO_TCPV4 {
			return unix.EINVAL
		}
		return 0
	}
	g, b := newGather(dev, 1450, dev), packet.NewBatch(64, 1500)
	for range 3 {
		load(b, append(in[:20:20], in6...))
		if errno := g.send(b); errno != 0 {
			t.Fatal(errno)
		}
		if len(dev.out) != 21 {
			t.Fatalf("%d writes, want 20 and 1", len(dev.out))
		}
		for i := range in {
			if b.Packets()[i].Drop != packet.Alive {
				t.Fatalf("packet %d: %v", i, b.Packets()[i].Drop)
			}
		}
		plain := 0
		for _, w := range dev.out {
			if w.v.gso == 0 {
				mustEqual(t, "packet", w.finish(), in[plain].whole)
				plain++
			}
		}
		dev.out = nil
	}
	if len(dev.told) != 1 || dev.told[0] != unix.VIRTIO_NET_HDR_GSO_TCPV4 {
		t.Errorf("told %v", dev.told)
	}
}

// TestSuperDegrades: a device that refuses a super-packet gets its parts, and where those go no other one; where they do not, or cannot be
// told apart, the packet was to blame, and the offload stays on.
func TestSuperDegrades(t *testing.T) {
	for name, c := range map[string]struct {
		udp, all bool // a datagram; the device refuses whatever it is given
		drop     packet.Drop
		told     []uint8
		writes   int // of two super-packets
	}{
		"an offload that is not there": {drop: packet.Alive, told: []uint8{unix.VIRTIO_NET_HDR_GSO_TCPV4}, writes: 4},
		"a packet nobody takes":        {all: true, drop: packet.Refused},
		"a datagram":                   {udp: true, drop: packet.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			tries := 0
			dev := &fakeDevice{refuses: func(w wire) unix.Errno {
				if w.v.gso == 0 && !c.all {
					return 0
				}
				tries++
				return unix.EINVAL
			}}
			g, b := newGather(dev, 1450, dev), packet.NewBatch(1, 5000)
			in := stream(spec{udp: c.udp, flags: packet.TCPFlagACK}, 1, 4000)
			for range 2 {
				load(b, in)
				b.Packets()[0].SetSegment(1400)
				if errno := g.send(b); errno != 0 || b.Packets()[0].Drop != c.drop {
					t.Fatalf("%v, and the packet is %v, want %v", errno, b.Packets()[0].Drop, c.drop)
				}
			}
			if !slices.Equal(dev.told, c.told) || len(dev.out) != c.writes || len(c.told) > 0 && tries != 1 {
				t.Errorf("told %v, %d writes, %d refused; want %v, %d", dev.told, len(dev.out), tries, c.told, c.writes)
			}
		})
	}
}

// TestSendErrors: what the kernel says decides the name of the drop, and whether the port is dead.
func TestSendErrors(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		drop  packet.Drop
		dead  bool
	}{
		{unix.EAGAIN, packet.QueueFull, false},
		{unix.ENOBUFS, packet.QueueFull, false},
		{unix.ENOMEM, packet.QueueFull, false},
		{unix.EIO, packet.Refused, false}, // the interface is down
		{unix.EBADFD, packet.Refused, true},
	} {
		in := append(stream(spec{flags: packet.TCPFlagACK}, 10, 1000), whole(spec{udp: true, payload: 9}.build()))
		dev := &fakeDevice{refuses: func(wire) unix.Errno { return c.errno }}
		b := packet.NewBatch(len(in)+1, 1500)
		load(b, append(in, whole(in[0].data)))
		b.Packets()[len(in)].Drop = packet.NoRoute
		errno := newGather(dev, 1450, dev).send(b)
		if (errno != 0) != c.dead {
			t.Errorf("%v: send says %v", c.errno, errno)
		}
		for i := range in {
			if d := b.Packets()[i].Drop; d != c.drop {
				t.Errorf("%v: packet %d: %v, want %v", c.errno, i, d, c.drop)
			}
		}
		if d := b.Packets()[len(in)].Drop; d != packet.NoRoute {
			t.Errorf("the dead packet's reason became %v", d)
		}
	}
}

// TestSendOddities: packets that are none, and marks that point nowhere.
func TestSendOddities(t *testing.T) {
	b := packet.NewBatch(6, 1500)
	load(b, []sending{
		{data: nil}, {data: []byte{0x45}}, whole([]byte("not an IP packet, but long enough for a header to be read")),
		whole(spec{payload: 20, flags: packet.TCPFlagACK}.build()), whole(spec{payload: 20, flags: packet.TCPFlagACK}.build()),
		whole(append(spec{payload: 20, flags: packet.TCPFlagACK}.build(), 0, 0)), // padded
	})
	b.Packets()[3].SetPartial(20, 4000)
	b.Packets()[4].SetPartial(8, 2)
	dev := &fakeDevice{}
	newGather(dev, 1450, dev).send(b)
	for i, want := range []packet.Drop{packet.TooShort, 0, 0, packet.BadHeader, packet.BadHeader, 0} {
		if d := b.Packets()[i].Drop; d != want {
			t.Errorf("packet %d: %v, want %v", i, d, want)
		}
	}
	if len(dev.out) != 3 {
		t.Errorf("%+v", dev.out)
	}
}

// TestSendVerifiedOddities: a datagram that somebody vouches for is still not joined when GSO could
// not give each part what it had: no checksum, or bytes behind the datagram.
func TestSendVerifiedOddities(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"no checksum":       func(b []byte) { b[26], b[27] = 0, 0 },
		"padded":            func(b []byte) { b[25] -= 4 },
		"length beyond end": func(b []byte) { b[25] += 4 },
	} {
		in := stream(spec{udp: true}, 6, 400)[:5]
		for i := range in {
			change(in[i].data)
		}
		dev := &fakeDevice{}
		sendAll(t, dev, 1450, in)
		if len(dev.out) != len(in) {
			t.Fatalf("%s: %d writes, want %d", name, len(dev.out), len(in))
		}
		for i, w := range dev.out {
			mustEqual(t, name, w.finish(), in[i].data)
		}
	}
}

func TestSendNoAllocs(t *testing.T) {
	in := append(stream(spec{flags: packet.TCPFlagACK}, 40, 1400), stream(spec{udp: true}, 40, 600)...)
	b := packet.NewBatch(len(in), 1500)
	dev := &still{}
	g := newGather(dev, 1450, &fakeDevice{})
	load(b, in)
	if n := testing.AllocsPerRun(100, func() {
		for i := range b.Packets() {
			p := &b.Packets()[i]
			copy(p.Bytes(), in[i].data)
		}
		g.send(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSend: packets made of anything. What the device gets is the same packets, in order within a
// flow, and nothing is joined that the oracle would not.
func FuzzSend(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		var all []byte
		for _, s := range randomTraffic(r, 6, 2, 200) {
			all = binary.BigEndian.AppendUint16(all, uint16(len(s.data)))
			all = append(all, s.data...)
		}
		f.Add(all, seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, all []byte, repair bool) {
		var in []sending
		for len(all) > 2 && len(in) < packet.BatchSize {
			n := min(int(binary.BigEndian.Uint16(all)), len(all)-2, 1500)
			b := bytes.Clone(all[2 : 2+n])
			all = all[2+n:]
			if repair && len(b) >= 60 && (b[0] == 0x45 || b[0]>>4 == 6) && (transport(b) == 6 || transport(b) == 17) {
				if ip, h := headerLengths(b); transport(b) == 17 || h >= ip+20 && h <= len(b) {
					complete(b) // so that fuzzing gets past the checksums
				}
			}
			if len(b) > 0 {
				in = append(in, whole(b))
			}
		}
		dev := &fakeDevice{}
		sendAll(t, dev, 1500, in)
		flows := map[string]bool{}
		for _, s := range in {
			flows[flowOf(s.whole)] = true
		}
		if len(flows) <= maxGroups {
			checkJoined(t, "fuzz", dev.out, in)
		}
	})
}

// benchmarkSend includes what it takes to make the batch new: some 5 ns a segment.
func benchmarkSend(b *testing.B, in []sending) {
	batch := packet.NewBatch(len(in), 1500)
	load(batch, in)
	g := newGather(&still{}, 1450, &fakeDevice{})
	state := make([]packet.Packet, len(in))
	copy(state, batch.Packets())
	var headers [][80]byte
	for i := range in {
		headers = append(headers, [80]byte(append(bytes.Clone(in[i].data), make([]byte, 80)...)))
	}
	b.ReportAllocs()
	for b.Loop() {
		copy(batch.Slots(), state)
		for i := range state {
			copy(state[i].Bytes(), headers[i][:])
		}
		g.send(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(in)), "ns/segment")
}

func BenchmarkJoinTCP4(b *testing.B) {
	benchmarkSend(b, stream(spec{flags: packet.TCPFlagACK, options: timestamps(1)}, 46, 1398))
}

func BenchmarkJoinTCP6(b *testing.B) {
	benchmarkSend(b, stream(spec{v6: true, flags: packet.TCPFlagACK, options: timestamps(1)}, 46, 1378))
}

func BenchmarkJoinTCP4Verifying(b *testing.B) {
	in := stream(spec{flags: packet.TCPFlagACK, options: timestamps(1)}, 46, 1398)
	for i := range in {
		in[i].state = packet.ChecksumComplete
	}
	benchmarkSend(b, in)
}

func BenchmarkJoinInterleaved(b *testing.B) {
	var in []sending
	for i := range 16 {
		for f := range 8 {
			s := spec{flags: packet.TCPFlagACK, port: uint16(f), seq: uint32(i * 1398), id: uint16(i), payload: 1398}
			in = append(in, verified(s.build()))
		}
	}
	benchmarkSend(b, in)
}

func BenchmarkJoinUDP64(b *testing.B) {
	benchmarkSend(b, stream(spec{udp: true}, 128, 36))
}

func BenchmarkSendAcks(b *testing.B) {
	var in []sending
	for i := range 64 {
		in = append(in, whole(spec{flags: packet.TCPFlagACK, options: timestamps(1), ack: uint32(i)}.build()))
	}
	benchmarkSend(b, in)
}
