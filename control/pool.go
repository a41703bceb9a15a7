package control

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Span returns the index of the first prefix that the pool gives to nodes, and how many there are, ≥ 1.
func (p Pool) Span() (first, count uint64) {
	last := uint64(1)<<(p.NodeLength-p.Prefix.Bits()) - 1
	if p.First.IsValid() {
		first = p.index(p.First)
	}
	if p.Last.IsValid() {
		last = p.index(p.Last)
	}
	if last < first {
		return first, 1
	}
	return first, last - first + 1
}

// Nth returns the i-th of the pool's nodes' prefixes.
func (p Pool) Nth(i uint64) netip.Prefix {
	hi, lo := split(p.Prefix.Addr())
	shift := p.Prefix.Addr().BitLen() - p.NodeLength
	addHi, addLo := i, uint64(0)
	switch {
	case shift < 64:
		addLo = i << shift
		addHi = i >> (64 - shift)
	default:
		addHi = i << (shift - 64)
	}
	lo, carry := bits.Add64(lo, addLo, 0)
	return netip.PrefixFrom(join(hi+addHi+carry, lo, p.Prefix.Addr().Is4()), p.NodeLength)
}

// index is the inverse of Nth.
func (p Pool) index(a netip.Addr) uint64 {
	hi, lo := split(a)
	baseHi, baseLo := split(p.Prefix.Addr())
	lo, borrow := bits.Sub64(lo, baseLo, 0)
	hi -= baseHi + borrow
	shift := a.BitLen() - p.NodeLength
	if shift < 64 {
		return lo>>shift | hi<<(64-shift)
	}
	return hi >> (shift - 64)
}

// split reads an address as a number of 128 bits, join makes an address of one.
func split(a netip.Addr) (hi, lo uint64) {
	if a.Is4() {
		b := a.As4()
		return 0, uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}

func join(hi, lo uint64, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(lo))))
	}
	return netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, hi), lo)))
}
