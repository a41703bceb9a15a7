package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Program is a World's policies as lookups. A connection is judged in each direction by three of them: the pod's address gives its
// profile, the other end's address its identity, and both together a list of port ranges that leaves no port out. Tiers, order and
// the number of rules are gone by then.
type Program struct {
	Sides   [2]Side  // by Direction
	Lists   [][]Span // each sorted, without gaps and overlaps, from 0 to end
	Reasons []Reason
	Notes   [][]Note // by Span.Notes; the first are none
}

// Side is a Program's part for one direction.
type Side struct {
	// Profiles holds the addresses of pods that some policy is about; the others are open.
	Profiles map[netip.Addr]int
	// Peers and Nets give the identity of an address: the first that has it. What neither has is of identity 0.
	Peers map[netip.Addr]int
	Nets  []Net // disjoint, sorted; those of identity 0 left out
	// Lists names Program.Lists by identity and profile.
	Lists [][]int
	// Host is the profile of the node itself, whatever addresses it has; -1 where no policy is about it. Profiles has it by those that are known.
	Host int
}

// Net is a range of addresses of one identity.
type Net struct {
	First, Last netip.Addr
	Identity    int
}

// Span is a range of ports with one Reason.
type Span struct {
	First, Last Place
	Reason      int // in Program.Reasons
	Notes       int // in Program.Notes
}

// Place is a protocol's port as a number: those of TCP first, then of UDP and SCTP, then all other protocols' as one.
type Place uint32

const (
	perProtocol = 1 << 16
	lastPlace   = Place(3 * perProtocol) // the other protocols'
)

var placed = []Protocol{TCP, UDP, SCTP}

// place returns a protocol's first Place.
func place(p Protocol, port uint16) Place {
	if i := slices.Index(placed, p); i >= 0 {
		return Place(i*perProtocol) + Place(port)
	}
	return lastPlace
}

// Protocol returns the protocol and port of a Place; protocol 0 stands for all that have no ports in rules.
func (p Place) Protocol() (Protocol, uint16) {
	if p >= lastPlace {
		return 0, 0
	}
	return placed[p/perProtocol], uint16(p % perProtocol)
}

// Judge looks a connection up.
func (g *Program) Judge(t Traffic) (allowed bool, egress, ingress Reason) {
	src, dst := t.Src.Unmap().WithZone(""), t.Dst.Unmap().WithZone("")
	at := place(t.Protocol, t.Port)
	egress, ingress = g.look(Egress, src, dst, at), g.look(Ingress, dst, src, at)
	return !egress.Deny && !ingress.Deny, egress, ingress
}

// Noted looks up what a connection is noted for in one direction.
func (g *Program) Noted(d Direction, t Traffic) []Note {
	own, other := t.Src.Unmap().WithZone(""), t.Dst.Unmap().WithZone("")
	if d == Ingress {
		own, other = other, own
	}
	if s, ok := g.span(d, own, other, place(t.Protocol, t.Port)); ok {
		return g.Notes[s.Notes]
	}
	return nil
}

func (g *Program) look(d Direction, own, other netip.Addr, at Place) Reason {
	if s, ok := g.span(d, own, other, at); ok {
		return g.Reasons[s.Reason]
	}
	return Reason{}
}

func (g *Program) span(d Direction, own, other netip.Addr, at Place) (s Span, ok bool) {
	side := &g.Sides[d]
	profile, ok := side.Profiles[own]
	if !ok {
		return Span{}, false
	}
	list := g.Lists[side.Lists[side.identity(other)][profile]]
	i, _ := slices.BinarySearchFunc(list, at, func(s Span, at Place) int { return cmp.Compare(s.Last, at) })
	return list[i], true
}

func (s *Side) identity(a netip.Addr) int {
	if k, ok := s.Peers[a]; ok {
		return k
	}
	i, _ := slices.BinarySearchFunc(s.Nets, a, func(n Net, a netip.Addr) int { return n.Last.Compare(a) })
	if i < len(s.Nets) && s.Nets[i].First.Compare(a) <= 0 {
		return s.Nets[i].Identity
	}
	return 0
}

