package packettest_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"weft/packet"
	"weft/packet/packettest"
)

// TestSplitOracleAgainstCutter compares two programs that know nothing of each other.
func TestSplitOracleAgainstCutter(t *testing.T) {
	r, merged := rand.New(rand.NewPCG(1, 1)), 0
	for range 60 {
		in := packettest.Traffic(r, 64, 600+r.IntN(8400))
		for _, s := range packettest.CoalesceOracle(in) {
			v, _ := packet.ParseIP(s.Packet)
			if s.GSO == packettest.GSONone || v.Protocol() != packet.ProtoTCP {
				continue
			}
			want, err := packettest.SplitOracle(s)
			if err != nil {
				t.Fatal(err)
			}
			var c packet.Cutter
			if !c.Start(s.Packet, len(want[0]), true) {
				t.Fatalf("Cutter refuses %x", s.Packet[:80])
			}
			dst := make([]byte, len(want[0]))
			for i, more := 0, true; more; i++ {
				var n int
				if n, more = c.Next(dst); i >= len(want) || !bytes.Equal(dst[:n], want[i]) {
					t.Fatalf("segment %d differs", i)
				}
			}
			merged++
		}
	}
	if merged < 100 {
		t.Fatalf("only %d super-packets were compared", merged)
	}
}

func TestCoalesceOracleIsLegal(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	kinds := map[packettest.GSO]int{}
	for range 60 {
		in := packettest.Traffic(r, 128, 576+r.IntN(8424))
		out := packettest.CoalesceOracle(in)
		if err := packettest.CoalesceLegal(in, out); err != nil {
			t.Fatal(err)
		}
		for _, s := range out {
			kinds[s.GSO]++
		}
	}
	for _, kind := range []packettest.GSO{packettest.GSONone, packettest.GSOTCPv4, packettest.GSOTCPv6, packettest.GSOUDP} {
		if kinds[kind] < 100 {
			t.Errorf("only %d of type %d: the traffic tests little", kinds[kind], kind)
		}
	}
}

func TestVnetRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for _, s := range packettest.CoalesceOracle(packettest.Traffic(r, 500, 1400)) {
		got, err := packettest.ParseVnet(s.Vnet())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Packet, s.Packet) || got.GSO != s.GSO || got.Size != s.Size ||
			got.NeedsChecksum != s.NeedsChecksum || got.Start != s.Start || got.Offset != s.Offset {
			t.Fatalf("%+v\nbecame %+v", s, got)
		}
	}
	if _, err := packettest.ParseVnet(make([]byte, 9)); err == nil {
		t.Error("9 bytes passed as a virtio header")
	}
}

// segment is one packet of a flow that merges; edits then spoil it.
type segment struct {
	v6, udp  bool
	seq      uint32
	id       uint16
	noDF     bool
	flags    uint8
	size     int
	ttl, tos uint8
	window   uint16
	option   uint8
	ipOption bool
	noSum    bool
	badSum   bool
	badIPSum bool
}

