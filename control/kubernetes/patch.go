package kubernetes

import (
	"slices"

	"weft/control"
)

// patched returns the nodes of the last State with what changed since; false where that takes a look
// at all of them.
func (m *member) patched(self control.Node) ([]control.Node, bool) {
	if m.index == nil || !self.Equal(m.last.Self) || len(m.dirty) > control.PatchMost {
		return nil, false
	}
	nodes, changed := m.last.Nodes, false
	old := map[string]control.Node{}
	for name := range m.dirty { // first all of them out: two nodes may have swapped something
		if at, ok := control.Find(m.last.Nodes, name); ok {
			old[name] = m.last.Nodes[at]
			m.index.Remove(old[name])
		}
	}
	for name := range m.dirty {
		if name == m.self.Name {
			continue
		}
		var n control.Node
		if r := m.records[name]; r != nil && r.wrong == "" {
			if n = r.node; !m.index.Takes(self, m.set.Network, n) {
				return nil, false
			}
			m.index.Insert(n)
		}
		was, present := old[name]
		if present && was.Equal(n) || !present && n.Name == "" {
			continue
		}
		if !changed {
			nodes, changed = slices.Grow(slices.Clone(nodes), len(m.dirty)), true
		}
		nodes = control.Put(nodes, name, n)
	}
	return nodes, true
}
