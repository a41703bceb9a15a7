package control

import (
	"net/netip"
	"slices"
)

// Endpoint returns the address at which self reaches peer: the peer's most preferred one of the first of self's
// own address families that the peer has too. False where they share no family; Check reports such peers.
//
// Only this node's order of preference counts, so that the two directions between two nodes may use different
// families; every receiver accepts both of its own.
func Endpoint(self, peer Node) (netip.Addr, bool) {
	for _, own := range self.Endpoints {
		for _, a := range peer.Endpoints {
			if a.Is4() == own.Is4() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// OfNetwork returns those of a node's addresses whose family the network has. With Flannel a packet has the same family
// inside and outside: a network of IPv4 only has no IPv6 underlay, and the larger MTU that goes with it.
func OfNetwork(addrs []netip.Addr, network []netip.Prefix) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !slices.ContainsFunc(network, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
	})
}
