package packet

import (
	"encoding/binary"
	"net/netip"
)

// ICMP for packets that do not fit (RFC 792, RFC 1191 §4):
//
//	0 |    Type = 3   |    Code = 4   |            Checksum           |
//	4 |             unused            |         Next-Hop MTU          |
//	8 |          the offending packet, from its IP header on          |
//
// ICMPv6 (RFC 4443 §3.2):
//
//	0 |    Type = 2   |    Code = 0   |            Checksum           |
//	4 |                              MTU                              |
//	8 |          the offending packet, from its IP header on          |
const (
	icmpHeader = 8

	icmpUnreachable  = 3
	icmpFragNeeded   = 4 // code
	icmpv6PacketBig  = 2
	icmpv6FirstInfo  = 128 // types below are errors (RFC 4443 §2.1)
	icmpv6Redirect   = 137
	icmpQuoteIPv4    = 576 // largest answer (RFC 1812 §4.3.2.3)
	internetControl  = 0xc0
	defaultHopLimit  = 64
	minLinkMTUIPv4   = 68 // RFC 791 §3.2
	maxAdvertisedMTU = 0xffff
)

// TooBigReply builds the whole IP packet that tells the sender of orig to use packets of at most
// mtu bytes: ICMP "fragmentation needed" (RFC 1191) or ICMPv6 "packet too big" (RFC 4443 §3.2), from
// src to orig's source. It allocates: it is for the slow path, behind a rate limit.
//
// It is false where there is no answer to give: orig is no valid IP packet; src is of the other
// family; an IPv4 packet without DF, since its sender asked to have it fragmented and ignores this
// message; an mtu below the family's minimum, which a sender may not follow; and where RFC 1122
// §3.2.2 and RFC 4443 §2.4 (e) forbid one: to an ICMP error or redirect, a fragment other than the
// first, a group or broadcast destination, a source that is not one host.
func TooBigReply(orig []byte, src netip.Addr, mtu int) ([]byte, bool) {
	v, drop := ParseIP(orig)
	if drop != Alive || !v.mayAnswer() || mtu > maxAdvertisedMTU {
		return nil, false
	}
	if v.Version() == 4 {
		if !src.Is4() || mtu < minLinkMTUIPv4 || !v.DontFragment() {
			return nil, false
		}
		return tooBigIPv4(v, src, mtu), true
	}
	if !src.Is6() || src.Is4In6() || mtu < MinIPv6MTU {
		return nil, false
	}
	return tooBigIPv6(v, src, mtu), true
}

// mayAnswer applies the rules of when no ICMP error may be sent.
func (v IPView) mayAnswer() bool {
	if v.frag > isFragment {
		return false // not the first fragment: the first, which is no shorter, is answered
	}
	if !isHost(v.Src()) || !isHost(v.Dst()) {
		return false
	}
	if v.upper == 0 {
		// What is behind the extension headers may be an ICMPv6 error.
		return false
	}
	switch v.proto {
	case ProtoICMP:
		return len(v.b) > int(v.upper) && !isICMPv4Error(v.b[v.upper])
	case ProtoICMPv6:
		return len(v.b) > int(v.upper) && v.b[v.upper] >= icmpv6FirstInfo && v.b[v.upper] != icmpv6Redirect
	}
	return true
}

// isICMPv4Error lists the error messages of RFC 1122 §3.2.2: unreachable, source quench, redirect,
// time exceeded, parameter problem.
func isICMPv4Error(icmpType uint8) bool {
	switch icmpType {
	case 3, 4, 5, 11, 12:
		return true
	}
	return false
}

// isHost reports that an address can be one host's: no group, no broadcast, not unspecified, not
// loopback, not in 0/8 or the reserved 240/4.
func isHost(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		return false
	}
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first < 240
	}
	return true
}

func tooBigIPv4(v IPView, src netip.Addr, mtu int) []byte {
	quote := v.b[:min(len(v.b), icmpQuoteIPv4-IPv4Header-icmpHeader)]
	b := make([]byte, IPv4Header+icmpHeader+len(quote))
	b[0] = 0x45
	b[1] = internetControl // RFC 1812 §4.3.2.5
	binary.BigEndian.PutUint16(b[ip4TotalLen:], uint16(len(b)))
	// DF and no identification: an atomic datagram (RFC 6864 §4.1), small enough for any path.
	binary.BigEndian.PutUint16(b[ip4Frag:], ip4DF)
	b[8] = defaultHopLimit
	b[ip4Proto] = ProtoICMP
	copy(b[ip4Src:], src.AsSlice())
	copy(b[ip4Dst:], v.b[ip4Src:ip4Src+4])
	PutIPv4Checksum(b)

	icmp := b[IPv4Header:]
	icmp[0], icmp[1] = icmpUnreachable, icmpFragNeeded
	binary.BigEndian.PutUint16(icmp[6:], uint16(mtu))
	copy(icmp[icmpHeader:], quote)
	PutChecksum(icmp[icmpChecksum:], Sum(icmp, 0))
	return b
}

func tooBigIPv6(v IPView, src netip.Addr, mtu int) []byte {
	quote := v.b[:min(len(v.b), MinIPv6MTU-IPv6Header-icmpHeader)]
	b := make([]byte, IPv6Header+icmpHeader+len(quote))
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[ip6PayloadLen:], uint16(icmpHeader+len(quote)))
	b[ip6NextHeader] = ProtoICMPv6
	b[7] = defaultHopLimit
	copy(b[ip6Src:], src.AsSlice())
	copy(b[ip6Dst:], v.b[ip6Src:ip6Src+16])

	icmp := b[IPv6Header:]
	icmp[0] = icmpv6PacketBig
	binary.BigEndian.PutUint32(icmp[4:], uint32(mtu))
	copy(icmp[icmpHeader:], quote)
	pseudo := PseudoSum(b[ip6Src:ip6Dst+16], ProtoICMPv6, len(icmp))
	PutChecksum(icmp[icmpChecksum:], Sum(icmp, pseudo))
	return b
}
