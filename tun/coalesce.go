package tun

import (
	"bytes"
	"encoding/binary"

	"weft/packet"
)

const (
	// maxGroups bounds the flows of one batch that are put together side by side. The kernel's
	// GRO has 8 lists of 8; one list of 16 is searched in a few nanoseconds.
	maxGroups = 16

	// maxDatagrams is how many datagrams the kernel's GRO puts into one (UDP_GRO_CNT_MAX).
	maxDatagrams = 64

	// maxTotal is the largest IP packet the kernel's GRO builds (GRO_LEGACY_MAX_SIZE less one).
	maxTotal = 65535
)

// flow is what packets must have in common to be looked at together: addresses (an IPv4 pair in
// a), transport protocol, and ports.
type flow struct {
	a, b, c, d uint64
	ports      uint32
	proto      uint8
	version    uint8
}

// sameHosts says whether two flows join the same two addresses, in the same direction.
func (f *flow) sameHosts(o *flow) bool {
	return f.a == o.a && f.b == o.b && f.c == o.c && f.d == o.d && f.version == o.version
}

// tag is a number that is equal for equal flows, and seldom for others.
func (f *flow) tag() uint64 {
	return f.a ^ f.b ^ f.c ^ f.d ^ uint64(f.ports)<<16 ^ uint64(f.proto)<<8 ^ uint64(f.version)
}

// kind is what may become of a packet that Send takes.
type kind uint8

const (
	foreign   kind = iota // not IP
	unknown               // between known hosts, of which flow cannot be said: a fragment, say
	lone                  // of a known flow, but never part of a larger packet
	mergeable             // of a known flow, and it may start or join a larger packet
	oversize              // a super-packet already: a far kernel left the cutting to us
)

// segment is one packet as the coalescer sees it.
type segment struct {
	kind    kind
	flow    flow
	l4      int // where TCP or UDP begins
	h       int // where the payload begins
	payload int // bytes
}

// classify makes s what the headers of p say, b being p's bytes. mtu is the largest packet that is not
// a super-packet.
func (s *segment) classify(p *packet.Packet, b []byte, mtu int) {
	*s = segment{}
	if len(b) < packet.IPv4Header {
		return
	}
	switch b[0] >> 4 {
	case 4:
		s.flow.version, s.flow.proto = 4, b[ip4Proto]
		s.flow.a = binary.NativeEndian.Uint64(b[ip4Addrs:])
		s.l4 = packet.IPv4Header
		s.kind = unknown
		// Options, padding, fragments (reserved flag included), a wrong header checksum: what
		// the kernel's GRO refuses.
		if b[0] != 0x45 || int(binary.BigEndian.Uint16(b[ip4Length:])) != len(b) ||
			binary.BigEndian.Uint16(b[ip4Flags:])&^ip4DF != 0 || !plainHeaderIntact(b) {
			return
		}
	case 6:
		if len(b) < packet.IPv6Header {
			return
		}
		s.flow.version, s.flow.proto = 6, b[ip6Next]
		s.flow.a = binary.NativeEndian.Uint64(b[ip6Addrs:])
		s.flow.b = binary.NativeEndian.Uint64(b[ip6Addrs+8:])
		s.flow.c = binary.NativeEndian.Uint64(b[ip6Addrs+16:])
		s.flow.d = binary.NativeEndian.Uint64(b[ip6Addrs+24:])
		s.l4 = packet.IPv6Header
		s.kind = unknown
		if int(binary.BigEndian.Uint16(b[ip6Length:]))+packet.IPv6Header != len(b) {
			return
		}
	default:
		return
	}

	t := b[s.l4:]
	switch s.flow.proto {
	case packet.ProtoTCP:
		if len(t) < packet.TCPHeader {
			return
		}
		s.h = s.l4 + int(t[tcpData]>>4)*4
		if s.h < s.l4+packet.TCPHeader || s.h > len(b) {
			return
		}
	case packet.ProtoUDP:
		if len(t) < packet.UDPHeader {
			return
		}
		s.h = s.l4 + packet.UDPHeader
	default:
		return
	}
	s.flow.ports = binary.NativeEndian.Uint32(t)
	s.payload = len(b) - s.h
	s.kind = lone
	if start, offset, partial := p.Partial(); partial && (start != s.l4 || offset != s.checksumOffset()) {
		return
	}
	switch {
	case len(b) > mtu:
		s.kind = oversize
	case s.payload == 0:
	case s.flow.proto == packet.ProtoTCP:
		if t[tcpFlags]&^packet.TCPFlagPSH == packet.TCPFlagACK {
			s.kind = mergeable
		}
	// A datagram without a checksum has nothing that GSO could copy into each part.
	case int(binary.BigEndian.Uint16(t[udpLength:])) == len(t) && (t[udpChecksum]|t[udpChecksum+1]) != 0:
		s.kind = mergeable
	}
}

// plainHeaderIntact reports whether the checksum of an IPv4 header without options is right.
func plainHeaderIntact(b []byte) bool {
	_ = b[19]
	sum := uint64(binary.BigEndian.Uint32(b)) + uint64(binary.BigEndian.Uint32(b[4:])) + uint64(binary.BigEndian.Uint32(b[8:])) +
		uint64(binary.BigEndian.Uint32(b[12:])) + uint64(binary.BigEndian.Uint32(b[16:]))
	return fold(uint32(sum>>32+sum&0xffff+sum>>16&0xffff)) == 0xffff
}

