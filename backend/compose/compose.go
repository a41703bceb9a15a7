// Package compose chooses for each peer by which way it is reached, and makes one plan of those of several ways to carry traffic. A node
// takes packets by every way that it publishes, at any time, and sends them to each peer by one: so it changes its mind without asking the
// peer, and what it takes is one route, or the hop of one table, that is replaced.
//
// Each carrier plans for all peers that take one of its ways, whether it is chosen for them or not: its devices, neighbours and tables are
// there before the first packet. Only the routes are those of the chosen one.
package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/backend"
	"weft/control"
	"weft/hostnet/egress"
)

// Carrier is one way to carry traffic on this node.
type Carrier struct {
	Mode string        // its name
	Ways []control.Way // by which it takes packets and sends them, the one it likes best first
	backend.Planner
}

// Planner chooses among carriers, peer by peer. It implements backend.Chooser.
type Planner struct {
	carriers []Carrier       // the preferred first
	seals    bool            // whether traffic is sealed
	permit   map[string]bool // nodes that may be spoken to in clear all the same
	silent   int             // the carrier by which nodes are reached that do not say what they take
	prober   Prober          // nil = nothing is known of how the ways are
	now      func() time.Time
	log      *zap.Logger

	mu      sync.Mutex
	nodes   []control.Node // of the last plan
	peers   peers
	trouble string // why not all ways are probed, nor all probes answered
}

// New makes a Planner of the carriers, the preferred first.
func New(s backend.Settings, carriers ...Carrier) *Planner {
	p := &Planner{carriers: carriers, seals: s.Seal != nil, permit: map[string]bool{}, now: time.Now, log: s.Log, peers: peers{}}
	if s.Log == nil {
		p.log = zap.NewNop()
	}
	p.silent = slices.IndexFunc(carriers, func(c Carrier) bool {
		return len(c.Ways) > 0 && (p.seals && c.Ways[0].Sealed() || !p.seals && c.Ways[0].Name == control.WayVXLAN)
	})
	if p.silent < 0 {
		p.silent = len(carriers) - 1
	}
	if s.Seal != nil {
		for _, name := range s.Seal.PermitPlain {
			p.permit[name] = true
		}
	}
	return p
}

// Self implements backend.Planner: what all carriers have to say, and that probes are answered, unless it has turned out that they cannot be.
func (p *Planner) Self() control.Node {
	n := control.Node{Ways: p.ways()}
	p.mu.Lock()
	if p.prober != nil && p.trouble == "" {
		n.Features = []string{control.FeatureProbe}
	}
	p.mu.Unlock()
	for _, c := range p.carriers {
		s := c.Self()
		n.Name, n.PublicKey = s.Name, cmp.Or(n.PublicKey, s.PublicKey)
		if s.MAC != (control.MAC{}) {
			n.MAC = s.MAC
		}
		n.Features = union(n.Features, s.Features)
	}
	return n
}

// ways are those by which this node takes packets.
func (p *Planner) ways() (list []control.Way) {
	for _, c := range p.carriers {
		list = union(list, c.Ways)
	}
	return list
}

func union[T comparable](list, more []T) []T {
	for _, x := range more {
		if !slices.Contains(list, x) {
			list = append(list, x)
		}
	}
	return list
}

// way is by which of its ways a carrier sends to a node; why not, where it cannot. Where a node does not say what it takes, it is assumed
// to take what is sent: so it was before nodes said anything. Of several carriers that is the first one that sends VXLAN, as earlier nodes do wherever they
// are, else the last: one that is there may not hear what the others send, and nothing would tell.
func (p *Planner) way(c *Carrier, n *control.Node) (w control.Way, unfit string) {
	if len(c.Ways) == 0 {
		return w, ""
	}
	if len(n.Ways) == 0 {
		if by := &p.carriers[p.silent]; c.Mode != by.Mode {
			return c.Ways[0], fmt.Sprintf("it does not say by which ways it takes packets, and is assumed to take %s", by.Ways[0])
		}
		return c.Ways[0], ""
	}
	for _, w := range c.Ways {
		if (!p.seals || w.Sealed() || p.permit[n.Name]) && slices.Contains(n.Ways, w) {
			return w, ""
		}
	}
	sends := c.Ways
	if p.seals && !p.permit[n.Name] {
		sends = slices.DeleteFunc(slices.Clone(sends), func(w control.Way) bool { return !w.Sealed() })
	}
	return c.Ways[0], fmt.Sprintf("it takes %s, and mode %s sends %s", join(n.Ways), c.Mode, join(sends))
}

