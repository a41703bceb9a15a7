package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// Offsets in the headers that segments of one super-packet differ in.
const (
	ip4Length   = 2
	ip4ID       = 4
	ip4Flags    = 6
	ip4DF       = 0x4000 // in the 16 bits at ip4Flags
	ip4Proto    = 9
	ip4Checksum = 10
	ip4Addrs    = 12 // source and destination, 8 bytes
	ip6Length   = 4
	ip6Next     = 6
	ip6Addrs    = 8 // source and destination, 32 bytes
	tcpSeq      = 4
	tcpData     = 12 // data offset and reserved bits
	tcpFlags    = 13
	tcpChecksum = 16
	udpLength   = 4
	udpChecksum = 6
)

// maxHeaders bounds the IP and transport headers of a super-packet: 60 + 60 bytes for IPv4; IPv6
// extension headers may use the rest.
const maxHeaders = 256

// super cuts one super-packet, the way the kernel's tcp_gso_segment and __udp_gso_segment do. It
// holds a copy of the headers and knows which segment comes next; payload moves elsewhere.
type super struct {
	headers [maxHeaders]byte // of a segment in the middle, of full size
	h       int              // their length
	l4      int              // where TCP or UDP begins
	tcp     bool
	ip4     bool

	size int // payload bytes of every segment but the last
	left int // payload bytes of the segments not made yet

	flags  uint8 // TCP: the super-packet's own
	first  bool  // the next segment is the first
	id     uint16
	seq    uint32
	ipSum  uint32 // sum of the IPv4 header without length, identification and checksum
	pseudo uint16 // pseudo-header sum for a length of 0
}

// open reads the headers at the front of b (at least what is contiguous of the super-packet, total
// bytes long) and prepares to cut it. No segment becomes an IP packet above limit; datagrams have
// boundaries that mean something, so UDP keeps v.size whatever the limit is. Lengths in the headers
// are not read, since total is what is there; hdr_len of the kernel neither.
func (s *super) open(b []byte, total int, v *vnet, limit int) (ok bool) {
	if v.size == 0 || len(b) < packet.IPv4Header {
		return false
	}
	var proto uint8
	plain := false // no IPv6 extension header: the addresses are those of the pseudo-header
	switch b[0] >> 4 {
	case 4:
		s.ip4, s.l4, proto, plain = true, int(b[0]&0x0f)*4, b[ip4Proto], true
		if s.l4 < packet.IPv4Header {
			return false
		}
	case 6:
		if len(b) < packet.IPv6Header {
			return false
		}
		s.ip4, s.l4, proto, plain = false, packet.IPv6Header, b[ip6Next], true
		if proto != packet.ProtoTCP && proto != packet.ProtoUDP {
			// Extension headers: where the transport begins, and the sum over the final
			// destination, are known from the unfinished checksum alone.
			if !v.partial() || v.start < packet.IPv6Header {
				return false
			}
			s.l4, plain = v.start, false
		}
	default:
		return false
	}

	var field int // of the checksum
	switch {
	case v.gso == unix.VIRTIO_NET_HDR_GSO_TCPV4 && s.ip4, v.gso == unix.VIRTIO_NET_HDR_GSO_TCPV6 && !s.ip4:
		if plain && proto != packet.ProtoTCP || len(b) < s.l4+packet.TCPHeader {
			return false
		}
		s.tcp, field = true, s.l4+tcpChecksum
		s.h = s.l4 + int(b[s.l4+tcpData]>>4)*4
		if s.h < s.l4+packet.TCPHeader {
			return false
		}
	case v.gso == unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		if plain && proto != packet.ProtoUDP || len(b) < s.l4+packet.UDPHeader {
			return false
		}
		s.tcp, field = false, s.l4+udpChecksum
		s.h = s.l4 + packet.UDPHeader
	default:
		return false
	}
	if s.h > len(b) || s.h > maxHeaders || s.h >= total {
		return false
	}
	s.size, s.left, s.first = v.size, total-s.h, true
	if s.tcp && s.h+s.size > limit {
		if s.size = limit - s.h; s.size <= 0 {
			return false
		}
	}

	copy(s.headers[:s.h], b)
	h := s.headers[:s.h]
	if plain {
		addrs := h[ip6Addrs : ip6Addrs+32]
		if s.ip4 {
			addrs = h[ip4Addrs : ip4Addrs+8]
		}
		s.pseudo = packet.PseudoSum(addrs, proto, 0)
	} else {
		// Ones' complement: to subtract is to add the complement.
		s.pseudo = fold(uint32(binary.BigEndian.Uint16(h[field:])) + uint32(^uint16(total-s.l4)))
	}
	if s.ip4 {
		s.id = binary.BigEndian.Uint16(h[ip4ID:])
		clear(h[ip4Length : ip4ID+2])
		clear(h[ip4Checksum : ip4Checksum+2])
		s.ipSum = uint32(packet.Sum(h[:s.l4], 0))
	}
	if s.tcp {
		s.seq, s.flags = binary.BigEndian.Uint32(h[s.l4+tcpSeq:]), h[s.l4+tcpFlags]
		// FIN and PSH belong to the last byte, CWR is said once.
		h[s.l4+tcpFlags] = s.flags &^ (packet.TCPFlagFIN | packet.TCPFlagPSH | packet.TCPFlagCWR)
	}
	s.putLengths(h, s.size)
	return true
}