// Compile folds the policies about the pods for which local is true, and about the node whose view it is (On); nil = about all pods and nodes.
func (w *World) Compile(local func(*Pod) bool) *Program {
	c := compiler{world: w, program: &Program{Notes: [][]Note{nil}}, lists: map[string]int{}, reasons: map[Reason]int{}, notes: map[string]int{"": 0}, peers: map[*Peer]int{}}
	for _, d := range directions {
		c.side(d, local)
	}
	return c.program
}

// compiler numbers what is alike once.
type compiler struct {
	world   *World
	program *Program
	lists   map[string]int
	reasons map[Reason]int
	notes   map[string]int
	peers   map[*Peer]int // numbers of the rules' peers in this direction; equal ones have the same
}

// profile is what is alike of pods and nodes: the policies about them, and their ports where rules name some.
type profile struct {
	policies []*Policy
	named    []NamedPort
}

// identity is what is alike of the other ends: which rules' peers they are, and their ports where rules name some.
type identity struct {
	peers []bool // by compiler.peers
	named []NamedPort
}

func (c *compiler) side(d Direction, local func(*Pod) bool) {
	w, s := c.world, &c.program.Sides[d]
	s.Profiles, s.Peers, s.Host = map[netip.Addr]int{}, map[netip.Addr]int{}, -1
	var profiles []profile
	numbers := map[string]int{}
	relevant := map[*Policy]bool{}
	// add returns the profile of a pod or node, -1 where no policy is about it.
	add := func(e endpoint, addresses []netip.Addr) int {
		p := profile{}
		sum := ""
		for _, q := range w.Policies() {
			if q.about(d) && w.contains(&q.Subject, e) {
				p.policies = append(p.policies, q)
				relevant[q] = true
				sum += fmt.Sprintf("%p ", q)
			}
		}
		if len(p.policies) == 0 {
			return -1
		}
		if d == Ingress {
			p.named = usedPorts(p.policies, d, e.named())
			sum += fmt.Sprint(p.named)
		}
		n, ok := numbers[sum]
		if !ok {
			n = len(profiles)
			numbers[sum] = n
			profiles = append(profiles, p)
		}
		for _, a := range addresses {
			s.Profiles[a.Unmap()] = n
		}
		return n
	}
	var mine []*Pod
	for _, pod := range w.pods {
		if local == nil || local(pod) {
			mine = append(mine, pod)
		}
	}
	// The same policies about the same pods make the same Program, in whatever order the pods are told.
	slices.SortFunc(mine, func(a, b *Pod) int { return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) })
	for _, pod := range mine {
		add(endpoint{pod: pod}, pod.Addresses)
	}
	for _, node := range w.nodes {
		if w.hosts && (local == nil || node.Name == w.self) {
			n := add(endpoint{node: node}, node.Addresses)
			if node.Name == w.self {
				s.Host = n
			}
		}
	}
	if len(profiles) == 0 {
		return
	}
	policies := slices.DeleteFunc(w.Policies(), func(p *Policy) bool { return !relevant[p] })
	for _, k := range c.identities(d, s, policies) {
		row := make([]int, len(profiles))
		for i, p := range profiles {
			row[i] = c.fold(d, p, k)
		}
		s.Lists = append(s.Lists, row)
	}
}

// usedPorts returns the ports that rules of the policies call by name.
func usedPorts(policies []*Policy, d Direction, of []NamedPort) (used []NamedPort) {
	for _, n := range of {
		if slices.ContainsFunc(policies, func(p *Policy) bool {
			return slices.ContainsFunc(p.Rules[d], func(r Rule) bool {
				return slices.ContainsFunc(r.Ports, func(q Port) bool { return q.Name == n.Name })
			})
		}) {
			used = append(used, n)
		}
	}
	return used
}

// peerKey tells one Peer from another.
func peerKey(p *Peer) string {
	text := func(s *Selector) string {
		if s == nil {
			return "-"
		}
		key := ""
		for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
			key += fmt.Sprintf("%q=%q ", k, s.Labels[k])
		}
		return key + fmt.Sprintf("%q", s.Expressions)
	}
	if p.Blocks != nil {
		return fmt.Sprint(p.Blocks)
	}
	return fmt.Sprintf("%q/%s/%s/%s/%q", p.Namespace, text(p.Namespaces), text(p.Pods), text(p.Nodes), p.Accounts)
}

