package compose

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
)

// standbyMetric is that of the routes of carriers that are not chosen, plus their rank. Whoever names their device has them, as probes do, and
// so has everybody while the device of the chosen one is down.
const standbyMetric = 8700

// merge makes one plan of several for the same nodes. chosen says for each node whose routes are in force. What the others have for it
// stays there all the same, its routes behind those: packets come in by every way, and another choice is one route that is replaced.
func merge(nodes []control.Node, plans []backend.Plan, chosen []int) backend.Plan {
	m := backend.Plan{InnerMTU: plans[0].InnerMTU, Features: map[string]string{}}
	of := make(map[netip.Prefix]int, 2*len(nodes)) // whose route leads there
	carrier := make(map[string]int, len(nodes))
	for i := range nodes {
		carrier[nodes[i].Name] = chosen[i]
		for _, prefix := range nodes[i].Prefixes {
			of[prefix] = chosen[i]
		}
	}
	for i := range plans {
		m.Want.Routes = append(m.Want.Routes, gateways(plans[i].Want.Routes)...)
	}
	for i := range plans {
		p := &plans[i]
		m.InnerMTU = min(m.InnerMTU, p.InnerMTU) // a pod does not know which way its packets go
		m.Devices = union(m.Devices, p.Devices)
		maps.Copy(m.Features, p.Features)
		for _, h := range p.Hops {
			if carrier[h.Node] == i {
				m.Hops = append(m.Hops, h)
			}
		}
		for _, problem := range p.Problems {
			if problem.Node == "" || carrier[problem.Node] == i {
				m.Problems = append(m.Problems, problem)
			}
		}
		add(&m.Want, &p.Want, func(r hostnet.Route) uint32 {
			if by, known := of[r.Dst]; known && by != i {
				return standbyMetric + uint32(i)
			}
			return r.Metric
		})
	}
	slices.SortFunc(m.Hops, func(a, b backend.Hop) int { return strings.Compare(a.Node, b.Node) })
	// A peer may choose another way than this node, and its packets then come in by another device than those to it leave by, which strict reverse
	// path filtering would drop. Loose (2) overrides it.
	for _, dev := range m.Devices {
		m.Want.Sysctls = union(m.Want.Sysctls, []hostnet.Sysctl{{Key: "ipv4/conf/" + dev + "/rp_filter", Value: "2"}})
	}
	return m
}

// gateways are routes to the routers of IPv6 routes that are inside of what these lead to: of one whose best route leads by another carrier's
// device the kernel says that it is not on the link (ip6_route_check_nh_onlink), and refuses it.
func gateways(routes []hostnet.Route) (list []hostnet.Route) {
	for _, r := range routes {
		if r.Via.Is6() && r.Dst.Contains(r.Via) {
			list = append(list, hostnet.Route{Dst: netip.PrefixFrom(r.Via, r.Via.BitLen()), Dev: r.Dev})
		}
	}
	return list
}

// add adds what w wants, its routes with this metric.
func add(to, w *hostnet.Want, metric func(hostnet.Route) uint32) {
	to.Network = w.Network
	to.Sysctls = union(to.Sysctls, w.Sysctls)
	to.Links = append(to.Links, w.Links...)
	to.Addrs = append(to.Addrs, w.Addrs...)
	to.Own = union(to.Own, w.Own)
	to.NextHops = append(to.NextHops, w.NextHops...)
	for _, r := range w.Routes {
		r.Metric = metric(r)
		to.Routes = append(to.Routes, r)
	}
	to.Rules = append(to.Rules, w.Rules...)
	to.Neighbors = append(to.Neighbors, w.Neighbors...)
	to.FDB = append(to.FDB, w.FDB...)
	to.Tables = append(to.Tables, w.Tables...)
	to.Passage = union(to.Passage, w.Passage)
	to.Watch = union(to.Watch, w.Watch)
}
