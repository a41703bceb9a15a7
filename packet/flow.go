package packet

import (
	"encoding/binary"
	"math/bits"
)

// Odd constants with many bit changes (from the fraction of the square roots of 2 and 3).
const (
	flowKey0 = 0x6a09e667f3bcc909
	flowKey1 = 0xbb67ae8584caa73b
)

// FlowHash hashes the flow an IP packet belongs to: addresses, protocol and, where the packet is
// no fragment, the ports (for ESP the SPI, which lies where ports do). All packets of a connection
// in one direction hash alike; the other direction hashes otherwise. It is never 0, and 1 for what
// is no IP packet.
//
// The fragments of one datagram stay together, but apart from the unfragmented rest of their flow.
// The IPv6 flow label is not used: a sender may set it as it likes, or change it in mid-flow.
// Not for a table that an attacker could fill: the hash has no key.
func FlowHash(b []byte) uint32 {
	v, drop := ParseIP(b)
	if drop != Alive {
		return 1
	}
	return v.FlowHash()
}

// FlowHash is FlowHash of a parsed packet.
func (v IPView) FlowHash() uint32 {
	rest := uint64(v.proto) << 32
	if at, ok := v.Transport(); ok && hasPorts(v.proto) && len(v.b) >= at+4 {
		rest |= uint64(binary.NativeEndian.Uint32(v.b[at:]))
	}
	addrs := v.addrs()
	h := mix(binary.NativeEndian.Uint64(addrs)^flowKey0, rest^flowKey1)
	if len(addrs) == 32 {
		h = mix(binary.NativeEndian.Uint64(addrs[8:])^h, binary.NativeEndian.Uint64(addrs[16:])^flowKey0)
		h = mix(binary.NativeEndian.Uint64(addrs[24:])^h, flowKey1)
	}
	hash := uint32(h>>32) ^ uint32(h)
	if hash == 0 {
		return 1
	}
	return hash
}

func hasPorts(proto uint8) bool {
	return proto == ProtoTCP || proto == ProtoUDP || proto == ProtoSCTP || proto == ProtoESP
}

// mix multiplies to 128 bits and folds: every bit of the halves depends on every bit of a and b.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}
