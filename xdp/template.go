package xdp

import (
	"encoding/binary"
	"net/netip"

	"weft/packet"
)

const (
	hopLimit = 64
	// dontFragment is DF in the byte that has it (RFC 791). With it, the identification has no meaning and is 0 (RFC 6864 §4.1).
	dontFragment = 0x40
)

// template is the outer header to one destination, all but the fields that differ from packet to packet. Immutable.
//
//	Ethernet 14 | IPv4 20 or IPv6 40 | UDP 8 | tunnel packet
type template struct {
	header [packet.EthernetHeader + packet.IPv6Header + packet.UDPHeader]byte
	length int
	v6     bool
	sum    uint16 // IPv4: of the IP header without the length
	pseudo uint16 // of the UDP pseudo-header without the length, RFC 768 and RFC 8200 §8.1
	mtu    int    // of the path, as far as the kernel knows: largest IP packet, bytes
	from   *sources
}

func newTemplate(srcMAC, dstMAC [6]byte, src netip.Addr, dst netip.AddrPort, mtu int, from *sources) *template {
	t := &template{v6: dst.Addr().Is6(), mtu: mtu, from: from}
	h := t.header[:]
	ip := h[packet.EthernetHeader:]
	if t.v6 {
		packet.PutEthernet(h, dstMAC, srcMAC, packet.EtherTypeIPv6)
		ip[0] = 6 << 4
		ip[6], ip[7] = packet.ProtoUDP, hopLimit
		s, d := src.As16(), dst.Addr().As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
		t.length = packet.EthernetHeader + packet.IPv6Header + packet.UDPHeader
		t.pseudo = packet.PseudoSum(ip[8:40], packet.ProtoUDP, 0)
	} else {
		packet.PutEthernet(h, dstMAC, srcMAC, packet.EtherTypeIPv4)
		ip[0] = 4<<4 | packet.IPv4Header/4
		ip[6] = dontFragment
		ip[8], ip[9] = hopLimit, packet.ProtoUDP
		s, d := src.As4(), dst.Addr().As4()
		copy(ip[12:], s[:])
		copy(ip[16:], d[:])
		t.length = packet.EthernetHeader + packet.IPv4Header + packet.UDPHeader
		t.sum = packet.Sum(ip[:packet.IPv4Header], 0)
		t.pseudo = packet.PseudoSum(ip[12:20], packet.ProtoUDP, 0)
	}
	binary.BigEndian.PutUint16(h[t.length-packet.UDPHeader+2:], dst.Port())
	return t
}

// write puts the header in front of the tunnel packet in frame, which has t.length bytes of room for it.
func (t *template) write(frame []byte, flow uint32) {
	copy(frame, t.header[:t.length])
	ip := frame[packet.EthernetHeader:]
	udp := frame[t.length-packet.UDPHeader:]
	if t.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(udp)))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		binary.BigEndian.PutUint16(ip[10:], ^add(t.sum, uint16(len(ip))))
	}
	binary.BigEndian.PutUint16(udp, t.from.of(t.v6, flow))
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	// A real checksum for both families: without one the receiver's kernel cannot coalesce (GRO).
	packet.PutChecksum(udp[6:], packet.Sum(udp, add(t.pseudo, uint16(len(udp)))))
}

// add is the ones' complement sum of two words.
func add(a, b uint16) uint16 {
	s := uint32(a) + uint32(b)
	return uint16(s + s>>16)
}