// identities numbers the other ends by which peers they are. The first is that of everybody else.
func (c *compiler) identities(d Direction, s *Side, policies []*Policy) (list []identity) {
	w := c.world
	var peers []*Peer
	var blocks []Block
	known := map[string]int{}
	names := map[string]bool{}
	for _, p := range policies {
		for i := range p.Rules[d] {
			for _, port := range p.Rules[d][i].Ports {
				names[port.Name] = names[port.Name] || port.Name != ""
			}
			for j := range p.Rules[d][i].Peers {
				q := &p.Rules[d][i].Peers[j]
				blocks = append(blocks, q.Blocks...)
				k := peerKey(q)
				if _, ok := known[k]; !ok {
					known[k] = len(peers)
					peers = append(peers, q)
				}
				c.peers[q] = known[k]
			}
		}
	}
	// Of the peers, those that an end is by what it is are looked for once for all that are alike; the others are asked about each address.
	var selectors, networks []int
	for i, p := range peers {
		if p.Blocks != nil {
			networks = append(networks, i)
		} else {
			selectors = append(selectors, i)
		}
	}
	selected := func(e endpoint) (is []int) {
		for _, i := range selectors {
			if w.contains(peers[i], e) {
				is = append(is, i)
			}
		}
		return is
	}
	numbers := map[string]int{}
	var sums []string // by number
	var sum []byte
	// number is the identity of an end that is among these of the selectors.
	number := func(e endpoint, among []int) int {
		sum = sum[:0]
		for _, i := range among {
			sum = append(strconv.AppendInt(sum, int64(i), 36), ' ')
		}
		for _, i := range networks {
			if w.contains(peers[i], e) {
				sum = append(strconv.AppendInt(sum, int64(i), 36), ' ')
			}
		}
		end := len(sum)
		var called []NamedPort
		if d == Egress && len(names) > 0 {
			for _, n := range e.named() {
				if names[n.Name] {
					called = append(called, n)
				}
			}
			sum = fmt.Append(sum, called)
		}
		n, ok := numbers[string(sum)]
		if !ok {
			n = len(list)
			numbers[string(sum)] = n
			k := identity{peers: make([]bool, len(peers)), named: called}
			for _, text := range strings.Fields(string(sum[:end])) {
				i, _ := strconv.ParseInt(text, 36, 0)
				k.peers[i] = true
			}
			list, sums = append(list, k), append(sums, string(sum))
		}
		return n
	}
	number(endpoint{}, nil) // the zero address is in no block
	s.Nets = atoms(blocks, func(a netip.Addr) int { return number(endpoint{addr: a}, nil) })
	// Addresses are left out that their net says the same of. In an order, for the same policies to be the same table.
	put := func(e endpoint, addresses []netip.Addr, among []int) {
		for _, a := range addresses {
			e.addr = a.Unmap()
			if n := number(e, among); n != s.identity(e.addr) {
				s.Peers[e.addr] = n
			}
		}
	}
	alike := map[string][]int{}
	for _, p := range w.pods {
		key := p.alike()
		among, known := alike[key]
		if !known {
			among = selected(endpoint{pod: p})
			alike[key] = among
		}
		put(endpoint{pod: p}, p.Addresses, among)
	}
	for _, n := range w.nodes {
		put(endpoint{node: n}, n.Addresses, selected(endpoint{node: n}))
	}
	return s.renumber(list, sums)
}

// renumber gives identities the numbers that their sums have in order: those that they have follow the order of a map.
func (s *Side) renumber(list []identity, sums []string) []identity {
	order := make([]int, len(list)) // former numbers
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order[1:], func(a, b int) int { return cmp.Compare(sums[a], sums[b]) })
	now := make([]int, len(list))
	sorted := make([]identity, len(list))
	for n, former := range order {
		now[former], sorted[n] = n, list[former]
	}
	for a, n := range s.Peers {
		s.Peers[a] = now[n]
	}
	for i := range s.Nets {
		s.Nets[i].Identity = now[s.Nets[i].Identity]
	}
	return sorted
}

