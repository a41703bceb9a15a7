package control

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Network is what all nodes of a cluster have in common, as a source that keeps it tells.
type Network struct {
	Pools        []Pool
	VNI          uint32                    // 24 bits
	Port         uint16                    // UDP port of the tunnel; 0 = the source does not say
	Reservations map[string][]netip.Prefix // by node name: prefixes that nobody else is given, without expiry
}

// Pool is one prefix of the overlay and how it is cut into the nodes' prefixes.
type Pool struct {
	Prefix      netip.Prefix `json:"prefix"`
	NodeLength  int          `json:"node_length"` // bits of a node's prefix
	First, Last netip.Addr   `json:"-"`           // of the nodes' prefixes to give; zero = all of Prefix
}

// NetworkStore is a source that keeps the network's configuration for all nodes.
type NetworkStore interface {
	// Network reads it; false where there is none yet.
	Network(ctx context.Context) (Network, bool, error)
	// SetNetwork writes it. It refuses what would take a prefix from a node that holds it.
	SetNetwork(ctx context.Context, n Network) error
}

// Lengths of a node's prefix where nobody says otherwise: what Flannel and Kubernetes use.
const (
	nodeLength4 = 24
	nodeLength6 = 64
	// maxSplit bounds a pool: 2^32 nodes' prefixes are enough.
	maxSplit = 32
)

// NewPool cuts p as most clusters do: /24 or /64 for each node, and two bits longer than p where p
// is too small for that.
func NewPool(p netip.Prefix) Pool {
	bits := nodeLength4
	if p.Addr().Is6() {
		bits = nodeLength6
	}
	return Pool{Prefix: p, NodeLength: min(max(bits, p.Bits()+2), p.Addr().BitLen())}
}

// Wrong says what is wrong with a network, "" when nothing is.
func (n *Network) Wrong() string {
	if len(n.Pools) == 0 {
		return "the network has no prefix: write one like 10.244.0.0/16"
	}
	if n.VNI == 0 || n.VNI >= 1<<24 {
		return fmt.Sprintf("VNI %d is out of range: write 1 to %d", n.VNI, 1<<24-1)
	}
	for i, p := range n.Pools {
		if wrong := p.wrong(); wrong != "" {
			return wrong
		}
		for _, q := range n.Pools[:i] {
			if p.Prefix.Overlaps(q.Prefix) {
				return fmt.Sprintf("%v overlaps %v: remove one", p.Prefix, q.Prefix)
			}
		}
	}
	held := map[netip.Prefix]string{}
	for name, prefixes := range n.Reservations {
		if wrong := WrongName(name); wrong != "" {
			return wrong
		}
		for _, r := range prefixes {
			if _, ok := n.PoolOf(r); !ok {
				return fmt.Sprintf("reservation %v of node %s is not one of the network's node prefixes: write one inside %v of its node length", r, name, n.Prefixes())
			}
			if other, twice := held[r]; twice {
				return fmt.Sprintf("%v is reserved for %s and for %s: remove one", r, min(name, other), max(name, other))
			}
			held[r] = name
		}
	}
	return ""
}

func (p Pool) wrong() string {
	switch {
	case !p.Prefix.IsValid() || p.Prefix != p.Prefix.Masked() || p.Prefix.Addr().Is4In6():
		return fmt.Sprintf("%v is not a prefix: write it like 10.244.0.0/16 or fd00:10:244::/48", p.Prefix)
	case p.NodeLength < p.Prefix.Bits() || p.NodeLength > p.Prefix.Addr().BitLen():
		return fmt.Sprintf("a node's prefix of %d bits does not fit into %v: write a length from %d to %d", p.NodeLength, p.Prefix, p.Prefix.Bits(), p.Prefix.Addr().BitLen())
	case p.NodeLength-p.Prefix.Bits() > maxSplit:
		return fmt.Sprintf("%v has more than 2^%d prefixes of %d bits: write a shorter length", p.Prefix, maxSplit, p.NodeLength)
	}
	return ""
}

// Prefixes are the prefixes of the overlay.
func (n *Network) Prefixes() []netip.Prefix {
	var list []netip.Prefix
	for _, p := range n.Pools {
		list = append(list, p.Prefix)
	}
	return list
}

// PoolOf returns the pool that has p as one of its nodes' prefixes.
func (n *Network) PoolOf(p netip.Prefix) (Pool, bool) {
	i := slices.IndexFunc(n.Pools, func(pool Pool) bool { return pool.Has(p) })
	if i < 0 {
		return Pool{}, false
	}
	return n.Pools[i], true
}

// Has says whether p is one of the pool's nodes' prefixes.
func (p Pool) Has(prefix netip.Prefix) bool {
	return prefix.IsValid() && prefix == prefix.Masked() && prefix.Bits() == p.NodeLength && p.Prefix.Overlaps(prefix) &&
		(!p.First.IsValid() || p.First.Compare(prefix.Addr()) <= 0) && (!p.Last.IsValid() || prefix.Addr().Compare(p.Last) <= 0)
}
