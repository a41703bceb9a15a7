package trace

import (
	"encoding/binary"

	"weft/api"
	"weft/packet"
)

const (
	smallest = 64 // bytes, of a packet whose size was not said
	echo4    = 8  // ICMP echo request
	echo6    = 128
)

// Complete fills in what a question leaves open: an ICMP echo request of 64 bytes.
func Complete(q api.PathQuestion) api.PathQuestion {
	if q.Protocol == 0 {
		q.Protocol = packet.ProtoICMP
		if q.Dst.Is6() {
			q.Protocol = packet.ProtoICMPv6
		}
	}
	if q.Size == 0 {
		q.Size = smallest
	}
	return q
}

// Make makes the packet that a question is about, with right checksums: an IPv4 (DF set) or IPv6 packet of q.Size bytes, but of its
// headers at least. q is complete, and both addresses are of one family.
func Make(q api.PathQuestion) []byte {
	head := packet.IPv4Header
	if q.Dst.Is6() {
		head = packet.IPv6Header
	}
	transport := map[uint8]int{packet.ProtoTCP: 20, packet.ProtoUDP: 8, packet.ProtoICMP: 8, packet.ProtoICMPv6: 8}[q.Protocol]
	b := make([]byte, max(q.Size, head+transport))
	var pseudo []byte
	if q.Dst.Is4() {
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, q.Protocol
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		s, d := q.Src.As4(), q.Dst.As4()
		copy(b[12:], s[:])
		copy(b[16:], d[:])
		binary.BigEndian.PutUint16(b[10:], sum(b[:head]))
		pseudo = append(append([]byte{}, b[12:20]...), 0, q.Protocol)
	} else {
		b[0], b[6], b[7] = 0x60, q.Protocol, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-head))
		s, d := q.Src.As16(), q.Dst.As16()
		copy(b[8:], s[:])
		copy(b[24:], d[:])
		pseudo = append(append([]byte{}, b[8:40]...), 0, q.Protocol)
	}
	t := b[head:]
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(t)))
	switch q.Protocol {
	case packet.ProtoTCP, packet.ProtoUDP:
		binary.BigEndian.PutUint16(t, q.SPort)
		binary.BigEndian.PutUint16(t[2:], q.DPort)
		at := 6
		if q.Protocol == packet.ProtoTCP {
			t[12], t[13], at = 5<<4, packet.TCPFlagSYN, 16
		} else {
			binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		}
		binary.BigEndian.PutUint16(t[at:], sum(pseudo, t))
	case packet.ProtoICMP:
		t[0] = echo4
		binary.BigEndian.PutUint16(t[2:], sum(t))
	case packet.ProtoICMPv6:
		t[0] = echo6
		binary.BigEndian.PutUint16(t[2:], sum(pseudo, t))
	}
	return b
}

// sum is the Internet checksum (RFC 1071) over parts; all but the last have an even length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			s += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
