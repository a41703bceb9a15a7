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
// nodes, on what was granted before and on who was there first, never on their order.
//
// One node's garbage never harms the others: what cannot be used is left out, and named in Problems
// with its remedy. The rules, in this order:
//
//   - a node needs a valid name, at least one usable endpoint and at least one usable prefix;
//   - an endpoint inside the network is not usable: a tunnel to it would lead into itself;
//   - of two nodes with one name, one stays; an endpoint, a VTEP MAC or a public key that two nodes claim
//     is one's, and a node without the MAC or the key that it claims is left out;
//   - of prefixes that overlap, one stays.
//
// It is always the incumbent's: the node's that last, the State that was published last, gave it to. So whoever comes later,
// and whoever was there and claims something else than before, takes nothing from those who have it. Of claims that last knows
// nothing of (it is the zero State at a start) it is the elder's, where the source knows which was made first. Where it does not,
// it is for prefixes the one of the usual length (that most prefixes of the family have), then the longer one,
// so that a slip of the pen harms the line it is in; then, for everything, the node's whose name sorts first.
//
// The price: while a quarrel lasts, machines that have seen different pasts may decide it differently. It is a Problem on all.
//
// A node that self shares no address family with stays, and is a Problem: others reach it. The error
// says that self is not among the nodes that are left, and why.
func Check(self string, network []netip.Prefix, nodes []Node, last State, elder Elder) (State, error) {
	c := checker{network: network, last: &last, elder: elder, nodes: make([]Node, 0, len(nodes))}
	for i := range nodes {
		c.add(nodes[i])
	}
	c.oneOfEachName()
	c.endpoints()
	c.stations()
	c.prefixes()
	c.unreachable(self)
	return c.state(self)
}

// Claim is something that a node says is its own: a prefix, an endpoint, a VTEP MAC or a public key, or, with none of these, its name.
type Claim struct {
	Node      *Node // as the source gave it, what was wrong by itself left out; not to be edited
	Prefix    netip.Prefix
	Endpoint  netip.Addr
	MAC       MAC
	PublicKey string

	incumbent bool // the last State gave it to the node
}

// Elder says which of two claims on the same was made first: negative for a, positive for b, 0 where the source does
// not know. It is asked only where there is a quarrel that the last State does not decide, and has to order all claims on the same,
// and all prefixes (a strict weak order). nil knows nothing.
type Elder func(a, b Claim) int

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
	last     *State
	elder    Elder
	nodes    []Node // our own copies, free to edit
	problems []Problem
}

func (c *checker) problem(node, format string, args ...any) {
	c.problems = append(c.problems, Problem{Node: node, Text: fmt.Sprintf(format, args...)})
}

// claim adds what the last State says of it.
func (c *checker) claim(cl Claim) Claim {
	cl.incumbent = c.last.granted(cl)
	return cl
}

// granted says whether s gave the node what it claims. Of a name, that it was this node's which is described now.
func (s *State) granted(cl Claim) bool {
	was := &s.Self
	if was.Name != cl.Node.Name {
		at, ok := Find(s.Nodes, cl.Node.Name)
		if !ok {
			return false
		}
		was = &s.Nodes[at]
	}
	switch {
	case len(was.Prefixes) == 0: // this node, waiting: nothing was granted
		return false
	case cl.Prefix.IsValid():
		return slices.Contains(was.Prefixes, cl.Prefix)
	case cl.Endpoint.IsValid():
		return slices.Contains(was.Endpoints, cl.Endpoint)
	case cl.MAC != MAC{}:
		return was.VTEP() == cl.MAC
	case cl.PublicKey != "":
		return was.PublicKey == cl.PublicKey
	}
	return was.PublicKey == cl.Node.PublicKey && (slices.Equal(was.Prefixes, cl.Node.Prefixes) || slices.Equal(was.Endpoints, cl.Node.Endpoints))
}

// first orders claims by who has it or was there first, then by name.
func (c *checker) first(a, b Claim) int {
	if order := c.older(a, b); order != 0 {
		return order
	}
	return cmp.Compare(a.Node.Name, b.Node.Name)
}

// older orders claims (see claim): the incumbent's before others, then the elder's.
func (c *checker) older(a, b Claim) int {
	switch {
	case a.incumbent != b.incumbent && a.incumbent:
		return -1
	case a.incumbent != b.incumbent:
		return 1
	case c.elder == nil:
		return 0
	}
	return c.elder(a, b)
}

