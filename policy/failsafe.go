package policy

import "slices"

// openPorts are what stays open on nodes whatever policies say, by Direction: nobody locks himself out, or takes a node from its cluster.
// docs/reference.md has the list.
var openPorts = [2][]Port{
	Egress: {
		onePort(UDP, 53), onePort(TCP, 53), // DNS
		onePort(UDP, 67), onePort(UDP, 547), // DHCP
		onePort(UDP, 123),                      // NTP
		onePort(TCP, 2379), onePort(TCP, 2380), // etcd
		onePort(TCP, 6443),  // the API server
		onePort(TCP, 10250), // kubelets
		onePort(TCP, 179),   // BGP
	},
	Ingress: {
		onePort(TCP, 22),                    // SSH
		onePort(UDP, 68), onePort(UDP, 546), // DHCP
		onePort(TCP, 2379), onePort(TCP, 2380),
		onePort(TCP, 6443),
		onePort(TCP, 10250),
		onePort(TCP, 179),
	},
}

func onePort(p Protocol, port uint16) Port { return Port{Protocol: p, First: port, Last: port} }

// failsafe is the policy that is asked before all others.
func failsafe(open [2][]Port) *Policy {
	p := &Policy{Name: Failsafe.Name, Tier: Failsafe, Subject: Peer{Nodes: &Selector{}}}
	for _, d := range directions {
		p.Rules[d] = []Rule{{Action: Accept, Ports: open[d]}}
	}
	return p
}

// On is the World as a node sees it: Compile makes lookups for the node itself, too, where policies are about it. The node's own open
// ports stay open beside those that do on all nodes.
func (w *World) On(node string, open [2][]Port) *World {
	v := *w
	v.self = node
	v.tiers = slices.Clone(w.tiers)
	for i, t := range v.tiers {
		if t.tier == Failsafe {
			var all [2][]Port
			for _, d := range directions {
				all[d] = slices.Concat(openPorts[d], open[d])
			}
			v.tiers[i].policies = []*Policy{failsafe(all)}
		}
	}
	return &v
}
