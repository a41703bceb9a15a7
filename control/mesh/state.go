package mesh

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"weft/control"
)

const (
	// tellSilent is how long a node may be silent before it is a problem: a restart is none.
	tellSilent = time.Minute
	// mostSilent is how many silent nodes have a problem of their own.
	mostSilent = 16
)

// state makes the State of what is known now, and says whether it differs from the last one, or that one is old.
func (s *session) state(now time.Time) (control.State, bool) {
	picked, problems := s.pick()
	nodes := make([]control.Node, 0, len(picked)+1)
	for _, e := range picked {
		if e.id != s.own {
			nodes = append(nodes, e.node())
		}
	}
	self := s.self
	self.Prefixes = nil
	for _, c := range s.claims {
		if c.Held {
			self.Prefixes = append(self.Prefixes, c.Prefix)
		}
	}
	in := nodes
	if len(self.Prefixes) > 0 {
		in = append(in, self)
	}
	// The elder of two claims is the one that its record says.
	stamp := func(c control.Claim) uint64 {
		e := picked[c.Node.Name]
		if c.Node.Name == self.Name {
			e = s.book.entries[s.own]
		}
		if e == nil {
			return unborn
		}
		for _, own := range e.Claims {
			if c.Prefix.IsValid() && own.Prefix == c.Prefix {
				return own.Stamp
			}
		}
		return e.Born
	}
	st, err := control.Check(self.Name, s.set.Network, in, s.last, func(a, b control.Claim) int { return cmp.Compare(stamp(a), stamp(b)) })
	if err != nil { // this node has nothing yet, or nothing that counts
		if len(self.Prefixes) > 0 {
			problems = append(problems, control.Problem{Text: err.Error()})
		}
		self.Prefixes = nil
		st.Self = self
	}
	// What is contested comes last: pods get addresses of what comes first.
	slices.SortStableFunc(st.Self.Prefixes, func(a, b netip.Prefix) int {
		return cmp.Compare(len(s.contested[a]), len(s.contested[b]))
	})
	st.Problems = append(append(problems, s.problems(now)...), st.Problems...)
	st.AsOf = s.asOf(now)
	st.Number(&s.last)
	news := s.last.Revision != st.Revision || !slices.Equal(s.last.Problems, st.Problems) || now.Sub(s.confirmed) >= confirm
	if !news {
		return st, false
	}
	for _, p := range st.Problems {
		if !slices.Contains(s.last.Problems, p) {
			s.log.Warn("the cluster's data has a problem", zap.String("node", p.Node), zap.String("problem", p.Text))
		}
	}
	s.last, s.confirmed = st, now
	for name, e := range picked {
		s.named[name] = e.id
	}
	return st, true
}

// pick keeps one record of each name: whose it was in the last State, else the eldest; this node's own for its own name. What is of another network is left out.
func (s *session) pick() (picked map[string]*entry, problems []control.Problem) {
	picked = make(map[string]*entry, len(s.book.entries))
	better := func(a, b *entry) bool {
		own := func(e *entry) bool { return e.id == s.own }
		was := func(e *entry) bool { return s.named[e.Name] == e.id }
		switch {
		case own(a) != own(b):
			return own(a)
		case was(a) != was(b):
			return was(a)
		case a.Born != b.Born:
			return a.Born < b.Born
		}
		return slices.Compare(a.id[:], b.id[:]) < 0
	}
	for _, e := range s.book.entries {
		if e.VNI != s.set.VNI {
			problems = append(problems, control.Problem{Node: e.Name, Text: fmt.Sprintf("the node is left out: its network.vni is %d, this node's %d: write the same on all nodes", e.VNI, s.set.VNI)})
			continue
		}
		if len(e.prefixes) == 0 && e.id != s.own {
			continue // it has none yet, and says so itself
		}
		if other := picked[e.Name]; other != nil {
			kept, left := other, e
			if better(e, other) {
				kept, left = e, other
			}
			picked[e.Name] = kept
			problems = append(problems, control.Problem{Node: e.Name, Text: fmt.Sprintf("the name is used by two nodes; the one at %v is left out, the one at %v kept: set another node.name on one of them, or `weft forget` it if it is gone",
				left.Gossip.Addr(), kept.Gossip.Addr())})
			continue
		}
		picked[e.Name] = e
	}
	slices.SortFunc(problems, func(a, b control.Problem) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Text, b.Text))
	})
	return picked, problems
}

// asOf is when the mesh last confirmed what is known: now, while anybody is heard or there is nobody to hear.
func (s *session) asOf(now time.Time) time.Time {
	others, live := s.others()
	if s.last.AsOf.IsZero() || others == 0 || live > 0 {
		return now
	}
	return s.last.AsOf
}

// others counts the other nodes that are known, and those of them that are heard.
func (s *session) others() (known, live int) {
	for who, e := range s.book.entries {
		if who == s.own {
			continue
		}
		known++
		if e.live {
			live++
		}
	}
	return known, live
}

// problems are those of the mesh itself.
func (s *session) problems(now time.Time) (list []control.Problem) {
	say := func(node, format string, args ...any) {
		list = append(list, control.Problem{Node: node, Text: fmt.Sprintf(format, args...)})
	}
	if s.opened != "" {
		say("", "this node is not in the mesh: %s", s.opened)
	}
	if s.waiting != "" {
		say("", "this node has no prefix of its own yet: %s", s.waiting)
	}
	if s.double != "" {
		say(s.self.Name, "%s", s.double)
	}
	for _, c := range s.claims {
		if by := s.contested[c.Prefix]; by != "" {
			say(s.self.Name, "prefix %v is node %s's by an elder claim: pods with addresses of it are reached only by nodes that knew them before; make them anew, and restart this daemon when none is left", c.Prefix, by)
		}
	}
	known, live := s.others()
	if known > 0 && live == 0 {
		say("", "none of the %d other nodes is heard: what they said last stays in force; look at the network, and at port %d", known, s.set.Port)
	} else {
		list = append(list, s.silent(now)...)
	}
	for _, st := range s.strangers.now(now) {
		say("", "%s", st.text())
	}
	return list
}

// silent names who has been silent for long.
func (s *session) silent(now time.Time) (list []control.Problem) {
	var long []*entry
	for who, e := range s.book.entries {
		if who != s.own && !e.live && now.Sub(e.silent) >= tellSilent {
			long = append(long, e)
		}
	}
	slices.SortFunc(long, func(a, b *entry) int { return cmp.Or(cmp.Compare(a.Name, b.Name), slices.Compare(a.id[:], b.id[:])) })
	for _, e := range long[:min(len(long), mostSilent)] {
		list = append(list, control.Problem{Node: e.Name, Text: fmt.Sprintf("it has not been heard since %s: its prefixes stay its own until %s; `weft forget %s` frees them now",
			e.silent.Format(time.RFC3339), e.silent.Add(s.set.Forget).Format(time.RFC3339), e.Name)})
	}
	if more := len(long) - mostSilent; more > 0 {
		list = append(list, control.Problem{Text: fmt.Sprintf("%d more nodes have not been heard for long", more)})
	}
	return list
}
