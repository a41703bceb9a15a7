package packettest

import (
	"encoding/binary"
	"net/netip"

	"weft/packet"
)

// Flow makes the packets of one TCP or UDP flow, on a tape. Its fields may be changed between packets.
type Flow struct {
	Src, Dst netip.AddrPort // of one family
	TCP      bool
	Options  []byte // of TCP, a multiple of 4
	Flags    uint8  // of TCP
	Seq, Ack uint32 // of TCP; Seq counts on
	Window   uint16 // of TCP
	ID       uint16 // of IPv4; counts on
	DF       bool   // of IPv4
	TOS, TTL uint8

	tape *Tape
}

// Flow decides on a flow between 10.244.1.0/24 and 10.244.2.0/24, or the same in IPv6: one of 48 whose packets
// differ in some field that tells flows apart.
func (t *Tape) Flow() *Flow {
	k := byte(t.N(6))
	f := &Flow{
		Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, 2 + k%3}), 40000+uint16(k/3)),
		Dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 2, 3}), 5201),
		TCP: t.N(3) > 0, Flags: packet.TCPFlagACK, Ack: 77, Window: 500, DF: t.N(4) > 0, TTL: 64,
	}
	if t.N(2) == 1 {
		f.Src = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 15: 2 + k%3}), f.Src.Port())
		f.Dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 2, 15: 3}), f.Dst.Port())
	}
	if t.N(2) == 1 {
		f.Options = []byte{1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 1} // timestamps
	}
	f.ID, f.Seq = uint16(t.N(256))<<8|250, uint32(t.N(256))<<24|0xffff00 // not far from where they wrap
	f.tape = t
	return f
}

// Headers is how many bytes of a packet are in front of the payload.
func (f *Flow) Headers() int {
	if f.TCP {
		return IPHeader(f.Src.Addr()) + packet.TCPHeader + len(f.Options)
	}
	return IPHeader(f.Src.Addr()) + packet.UDPHeader
}

// Packet returns the flow's next packet, with n bytes of payload that no other has; n may be more than any MTU. All
// sums are right.
func (f *Flow) Packet(n int) []byte {
	b := make([]byte, f.Headers()+n)
	l4 := b[f.l4():]
	binary.BigEndian.PutUint16(l4, f.Src.Port())
	binary.BigEndian.PutUint16(l4[2:], f.Dst.Port())
	if f.TCP {
		binary.BigEndian.PutUint32(l4[4:], f.Seq)
		binary.BigEndian.PutUint32(l4[8:], f.Ack)
		l4[12], l4[13] = byte(packet.TCPHeader+len(f.Options))<<2, f.Flags
		binary.BigEndian.PutUint16(l4[14:], f.Window)
		copy(l4[packet.TCPHeader:], f.Options)
		f.Seq += uint32(n)
	}
	f.tape.Fill(b[f.Headers():])
	proto := uint8(packet.ProtoUDP)
	if f.TCP {
		proto = packet.ProtoTCP
	}
	if f.Src.Addr().Is4() {
		b[0], b[1], b[8], b[9] = 0x45, f.TOS, f.TTL, proto
		if f.DF {
			b[6] = 0x40
		}
		copy(b[12:], f.Src.Addr().AsSlice())
		copy(b[16:], f.Dst.Addr().AsSlice())
	} else {
		b[0], b[1], b[6], b[7] = 0x60|f.TOS>>4, f.TOS<<4, proto, f.TTL
		copy(b[8:], f.Src.Addr().AsSlice())
		copy(b[24:], f.Dst.Addr().AsSlice())
	}
	setLengths(b, f.l4(), proto)
	if f.Src.Addr().Is4() {
		setID(b, f.ID)
		f.ID++
	}
	start, offset := Unfinish(b)
	packet.FinishChecksum(b, start, offset)
	return b
}

// Super returns n bytes of payload as one packet to be cut every size bytes, its checksum unfinished: how a kernel
// hands over what it leaves to segmentation offload. size 0 = a plain packet.
func (f *Flow) Super(n, size int) Super {
	id := f.ID
	s := Super{Packet: f.Packet(n), NeedsChecksum: true}
	s.Start, s.Offset = Unfinish(s.Packet)
	if size == 0 {
		return s
	}
	f.ID = id + uint16((n+size-1)/size)
	switch s.Size = size; {
	case !f.TCP:
		s.GSO = GSOUDP
	case f.Src.Addr().Is4():
		s.GSO = GSOTCPv4
	default:
		s.GSO = GSOTCPv6
	}
	return s
}

