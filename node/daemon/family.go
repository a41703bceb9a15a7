package daemon

import (
	"net/netip"
	"slices"

	"weft/control"
)

// onlyIPv4 leaves the IPv6 prefixes out of a list.
func onlyIPv4(list []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(list), func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// without6 says whether this node goes on with IPv4 alone: the network has both families, and here IPv6 cannot be had, for the reason
// given. Where the network has IPv6 alone there is nothing to go on with, and the attempts to make it so tell why.
func without6(network []netip.Prefix, why error) bool {
	v4 := onlyIPv4(network)
	return why != nil && len(v4) > 0 && len(v4) < len(network)
}

// inIPv4 is a State without IPv6 prefixes, and a problem that says so. It is made anew for each State: nobody edits one.
func inIPv4(s control.State, why error) control.State {
	s.Self.Prefixes = onlyIPv4(s.Self.Prefixes)
	s.Nodes = slices.Clone(s.Nodes)
	for i := range s.Nodes {
		s.Nodes[i].Prefixes = onlyIPv4(s.Nodes[i].Prefixes)
	}
	s.Problems = append(slices.Clone(s.Problems), control.Problem{Text: "no IPv6 on this node, IPv4 goes on: " + why.Error()})
	return s
}
