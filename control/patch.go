package control

import (
	"net/netip"
	"slices"
	"strings"
)

// PatchMost is from how many changed nodes on it is no less work to make a State anew than to patch the last one.
const PatchMost = 64

// Find returns the place of a node among nodes in order of their names, and whether it is there.
func Find(nodes []Node, name string) (at int, ok bool) {
	return slices.BinarySearchFunc(nodes, name, func(n Node, name string) int { return strings.Compare(n.Name, name) })
}

// Put changes nodes, in order of their names, so that n is the one of that name; an n without a name takes it out. It
// returns the list as append does.
func Put(nodes []Node, name string, n Node) []Node {
	at, present := Find(nodes, name)
	switch {
	case present && n.Name != "":
		nodes[at] = n
	case present:
		nodes = slices.Delete(nodes, at, at+1)
	case n.Name != "":
		nodes = slices.Insert(nodes, at, n)
	}
	return nodes
}

// Takes says that Check would take n as it is, beside self and all others of the index. It says no where that
// takes a look at all of them.
func (x *Index) Takes(self Node, network []netip.Prefix, n Node) bool {
	if !x.Fits(n) {
		return false
	}
	s, err := Check(self.Name, network, []Node{self, n}, State{}, nil)
	return err == nil && len(s.Problems) == 0 && len(s.Nodes) == 1 && s.Nodes[0].Equal(n)
}
