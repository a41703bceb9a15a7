package etcd

import (
	"slices"
	"strings"

	"weft/control"
)

// patchMost is from how many changed nodes on it is no less work to begin anew.
const patchMost = 64

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
			m.index.Remove(m.last.Nodes[at])
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
			m.index.Insert(n)
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
	if !m.index.Fits(n) {
		return false
	}
	s, err := control.Check(m.self.Name, m.set.Network, []control.Node{m.grant.node, n})
	return err == nil && len(s.Problems) == 0 && len(s.Nodes) == 1 && s.Nodes[0].Equal(n)
}
