package compose

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft/backend"
	"weft/backend/status"
	"weft/control"
)

// maxChanges is how many changes of a peer's way are remembered.
const maxChanges = 64

// peers is what is remembered of nodes, by name. With one carrier those are left out that were always reached.
type peers map[string]*record

// record is what is remembered of one node.
type record struct {
	choice
	changes []status.Change // the last ones
	changed uint64          // how many there were, the first choice not counted
	present bool            // in the State that is being planned for
}

// choose chooses a carrier for each node, and returns their places; none = nobody carries to it. The lock is held.
func (p *Planner) choose(nodes []control.Node, plans []backend.Plan) []int {
	now := p.now()
	chosen := make([]int, len(nodes))
	at := make([]int, len(plans)) // in their hops, which are in order as the nodes are
	wrong := make([]map[string]string, len(plans))
	for j := range plans {
		wrong[j] = make(map[string]string, len(plans[j].Problems))
		for _, problem := range plans[j].Problems {
			if _, told := wrong[j][problem.Node]; !told {
				wrong[j][problem.Node] = problem.Text
			}
		}
	}
	offers := make([]offer, len(plans))
	for i := range nodes {
		n := &nodes[i]
		for j := range plans {
			hops := plans[j].Hops
			for at[j] < len(hops) && hops[at[j]].Node < n.Name {
				at[j]++
			}
			var hop *backend.Hop
			if at[j] < len(hops) && hops[at[j]].Node == n.Name {
				hop = &hops[at[j]]
			}
			offers[j] = p.offer(j, n, hop, wrong[j][n.Name])
		}
		r := p.peers[n.Name]
		if r == nil {
			if len(plans) == 1 && offers[0].unfit == "" {
				continue
			}
			r = &record{choice: choice{chosen: none}}
			p.peers[n.Name] = r
		}
		r.present = true
		p.settle(n.Name, r, choose(offers, r.choice, now), now)
		chosen[i] = r.chosen
	}
	for name, r := range p.peers {
		if !r.present {
			delete(p.peers, name)
		}
		r.present = false
	}
	return chosen
}

// offer is what a carrier has for a node: hop, or nil and what is wrong.
func (p *Planner) offer(carrier int, n *control.Node, hop *backend.Hop, wrong string) offer {
	c := &p.carriers[carrier]
	o := offer{mode: c.Mode}
	o.way, o.unfit = p.way(c, n)
	part := hop != nil && len(hop.Prefixes) < len(n.Prefixes) && len(p.carriers) > 1
	if o.unfit != "" || hop != nil && !part {
		o.link = p.link(n, o.way)
		return o
	}
	if o.unfit = wrong; wrong != "" {
		return o
	}
	o.unfit = fmt.Sprintf("none of its endpoints %v is of an address family that this node has", n.Endpoints)
	return o
}

// settle takes note of a choice.
func (p *Planner) settle(name string, r *record, next choice, now time.Time) {
	from, to := r.way(), next.way()
	fresh := len(r.candidates) == 0
	before := r.choice
	r.choice = next
	if from == to && !(fresh && len(p.carriers) > 1) {
		return
	}
	change := status.Change{At: now, From: from, To: to, Reason: next.why(&before)}
	if len(r.changes) == maxChanges {
		r.changes = slices.Delete(r.changes, 0, 1)
	}
	r.changes = append(r.changes, change)
	if !fresh {
		r.changed++
		p.log.Info("another way to a peer", zap.String("peer", name), zap.String("from", from), zap.String("to", to), zap.String("reason", change.Reason))
	}
}

// way is the chosen one's; "" = none.
func (c *choice) way() string {
	if c.chosen < 0 {
		return ""
	}
	return c.candidates[c.chosen].way.String()
}

// why says why the chosen one is another than before.
func (c *choice) why(before *choice) string {
	if before.chosen >= 0 {
		last := before.candidates[before.chosen]
		for i := range c.candidates {
			if is := &c.candidates[i]; is.way == last.way && is.mode == last.mode && !is.usable() {
				return is.describe()
			}
		}
	}
	if c.chosen >= 0 {
		is := &c.candidates[c.chosen]
		for i := range before.candidates {
			if was := &before.candidates[i]; was.way == is.way && was.mode == is.mode && !was.usable() {
				return fmt.Sprintf("%s can be used; before, %s", is.way, was.describe())
			}
		}
	}
	if better := c.better(); better != "" {
		return better
	}
	return "it is the preferred one"
}

// better says what keeps the ways from being used that are preferred to the chosen one; "" = there are none.
func (c *choice) better() string {
	var reasons []string
	for i := range c.candidates {
		if i == c.chosen {
			break
		}
		reasons = append(reasons, c.candidates[i].describe())
	}
	return strings.Join(reasons, "; ")
}

func (c *candidate) describe() string {
	text := fmt.Sprintf("%s is %s", c.way, c.state)
	if c.reason != "" {
		text += ": " + c.reason
	}
	return text
}

// unreached says why no way leads to the node.
func (r *record) unreached() string {
	return fmt.Sprintf("no way leads to it: %s: choose modes with a way in common, and the same ports", r.better())
}

// Tell implements backend.Chooser.
func (p *Planner) Tell(hops []backend.Hop) (unreached []backend.Hop) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := 0
	for i := range p.nodes {
		n := &p.nodes[i]
		for at < len(hops) && hops[at].Node < n.Name {
			at++
		}
		r := p.peers[n.Name]
		switch {
		case at == len(hops) || hops[at].Node != n.Name:
			h := backend.Hop{Node: n.Name, Prefixes: n.Prefixes, State: status.StateUnfit}
			if r != nil {
				h.Reason, h.Changes = r.better(), r.changed
			}
			unreached = append(unreached, h)
		case r == nil:
			way, _ := p.way(&p.carriers[0], n)
			hops[at].Way, hops[at].State = way.String(), status.StateAssumed
		default:
			hops[at].Way, hops[at].Reason, hops[at].Changes = r.way(), r.better(), r.changed
			if r.chosen >= 0 {
				hops[at].State = r.candidates[r.chosen].state
			}
		}
	}
	return unreached
}

// Choice implements backend.Chooser.
func (p *Planner) Choice(node string) (backend.Choice, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, known := control.Find(p.nodes, node)
	if !known {
		return backend.Choice{}, false
	}
	n := &p.nodes[at]
	c := backend.Choice{Node: node, Takes: []string{}, Candidates: []status.Candidate{}, Changes: []status.Change{}}
	for _, w := range n.Ways {
		c.Takes = append(c.Takes, w.String())
	}
	r := p.peers[node]
	if r == nil {
		way, _ := p.way(&p.carriers[0], n)
		c.Way = way.String()
		c.Candidates = append(c.Candidates, status.Candidate{Way: c.Way, Mode: p.carriers[0].Mode, State: status.StateAssumed, Chosen: true})
		return c, true
	}
	c.Way, c.Changes = r.way(), append(c.Changes, r.changes...)
	if last := len(r.changes) - 1; last >= 0 {
		c.Since = r.changes[last].At
	}
	for i, is := range r.candidates {
		c.Candidates = append(c.Candidates, status.Candidate{Way: is.way.String(), Mode: is.mode, State: is.state, Reason: is.reason, Since: is.since, Until: is.until,
			Chosen: i == r.chosen})
	}
	return c, true
}
