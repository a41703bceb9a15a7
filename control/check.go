package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Check makes a State of what a source read. It is the one place that decides what a cluster may
// look like, so that every source and every machine decides alike: the result depends on the set of
// nodes only, never on their order.
//
// One node's garbage never harms the others: what cannot be used is left out, and named in Problems
// with its remedy. The rules, in this order:
//
//   - a node needs a valid name, at least one usable endpoint and at least one usable prefix;
//   - of two nodes with one name, the one whose prefixes and endpoints sort first stays;
//   - an endpoint that two nodes claim belongs to the one whose name sorts first;
//   - of two prefixes that overlap, the longer one stays (a claim that is too wide harms only
//     itself); of two equal ones, that of the node whose name sorts first.
//
// A node that self shares no address family with stays, and is a Problem: others reach it. The error
// says that self is not among the nodes that are left, and why.
func Check(self string, network []netip.Prefix, nodes []Node) (State, error) {
	c := checker{network: network, nodes: make([]Node, 0, len(nodes))}
	for i := range nodes {
		c.add(nodes[i])
	}
	c.oneOfEachName()
	c.endpoints()
	c.prefixes()
	c.strangers(self)
	return c.state(self)
}

// WrongName says what is wrong with a node's name, "" when nothing is. Names become log fields, file
// names and columns of tables, so they are made of what host names are made of.
func WrongName(s string) string {
	switch {
	case s == "":
		return "a node needs a name: give it one"
	case len(s) > 253:
		return "the name is longer than 253 bytes: shorten it"
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r) {
			return fmt.Sprintf("%q is not a node name: use letters, digits, '-', '.', '_'", s)
		}
	}
	return ""
}

type checker struct {
	network  []netip.Prefix
	nodes    []Node // our own copies, free to edit
	problems []Problem
}

func (c *checker) problem(node, format string, args ...any) {
	c.problems = append(c.problems, Problem{Node: node, Text: fmt.Sprintf(format, args...)})
}

// add copies a node without what is wrong with it by itself.
func (c *checker) add(n Node) {
	if wrong := WrongName(n.Name); wrong != "" {
		c.problem("", "the node with endpoints %v and prefixes %v is left out: %s", n.Endpoints, n.Prefixes, wrong)
		return
	}
	n.Endpoints = c.keep(n.Endpoints, wrongEndpoint, n.Name)
	if !c.tidy(n.Prefixes) {
		n.Prefixes = slices.Clone(n.Prefixes)
		slices.SortFunc(n.Prefixes, comparePrefix)
		n.Prefixes = slices.Compact(n.Prefixes)
		n.Prefixes = slices.DeleteFunc(n.Prefixes, func(p netip.Prefix) bool {
			wrong := c.wrongPrefix(p)
			if wrong != "" {
				c.problem(n.Name, "%s", wrong)
			}
			return wrong != ""
		})
	}
	c.nodes = append(c.nodes, n)
}

// tidy says that the prefixes are sorted, each there once, and nothing is wrong with them: the list
// can stay as it is. In a large cluster that is all that a change of one node costs the others.
func (c *checker) tidy(prefixes []netip.Prefix) bool {
	for i, p := range prefixes {
		if i > 0 && comparePrefix(prefixes[i-1], p) >= 0 || c.wrongPrefix(p) != "" {
			return false
		}
	}
	return true
}

// keep returns the endpoints, each once and in their order, that nothing is wrong with.
func (c *checker) keep(endpoints []netip.Addr, wrong func(netip.Addr) string, node string) []netip.Addr {
	if len(endpoints) == 1 && endpoints[0] == endpoints[0].Unmap() && wrong(endpoints[0]) == "" {
		return endpoints
	}
	var kept []netip.Addr
	for _, a := range endpoints {
		a = a.Unmap()
		if slices.Contains(kept, a) {
			continue
		}
		if w := wrong(a); w != "" {
			c.problem(node, "%s", w)
			continue
		}
		kept = append(kept, a)
	}
	return kept
}

func wrongEndpoint(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "an endpoint is not an address: write one like 192.0.2.1 or 2001:db8::1"
	case a.Zone() != "":
		return fmt.Sprintf("endpoint %v has a zone, which means nothing to other nodes: use a global address", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("endpoint %v cannot be reached by other nodes: use the node's own unicast address", a)
	}
	return ""
}

func (c *checker) wrongPrefix(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "a prefix is not one: write it like 10.244.1.0/24 or fd00:10:244:1::/64"
	case p != p.Masked():
		return fmt.Sprintf("prefix %v has bits set behind its length: write %v", p, p.Masked())
	}
	for _, n := range c.network {
		if n.Overlaps(p) && n.Bits() <= p.Bits() {
			return ""
		}
	}
	return fmt.Sprintf("prefix %v is outside the network %v: choose one inside", p, c.network)
}

// oneOfEachName sorts the nodes by name and keeps one of each.
func (c *checker) oneOfEachName() {
	if !slices.IsSortedFunc(c.nodes, compareNode) {
		slices.SortFunc(c.nodes, compareNode)
	}
	sorted := c.nodes
	c.nodes = c.nodes[:0]
	for _, n := range sorted {
		if last := len(c.nodes) - 1; last >= 0 && c.nodes[last].Name == n.Name {
			c.problem(n.Name, "the name is used by two nodes; the one with %v is left out, the one with %v kept: rename one",
				n.Prefixes, c.nodes[last].Prefixes)
			continue
		}
		c.nodes = append(c.nodes, n)
	}
}

