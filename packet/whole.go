package packet

import (
	"encoding/binary"
	"slices"
)

// Whole returns a copy of the beginning of an IP packet as if it were all of it, so that its headers can be read. IPv4's header checksum is
// then wrong.
func Whole(ip []byte) []byte {
	b := slices.Clone(ip)
	switch {
	case len(b) >= IPv4Header && b[0]>>4 == 4:
		binary.BigEndian.PutUint16(b[ip4TotalLen:], uint16(min(len(b), int(binary.BigEndian.Uint16(b[ip4TotalLen:])))))
	case len(b) >= IPv6Header && b[0]>>4 == 6:
		binary.BigEndian.PutUint16(b[ip6PayloadLen:], uint16(min(len(b)-IPv6Header, int(binary.BigEndian.Uint16(b[ip6PayloadLen:])))))
	}
	return b
}

// TotalLen is how long the IP packet says it is that begins so, at least what there is; 0 where that is none.
func TotalLen(ip []byte) int {
	switch {
	case len(ip) >= IPv4Header && ip[0]>>4 == 4:
		return max(len(ip), int(binary.BigEndian.Uint16(ip[ip4TotalLen:])))
	case len(ip) >= IPv6Header && ip[0]>>4 == 6:
		return max(len(ip), IPv6Header+int(binary.BigEndian.Uint16(ip[ip6PayloadLen:])))
	}
	return 0
}
