package etcd

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"weft/control"
)

// taken is the set of prefixes that nobody else may be given.
type taken struct {
	exact   map[netip.Prefix]bool
	lengths [129]bool // of the members
}

func newTaken() *taken { return &taken{exact: map[netip.Prefix]bool{}} }

func (t *taken) add(p netip.Prefix) {
	t.exact[p] = true
	t.lengths[p.Bits()] = true
}

// within cuts the members that are longer than a node's prefix down to its length, so that looking
// up is enough to know of an overlap.
func (t *taken) within(length int) *taken {
	cut := newTaken()
	for p := range t.exact {
		if p.Bits() > length {
			p = netip.PrefixFrom(p.Addr(), length).Masked()
		}
		cut.add(p)
	}
	return cut
}

// overlaps says whether a member overlaps p; no member may be longer than p.
func (t *taken) overlaps(p netip.Prefix) bool {
	for length := p.Bits(); length >= 0; length-- {
		if t.lengths[length] && t.exact[netip.PrefixFrom(p.Addr(), length).Masked()] {
			return true
		}
	}
	return false
}

// guesses is how often a prefix is drawn before all are looked through. Drawing keeps many nodes that
// join at once out of each other's way.
const guesses = 16

// allocate returns a node's prefix of the pool that is not taken; false where there is none.
func allocate(pool control.Pool, t *taken) (netip.Prefix, bool) {
	first, count := span(pool)
	t = t.within(pool.NodeLength)
	for range guesses {
		if p := nth(pool, first+rand.Uint64N(count)); !t.overlaps(p) {
			return p, true
		}
	}
	start := rand.Uint64N(count)
	for i := range count {
		if p := nth(pool, first+(start+i)%count); !t.overlaps(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// span returns the index of the first prefix a pool gives to nodes, and how many there are, ≥ 1.
func span(pool control.Pool) (first, count uint64) {
	last := uint64(1)<<(pool.NodeLength-pool.Prefix.Bits()) - 1
	if pool.First.IsValid() {
		first = indexOf(pool, pool.First)
	}
	if pool.Last.IsValid() {
		last = indexOf(pool, pool.Last)
	}
	if last < first {
		return first, 1
	}
	return first, last - first + 1
}

// nth returns the i-th of the pool's nodes' prefixes.
func nth(pool control.Pool, i uint64) netip.Prefix {
	hi, lo := split(pool.Prefix.Addr())
	shift := pool.Prefix.Addr().BitLen() - pool.NodeLength
	addHi, addLo := i, uint64(0)
	switch {
	case shift < 64:
		addLo = i << shift
		addHi = i >> (64 - shift)
	default:
		addHi = i << (shift - 64)
	}
	lo, carry := bits.Add64(lo, addLo, 0)
	return netip.PrefixFrom(join(hi+addHi+carry, lo, pool.Prefix.Addr().Is4()), pool.NodeLength)
}

// indexOf is the inverse of nth.
func indexOf(pool control.Pool, a netip.Addr) uint64 {
	hi, lo := split(a)
	baseHi, baseLo := split(pool.Prefix.Addr())
	lo, borrow := bits.Sub64(lo, baseLo, 0)
	hi -= baseHi + borrow
	shift := a.BitLen() - pool.NodeLength
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