// add copies a node without what is wrong with it by itself.
func (c *checker) add(n Node) {
	if wrong := WrongName(n.Name); wrong != "" {
		c.problem("", "the node with endpoints %v and prefixes %v is left out: %s", n.Endpoints, n.Prefixes, wrong)
		return
	}
	n.Endpoints = c.keep(n.Endpoints, c.wrongEndpoint, n.Name)
	if !c.tidy(n.Prefixes) {
		n.Prefixes = slices.Clone(n.Prefixes)
		slices.SortFunc(n.Prefixes, netip.Prefix.Compare)
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
		if i > 0 && prefixes[i-1].Compare(p) >= 0 || c.wrongPrefix(p) != "" {
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

func (c *checker) wrongEndpoint(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "an endpoint is not an address: write one like 192.0.2.1 or 2001:db8::1"
	case a.Zone() != "":
		return fmt.Sprintf("endpoint %v has a zone, which means nothing to other nodes: use a global address", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("endpoint %v cannot be reached by other nodes: use the node's own unicast address", a)
	}
	for _, n := range c.network {
		if n.Contains(a) {
			return fmt.Sprintf("endpoint %v is inside the network %v: packets to it would go into the tunnel that they are to leave by: use an address outside, or another network", a, n)
		}
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
	compare := func(a, b Node) int {
		if a.Name != b.Name {
			return cmp.Compare(a.Name, b.Name)
		}
		return c.compareSameName(a, b)
	}
	if !slices.IsSortedFunc(c.nodes, compare) {
		slices.SortFunc(c.nodes, compare)
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

// compareSameName orders nodes of one name by whose it was, who was there first, and then by all that they say.
func (c *checker) compareSameName(a, b Node) int {
	if order := c.older(c.claim(Claim{Node: &a}), c.claim(Claim{Node: &b})); order != 0 {
		return order
	}
	return cmp.Or(slices.CompareFunc(a.Prefixes, b.Prefixes, netip.Prefix.Compare),
		slices.CompareFunc(a.Endpoints, b.Endpoints, netip.Addr.Compare), cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)))
}

// owners returns who has what, of that which each node claims: the first of those who claim it.
func owners[K comparable](c *checker, claimed func(*Node) []K, claim func(*Node, K) Claim) map[K]*Node {
	owner := make(map[K]*Node, len(c.nodes))
	for i := range c.nodes {
		n := &c.nodes[i]
		for _, x := range claimed(n) {
			if other, taken := owner[x]; !taken || c.first(c.claim(claim(n, x)), c.claim(claim(other, x))) < 0 {
				owner[x] = n
			}
		}
	}
	return owner
}

// endpoints gives each endpoint to one node, and leaves out nodes that have none.
func (c *checker) endpoints() {
	c.drop(c.bare)
	owner := owners(c, func(n *Node) []netip.Addr { return n.Endpoints }, func(n *Node, a netip.Addr) Claim { return Claim{Node: n, Endpoint: a} })
	for i := range c.nodes {
		n := &c.nodes[i]
		if !slices.ContainsFunc(n.Endpoints, func(a netip.Addr) bool { return owner[a] != n }) {
			continue
		}
		n.Endpoints = c.keep(n.Endpoints, func(a netip.Addr) string {
			if owner[a] == n {
				return ""
			}
			return fmt.Sprintf("endpoint %v belongs to node %s already: correct one of the two, or remove the one that is gone", a, owner[a].Name)
		}, n.Name)
	}
	c.drop(c.bare)
}

// stations leaves out nodes whose VTEP MAC or public key is another's: frames to it, and handshakes, would be taken for theirs.
func (c *checker) stations() {
	announced, sealed := false, false
	for i := range c.nodes {
		announced, sealed = announced || c.nodes[i].MAC != MAC{}, sealed || c.nodes[i].PublicKey != ""
	}
	if !announced && !sealed {
		return
	}
	var mac map[MAC]*Node
	if announced { // else they follow from names, which differ
		mac = owners(c, func(n *Node) []MAC { return []MAC{n.VTEP()} }, func(n *Node, mac MAC) Claim { return Claim{Node: n, MAC: mac} })
	}
	var key map[string]*Node
	if sealed {
		key = owners(c, (*Node).keys, func(n *Node, key string) Claim { return Claim{Node: n, PublicKey: key} })
	}
	if (mac == nil || len(mac) == len(c.nodes)) && !slices.ContainsFunc(c.nodes, func(n Node) bool { return n.PublicKey != "" && key[n.PublicKey].Name != n.Name }) {
		return
	}
	wrong := map[string]string{} // by name: the maps point into the list that is about to be edited
	for i := range c.nodes {
		n := &c.nodes[i]
		switch {
		case mac != nil && mac[n.VTEP()] != n:
			wrong[n.Name] = fmt.Sprintf("the node is left out, its VTEP MAC %v is that of node %s: restart its daemon with a name of its own, or remove the one that is gone", n.VTEP(), mac[n.VTEP()].Name)
		case n.PublicKey != "" && key[n.PublicKey] != n:
			wrong[n.Name] = fmt.Sprintf("the node is left out, its public key is that of node %s: make it one of its own (`weft keys gen`), or remove the one that is gone", key[n.PublicKey].Name)
		}
	}
	c.drop(func(n Node) bool {
		if wrong[n.Name] != "" {
			c.problem(n.Name, "%s", wrong[n.Name])
		}
		return wrong[n.Name] != ""
	})
}

// keys are the node's public keys: one, or none.
func (n *Node) keys() []string {
	if n.PublicKey == "" {
		return nil
	}
	return []string{n.PublicKey}
}

func (c *checker) drop(wrong func(Node) bool) { c.nodes = slices.DeleteFunc(c.nodes, wrong) }

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

// prefixes gives each range of addresses to one node, and leaves out nodes that have none. Claims are granted one after
// another, each unless it overlaps what is granted already.
func (c *checker) prefixes() {
	if c.disjoint() {
		return
	}
	claims := make([]Claim, 0, 2*len(c.nodes))
	for i := range c.nodes {
		for _, p := range c.nodes[i].Prefixes {
			claims = append(claims, c.claim(Claim{Node: &c.nodes[i], Prefix: p}))
		}
	}
	usual := usualLengths(claims)
	odd := func(p netip.Prefix) int {
		if p.Bits() == usual[family(p)] {
			return 0
		}
		return 1
	}
	slices.SortFunc(claims, func(a, b Claim) int {
		if order := c.older(a, b); order != 0 {
			return order
		}
		return cmp.Or(cmp.Compare(odd(a.Prefix), odd(b.Prefix)), cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), cmp.Compare(a.Node.Name, b.Node.Name),
			a.Prefix.Compare(b.Prefix))
	})
	granted := newRanges(claims)
	refused := map[string][]netip.Prefix{}
	for _, cl := range claims {
		if other, overlaps := granted.overlapping(cl.Prefix); overlaps {
			refused[cl.Node.Name] = append(refused[cl.Node.Name], cl.Prefix)
			c.problem(cl.Node.Name, "prefix %v is left out, it overlaps %v of node %s: give each its own", cl.Prefix, other.Prefix, other.Node.Name)
			continue
		}
		granted.add(cl)
	}
	for i := range c.nodes {
		n := &c.nodes[i]
		if list := refused[n.Name]; list != nil {
			n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool { return slices.Contains(list, p) })
		}
	}
	c.drop(c.bare)
}

// usualLengths are, by family, the lengths that most prefixes have; of lengths that are as common, the one that pools are
// cut into (nodeLength4, nodeLength6), or else the longest.
func usualLengths(claims []Claim) (usual [2]int) {
	var count [2][129]int
	for _, cl := range claims {
		count[family(cl.Prefix)][cl.Prefix.Bits()]++
	}
	for f, standard := range []int{nodeLength4, nodeLength6} {
		for bits, n := range count[f] {
			if most := count[f][usual[f]]; n > most || n == most && n > 0 && usual[f] != standard {
				usual[f] = bits
			}
		}
	}
	return usual
}

// ranges is a set of disjoint prefixes that knows quickly what overlaps one of them.
type ranges struct {
	members map[netip.Prefix]Claim
	above   map[netip.Prefix]Claim // wider prefixes, of the lengths in use, that have a member inside
	lengths [2][]int               // in use, by family
}

// newRanges makes an empty set for some of the claims.
func newRanges(claims []Claim) *ranges {
	r := &ranges{members: make(map[netip.Prefix]Claim, len(claims)), above: map[netip.Prefix]Claim{}}
	for _, cl := range claims {
		if f := family(cl.Prefix); !slices.Contains(r.lengths[f], cl.Prefix.Bits()) {
			r.lengths[f] = append(r.lengths[f], cl.Prefix.Bits())
		}
	}
	return r
}

func (r *ranges) overlapping(p netip.Prefix) (Claim, bool) {
	for _, bits := range r.lengths[family(p)] {
		if bits <= p.Bits() {
			if cl, ok := r.members[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
				return cl, true
			}
		}
	}
	cl, ok := r.above[p]
	return cl, ok
}

func (r *ranges) add(cl Claim) {
	r.members[cl.Prefix] = cl
	for _, bits := range r.lengths[family(cl.Prefix)] {
		if bits < cl.Prefix.Bits() {
			r.above[netip.PrefixFrom(cl.Prefix.Addr(), bits).Masked()] = cl
		}
	}
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

// unreachable reports the nodes that self shares no address family with.
func (c *checker) unreachable(self string) {
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
