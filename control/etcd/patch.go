package etcd

import (
	"slices"

	"weft/control"
)

// patched returns the nodes of the last State with what changed since; false where that takes a look
// at all of them.
func (m *member) patched() ([]control.Node, bool) {
	v := m.view
	if m.index == nil || v.whole || m.recovering() || len(v.dirty) > control.PatchMost {
		return nil, false
	}
	nodes, changed := m.last.Nodes, false
	var old []control.Node
	for name := range v.dirty { // first all of them out: two nodes may have swapped something
		at, ok := control.Find(m.last.Nodes, name)
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
		if !ok || n.Name != "" && !m.index.Takes(m.grant.node, m.set.Network, n) {
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
		nodes = control.Put(nodes, name, n)
	}
	return nodes, true
}

// selfTold says that the store has nothing else to say about this node than what it was granted.
func (m *member) selfTold() bool {
	n, ok := m.view.one(m.self.Name)
	return ok && (n.Name == "" || n.Equal(m.grant.node))
}
