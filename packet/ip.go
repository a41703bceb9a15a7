package packet

import (
	"encoding/binary"
	"net/netip"
)

// Upper-layer protocol numbers (IANA "Protocol Numbers"); IPv6 calls the field Next Header.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoGRE    = 47
	ProtoESP    = 50
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// IPv6 extension headers that a parser may step over to find the upper layer (RFC 8200 §4). AH and
// ESP are not among them: what is behind them must not be changed, or cannot be read.
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestOptions = 60

	// maxExtensions bounds the walk. RFC 8200 §4.1 lists at most six of these in one packet.
	maxExtensions = 8
)

// IPv4 (RFC 791 §3.1), 32 bits a row, byte offsets on the left:
//
//	 0 |Version|  IHL  |      TOS      |          Total Length         |
//	 4 |         Identification        |0|D|M|     Fragment Offset     |
//	 8 |      TTL      |    Protocol   |        Header Checksum        |
//	12 |                         Source Address                        |
//	16 |                      Destination Address                      |
//	20 |                    Options, (IHL-5)*4 bytes                   |
//
// IPv6 (RFC 8200 §3):
//
//	 0 |Version| Traffic Class |               Flow Label              |
//	 4 |         Payload Length        |  Next Header  |   Hop Limit   |
//	 8 |                    Source Address, 16 bytes                   |
//	24 |                 Destination Address, 16 bytes                 |
const (
	ip4TotalLen = 2
	ip4ID       = 4
	ip4Frag     = 6
	ip4Proto    = 9
	ip4Checksum = 10
	ip4Src      = 12
	ip4Dst      = 16

	ip6PayloadLen = 4
	ip6NextHeader = 6
	ip6Src        = 8
	ip6Dst        = 24

	ip4DF         = 0x4000 // in the 16 bits at ip4Frag
	ip4MF         = 0x2000
	ip4OffsetMask = 0x1fff // units of 8 bytes
)

// IPView is a checked, read-only look at one IPv4 or IPv6 packet. It shares the packet's memory.
// After ParseIP returned Alive, no method panics whatever the bytes are, as long as the bytes do
// not change. The zero IPView is not a packet; its methods may panic.
//
// Four fields in four words: the most that the compiler keeps in registers.
type IPView struct {
	b     []byte // exactly the packet: trailing padding is cut
	upper uint16 // offset of the upper-layer header; 0 = it is not in this packet
	frag  uint16 // isFragment | the fragment's offset in bytes, a multiple of 8; 0 = no fragment
	proto uint8  // upper-layer protocol
}

const isFragment = 1

// ParseIP checks the IP header at the front of b: version, header length, total length. Bytes
// behind the IP packet's own length are padding (Ethernet pads frames to 60 bytes) and are not
// part of the view. The IPv4 header checksum is not checked: the kernel that receives the packet
// does it. The reasons: TooShort for a header, or a packet, that b does not hold whole; BadHeader
// for lengths that contradict each other; NotIP for another version.
//
// An IPv6 extension header chain that is too long or broken is not an error, since a router does
// not look at it (RFC 8200 §4): the view has no transport then. Jumbograms (RFC 2675) are not
// supported; their payload length of 0 makes a packet without an upper layer.
func ParseIP(b []byte) (IPView, Drop) {
	if len(b) == 0 {
		return IPView{}, TooShort
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b)
	case 6:
		return parseIPv6(b)
	}
	return IPView{}, NotIP
}

func parseIPv4(b []byte) (IPView, Drop) {
	if len(b) < IPv4Header {
		return IPView{}, TooShort
	}
	header := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[ip4TotalLen:]))
	if header < IPv4Header || total < header {
		return IPView{}, BadHeader
	}
	if total > len(b) {
		return IPView{}, TooShort
	}
	frag := binary.BigEndian.Uint16(b[ip4Frag:])
	if frag&(ip4MF|ip4OffsetMask) == 0 {
		return IPView{b[:total], uint16(header), 0, b[ip4Proto]}, Alive
	}
	offset := frag & ip4OffsetMask * 8
	if offset != 0 {
		header = 0
	}
	return IPView{b[:total], uint16(header), offset | isFragment, b[ip4Proto]}, Alive
}

func parseIPv6(b []byte) (IPView, Drop) {
	if len(b) < IPv6Header {
		return IPView{}, TooShort
	}
	total := IPv6Header + int(binary.BigEndian.Uint16(b[ip6PayloadLen:]))
	if total > len(b) {
		return IPView{}, TooShort
	}
	if isExtension(b[ip6NextHeader]) {
		return walkExtensions(b[:total]), Alive
	}
	return IPView{b[:total], IPv6Header, 0, b[ip6NextHeader]}, Alive
}

