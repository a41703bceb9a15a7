package etcd

import (
	"net/netip"
	"slices"
	"strings"

	"weft/control"
)

// index is what is needed to know that a node fits into a cluster that is in order, one where nothing
// was left out. With it a change costs what the changed node costs, and not what thousands of others
// do. Where a node does not fit, control.Check decides as ever.
type index struct {
	endpoints map[netip.Addr]bool
	prefixes  map[netip.Prefix]bool
	lengths   [2][129]int // how many prefixes there are, by family and length
}

// patchMost is from how many changed nodes on it is no less work to begin anew.
const patchMost = 64

func family(p netip.Prefix) int { return p.Addr().BitLen() / 128 }

// newIndex is the index of nodes that Check left as they are.
func newIndex(nodes []control.Node) *index {
	x := &index{endpoints: make(map[netip.Addr]bool, len(nodes)), prefixes: make(map[netip.Prefix]bool, 2*len(nodes))}
	for _, n := range nodes {
		x.insert(n)
	}
	return x
}

func (x *index) insert(n control.Node) {
	for _, a := range n.Endpoints {
		x.endpoints[a] = true
	}
	for _, p := range n.Prefixes {
		x.prefixes[p] = true
		x.lengths[family(p)][p.Bits()]++
	}
}

func (x *index) remove(n control.Node) {
	for _, a := range n.Endpoints {
		delete(x.endpoints, a)
	}
	for _, p := range n.Prefixes {
		delete(x.prefixes, p)
		x.lengths[family(p)][p.Bits()]--
	}
}

// fits says that n claims nothing of another's. It says no where it would take looking at all of them.
func (x *index) fits(n control.Node) bool {
	for _, a := range n.Endpoints {
		if x.endpoints[a] {
			return false
		}
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

func byName(n control.Node, name string) int { return strings.Compare(n.Name, name) }

// patched returns the nodes of the last State with what changed since; false where that takes a look
// at all of them.
func (m *member) patched() ([]control.Node, bool) {
	v := m.view
	if m.index == nil || v.whole || m.haunted() || len(v.dirty) > patchMost {
		return nil, false
	}
	nodes, changed := m.last.Nodes, false
	var old []control.Node
	for name := range v.dirty { // first all of them out: two nodes may have swapped something
		at, ok := slices.BinarySearchFunc(m.last.Nodes, name, byName)
		if ok {
			m.index.remove(m.last.Nodes[at])
			old = append(old, m.last.Nodes[at])
		}
	}
	for name := range v.dirty {
		n, ok := v.one(name)
		if name == m.self.Name {
			if !m.selfTold() {
				return nil, false
			}
			continue // what it holds is in the grant
		}
		if !ok || n.Name != "" && !m.fits(n) {
			return nil, false
		}
		i := slices.IndexFunc(old, func(o control.Node) bool { return o.Name == name })
		if n.Name != "" {
			m.index.insert(n)
		}
		if i >= 0 && old[i].Equal(n) || i < 0 && n.Name == "" {
			continue
		}
		if !changed {
			nodes, changed = slices.Grow(slices.Clone(nodes), len(v.dirty)), true
		}
		at, present := slices.BinarySearchFunc(nodes, name, byName)
		switch {
		case present && n.Name != "":
			nodes[at] = n
		case present:
			nodes = slices.Delete(nodes, at, at+1)
		default:
			nodes = slices.Insert(nodes, at, n)
		}
	}
	return nodes, true
}

// selfTold says that the store has nothing else to say about this node than what it was granted.
func (m *member) selfTold() bool {
	n, ok := m.view.one(m.self.Name)
	return ok && (n.Name == "" || n.Equal(m.grant.node))
}

// fits says that Check would take n as it is, beside this node and all others.
func (m *member) fits(n control.Node) bool {
	if !m.index.fits(n) {
		return false
	}
	s, err := control.Check(m.self.Name, m.set.Network, []control.Node{m.grant.node, n})
	return err == nil && len(s.Problems) == 0 && len(s.Nodes) == 1 && s.Nodes[0].Equal(n)
}
