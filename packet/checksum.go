package packet

import (
	"encoding/binary"
	"math/bits"
)

// Offsets of the checksum field inside the transport headers.
const (
	tcpChecksum  = 16
	greChecksum  = 4    // where the header has one, RFC 2784 §2.1
	greSummed    = 0x80 // in its first byte: it has
	udpChecksum  = 6
	icmpChecksum = 2
)

// Sum adds b to initial as the Internet checksum does: the ones' complement sum of 16-bit
// big-endian words, an odd last byte padded with zero (RFC 1071), folded and not complemented. So
// sums chain: Sum(b, Sum(a, 0)) is the sum of a‖b if a has an even length.
//
// The sum is taken over 64-bit words in the machine's own byte order, which gives the same sum with
// its bytes swapped (RFC 1071 §2 B), so nothing is swapped but the result. Eight words a turn keep
// the adder's carry chain in one flag.
func Sum(b []byte, initial uint16) uint16 {
	acc := uint64(swapped(initial))
	var carry uint64
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[0:8]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[32:40]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[40:48]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[48:56]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[56:64]), carry)
		b = b[64:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), carry)
		b = b[8:]
	}
	if len(b) > 0 {
		acc, carry = bits.Add64(acc, tail(b), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return swapped(fold(acc + carry)) // a carry out of this last step leaves acc = 0
}

// tail sums the last 1 to 7 bytes. Three words of at most 32 bits do not overflow.
func tail(b []byte) (sum uint64) {
	if len(b) >= 4 {
		sum = uint64(binary.NativeEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		sum += uint64(binary.NativeEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(swapped(uint16(b[0]) << 8))
	}
	return sum
}

// fold brings a ones' complement sum of 64 bits to 16.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// swapped turns a 16-bit word between big-endian and the machine's own order.
func swapped(w uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], w)
	return binary.BigEndian.Uint16(b[:])
}

// PseudoSum is the folded sum of the pseudo-header: addrs is source and destination as they lie in
// the IP header, 8 or 32 bytes; length is that of the transport header and its payload. Both
// families put the same words into the sum (RFC 793 §3.1, RFC 8200 §8.1), so one function serves.
func PseudoSum(addrs []byte, proto uint8, length int) uint16 {
	rest := uint64(swapped(fold(uint64(proto) + uint64(length))))
	acc, carry := bits.Add64(binary.NativeEndian.Uint64(addrs), rest, 0)
	if len(addrs) == 32 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(addrs[8:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(addrs[16:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(addrs[24:]), carry)
	}
	acc, carry = bits.Add64(acc, 0, carry)
	return swapped(fold(acc + carry))
}

// PutChecksum complements a sum and stores it. A result of 0 is stored as 0xffff, which means the
// same to every receiver, and does not mean "no checksum" in UDP (RFC 768).
func PutChecksum(field []byte, sum uint16) {
	sum = ^sum
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
}

// PutIPv4Checksum computes the header checksum of the IPv4 packet at the front of b. The header
// must be whole.
func PutIPv4Checksum(b []byte) {
	header := b[:int(b[0]&0x0f)*4]
	header[ip4Checksum], header[ip4Checksum+1] = 0, 0
	binary.BigEndian.PutUint16(header[ip4Checksum:], ^Sum(header, 0))
}

// IPv4ChecksumOK reports whether the packet's IP header is intact. IPv6 has no header checksum.
func (v IPView) IPv4ChecksumOK() bool {
	return v.Version() == 6 || Sum(v.b[:int(v.b[0]&0x0f)*4], 0) == 0xffff
}

// checksumField returns where the TCP or UDP header starts and where in it the checksum is. It is
// false for other protocols, fragments, and a header cut short.
func (v IPView) checksumField() (start, offset int, ok bool) {
	start, ok = v.Transport()
	if !ok {
		return 0, 0, false
	}
	switch v.proto {
	case ProtoTCP:
		return start, tcpChecksum, len(v.b)-start >= TCPHeader
	case ProtoUDP:
		return start, udpChecksum, len(v.b)-start >= UDPHeader
	}
	return 0, 0, false
}

// UnfinishedChecksum reports whether the TCP or UDP checksum field holds only the pseudo-header
// sum of all bytes from where it starts to the packet's end, and where. That is what a Linux vxlan device sends over a link which promises to finish
// checksums and does not (veth with tx offload on). A whole checksum looks like this once in 65,536
// packets; finishing it then computes what it already was.
func (v IPView) UnfinishedChecksum() (start, offset int, ok bool) {
	start, offset, ok = v.checksumField()
	if !ok {
		return 0, 0, false
	}
	field := binary.BigEndian.Uint16(v.b[start+offset:])
	return start, offset, field == PseudoSum(v.addrs(), v.proto, len(v.b)-start) && v.wholeDatagram(start)
}

// VerifyTransport reports whether the packet is TCP, UDP or ICMP with a checksum that is right, or
// IPv4 UDP without one. It is false where that cannot be known: fragments, other protocols.
func (v IPView) VerifyTransport() bool {
	start, ok := v.Transport()
	if !ok {
		return false
	}
	body := v.b[start:]
	var sum uint16
	switch v.proto {
	case ProtoTCP:
		if len(body) < TCPHeader {
			return false
		}
		sum = PseudoSum(v.addrs(), v.proto, len(body))
	case ProtoUDP:
		if len(body) < UDPHeader {
			return false
		}
		// UDP has a length of its own, which may leave bytes behind the datagram (RFC 768).
		n := int(binary.BigEndian.Uint16(body[4:]))
		if n < UDPHeader || n > len(body) {
			return false
		}
		if body[udpChecksum] == 0 && body[udpChecksum+1] == 0 {
			return v.Version() == 4 // IPv6 needs one (RFC 8200 §8.1)
		}
		body = body[:n]
		sum = PseudoSum(v.addrs(), v.proto, n)
	case ProtoICMPv6:
		if len(body) < icmpHeader || v.Version() != 6 {
			return false
		}
		sum = PseudoSum(v.addrs(), v.proto, len(body))
	case ProtoICMP:
		if len(body) < icmpHeader || v.Version() != 4 {
			return false
		}
	default:
		return false
	}
	return Sum(body, sum) == 0xffff
}

// CheckPartial says whether the checksum of a packet that is marked ChecksumPartial may be finished, here or by whoever the packet
// is handed to; Alive for packets without the mark. front is where the IP header is, bytes from the packet's front.
//
// A finished checksum vouches for all bytes it covers. So they must be those that the pseudo-header sum in the field was made for:
// the IP packet ends where the packet does, the mark is at its TCP or UDP header, and the field holds the sum of the addresses, the
// protocol and the length that are there; or it is GRE's, which has no pseudo-header. The reasons: BadHeader for a mark or lengths that the headers contradict, BadChecksum for
// another sum, else ParseIP's. Nothing is known about the payload: no sum of it has been made yet. Where an IPv6 routing header has
// segments left, the sum is over a destination that is not in the header, and is believed.
func CheckPartial(p *Packet, front int) Drop {
	start, offset, ok := p.Partial()
	if !ok {
		return Alive
	}
	b := p.Bytes()
	if start < front || offset < 0 || start+offset+2 > len(b) {
		return BadHeader
	}
	v, drop := ParseIP(b[front:])
	if drop != Alive {
		return drop
	}
	if len(v.b) != len(b)-front {
		return BadHeader
	}
	at, field, ok := v.checksumField()
	switch {
	case !ok && v.proto == extRouting && v.frag == 0:
		return Alive
	case !ok && v.greUnfinished(start-front, offset):
		return Alive
	case !ok || at != start-front || field != offset || !v.wholeDatagram(at):
		return BadHeader
	case binary.BigEndian.Uint16(b[start+offset:]) != PseudoSum(v.addrs(), v.proto, len(v.b)-at):
		return BadChecksum
	}
	return Alive
}

// greUnfinished reports whether the packet is GRE whose header, with a checksum, starts and has it there. Linux leaves that one to the
// device, too (`ip link add type gre csum`). It is of no pseudo-header: nothing can contradict it.
func (v IPView) greUnfinished(start, offset int) bool {
	at, ok := v.Transport()
	return ok && v.proto == ProtoGRE && start == at && offset == greChecksum && len(v.b)-at >= 8 && v.b[at]&greSummed != 0
}

// wholeDatagram reports whether the packet is UDP whose own length is that of all bytes from start on, or no UDP.
func (v IPView) wholeDatagram(start int) bool {
	return v.proto != ProtoUDP || int(binary.BigEndian.Uint16(v.b[start+4:])) == len(v.b)-start
}

// FinishPartial completes the checksum of a packet that is marked ChecksumPartial and does nothing to others. One that CheckPartial
// refuses dies as it says; front is as there.
func FinishPartial(p *Packet, front int) {
	start, offset, ok := p.Partial()
	if !ok {
		return
	}
	if p.Drop = CheckPartial(p, front); p.Drop == Alive {
		FinishChecksum(p.Bytes(), start, offset)
		p.SetChecksum(ChecksumComplete)
	}
}

// FinishChecksum sums b from start on, where the checksum field at start+offset holds the
// pseudo-header sum and so brings it in, and stores the checksum there. b must end where the IP
// packet does. It is false, and b unchanged, if the field is not inside b.
func FinishChecksum(b []byte, start, offset int) bool {
	if start < 0 || offset < 0 || start+offset+2 > len(b) {
		return false
	}
	PutChecksum(b[start+offset:], Sum(b[start:], 0))
	return true
}
