package kubernetes

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
func (m *member) patched(self control.Node) ([]control.Node, bool) {
	if m.index == nil || !self.Equal(m.last.Self) || len(m.dirty) > patchMost {
		return nil, false
	}
	nodes, changed := m.last.Nodes, false
	old := map[string]control.Node{}
	for name := range m.dirty { // first all of them out: two nodes may have swapped something
		if at, ok := slices.BinarySearchFunc(m.last.Nodes, name, byName); ok {
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
			if n = r.node; !m.fits(self, n) {
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
		at, _ := slices.BinarySearchFunc(nodes, name, byName)
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

// fits says that Check would take n as it is, beside this node and all others.
func (m *member) fits(self, n control.Node) bool {
	if !m.index.Fits(n) {
		return false
	}
	s, err := control.Check(m.self.Name, m.set.Network, []control.Node{self, n})
	return err == nil && len(s.Problems) == 0 && len(s.Nodes) == 1 && s.Nodes[0].Equal(n)
}