// Odd returns a packet that something is odd about, with up to n bytes of payload: it is the first after a loss or
// comes again, has a flag or a field changed, is a fragment, or wrong. sound = its transport checksum is right, so
// that it may as well be unfinished or verified on its way.
func (f *Flow) Odd(n int) (b []byte, sound bool) {
	t, was := f.tape, *f
	switch t.N(22) {
	case 0:
		n = 0
	case 1:
		n = t.N(n + 1)
	case 2:
		f.Flags |= packet.TCPFlagPSH
	case 3:
		f.Flags |= Pick[uint8](t, packet.TCPFlagFIN, packet.TCPFlagSYN, packet.TCPFlagRST, packet.TCPFlagURG, packet.TCPFlagECE, packet.TCPFlagCWR)
	case 4:
		was.Ack++
		f.Ack++
	case 5:
		was.Window++
		f.Window++
	case 6:
		f.Options = []byte{1, 1, 8, 10, 0, 0, 0, 8, 0, 0, 0, 1, 1, 1, 5, 10, 0, 0, 1, byte(t.N(4)), 0, 0, 2, 0} // SACK
	case 7:
		was.Options = nil
		f.Options = nil
	case 8:
		f.TOS ^= 3 // congestion experienced
	case 9:
		f.TTL--
	case 10:
		f.DF = !f.DF
	case 11:
		f.ID += uint16(t.N(3)) - 1
	case 12:
		f.Seq -= uint32(n)
	case 13:
		f.Seq += uint32(n)
	case 14:
		f.Flags = 0
	case 15: // a fragment
		b = f.Packet(n)
		if b[0]>>4 == 4 {
			b[6] = 0x20
			setID(b, f.ID)
		}
		return b, b[0]>>4 == 6
	case 16: // damaged on the way
		b = f.Packet(n)
		b[t.N(len(b))] ^= 1 << t.N(8)
		return b, false
	case 17:
		if b = f.Packet(n); !f.TCP {
			clear(b[f.l4()+6:][:2])
		}
		return b, f.TCP
	case 18: // its checksum is as if unfinished
		b = f.Packet(n)
		Unfinish(b)
		return b, false
	case 19: // another protocol
		b = f.Packet(n)
		b[map[bool]int{true: 9, false: 6}[b[0]>>4 == 4]] = 132
		return b, false
	case 20: // shorter than it says
		b = f.Packet(n)
		return b[:len(b)-t.N(len(b)/2)], false
	}
	b = f.Packet(n)
	was.Seq, was.ID = f.Seq, f.ID
	*f = was
	return b, true
}

func (f *Flow) l4() int { return IPHeader(f.Src.Addr()) }

// Unfinish replaces the checksum of a TCP or UDP packet with a plain IP header by the pseudo-header sum, and
// returns where the transport header starts and where in it the field is.
func Unfinish(b []byte) (start, offset int) {
	start, offset = packet.IPv4Header, 16
	proto := b[9]
	if b[0]>>4 == 6 {
		start, proto = packet.IPv6Header, b[6]
	}
	if proto == packet.ProtoUDP {
		offset = 6
	}
	binary.BigEndian.PutUint16(b[start+offset:], pseudo(b, start, proto))
	return start, offset
}

// Load makes p a packet with these bytes behind full headroom, as Recv would hand it over: in state ChecksumPartial b's
// transport checksum, which must be right, is unfinished. What the slot's own memory does not take is borrowed.
func Load(p *packet.Packet, b []byte, state packet.ChecksumState) {
	if room := p.Reset(); len(b) <= len(room) {
		p.Resize(copy(room, b))
	} else {
		p.Borrow(append(append(make([]byte, packet.Headroom), b...), make([]byte, packet.Tailroom)...), packet.Headroom, packet.Headroom+len(b))
	}
	if p.SetChecksum(state); state == packet.ChecksumPartial {
		p.SetPartial(Unfinish(p.Bytes()))
	}
}

// Whole returns a copy of what p will be once its checksum is finished.
func Whole(p *packet.Packet) []byte {
	b := append([]byte(nil), p.Bytes()...)
	if start, offset, ok := p.Partial(); ok {
		finish(b, start, offset)
	}
	return b
}