// compareNode orders by name, and nodes of one name by all that they say.
func compareNode(a, b Node) int {
	if a.Name != b.Name {
		return cmp.Compare(a.Name, b.Name)
	}
	return cmp.Or(slices.CompareFunc(a.Prefixes, b.Prefixes, comparePrefix),
		slices.CompareFunc(a.Endpoints, b.Endpoints, netip.Addr.Compare), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
}

// endpoints gives each endpoint to one node, and leaves out nodes that have none.
func (c *checker) endpoints() {
	owner := make(map[netip.Addr]string, len(c.nodes))
	c.nodes = slices.DeleteFunc(c.nodes, func(n Node) bool { return c.bare(n) })
	for i := range c.nodes {
		n := &c.nodes[i]
		n.Endpoints = c.keep(n.Endpoints, func(a netip.Addr) string {
			if other, taken := owner[a]; taken {
				return fmt.Sprintf("endpoint %v belongs to node %s already: correct one of the two", a, other)
			}
			owner[a] = n.Name
			return ""
		}, n.Name)
	}
	c.nodes = slices.DeleteFunc(c.nodes, func(n Node) bool { return c.bare(n) })
}

// bare reports a node that has nothing to reach it by, or nothing to reach.
func (c *checker) bare(n Node) bool {
	switch {
	case len(n.Endpoints) == 0:
		c.problem(n.Name, "the node is left out, it has no usable endpoint: give it one")
	case len(n.Prefixes) == 0:
		c.problem(n.Name, "the node is left out, it has no usable prefix: give it one of its own inside %v", c.network)
	default:
		return false
	}
	return true
}

// prefixes gives each range of addresses to one node, and leaves out nodes that have none.
func (c *checker) prefixes() {
	if c.disjoint() {
		return
	}
	type claim struct {
		prefix netip.Prefix
		node   int // index in nodes, which are sorted by name
	}
	claims := make([]claim, 0, 2*len(c.nodes))
	for i, n := range c.nodes {
		for _, p := range n.Prefixes {
			claims = append(claims, claim{p, i})
		}
	}
	// Prefixes either nest or are disjoint, so in this order whatever lies inside a prefix follows
	// it at once, after its equals.
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(comparePrefix(a.prefix, b.prefix), cmp.Compare(a.node, b.node))
	})
	for first := 0; first < len(claims); {
		next := first + 1
		for next < len(claims) && claims[next].prefix == claims[first].prefix {
			next++
		}
		winner := claims[first]
		if next < len(claims) && winner.prefix.Contains(claims[next].prefix.Addr()) {
			winner = claims[next]
		}
		for _, cl := range claims[first:next] {
			if cl == winner {
				continue
			}
			n := &c.nodes[cl.node]
			n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool { return p == cl.prefix })
			c.problem(n.Name, "prefix %v is left out, it overlaps %v of node %s: give each its own",
				cl.prefix, winner.prefix, c.nodes[winner.node].Name)
		}
		first = next
	}
	c.nodes = slices.DeleteFunc(c.nodes, func(n Node) bool { return c.bare(n) })
}

// disjoint says that no two prefixes overlap, which is all there is to know of a cluster in order. It
// takes no sorting: prefixes overlap where one of them, cut to the length of the other, is the other.
func (c *checker) disjoint() bool {
	seen := make(map[netip.Prefix]struct{}, 2*len(c.nodes))
	var lengths [2][129]bool // by family
	for _, n := range c.nodes {
		for _, p := range n.Prefixes {
			seen[p] = struct{}{}
			lengths[p.Addr().BitLen()/128][p.Bits()] = true
		}
	}
	count := 0
	for _, n := range c.nodes {
		count += len(n.Prefixes)
		for _, p := range n.Prefixes {
			for bits, used := range lengths[p.Addr().BitLen()/128][:p.Bits()] {
				if !used {
					continue
				}
				if _, wider := seen[netip.PrefixFrom(p.Addr(), bits).Masked()]; wider {
					return false
				}
			}
		}
	}
	return count == len(seen)
}

// strangers reports the nodes that self shares no address family with.
func (c *checker) strangers(self string) {
	i := slices.IndexFunc(c.nodes, func(n Node) bool { return n.Name == self })
	if i < 0 {
		return
	}
	for _, n := range c.nodes {
		if _, ok := Endpoint(c.nodes[i], n); !ok {
			c.problem(n.Name, "none of its endpoints %v is of an address family that this node has, traffic to it is dropped: give one of the two nodes another endpoint", n.Endpoints)
		}
	}
}

func (c *checker) state(self string) (State, error) {
	slices.SortFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Text, b.Text))
	})
	s := State{Problems: slices.Compact(c.problems), Nodes: make([]Node, 0, len(c.nodes))}
	for _, n := range c.nodes {
		if n.Name == self {
			s.Self = n
		} else {
			s.Nodes = append(s.Nodes, n)
		}
	}
	if s.Self.Name != "" {
		return s, nil
	}
	var why []string
	for _, p := range s.Problems {
		if p.Node == self {
			why = append(why, p.Text)
		}
	}
	if len(why) == 0 {
		return s, fmt.Errorf("this node, %q, is not among the %d nodes: add it, or set node.name", self, len(c.nodes))
	}
	return s, fmt.Errorf("this node, %q, is left out: %s", self, strings.Join(why, "; "))
}

// comparePrefix orders by address, then by length.
func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
