// Package trace follows single packets: through the lanes, as a filter chooses them (Recorder), and by asking and computing what
// kernel and overlay do with one from here to there (Explain).
package trace

import (
	"net/netip"

	"weft/packet"
)

// Key is what names an inner packet to a person.
type Key struct {
	Src, Dst     netip.Addr // of one that died wrapped, Src is the outer source and Dst invalid
	EtherType    uint16     // 0 where nothing is known of the inner packet
	Protocol     uint8
	SPort, DPort uint16 // 0 where there are none
	Length       int    // bytes of the IP packet, or of what stands in its place
}

// ReadKey reads a bare inner packet whose IP header is link bytes from the front: 0, or 14 behind an Ethernet header. Of a broken
// one it reads what there is.
func ReadKey(b []byte, link int) Key {
	var k Key
	if len(b) < link {
		return k
	}
	ip := b[link:]
	k.Length = len(ip)
	if link >= packet.EthernetHeader {
		k.EtherType = uint16(b[link-2])<<8 | uint16(b[link-1])
		if k.EtherType != packet.EtherTypeIPv4 && k.EtherType != packet.EtherTypeIPv6 {
			return k
		}
	}
	v, drop := packet.ParseIP(ip)
	if drop != packet.Alive { // as far as the addresses it can still be told from others
		k.Src, _ = packet.SrcAddr(ip)
		k.Dst, _ = packet.DstAddr(ip)
		return k
	}
	k.Src, k.Dst, k.Protocol, k.Length = v.Src(), v.Dst(), v.Protocol(), v.Len()
	if k.EtherType = packet.EtherTypeIPv4; v.Version() == 6 {
		k.EtherType = packet.EtherTypeIPv6
	}
	switch k.Protocol {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
		if at, ok := v.Transport(); ok && v.Len() >= at+4 {
			t := v.Bytes()[at:]
			k.SPort, k.DPort = uint16(t[0])<<8|uint16(t[1]), uint16(t[2])<<8|uint16(t[3])
		}
	}
	return k
}

// outerHeader writes an IP header from a to nowhere into b, 40 bytes: what a filter may know of the outside of a packet.
func outerHeader(b []byte, a netip.Addr) []byte {
	clear(b)
	if a = a.Unmap(); a.Is4() {
		s := a.As4()
		b[0], b[3], b[9] = 0x45, packet.IPv4Header, packet.ProtoUDP
		copy(b[12:], s[:])
		return b[:packet.IPv4Header]
	}
	s := a.As16()
	b[0], b[6] = 0x60, packet.ProtoUDP
	copy(b[8:], s[:])
	return b[:packet.IPv6Header]
}
