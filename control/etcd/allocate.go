package etcd

import (
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
	first, count := pool.Span()
	t = t.within(pool.NodeLength)
	for range guesses {
		if p := pool.Nth(first + rand.Uint64N(count)); !t.overlaps(p) {
			return p, true
		}
	}
	start := rand.Uint64N(count)
	for i := range count {
		if p := pool.Nth(first + (start+i)%count); !t.overlaps(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
