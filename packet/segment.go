package packet

import "encoding/binary"

// Cutter cuts a TCP super-packet, larger than a link takes, into the packets its sender would have
// sent without segmentation offload. Reuse one Cutter; it allocates nothing.
//
//	var c Cutter
//	if !c.Start(ip, mtu, partial) { … drop … }
//	for more := true; more; {
//		n, more = c.Next(dst)
//		… dst[:n] is a whole packet …
//	}
//
// Every packet repeats the IP and TCP headers with their options. As in the kernel's tcp_gso_segment:
// the IPv4 identification counts up, the sequence number moves on, CWR stays on the first packet
// only, FIN and PSH on the last, the rest of the header is the super-packet's.
type Cutter struct {
	super   []byte // the super-packet; the caller's memory
	tcp     int    // where its TCP header starts
	payload int    // where its payload starts
	at      int    // where the next packet's payload starts
	mss     int    // payload bytes per packet
	seq     uint32 // the super-packet's sequence number
	count   uint16 // packets made so far
}

// Start takes a super-packet; ip must stay unchanged until Next has returned the last packet. mtu is
// the largest packet to make, in bytes. partial says that the TCP checksum was left unfinished
// (ChecksumPartial) by somebody who vouches for the bytes; the field must hold the sum of their pseudo-header then. Without it the
// checksum is verified here, so that cutting never gives a damaged packet right checksums; so is the IPv4 header's always.
//
// It is false for what cannot be cut: no TCP, a fragment, SYN, RST or URG, a wrong checksum, an mtu
// that the headers fill. A packet that fits already is "cut" into one.
func (c *Cutter) Start(ip []byte, mtu int, partial bool) bool {
	v, drop := ParseIP(ip)
	if drop != Alive || v.Protocol() != ProtoTCP || !v.IPv4ChecksumOK() {
		return false
	}
	at, ok := v.Transport()
	if !ok {
		return false
	}
	segment := TCPView(v.Bytes()[at:])
	if !segment.Valid() || segment.Flags()&(TCPFlagSYN|TCPFlagRST|TCPFlagURG) != 0 {
		return false
	}
	headers := at + segment.HeaderLen()
	if mtu <= headers {
		return false
	}
	if partial {
		_, _, ok = v.UnfinishedChecksum()
	} else {
		ok = v.VerifyTransport()
	}
	if !ok {
		return false
	}
	*c = Cutter{super: v.Bytes(), tcp: at, payload: headers, at: headers, mss: mtu - headers, seq: segment.Seq()}
	return true
}

// Next writes the next packet into dst, which must have room for mtu bytes, and returns its length
// and whether another one follows. It panics if dst is too small, or without a Start that was true.
func (c *Cutter) Next(dst []byte) (n int, more bool) {
	end := min(c.at+c.mss, len(c.super))
	more = end < len(c.super)
	n = c.payload + end - c.at
	dst = dst[:n]
	copy(dst, c.super[:c.payload])
	copy(dst[c.payload:], c.super[c.at:end])

	segment := dst[c.tcp:]
	binary.BigEndian.PutUint32(segment[4:], c.seq+uint32(c.at-c.payload))
	if c.at != c.payload {
		segment[13] &^= TCPFlagCWR
	}
	if more {
		segment[13] &^= TCPFlagFIN | TCPFlagPSH
	}

	var addrs []byte
	if dst[0]>>4 == 4 {
		binary.BigEndian.PutUint16(dst[ip4TotalLen:], uint16(n))
		binary.BigEndian.PutUint16(dst[ip4ID:], binary.BigEndian.Uint16(c.super[ip4ID:])+c.count)
		PutIPv4Checksum(dst)
		addrs = dst[ip4Src : ip4Dst+4]
	} else {
		binary.BigEndian.PutUint16(dst[ip6PayloadLen:], uint16(n-IPv6Header))
		addrs = dst[ip6Src : ip6Dst+16]
	}
	segment[tcpChecksum], segment[tcpChecksum+1] = 0, 0
	PutChecksum(segment[tcpChecksum:], Sum(segment, PseudoSum(addrs, ProtoTCP, len(segment))))

	c.at = end
	c.count++
	return n, more
}