// segments is how many are still to be made.
func (s *super) segments() int { return (s.left + s.size - 1) / s.size }

// next returns the payload length of the next segment.
func (s *super) next() int { return min(s.size, s.left) }

// put writes the headers of the next segment to the front of b and moves on. The segment's payload
// follows them. The checksum field gets the pseudo-header sum of this segment (ChecksumPartial).
func (s *super) put(b []byte) {
	n := s.next()
	b = b[:s.h]
	copy(b, s.headers[:s.h])
	s.left -= n
	if n != s.size {
		s.putLengths(b, n)
	}
	if s.ip4 {
		binary.BigEndian.PutUint16(b[ip4ID:], s.id)
		sum := s.ipSum + uint32(s.h+n) + uint32(s.id)
		binary.BigEndian.PutUint16(b[ip4Checksum:], ^fold(sum))
		s.id++
	}
	if s.tcp {
		binary.BigEndian.PutUint32(b[s.l4+tcpSeq:], s.seq)
		s.seq += uint32(n)
		if s.first {
			b[s.l4+tcpFlags] |= s.flags & packet.TCPFlagCWR
		}
		if s.left == 0 {
			b[s.l4+tcpFlags] |= s.flags & (packet.TCPFlagFIN | packet.TCPFlagPSH)
		}
	}
	s.first = false
}

// skip moves past the next segment, which nobody can take.
func (s *super) skip() {
	n := s.next()
	s.left -= n
	s.id++
	s.seq += uint32(n)
	s.first = false
}

// putLengths writes what depends on a segment's payload length n into headers h.
func (s *super) putLengths(h []byte, n int) {
	if s.ip4 {
		binary.BigEndian.PutUint16(h[ip4Length:], uint16(s.h+n))
	} else {
		binary.BigEndian.PutUint16(h[ip6Length:], uint16(s.h+n-packet.IPv6Header))
	}
	length := s.h + n - s.l4
	sum := fold(uint32(s.pseudo) + uint32(length))
	if s.tcp {
		binary.BigEndian.PutUint16(h[s.l4+tcpChecksum:], sum)
	} else {
		binary.BigEndian.PutUint16(h[s.l4+udpLength:], uint16(length))
		binary.BigEndian.PutUint16(h[s.l4+udpChecksum:], sum)
	}
}

// checksumOffset is where in the transport header the checksum is.
func (s *super) checksumOffset() int {
	if s.tcp {
		return tcpChecksum
	}
	return udpChecksum
}

// fold brings a ones' complement sum of 32 bits to 16.
func fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}