func (s *segment) checksumOffset() int {
	if s.flow.proto == packet.ProtoTCP {
		return tcpChecksum
	}
	return udpChecksum
}

// group is a run of packets of one flow, adjacent in it, that will be written as one.
type group struct {
	flow        flow
	l4, h       int
	first, last int // indices in the batch; the ones between hang on next
	n           int
	size        int    // payload of every packet but the last
	total       int    // bytes of the packet they make
	seq         uint32 // TCP: what must come next
	id          uint16 // IPv4: identification of the first
	fixedID     bool   // all have the same one
	verified    bool   // the first packet's checksum is known to be right
}

func newGroup(s *segment, b []byte, i int) group {
	g := group{
		flow: s.flow, l4: s.l4, h: s.h, first: i, last: i, n: 1, size: s.payload, total: len(b),
	}
	if s.flow.version == 4 {
		g.id = binary.BigEndian.Uint16(b[ip4ID:])
	}
	if s.flow.proto == packet.ProtoTCP {
		g.seq = binary.BigEndian.Uint32(b[s.l4+tcpSeq:]) + uint32(s.payload)
	}
	return g
}

// continues reports whether packet b, described by s, may follow what g has. head is g's first
// packet, unchanged. The rules are those of the kernel's inet_gro_receive, ipv6_gro_receive,
// tcp_gro_receive and udp_gro_receive_segment; where it is laxer (FIN and ECE may be merged there, and
// an urgent pointer without URG is lost) this is strict.
func (g *group) continues(s *segment, head, b []byte) bool {
	if s.h != g.h || s.payload > g.size || g.total+s.payload > maxTotal || g.n >= maxVectors-1 {
		return false
	}
	if s.flow.version == 4 {
		if b[1] != head[1] || b[8] != head[8] || (b[ip4Flags]^head[ip4Flags])&(ip4DF>>8) != 0 {
			return false // ToS (ECN included), TTL or DF
		}
		// Identifications count up, or, since an atomic datagram's says nothing (RFC 6864),
		// all are the same.
		id, df := binary.BigEndian.Uint16(b[ip4ID:]), b[ip4Flags]&(ip4DF>>8) != 0
		counts := id == g.id+uint16(g.n)
		fixed := id == g.id && df
		if g.n == 1 && !counts && !fixed || g.n > 1 && (g.fixedID && !fixed || !g.fixedID && !counts) {
			return false
		}
	} else if !bytes.Equal(b[:4], head[:4]) || b[7] != head[7] {
		return false // traffic class (ECN included), flow label or hop limit
	}
	t, first := b[s.l4:], head[g.l4:]
	if s.flow.proto == packet.ProtoUDP {
		return g.n < maxDatagrams
	}
	// Acknowledgment, data offset, reserved bits, flags and window in one; PSH may come in any packet.
	const psh = packet.TCPFlagPSH << 16
	rest := (binary.BigEndian.Uint64(t[8:]) ^ binary.BigEndian.Uint64(first[8:])) &^ psh
	return binary.BigEndian.Uint32(t[tcpSeq:]) == g.seq && rest == 0 &&
		bytes.Equal(t[18:s.h-s.l4], first[18:g.h-g.l4]) // urgent pointer, options
}

// join appends packet i, for which continues is true.
func (g *group) join(s *segment, b []byte, i int) {
	if g.n == 1 && s.flow.version == 4 {
		g.fixedID = binary.BigEndian.Uint16(b[ip4ID:]) == g.id
	}
	g.last = i
	g.n++
	g.total += s.payload
	g.seq += uint32(s.payload)
}

// closed reports whether packet b, just put into g, is the last one g may have.
func (g *group) closed(s *segment, b []byte) bool {
	if s.flow.proto == packet.ProtoTCP && b[s.l4+tcpFlags]&packet.TCPFlagPSH != 0 {
		return true
	}
	return s.payload < g.size
}

// sound reports whether the transport checksum of packet b is right, or will be once whoever
// completes it has done so. The work is done once: the result stays with the packet.
func (s *segment) sound(p *packet.Packet) bool {
	b := p.Bytes()
	switch p.Checksum() {
	case packet.ChecksumVerified:
		return true
	case packet.ChecksumPartial:
		return binary.BigEndian.Uint16(b[s.l4+s.checksumOffset():]) == s.pseudo(b, len(b)-s.l4)
	}
	if packet.Sum(b[s.l4:], s.pseudo(b, len(b)-s.l4)) != 0xffff {
		return false
	}
	p.SetChecksum(packet.ChecksumVerified)
	return true
}

// pseudo is the pseudo-header sum of packet b for a transport length.
func (s *segment) pseudo(b []byte, length int) uint16 {
	addrs := b[ip6Addrs:packet.IPv6Header]
	if s.flow.version == 4 {
		addrs = b[ip4Addrs:packet.IPv4Header]
	}
	return packet.PseudoSum(addrs, s.flow.proto, length)
}