// atoms cuts the blocks into disjoint ranges; within one, all addresses are alike.
func atoms(blocks []Block, number func(netip.Addr) int) (nets []Net) {
	starts := map[netip.Addr]bool{}
	for _, b := range blocks {
		for _, p := range append([]netip.Prefix{b.Prefix}, b.Except...) {
			starts[p.Masked().Addr()] = true
			if next := last(p).Next(); next.IsValid() {
				starts[next] = true
			}
		}
	}
	sorted := slices.SortedFunc(maps.Keys(starts), netip.Addr.Compare)
	for i, first := range sorted {
		n := Net{First: first, Last: last(netip.PrefixFrom(first, 0)), Identity: number(first)}
		if i+1 < len(sorted) && sorted[i+1].BitLen() == first.BitLen() {
			n.Last = sorted[i+1].Prev()
		}
		if n.Identity == 0 {
			continue
		}
		if k := len(nets) - 1; k >= 0 && nets[k].Identity == n.Identity && nets[k].Last.Next() == first {
			nets[k].Last = n.Last
			continue
		}
		nets = append(nets, n)
	}
	return nets
}

// last returns a prefix's last address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// fold decides every port between a profile and an identity, and notes what is to be noted beside.
func (c *compiler) fold(d Direction, p profile, k identity) int {
	decided, notes := c.decide(d, p, k, false)
	if slices.ContainsFunc(p.policies, func(q *Policy) bool { return q.Staged }) {
		wouldBe, _ := c.decide(d, p, k, true)
		for _, s := range wouldBe {
			if s.reason.Staged {
				notes = append(notes, noted{s.portRange, s.reason.note()})
			}
		}
	}
	return c.list(c.cut(decided, notes))
}

// decided and noted are what is said of ports.
type (
	decided struct {
		portRange
		reason Reason
	}
	noted struct {
		portRange
		note Note
	}
)

// decide has each rule take what it matches out of what is left. As if no policy were staged, or as if there were none that are.
func (c *compiler) decide(d Direction, p profile, k identity, asIf bool) (done []decided, notes []noted) {
	named := p.named
	if d == Egress {
		named = k.named
	}
	left := ports{{0, lastPlace}}
	decide := func(taken ports, r Reason) {
		for _, t := range taken {
			done = append(done, decided{t, r})
		}
	}
	for _, tier := range c.world.tiers {
		var passed ports
		var isolating []string
		staged := true // all that isolate are
		for _, q := range p.policies {
			if q.Tier != tier.tier || q.Staged && !asIf {
				continue
			}
			if q.Isolates[d] {
				isolating, staged = append(isolating, q.String()), staged && q.Staged
			}
			for i := range q.Rules[d] {
				r := &q.Rules[d][i]
				if !c.means(r, k) {
					continue
				}
				if r.Action == Log {
					for _, t := range left.common(r.places(named)) {
						notes = append(notes, noted{t, Note{Log, tier.tier, q.String(), r.name(d, i)}})
					}
					continue
				}
				taken := left.take(r.places(named))
				if r.Action == Pass {
					passed = append(passed, taken...)
					continue
				}
				decide(taken, Reason{Deny: r.Action == Deny, Tier: tier.tier, Policy: q.String(), Rule: r.name(d, i), Staged: q.Staged})
			}
		}
		if len(isolating) > 0 {
			decide(left, Reason{Deny: true, Tier: tier.tier, Policy: strings.Join(isolating, ", "), Staged: staged})
			left = nil
		}
		left = append(left, passed...)
		left.sort()
	}
	decide(left, Reason{})
	return done, notes
}

