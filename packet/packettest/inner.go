package packettest

import (
	"encoding/binary"
	"net/netip"

	"weft/packet"
)

// udpProtocol is UDP's IP protocol number.
const udpProtocol = 17

// UDP returns a whole IP packet that carries a UDP datagram with n bytes of payload, IPv4 or IPv6
// by the addresses, all checksums right. The payload is a counting pattern that starts at seed, so
// that packets of different seeds (mod 256) differ from the first payload byte.
func UDP(src, dst netip.AddrPort, n int, seed byte) []byte {
	p := make([]byte, IPHeader(src.Addr())+packet.UDPHeader+n)
	l4 := p[IPHeader(src.Addr()):]
	if src.Addr().Is4() {
		// | ver ihl | tos | total length | id | flags, fragment | ttl | protocol | checksum | src | dst |
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[6] = 0x40 // don't fragment
		p[8], p[9] = 64, udpProtocol
		copy(p[12:], src.Addr().AsSlice())
		copy(p[16:], dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(p[10:], ^Sum(p[:packet.IPv4Header], 0))
	} else {
		// | ver class label | payload length | next header | hop limit | src | dst |
		p[0] = 0x60
		binary.BigEndian.PutUint16(p[4:], uint16(len(l4)))
		p[6], p[7] = udpProtocol, 64
		copy(p[8:], src.Addr().AsSlice())
		copy(p[24:], dst.Addr().AsSlice())
	}
	// | src port | dst port | length | checksum |
	binary.BigEndian.PutUint16(l4[0:], src.Port())
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	for i := range l4[packet.UDPHeader:] {
		l4[packet.UDPHeader+i] = seed + byte(i)
	}
	sum := ^Sum(l4, PseudoSum(p, len(l4)))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero means "no checksum"
	}
	binary.BigEndian.PutUint16(l4[6:], sum)
	return p
}

// Ethernet puts an Ethernet header in front of an IP packet.
func Ethernet(dst, src [6]byte, ip []byte) []byte {
	f := make([]byte, 0, packet.EthernetHeader+len(ip))
	f = append(append(f, dst[:]...), src[:]...)
	if ip[0]>>4 == 4 {
		f = append(f, 0x08, 0x00)
	} else {
		f = append(f, 0x86, 0xdd)
	}
	return append(f, ip...)
}

// IPHeader is the length of a plain IP header of a's family.
func IPHeader(a netip.Addr) int {
	if a.Is4() {
		return packet.IPv4Header
	}
	return packet.IPv6Header
}

// Sum is the ones' complement sum of RFC 1071 over b, added to initial and folded; the checksum
// field of a packet is its complement. Written for clearness, not speed: it is the oracle.
func Sum(b []byte, initial uint16) uint16 {
	sum := uint64(initial)
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// PseudoSum is the folded sum of the pseudo header of ip, a plain IPv4 or IPv6 header followed by
// l4 bytes of transport.
func PseudoSum(ip []byte, l4 int) uint16 {
	var rest [4]byte // length and protocol; a 16-bit length is enough for 64 KB
	binary.BigEndian.PutUint16(rest[0:], uint16(l4))
	if ip[0]>>4 == 4 {
		rest[3] = ip[9]
		return Sum(rest[:], Sum(ip[12:20], 0))
	}
	rest[3] = ip[6]
	return Sum(rest[:], Sum(ip[8:40], 0))
}

// ValidTransport says whether the UDP or TCP checksum of ip, a packet with a plain IP header, is
// right.
func ValidTransport(ip []byte) bool {
	header := packet.IPv6Header
	if ip[0]>>4 == 4 {
		header = packet.IPv4Header
	}
	l4 := ip[header:]
	return Sum(l4, PseudoSum(ip, len(l4))) == 0xffff
}
