package sealed

import (
	"net/netip"
	"time"
)

// bucket is a token bucket: burst at once, rate a second.
type bucket struct {
	rate, burst, tokens float64
	last                time.Time
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) take(now time.Time) bool {
	b.fill(now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (b *bucket) fill(now time.Time) {
	if !b.last.IsZero() && now.After(b.last) {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate)
	}
	b.last = now
}

const (
	// Initiations from one address, counted once it has shown a cookie.
	addressRate, addressBurst = 20, 40
	// maxAddresses bounds the memory for it.
	maxAddresses = 4096
)

// addresses limits what single addresses may ask for.
type addresses map[netip.Addr]*bucket

func (a addresses) take(addr netip.Addr, now time.Time) bool {
	if addr = addr.Unmap(); addr.Is6() { // a host has a /64 at least
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	b := a[addr]
	if b == nil {
		if len(a) >= maxAddresses {
			return false
		}
		fresh := newBucket(addressRate, addressBurst)
		b = &fresh
		a[addr] = b
	}
	return b.take(now)
}

// forget drops the addresses whose buckets are full again: they are as good as unknown.
func (a addresses) forget(now time.Time) {
	for addr, b := range a {
		if b.fill(now); b.tokens >= b.burst {
			delete(a, addr)
		}
	}
}
