package control

import "net/netip"

// Index is what is needed to know that a node fits into a cluster that is in order, one where nothing
// was left out. With it a change costs what the changed node costs, and not what thousands of others
// do. Where a node does not fit, Check decides as ever.
type Index struct {
	endpoints map[netip.Addr]bool
	stations  map[MAC]bool
	keys      map[string]bool
	prefixes  map[netip.Prefix]bool
	lengths   [2][129]int // how many prefixes there are, by family and length
}

func family(p netip.Prefix) int { return p.Addr().BitLen() / 128 }

// NewIndex is the index of nodes that Check left as they are.
func NewIndex(nodes []Node) *Index {
	x := &Index{endpoints: make(map[netip.Addr]bool, len(nodes)), stations: make(map[MAC]bool, len(nodes)), keys: map[string]bool{},
		prefixes: make(map[netip.Prefix]bool, 2*len(nodes))}
	for _, n := range nodes {
		x.Insert(n)
	}
	return x
}

// Insert adds a node that fits.
func (x *Index) Insert(n Node) {
	for _, a := range n.Endpoints {
		x.endpoints[a] = true
	}
	x.stations[n.VTEP()] = true
	for _, k := range n.keys() {
		x.keys[k] = true
	}
	for _, p := range n.Prefixes {
		x.prefixes[p] = true
		x.lengths[family(p)][p.Bits()]++
	}
}

// Remove takes a node out that is in.
func (x *Index) Remove(n Node) {
	for _, a := range n.Endpoints {
		delete(x.endpoints, a)
	}
	delete(x.stations, n.VTEP())
	for _, k := range n.keys() {
		delete(x.keys, k)
	}
	for _, p := range n.Prefixes {
		delete(x.prefixes, p)
		x.lengths[family(p)][p.Bits()]--
	}
}

// Fits says that n claims nothing of another's. It says no where it would take looking at all of them.
func (x *Index) Fits(n Node) bool {
	for _, a := range n.Endpoints {
		if x.endpoints[a] {
			return false
		}
	}
	if x.stations[n.VTEP()] || x.keys[n.PublicKey] {
		return false
	}
	for _, p := range n.Prefixes {
		for bits, count := range x.lengths[family(p)] {
			if count > 0 && (bits > p.Bits() || x.prefixes[netip.PrefixFrom(p.Addr(), bits).Masked()]) {
				return false
			}
		}
	}
	return true
}