func (s segment) bytes() []byte {
	b := []byte{0x45, s.tos, 0, 0, 0, 0, 0x40, 0, 64 - s.ttl, packet.ProtoTCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	if s.v6 {
		b = make([]byte, 40)
		b[0], b[1], b[6], b[7], b[8], b[24] = 0x60|s.tos>>4, s.tos<<4, packet.ProtoTCP, 64-s.ttl, 0xfd, 0xfe
	} else {
		binary.BigEndian.PutUint16(b[4:], s.id)
		if s.noDF {
			b[6] = 0
		}
		if s.ipOption {
			b[0] = 0x46
			b = append(b, 1, 1, 1, 0)
		}
	}
	l4 := len(b)
	b = append(b, 0x9c, 0x40, 0x14, 0x51)
	offset := 6
	if s.udp {
		b = append(b, 0, 0, 0, 0)
		if s.v6 {
			b[6] = packet.ProtoUDP
		} else {
			b[9] = packet.ProtoUDP
		}
	} else {
		offset = 16
		b = binary.BigEndian.AppendUint32(b, s.seq)
		b = append(b, 0, 0, 0, 9, 0x60, packet.TCPFlagACK|s.flags, 0, byte(s.window), 0, 0, 0, 0, 1, 1, 1, s.option)
	}
	for i := range s.size {
		b = append(b, byte(i)+byte(s.seq))
	}
	if s.v6 {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	} else {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[10:], ^packettest.Sum(b[:l4], 0))
	}
	if s.udp {
		binary.BigEndian.PutUint16(b[l4+4:], uint16(len(b)-l4))
	}
	addrs := b[8:min(40, l4)]
	if !s.v6 {
		addrs = b[12:20]
	}
	proto := []byte{0, packet.ProtoTCP, byte((len(b) - l4) >> 8), byte(len(b) - l4)}
	if s.udp {
		proto[1] = packet.ProtoUDP
	}
	binary.BigEndian.PutUint16(b[l4+offset:], ^packettest.Sum(b[l4:], packettest.Sum(proto, packettest.Sum(addrs, 0))))
	if s.noSum {
		clear(b[l4+offset : l4+offset+2])
	}
	if s.badSum {
		b[len(b)-1] ^= 1
	}
	if s.badIPSum {
		b[10] ^= 1
	}
	return b
}

// run is n packets of a flow that merge.
func run(n int, v6, udp bool) []segment {
	all := make([]segment, n)
	for i := range all {
		all[i] = segment{v6: v6, udp: udp, size: 100, seq: uint32(100 * i), id: uint16(7 + i)}
	}
	return all
}

func packetsOf(all []segment) (in [][]byte) {
	for _, s := range all {
		in = append(in, s.bytes())
	}
	return in
}

// force merges packets by the oracle's rules of writing, whether they may or not: the first packet's
// headers and everybody's payload.
func force(in [][]byte, data int) packettest.Super {
	v6, udp := in[0][0]>>4 == 6, false
	if v6 {
		udp = in[0][6] == packet.ProtoUDP
	} else {
		udp = in[0][9] == packet.ProtoUDP
	}
	legal := run(2, v6, udp)
	model := packettest.CoalesceOracle(packetsOf(legal))[0]
	s := model
	s.Packet = bytes.Clone(in[0])
	for _, b := range in[1:] {
		s.Packet = append(s.Packet, b[data:]...)
	}
	s.Size = len(in[0]) - data
	v, _ := packet.ParseIP(in[0])
	s.Start, _ = v.Transport()
	if !udp {
		s.Packet[s.Start+13] |= in[len(in)-1][s.Start+13] & (packet.TCPFlagFIN | packet.TCPFlagPSH)
	} else {
		binary.BigEndian.PutUint16(s.Packet[s.Start+4:], uint16(len(s.Packet)-s.Start))
	}
	if v6 {
		binary.BigEndian.PutUint16(s.Packet[4:], uint16(len(s.Packet)-40))
	} else {
		binary.BigEndian.PutUint16(s.Packet[2:], uint16(len(s.Packet)))
		packet.PutIPv4Checksum(s.Packet)
	}
	addrs := s.Packet[8:min(40, s.Start+20)]
	if !v6 {
		addrs = s.Packet[12:20]
	}
	binary.BigEndian.PutUint16(s.Packet[s.Start+s.Offset:], packet.PseudoSum(addrs, v.Protocol(), len(s.Packet)-s.Start))
	return s
}

func TestForcedMergeOfALegalRunIsLegal(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			in := packetsOf(run(5, v6, udp))
			out := packettest.CoalesceOracle(in)
			if len(out) != 1 || out[0].GSO == packettest.GSONone {
				t.Fatalf("v6 %v udp %v: a plain run does not merge: %d outputs", v6, udp, len(out))
			}
			s := force(in, len(in[0])-100)
			if err := packettest.CoalesceLegal(in, []packettest.Super{s}); err != nil {
				t.Errorf("v6 %v udp %v: %v", v6, udp, err)
			}
			if !bytes.Equal(s.Packet, out[0].Packet) {
				t.Errorf("v6 %v udp %v: two ways to merge differ", v6, udp)
			}
		}
	}
}

