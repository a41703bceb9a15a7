package sealed

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Initiations from one address, counted once it has shown a cookie.
	addressRate, addressBurst = 20, 40
	// maxAddresses bounds the memory for it.
	maxAddresses = 4096
)

// addresses limits what single addresses may ask for.
type addresses map[netip.Addr]*rate.Limiter

func (a addresses) take(addr netip.Addr, now time.Time) bool {
	if addr = addr.Unmap(); addr.Is6() { // a host has a /64 at least
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	b := a[addr]
	if b == nil {
		if len(a) >= maxAddresses {
			return false
		}
		b = rate.NewLimiter(addressRate, addressBurst)
		a[addr] = b
	}
	return b.AllowN(now, 1)
}

// forget drops the addresses that may ask for as much as ever again: they are as good as unknown.
func (a addresses) forget(now time.Time) {
	for addr, b := range a {
		if b.TokensAt(now) >= addressBurst {
			delete(a, addr)
		}
	}
}
