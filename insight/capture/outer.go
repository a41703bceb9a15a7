package capture

import (
	"encoding/binary"
	"net/netip"

	"weft/packet"
)

// outerRoom takes the largest outer header: Ethernet, IPv6, UDP.
const outerRoom = packet.EthernetHeader + packet.IPv6Header + packet.UDPHeader

// putOuter writes the outer headers of a tunnel packet into b, which has outerRoom bytes, and returns their length; fit makes them
// those of a packet of some size. The kernel writes the real ones and takes them off again, so that a lane never has them: addresses
// and ports are those of the packet, the rest is what the kernel uses by default.
//
//	Ethernet 14, MACs of zero | IPv4 20, DF, TTL 64, or IPv6 40, hop limit 64 | UDP 8, no checksum yet
func putOuter(b []byte, src, dst netip.AddrPort) int {
	n := packet.EthernetHeader
	ip := b[n:]
	if dst.Addr().Is6() {
		packet.PutEthernet(b, [6]byte{}, [6]byte{}, packet.EtherTypeIPv6)
		n += packet.IPv6Header
		clear(ip[:packet.IPv6Header])
		ip[0], ip[6], ip[7] = 6<<4, packet.ProtoUDP, 64
		s, d := src.Addr().As16(), dst.Addr().As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
	} else {
		packet.PutEthernet(b, [6]byte{}, [6]byte{}, packet.EtherTypeIPv4)
		n += packet.IPv4Header
		clear(ip[:packet.IPv4Header])
		ip[0], ip[6], ip[8], ip[9] = 4<<4|packet.IPv4Header/4, 0x40, 64, packet.ProtoUDP
		s, d := v4(src.Addr()), v4(dst.Addr())
		copy(ip[12:], s[:])
		copy(ip[16:], d[:])
	}
	udp := b[n : n+packet.UDPHeader]
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	return n + packet.UDPHeader
}

// fit puts lengths, and IPv4's checksum, into outer headers for a tunnel packet of size bytes. UDP's is for finish.
func fit(head []byte, size int) {
	ip, udp := head[packet.EthernetHeader:], head[len(head)-packet.UDPHeader:]
	size += packet.UDPHeader
	binary.BigEndian.PutUint16(udp[4:], uint16(size))
	binary.BigEndian.PutUint16(udp[6:], 0)
	if etherType(ip) == packet.EtherTypeIPv6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(size))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(packet.IPv4Header+size))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], ^packet.Sum(ip[:packet.IPv4Header], 0))
}

// finish puts the UDP checksum, as weft's sockets and templates do, into a whole frame that begins with headers that fit has seen.
func finish(frame []byte) {
	ip := frame[packet.EthernetHeader:]
	addrs, udp := ip[12:20], ip[packet.IPv4Header:]
	if etherType(ip) == packet.EtherTypeIPv6 {
		addrs, udp = ip[8:40], ip[packet.IPv6Header:]
	}
	packet.PutChecksum(udp[6:], packet.Sum(udp, packet.PseudoSum(addrs, packet.ProtoUDP, len(udp))))
}

// v4 is an address's four bytes; an unknown one is 0.0.0.0.
func v4(a netip.Addr) [4]byte {
	if a = a.Unmap(); a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// etherType is that of an IP packet; 0 for what is none.
func etherType(b []byte) uint16 {
	switch {
	case len(b) > 0 && b[0]>>4 == 4:
		return packet.EtherTypeIPv4
	case len(b) > 0 && b[0]>>4 == 6:
		return packet.EtherTypeIPv6
	}
	return 0
}

// insideOf returns what a tunnel packet carries, if that is in clear: the frame behind a VXLAN header (whose first byte is 0x08, RFC 7348
// §5), or an IP packet. Sealed packets begin with their type, which is below both.
func insideOf(tunnel []byte) ([]byte, packet.Layer, bool) {
	switch {
	case len(tunnel) > packet.VXLANHeader && tunnel[0] == 0x08:
		return tunnel[packet.VXLANHeader:], packet.Ethernet, true
	case etherType(tunnel) != 0:
		return tunnel, packet.IP, true
	}
	return nil, 0, false
}
