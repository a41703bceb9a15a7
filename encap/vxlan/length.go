package vxlan

import (
	"encoding/binary"

	"weft/packet"
)

// Length tells how long a VXLAN datagram with an inner IP packet is by what the inner IP header says,
// from its first 62 bytes; 0 for anything else. It judges nothing else about the datagram. An
// underlay port that joins datagrams needs it to tell a burst of them from an inner super-packet.
func Length(b []byte) int {
	const front = packet.VXLANHeader + packet.EthernetHeader
	if len(b) < front+packet.IPv4Header {
		return 0
	}
	frame, ip := b[packet.VXLANHeader:front], b[front:]
	switch etherType := binary.BigEndian.Uint16(frame[12:]); {
	case etherType == packet.EtherTypeIPv4 && ip[0]>>4 == 4:
		return front + int(binary.BigEndian.Uint16(ip[2:]))
	case etherType == packet.EtherTypeIPv6 && ip[0]>>4 == 6:
		return front + packet.IPv6Header + int(binary.BigEndian.Uint16(ip[4:]))
	}
	return 0
}