// Plan implements backend.Planner.
func (p *Planner) Plan(s *control.State, u *egress.Underlay) (backend.Plan, error) {
	plans := make([]backend.Plan, len(p.carriers))
	plain := len(p.carriers) == 1 // and everybody takes what it sends, and is reached
	for i := range p.carriers {
		part := *s
		part.Nodes = p.takers(&p.carriers[i], s.Nodes)
		var err error
		if plans[i], err = p.carriers[i].Plan(&part, u); err != nil {
			return backend.Plan{}, err
		}
		plain = plain && len(plans[i].Hops) == len(s.Nodes)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodes = s.Nodes
	if plain && len(p.peers) == 0 {
		return p.warned(plans[0], s), nil
	}
	chosen := p.choose(s.Nodes, plans)
	m := plans[0]
	if len(plans) > 1 {
		m = merge(s.Nodes, plans, chosen)
		p.aim(s, plans)
	}
	told := make(map[string]bool, len(m.Problems))
	for _, problem := range m.Problems {
		told[problem.Node] = true
	}
	m.Problems = slices.Clip(m.Problems) // it may be a carrier's
	if p.trouble != "" {
		m.Problems = append(m.Problems, control.Problem{Node: s.Self.Name, Text: "ways are not probed, and this node does not say that it answers: " + p.trouble})
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if chosen[i] == none && !told[n.Name] && shares(s.Self, n) {
			m.Problems = append(m.Problems, control.Problem{Node: n.Name, Text: p.peers[n.Name].unreached()})
		}
		if len(plans) > 1 && len(n.Ways) == 0 {
			m.Problems = append(m.Problems, control.Problem{Node: n.Name, Text: fmt.Sprintf("it does not say by which ways it takes packets, and is sent %s alone: upgrade weft there, or write its ways in nodes.yaml", p.carriers[p.silent].Ways[0])})
		}
	}
	return p.warned(m, s), nil
}

// shares says that a node has an endpoint of an address family that this one has: else the State says so itself.
func shares(self control.Node, n *control.Node) bool {
	_, ok := control.Endpoint(self, *n)
	return ok
}

// warned adds what is wrong with what the others are told of this node.
func (p *Planner) warned(m backend.Plan, s *control.State) backend.Plan {
	if own := p.ways(); len(own) > 0 {
		for _, w := range s.Self.Ways {
			if !slices.Contains(own, w) {
				m.Problems = append(slices.Clip(m.Problems), control.Problem{Node: s.Self.Name,
					Text: fmt.Sprintf("the others are told that this node takes %s, and it takes %s: correct its ways, or its mode and port", w, join(own))})
			}
		}
	}
	return m
}

func join(ways []control.Way) string {
	words := make([]string, len(ways))
	for i, w := range ways {
		words[i] = w.String()
	}
	return strings.Join(words, ", ")
}

// takers are the nodes that take one of a carrier's ways: the list itself where all do.
func (p *Planner) takers(c *Carrier, nodes []control.Node) []control.Node {
	stranger := func(n control.Node) bool { _, unfit := p.way(c, &n); return unfit != "" }
	if !slices.ContainsFunc(nodes, stranger) {
		return nodes
	}
	return slices.DeleteFunc(slices.Clone(nodes), stranger)
}
