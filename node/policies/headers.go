package policies

import (
	"encoding/binary"
	"net/netip"

	"weft/policy"
)

// traffic reads the headers of an IP packet that may be cut short behind them. IPv6 extension headers are not looked behind.
func traffic(b []byte) (t policy.Traffic, ok bool) {
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4: // RFC 791
		t.Src, t.Dst, t.Protocol = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), policy.Protocol(b[9])
		rest = b[max(20, int(b[0]&15)*4):]
	case len(b) >= 40 && b[0]>>4 == 6: // RFC 8200
		t.Src, t.Dst, t.Protocol = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), policy.Protocol(b[6])
		rest = b[40:]
	default:
		return t, false
	}
	switch t.Protocol {
	case policy.TCP, policy.UDP, policy.SCTP:
		if len(rest) >= 4 {
			t.Port = binary.BigEndian.Uint16(rest[2:])
		}
	}
	return t, true
}
