package packettest

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"weft/packet"
)

// Traffic returns n whole IP packets of at most mtu bytes, as a lane may meet them: a few TCP and UDP
// flows of both families that send runs of full segments with a shorter one at the end, interleaved,
// and among them what real networks add: reordered, repeated and lost segments, SACK and timestamp
// options that change, ECN, CWR, PSH, FIN, SYN and RST, pure ACKs, changed windows, TTLs and
// identifications, IP options, fragments, missing and wrong checksums.
//
// The same r in the same state gives the same packets.
func Traffic(r *rand.Rand, n, mtu int) [][]byte {
	flows := make([]*sender, 1+r.IntN(6))
	for i := range flows {
		flows[i] = newSender(r, i, mtu)
	}
	packets := make([][]byte, 0, n)
	for len(packets) < n {
		run := 1 + r.IntN(12)
		s := flows[r.IntN(len(flows))]
		for range min(run, n-len(packets)) {
			packets = append(packets, s.next(r))
		}
	}
	// Reordering in the network: neighbours change places.
	for range n / 20 {
		i := r.IntN(n)
		j := min(n-1, i+1+r.IntN(3))
		packets[i], packets[j] = packets[j], packets[i]
	}
	return packets
}

// sender makes the packets of one flow.
type sender struct {
	src, dst netip.Addr
	tcp      bool
	ports    [4]byte
	mss      int
	seq, ack uint32
	id       uint16
	idStep   uint16 // 1 as most stacks, 0 as some do with DF
	df       bool
	tos, ttl uint8
	window   uint16
	stamp    uint32 // of the timestamp option; 0 = the flow has none
	burst    int    // packets until the shorter one
	last     []byte
}

func newSender(r *rand.Rand, i, mtu int) *sender {
	s := &sender{
		src: netip.AddrFrom4([4]byte{10, 244, 1, byte(i + 2)}), dst: netip.AddrFrom4([4]byte{10, 244, 2, 3}),
		tcp: r.IntN(3) > 0, seq: r.Uint32(), ack: r.Uint32(), id: uint16(r.Uint32()), idStep: 1,
		df: r.IntN(4) > 0, tos: uint8(r.IntN(2)) * 2, ttl: 64, window: 500, burst: r.IntN(40),
	}
	if r.IntN(2) == 0 {
		s.src, s.dst = netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: byte(i + 2)}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 2, 15: 3})
	}
	if s.df && r.IntN(3) == 0 {
		s.idStep = 0
	}
	if r.IntN(2) == 0 {
		s.stamp = 1 + r.Uint32()>>1
	}
	binary.BigEndian.PutUint16(s.ports[0:], uint16(40000+i))
	binary.BigEndian.PutUint16(s.ports[2:], 5201)
	// Headers with IP options, timestamps and SACK are below 60 + 40 bytes.
	s.mss = 1 + r.IntN(mtu-100)
	if r.IntN(2) == 0 {
		s.mss = mtu - 100
	}
	return s
}