func isExtension(proto uint8) bool {
	return proto == extHopByHop || proto == extRouting || proto == extFragment || proto == extDestOptions
}

// walkExtensions finds the upper layer behind IPv6 extension headers:
//
//	 0 |  Next Header  |  Hdr Ext Len  | …   length = (Hdr Ext Len + 1) * 8
//	Routing:  | … | … |  Routing Type | Segments Left |
//	Fragment: | Next Header | Reserved |  Offset (13) |00|M| Identification |   length = 8
func walkExtensions(b []byte) IPView {
	proto, upper, frag := b[ip6NextHeader], IPv6Header, uint16(0)
	for range maxExtensions {
		h := b[upper:]
		if len(h) < 8 {
			break
		}
		size := (int(h[1]) + 1) * 8
		switch proto {
		case extRouting:
			// While segments are left the destination is not the final one, which is what the
			// pseudo-header has: no checksum can be judged or made here.
			if h[3] != 0 {
				return IPView{b, 0, frag, proto}
			}
		case extFragment:
			size = 8
			frag = binary.BigEndian.Uint16(h[2:])&^7 | isFragment
		}
		if size > len(h) {
			break
		}
		proto = h[0]
		if frag > isFragment {
			return IPView{b, 0, frag, proto}
		}
		upper += size
		if !isExtension(proto) {
			return IPView{b, uint16(upper), frag, proto}
		}
	}
	return IPView{b, 0, frag, proto}
}

// Bytes returns the packet without trailing padding.
func (v IPView) Bytes() []byte { return v.b }

// Len is the packet's own length in bytes, from its header.
func (v IPView) Len() int { return len(v.b) }

// Version is 4 or 6.
func (v IPView) Version() int { return int(v.b[0] >> 4) }

// Src returns the source address.
func (v IPView) Src() netip.Addr {
	if v.Version() == 4 {
		return netip.AddrFrom4([4]byte(v.b[ip4Src:]))
	}
	return netip.AddrFrom16([16]byte(v.b[ip6Src:]))
}

// Dst returns the destination address.
func (v IPView) Dst() netip.Addr {
	if v.Version() == 4 {
		return netip.AddrFrom4([4]byte(v.b[ip4Dst:]))
	}
	return netip.AddrFrom16([16]byte(v.b[ip6Dst:]))
}

// Protocol is the upper-layer protocol: IPv4's Protocol, or the last Next Header that could be
// reached. A fragment has the protocol of the whole.
func (v IPView) Protocol() uint8 { return v.proto }

// Transport returns where the upper-layer header starts. It is false for fragments, whose upper
// layer is not whole, and where an IPv6 extension chain hides it. Nothing is said about how many
// bytes follow.
func (v IPView) Transport() (offset int, ok bool) {
	return int(v.upper), v.upper != 0 && v.frag == 0
}

// Fragment reports whether the packet is a fragment, and its offset in bytes: 0 is the first one.
func (v IPView) Fragment() (offset int, ok bool) { return int(v.frag &^ isFragment), v.frag != 0 }

// DontFragment reports that routers must not fragment the packet: IPv4's DF bit; IPv6 always.
func (v IPView) DontFragment() bool {
	return v.Version() == 6 || binary.BigEndian.Uint16(v.b[ip4Frag:])&ip4DF != 0
}

// addrs is source and destination as they lie in the packet: 8 or 32 bytes.
func (v IPView) addrs() []byte {
	if v.Version() == 4 {
		return v.b[ip4Src : ip4Dst+4]
	}
	return v.b[ip6Src : ip6Dst+16]
}

// DstAddr returns the destination address of the IP packet at the front of b, false if b is
// shorter than a header or another protocol. It is the least a router needs, so it looks at
// nothing else.
func DstAddr(b []byte) (netip.Addr, bool) {
	if len(b) >= IPv4Header && b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[ip4Dst:])), true
	}
	if len(b) >= IPv6Header && b[0]>>4 == 6 {
		return netip.AddrFrom16([16]byte(b[ip6Dst:])), true
	}
	return netip.Addr{}, false
}

// SrcAddr returns the source address as DstAddr does the destination.
func SrcAddr(b []byte) (netip.Addr, bool) {
	if len(b) >= IPv4Header && b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[ip4Src:])), true
	}
	if len(b) >= IPv6Header && b[0]>>4 == 6 {
		return netip.AddrFrom16([16]byte(b[ip6Src:])), true
	}
	return netip.Addr{}, false
}
