package control

import (
	"fmt"
	"net/netip"
	"slices"
)

// Reserved is a range of addresses that a node needs outside of the overlay: a network of its own links, a router, a server.
type Reserved struct {
	Prefix netip.Prefix
	What   string // in words: "this node's own network 192.0.2.0/24 on eth0"
}

// Spare leaves out of s what the overlay would take of a node's reserved ranges: routes to peers' prefixes would go before those to the ranges
// themselves. Each is a Problem, with its remedy. What lies inside the node's own prefixes is for the node to have, as hosts of its
// own; one elsewhere in the network is a Problem by itself, for addresses there that no route leads to are refused. Where
// there is nothing to leave out, the lists are those of s.
func (s State) Spare(network []netip.Prefix, reserved []Reserved) State {
	reserved = slices.DeleteFunc(slices.Clone(reserved), func(g Reserved) bool {
		return !slices.ContainsFunc(network, g.Prefix.Overlaps) || slices.ContainsFunc(s.Self.Prefixes, func(own netip.Prefix) bool {
			return own.Overlaps(g.Prefix) && own.Bits() <= g.Prefix.Bits()
		})
	})
	if len(reserved) == 0 {
		return s
	}
	problems := slices.Clone(s.Problems)
	for _, g := range reserved {
		if wrong := Covers(network, g); wrong != "" {
			problems = append(problems, Problem{Text: wrong})
		}
	}
	nodes, edited := s.Nodes, false
	var kept []Node
	for i, n := range nodes {
		left := slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool {
			at := slices.IndexFunc(reserved, func(g Reserved) bool { return g.Prefix.Overlaps(p) })
			if at >= 0 {
				problems = append(problems, Problem{Node: n.Name, Text: fmt.Sprintf(
					"prefix %v is left out on this node, it would take away %s: give the node another prefix, or that network other addresses", p, reserved[at].What)})
			}
			return at >= 0
		})
		if len(left) < len(n.Prefixes) && !edited {
			kept, edited = slices.Clone(nodes[:i]), true
		}
		if n.Prefixes = left; edited && len(left) > 0 {
			kept = append(kept, n)
		}
	}
	if edited {
		s.Nodes = kept
	}
	s.Problems = problems
	return s
}

// Covers says what is wrong where the overlay's network overlaps a reserved range, "" where it does not.
func Covers(network []netip.Prefix, g Reserved) string {
	for _, p := range network {
		if p.Overlaps(g.Prefix) {
			return fmt.Sprintf("the overlay's network %v covers %s, and would take it away: choose network.prefixes that this network has no use for", p, g.What)
		}
	}
	return ""
}