// next makes the next packet: usually the ordinary one, otherwise one that something is odd about.
func (s *sender) next(r *rand.Rand) []byte {
	flags, size := uint8(packet.TCPFlagACK), s.mss
	if s.burst--; s.burst < 0 {
		s.burst = r.IntN(40)
		size = 1 + r.IntN(s.mss)
		flags |= packet.TCPFlagPSH
	}
	var sack, ipOptions, noChecksum, wrong, fragment bool
	switch r.IntN(60) {
	case 0:
		if s.last != nil {
			return append([]byte(nil), s.last...) // sent again
		}
	case 1:
		s.seq += uint32(s.mss) // lost before it came here
	case 2:
		s.stamp += uint32(min(s.stamp, 1)) // a flow without timestamps stays so
	case 3:
		s.ack += 1000
	case 4:
		s.window++
	case 5:
		sack = true
	case 6:
		flags |= packet.TCPFlagCWR
	case 7:
		flags |= packet.TCPFlagECE
	case 8:
		flags |= packet.TCPFlagPSH
	case 9:
		flags |= [4]uint8{packet.TCPFlagFIN, packet.TCPFlagSYN, packet.TCPFlagRST, packet.TCPFlagURG}[r.IntN(4)]
	case 10:
		size = 0
	case 11:
		size = 1 + r.IntN(s.mss)
	case 12:
		s.tos ^= 1 // congestion experienced
	case 13:
		s.ttl--
	case 14:
		s.df = !s.df
	case 15:
		s.id += uint16(r.Uint32())
	case 16:
		ipOptions = true
	case 17:
		noChecksum = true
	case 18:
		wrong = true
	case 19:
		fragment = true
	case 20:
		s.mss = 1 + r.IntN(s.mss)
		size = s.mss
	}

	b := s.ipHeader(ipOptions)
	l4, proto := len(b), uint8(packet.ProtoUDP)
	b = append(b, s.ports[:]...)
	if s.tcp {
		proto = packet.ProtoTCP
		b = s.tcpHeader(b, flags, sack)
		s.seq += uint32(size)
	} else {
		b = append(b, 0, 0, 0, 0)
	}
	for i, start := 0, r.Uint32(); i < size; i++ {
		b = append(b, byte(start+uint32(i)*uint32(i)>>4)) // cheap, and seldom the same twice
	}
	s.finish(b, l4, proto)
	switch {
	case noChecksum && !s.tcp:
		clear(b[l4+6 : l4+8])
	case wrong:
		b[l4+2+r.IntN(len(b)-l4-2)] ^= 1 << r.IntN(8)
	case fragment && b[0]>>4 == 4:
		b[6] |= 0x20 // more fragments
		setID(b, s.id)
	}
	s.id += s.idStep
	s.last = b
	return append([]byte(nil), b...)
}

// ipHeader returns the IP header without lengths and checksum.
func (s *sender) ipHeader(options bool) []byte {
	proto := uint8(packet.ProtoUDP)
	if s.tcp {
		proto = packet.ProtoTCP
	}
	if s.src.Is6() {
		h := make([]byte, packet.IPv6Header)
		h[0], h[1] = 0x60|s.tos>>4, s.tos<<4
		h[6], h[7] = proto, s.ttl
		copy(h[8:], s.src.AsSlice())
		copy(h[24:], s.dst.AsSlice())
		return h
	}
	h := make([]byte, packet.IPv4Header)
	h[0], h[1] = 0x45, s.tos
	if s.df {
		h[6] = 0x40
	}
	h[8], h[9] = s.ttl, proto
	copy(h[12:], s.src.AsSlice())
	copy(h[16:], s.dst.AsSlice())
	if options {
		h[0] = 0x46
		h = append(h, 1, 1, 1, 0) // three NOPs and the end
	}
	return h
}

// tcpHeader appends what follows the ports.
func (s *sender) tcpHeader(b []byte, flags uint8, sack bool) []byte {
	var options []byte
	if s.stamp != 0 {
		options = append(options, 1, 1, 8, 10)
		options = binary.BigEndian.AppendUint32(options, s.stamp)
		options = binary.BigEndian.AppendUint32(options, s.stamp/2)
	}
	if sack {
		options = append(options, 1, 1, 5, 10)
		options = binary.BigEndian.AppendUint32(options, s.ack+1000)
		options = binary.BigEndian.AppendUint32(options, s.ack+2000)
	}
	b = binary.BigEndian.AppendUint32(b, s.seq)
	b = binary.BigEndian.AppendUint32(b, s.ack)
	b = append(b, uint8(packet.TCPHeader+len(options))/4<<4, flags)
	b = binary.BigEndian.AppendUint16(b, s.window)
	b = append(b, 0, 0, 0, 0)
	return append(b, options...)
}

// finish writes lengths, identification and checksums.
func (s *sender) finish(b []byte, l4 int, proto uint8) {
	setLengths(b, l4, proto)
	if b[0]>>4 == 4 {
		setID(b, s.id)
	}
	offset := 6
	if proto == packet.ProtoTCP {
		offset = 16
	}
	binary.BigEndian.PutUint16(b[l4+offset:], pseudo(b, l4, proto))
	finish(b, l4, offset)
}
