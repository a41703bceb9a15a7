package etcd

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft/control"
)

// forgotten are nodes that a store forgot which was wiped, or restored from a backup. They have not
// gone: they are on their way back, and traffic to them goes on until they had a lease's time.
type forgotten struct {
	nodes []control.Node
	of    int // how many there were
	why   string
	since time.Time
	until time.Time
}

// wiped keeps the cluster as it was last published, because a store that forgot all its nodes says
// nothing about them.
func (m *member) wiped(why string) {
	m.rev, m.cluster, m.grant.mod = 0, 0, 0
	if !m.published || !m.grant.held() {
		return
	}
	now := time.Now()
	m.forgotten = forgotten{nodes: m.last.Nodes, of: len(m.last.Nodes), why: why, since: now, until: now.Add(m.set.Lease)}
	m.log.Error("the store was wiped or restored: forwarding goes on with the nodes it knew", zap.String("why", why), zap.Int("nodes", m.forgotten.of))
}

// recovering says that some of them are not back yet.
func (m *member) recovering() bool { return len(m.forgotten.nodes) > 0 }

// withForgotten adds the nodes that have not come back to those that the store knows.
func (m *member) withForgotten(nodes []control.Node) []control.Node {
	if !m.recovering() {
		return nodes
	}
	t, live := newTaken(), map[string]bool{m.self.Name: true}
	for _, n := range nodes {
		live[n.Name] = true
		for _, p := range n.Prefixes {
			t.add(p)
		}
	}
	late := time.Now().After(m.forgotten.until)
	m.forgotten.nodes = slices.DeleteFunc(slices.Clone(m.forgotten.nodes), func(n control.Node) bool {
		return late || live[n.Name] || slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return t.within(p.Bits()).overlaps(p) })
	})
	if !m.recovering() {
		m.log.Info("the nodes that the store forgot are back, or their time is over", zap.Int("nodes", m.forgotten.of))
		m.forgotten = forgotten{}
	}
	return append(nodes, m.forgotten.nodes...)
}

// publish hands on the State where it is another one, or newer.
func (m *member) publish() {
	if !m.published && !m.grant.held() && m.refused == "" {
		return // nothing was ever known
	}
	s := m.state()
	s.AsOf = m.asOf
	s.Number(&m.last)
	for _, p := range s.Problems {
		if !slices.Contains(m.last.Problems, p) {
			m.log.Warn("the cluster's data has a problem", zap.String("node", p.Node), zap.String("problem", p.Text))
		}
	}
	m.last, m.published = s, true
	m.update(s)
}

// state makes the State of what is known.
func (m *member) state() control.State {
	if nodes, ok := m.patched(); ok {
		clear(m.view.dirty)
		return control.State{Self: m.last.Self, Nodes: nodes, Problems: m.problems()}
	}
	m.index = nil
	clear(m.view.dirty)
	m.view.whole = false
	told, garbage, elder := m.view.cluster()
	nodes := slices.DeleteFunc(m.withForgotten(told), func(n control.Node) bool { return n.Name == m.self.Name })
	problems := append(m.problems(), garbage...)
	if !m.grant.held() {
		// Without a prefix of its own this node has no business in the network: nothing goes out under
		// addresses that are another's.
		return control.State{Self: m.self, Problems: problems}
	}
	at, _ := control.Find(nodes, m.self.Name)
	s, err := control.Check(m.self.Name, m.set.Network, slices.Insert(nodes, at, m.grant.node), m.incumbents(), elder)
	switch {
	case err != nil:
		s.Self, s.Nodes = m.last.Self, m.last.Nodes
		if s.Self.Name == "" {
			s.Self = m.self
		}
		problems = append(problems, control.Problem{Text: err.Error()})
	case len(garbage) == 0 && len(s.Problems) == 0 && m.selfTold():
		m.index = control.NewIndex(append(slices.Clone(s.Nodes), s.Self))
	}
	s.Problems = append(problems, s.Problems...)
	return s
}

// incumbents is the last State without the nodes that the store forgot: they give way to whoever is there.
func (m *member) incumbents() control.State {
	last := m.last
	if m.recovering() {
		last.Nodes = slices.DeleteFunc(slices.Clone(last.Nodes), func(n control.Node) bool {
			return slices.ContainsFunc(m.forgotten.nodes, func(f control.Node) bool { return f.Name == n.Name })
		})
	}
	return last
}

// problems are those of this node and of the store.
func (m *member) problems() []control.Problem {
	var list []control.Problem
	say := func(node, format string, args ...any) {
		list = append(list, control.Problem{Node: node, Text: fmt.Sprintf(format, args...)})
	}
	if m.outage != "" {
		say("", "%s. Forwarding goes on with what was known at %s", strings.TrimSuffix(m.outage, "."), m.asOf.Format(time.RFC3339))
		if end := m.grant.renewed.Add(m.set.Lease); m.grant.lease != 0 && time.Now().After(end) {
			say(m.self.Name, "its lease ended at %s: another node may have been given its prefixes by now", end.Format(time.RFC3339))
		}
	}
	if m.wrong != "" {
		say("", "%s. What was in force before still is", m.wrong)
	}
	if m.recovering() {
		say("", "etcd was wiped or restored at %s (%s): forwarding goes on; %d of %d nodes have not come back and are kept until %s. Look at why, and at whether each node's daemon runs",
			m.forgotten.since.Format(time.RFC3339), m.forgotten.why, len(m.forgotten.nodes), m.forgotten.of, m.forgotten.until.Format(time.RFC3339))
	}
	if m.refused != "" {
		say(m.self.Name, "%s", m.refused)
	}
	if m.notice != "" && m.notice != m.refused {
		say(m.self.Name, "%s", m.notice)
	}
	return list
}