// TestCoalesceLegalRefusesMerges: three packets that would merge, but for one of them.
func TestCoalesceLegalRefusesMerges(t *testing.T) {
	for _, c := range []struct {
		name    string
		edit    func(all []segment)
		v4, v6  bool
		tcp, ud bool
	}{
		{"a gap", func(s []segment) { s[1].seq++ }, true, true, true, false},
		{"a repetition", func(s []segment) { s[1].seq = 0 }, true, true, true, false},
		{"a shorter one in the middle", func(s []segment) { s[1].size, s[2].seq = 50, 150 }, true, true, true, true},
		{"a longer one at the end", func(s []segment) { s[2].size = 101 }, true, true, true, true},
		{"no payload at the end", func(s []segment) { s[2].size = 0 }, true, true, true, true},
		{"no payload in front", func(s []segment) { s[0].size = 0 }, true, true, true, true},
		{"PSH in the middle", func(s []segment) { s[1].flags = packet.TCPFlagPSH }, true, true, true, false},
		{"PSH in front", func(s []segment) { s[0].flags = packet.TCPFlagPSH }, true, true, true, false},
		{"FIN in the middle", func(s []segment) { s[1].flags = packet.TCPFlagFIN }, true, true, true, false},
		{"CWR in the middle", func(s []segment) { s[1].flags = packet.TCPFlagCWR }, true, true, true, false},
		{"ECE on one", func(s []segment) { s[1].flags = packet.TCPFlagECE }, true, true, true, false},
		{"SYN on all", func(s []segment) { each(s, func(s *segment) { s.flags = packet.TCPFlagSYN }) }, true, true, true, false},
		{"RST on all", func(s []segment) { each(s, func(s *segment) { s.flags = packet.TCPFlagRST }) }, true, true, true, false},
		{"URG on all", func(s []segment) { each(s, func(s *segment) { s.flags = packet.TCPFlagURG }) }, true, true, true, false},
		{"another window", func(s []segment) { s[1].window = 1 }, true, true, true, false},
		{"another option", func(s []segment) { s[1].option = 1 }, true, true, true, false},
		{"another TTL", func(s []segment) { s[1].ttl = 1 }, true, true, true, true},
		{"another TOS", func(s []segment) { s[1].tos = 1 }, true, true, true, true},
		{"no DF on one", func(s []segment) { s[1].noDF = true }, true, false, true, true},
		{"identification jumps, DF", func(s []segment) { s[1].id = 100 }, true, false, true, true},
		{"identification stays, no DF", func(s []segment) { each(s, func(s *segment) { s.id, s.noDF = 7, true }) }, true, false, true, true},
		{"identification first stays, then counts", func(s []segment) { s[1].id, s[2].id = 7, 8 }, true, false, true, true},
		{"IP options", func(s []segment) { each(s, func(s *segment) { s.ipOption = true }) }, true, false, true, true},
		{"a wrong checksum", func(s []segment) { s[1].badSum = true }, true, true, true, true},
		{"a wrong checksum in front", func(s []segment) { s[0].badSum = true }, true, true, true, true},
		{"a wrong IPv4 checksum", func(s []segment) { s[1].badIPSum = true }, true, false, true, true},
		{"a wrong IPv4 checksum in front", func(s []segment) { s[0].badIPSum = true }, true, false, true, true},
		{"no checksum", func(s []segment) { each(s, func(s *segment) { s.noSum = true }) }, true, true, false, true},
	} {
		for _, v6 := range []bool{false, true} {
			for _, udp := range []bool{false, true} {
				if v6 && !c.v6 || !v6 && !c.v4 || udp && !c.ud || !udp && !c.tcp {
					continue
				}
				all := run(3, v6, udp)
				c.edit(all)
				in := packetsOf(all)
				s := force(in, len(in[0])-all[0].size)
				if err := packettest.CoalesceLegal(in, []packettest.Super{s}); err == nil {
					t.Errorf("%s (v6 %v, udp %v): merged all the same", c.name, v6, udp)
				}
				if err := packettest.CoalesceLegal(in, packettest.CoalesceOracle(in)); err != nil {
					t.Errorf("%s (v6 %v, udp %v): the oracle's own way: %v", c.name, v6, udp, err)
				}
			}
		}
	}
}