// cut has every Span noted for one thing only.
func (c *compiler) cut(done []decided, notes []noted) (spans []Span) {
	for _, s := range done {
		starts := []Place{s.first}
		for _, n := range notes {
			for _, at := range []Place{n.first, n.last + 1} {
				if s.first < at && at <= s.last {
					starts = append(starts, at)
				}
			}
		}
		slices.Sort(starts)
		starts = slices.Compact(starts)
		for i, first := range starts {
			last := s.last
			if i+1 < len(starts) {
				last = starts[i+1] - 1
			}
			var of []Note
			for _, n := range notes {
				if n.first <= first && first <= n.last {
					of = append(of, n.note)
				}
			}
			spans = append(spans, Span{first, last, c.reason(s.reason), c.noted(of)})
		}
	}
	return spans
}

// means says whether a rule's peers have an identity among them.
func (c *compiler) means(r *Rule, k identity) bool {
	if r.Peers == nil {
		return true
	}
	for i := range r.Peers {
		if k.peers[c.peers[&r.Peers[i]]] {
			return true
		}
	}
	return false
}

func (c *compiler) reason(r Reason) int {
	n, ok := c.reasons[r]
	if !ok {
		n = len(c.program.Reasons)
		c.reasons[r] = n
		c.program.Reasons = append(c.program.Reasons, r)
	}
	return n
}

func (c *compiler) noted(list []Note) int {
	key := ""
	for _, n := range list {
		key += fmt.Sprintf("%d %q %q %q,", n.Action, n.Tier.Name, n.Policy, n.Rule)
	}
	n, ok := c.notes[key]
	if !ok {
		n = len(c.program.Notes)
		c.notes[key] = n
		c.program.Notes = append(c.program.Notes, list)
	}
	return n
}

func (c *compiler) list(spans []Span) int {
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Compare(a.First, b.First) })
	var joined []Span
	key := ""
	for _, s := range spans {
		if n := len(joined) - 1; n >= 0 && joined[n].Reason == s.Reason && joined[n].Notes == s.Notes {
			joined[n].Last = s.Last
			continue
		}
		joined = append(joined, s)
	}
	for _, s := range joined {
		key += fmt.Sprintf("%d %d %d %d,", s.First, s.Last, s.Reason, s.Notes)
	}
	n, ok := c.lists[key]
	if !ok {
		n = len(c.program.Lists)
		c.lists[key] = n
		c.program.Lists = append(c.program.Lists, joined)
	}
	return n
}

// places returns what a rule matches, where the destination pod has these named ports.
func (r *Rule) places(named []NamedPort) (all ports) {
	if r.Ports == nil {
		return ports{{0, lastPlace}}
	}
	for _, p := range r.Ports {
		if p.Name == "" {
			all = append(all, portRange{place(p.Protocol, p.First), place(p.Protocol, p.Last)})
			continue
		}
		for _, n := range named {
			if n.Name == p.Name && (p.Protocol == 0 || p.Protocol == n.Protocol) {
				all = append(all, portRange{place(n.Protocol, n.Port), place(n.Protocol, n.Port)})
			}
		}
	}
	return all
}

// ports are ranges: what is left to be decided is kept sorted and disjoint.
type ports []portRange

type portRange struct{ first, last Place }

func (l ports) sort() {
	slices.SortFunc(l, func(a, b portRange) int { return cmp.Compare(a.first, b.first) })
}

// common returns what there is of ranges, in any order and overlapping, each part once.
func (l ports) common(ranges ports) ports {
	rest := slices.Clone(l)
	return rest.take(ranges)
}

// take removes ranges, in any order and overlapping, and returns what was there of them.
func (l *ports) take(ranges ports) (taken ports) {
	for _, r := range ranges {
		i, _ := slices.BinarySearchFunc(*l, r.first, func(have portRange, first Place) int { return cmp.Compare(have.last, first) })
		var rest ports
		end := i
		for ; end < len(*l) && (*l)[end].first <= r.last; end++ {
			have := (*l)[end]
			t := portRange{max(have.first, r.first), min(have.last, r.last)}
			taken = append(taken, t)
			if have.first < t.first {
				rest = append(rest, portRange{have.first, t.first - 1})
			}
			if t.last < have.last {
				rest = append(rest, portRange{t.last + 1, have.last})
			}
		}
		if end > i {
			*l = slices.Replace(*l, i, end, rest...)
		}
	}
	return taken
}