func each(all []segment, edit func(*segment)) {
	for i := range all {
		edit(&all[i])
	}
}

func TestCoalesceLegalBounds(t *testing.T) {
	udp := packetsOf(run(65, false, true))
	if err := packettest.CoalesceLegal(udp, []packettest.Super{force(udp, len(udp[0])-100)}); err == nil {
		t.Error("65 UDP datagrams merged")
	}
	udp = udp[:64]
	if err := packettest.CoalesceLegal(udp, []packettest.Super{force(udp, len(udp[0])-100)}); err != nil {
		t.Errorf("64 UDP datagrams: %v", err)
	}
	// IPv6 has room for 65535 bytes behind its header, GRO not.
	long := run(655, true, false)
	in := packetsOf(long)
	if err := packettest.CoalesceLegal(in, []packettest.Super{force(in, len(in[0])-100)}); err == nil {
		t.Error("more than 65535 bytes merged")
	}
}

// TestCoalesceLegalRefusesOutputs: a legal output, spoiled.
func TestCoalesceLegalRefusesOutputs(t *testing.T) {
	other := segment{udp: true, size: 30}.bytes()
	in := append(packetsOf(run(3, false, false)), other)
	good := func() []packettest.Super { return packettest.CoalesceOracle(in) }
	if err := packettest.CoalesceLegal(in, good()); err != nil || len(good()) != 2 {
		t.Fatalf("%d outputs: %v", len(good()), err)
	}
	super := slices.IndexFunc(good(), func(s packettest.Super) bool { return s.GSO != packettest.GSONone })
	for name, spoil := range map[string]func([]packettest.Super) []packettest.Super{
		"nothing":            func(out []packettest.Super) []packettest.Super { return nil },
		"one lost":           func(out []packettest.Super) []packettest.Super { return out[:1] },
		"one doubled":        func(out []packettest.Super) []packettest.Super { return append(out, out[1]) },
		"a payload bit":      func(out []packettest.Super) []packettest.Super { out[super].Packet[60] ^= 1; return out },
		"a header bit":       func(out []packettest.Super) []packettest.Super { out[super].Packet[8] ^= 1; return out },
		"a stranger":         func(out []packettest.Super) []packettest.Super { out[1-super].Packet[12] ^= 1; return out },
		"another size":       func(out []packettest.Super) []packettest.Super { out[super].Size++; return out },
		"no size":            func(out []packettest.Super) []packettest.Super { out[super].Size = 0; return out },
		"one segment":        func(out []packettest.Super) []packettest.Super { out[super].Size = 5000; return out },
		"another type":       func(out []packettest.Super) []packettest.Super { out[super].GSO = packettest.GSOTCPv6; return out },
		"no type":            func(out []packettest.Super) []packettest.Super { out[super].GSO = packettest.GSONone; return out },
		"a finished sum":     func(out []packettest.Super) []packettest.Super { out[super].NeedsChecksum = false; return out },
		"sum elsewhere":      func(out []packettest.Super) []packettest.Super { out[super].Offset = 6; return out },
		"sum outside":        func(out []packettest.Super) []packettest.Super { out[super].Start = 5000; return out },
		"start elsewhere":    func(out []packettest.Super) []packettest.Super { out[super].Start = 24; return out },
		"another pseudo sum": func(out []packettest.Super) []packettest.Super { out[super].Packet[36] ^= 1; return out },
	} {
		if err := packettest.CoalesceLegal(in, spoil(good())); err == nil {
			t.Errorf("%s: passed", name)
		}
	}
	apart := []packettest.Super{{Packet: in[1]}, {Packet: in[0]}, {Packet: in[2]}, {Packet: in[3]}}
	if err := packettest.CoalesceLegal(in, apart); err == nil {
		t.Error("reordering inside a flow passed")
	}
	apart = []packettest.Super{{Packet: in[3]}, {Packet: in[0]}, {Packet: in[1]}, {Packet: in[2]}}
	if err := packettest.CoalesceLegal(in, apart); err != nil {
		t.Errorf("flows that pass each other: %v", err)
	}
}
