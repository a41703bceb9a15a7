// Package kernelvxlan carries traffic by the kernel's own VXLAN devices: no packet passes through weft.
//
// One device per underlay family of this node, weft-vx4 and weft-vx6, each told everything it needs: nothing is
// learnt, no ARP, no flooding. For a peer with prefix 10.244.2.0/24, VTEP MAC M and endpoint E there are
//
//	route      10.244.2.0/24 via 10.244.2.0 dev weft-vx4 onlink src 10.244.1.1
//	neighbour  10.244.2.0 lladdr M dev weft-vx4 permanent
//	FDB        M dst E dev weft-vx4 permanent
//
// so that a packet costs three look-ups. IPv6 prefixes use the same device in the same way: the next hop is the
// prefix's network address, which no host has (for IPv6 it is the subnet-router anycast address). A prefix of
// one address is its own next hop.
//
// The kernel keeps all of it: forwarding survives the daemon, and the next one adopts what it finds.
package kernelvxlan

import (
	"net/netip"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/ipnet"
	"weft/packet"
)

// Device names, by the underlay's family.
const (
	device4 = "weft-vx4"
	device6 = "weft-vx6"
)

// overhead is what VXLAN adds to an inner IP packet besides the outer IP and UDP headers, bytes.
const overhead = packet.VXLANHeader + packet.EthernetHeader

// planner plans the kernel's VXLAN. It implements backend.Planner.
type planner struct {
	set      backend.Settings
	checksum bool
}

// NewPlanner makes what mode vxlan plans by, with outer UDP checksums. It works in the network namespace of the calling thread.
func NewPlanner(s backend.Settings) (backend.Planner, error) { return &planner{s, true}, nil }

// NewPlannerWithoutChecksum makes what mode vxlan-nocsum plans by: the outer UDP checksum is zero, as RFC 7348 §4.1 has it
// and Flannel and Calico ship it. Over IPv6 zero is sent, and taken from any peer (RFC 6935); what then protects the
// VXLAN header is the link's own check.
func NewPlannerWithoutChecksum(s backend.Settings) (backend.Planner, error) {
	return &planner{s, false}, nil
}

// Self returns what to publish about this node.
func (v *planner) Self() control.Node {
	return control.Node{Name: v.set.Node, MAC: control.VTEPMAC(v.set.Node)}
}

func deviceFor(endpoint netip.Addr) string {
	if endpoint.Is4() {
		return device4
	}
	return device6
}

// Plan implements backend.Planner.
func (v *planner) Plan(s *control.State, u *egress.Underlay) (backend.Plan, error) {
	p := backend.Plan{InnerMTU: packet.InnerMTU(u.MTU, u.V6(), overhead), Features: map[string]string{"udp-checksum": "on"}}
	if !v.checksum {
		p.Features["udp-checksum"] = "off: the mode sends zero"
	}
	if err := u.Fits(p.InnerMTU, v.set.Network); err != nil {
		return p, err
	}
	self, nodes := u.Self(s.Self), s.Nodes
	w := hostnet.Want{
		Network: v.set.Network,
		Sysctls: hostnet.Forwarding(v.set.Network),
		Watch:   u.Devices,
	}
	mac := self.VTEP()
	for _, local := range u.Local {
		p.Devices = append(p.Devices, deviceFor(local))
		w.Links = append(w.Links, hostnet.Link{
			Name: deviceFor(local), MTU: p.InnerMTU, MAC: mac,
			Vxlan: &hostnet.Vxlan{VNI: v.set.VNI, Port: v.set.Port, Local: local, Checksum: v.checksum},
		})
	}
	var source [2]netip.Addr // this node's own inner address, by family
	for _, prefix := range self.Prefixes {
		a := control.HostAddr(prefix)
		for _, dev := range p.Devices {
			// On both devices: one without an IPv4 address fails even loose reverse path filtering.
			w.Addrs = append(w.Addrs, hostnet.Addr{Dev: dev, Prefix: ipnet.Host(a)})
		}
		if f := familyIndex(a); !source[f].IsValid() {
			source[f] = a
		}
	}
	w.Routes = make([]hostnet.Route, 0, 2*len(nodes))
	w.Neighbors = make([]hostnet.Neighbor, 0, 2*len(nodes))
	w.FDB = make([]hostnet.FDBEntry, 0, len(nodes))
	hops := make([]backend.Hop, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		endpoint, ok := control.Endpoint(self, *n)
		if !ok {
			continue
		}
		dev, vtep := deviceFor(endpoint), n.VTEP()
		w.FDB = append(w.FDB, hostnet.FDBEntry{Dev: dev, MAC: vtep, Remote: endpoint})
		way, _ := u.To(endpoint)
		mtu, routeMTU := u.Inner(endpoint, p.InnerMTU, v.set.Network), uint32(0)
		if mtu < p.InnerMTU {
			routeMTU = uint32(mtu)
		}
		if text := u.Narrow(endpoint, p.InnerMTU, v.set.Network); text != "" {
			p.Problems = append(p.Problems, control.Problem{Node: n.Name, Text: text})
		}
		for _, prefix := range n.Prefixes {
			hop := prefix.Masked().Addr()
			w.Neighbors = append(w.Neighbors, hostnet.Neighbor{Dev: dev, IP: hop, MAC: vtep})
			w.Routes = append(w.Routes, hostnet.Route{Dst: prefix, Dev: dev, Via: hop, Src: source[familyIndex(hop)], MTU: routeMTU})
		}
		hops = append(hops, backend.Hop{
			Node: n.Name, Endpoint: netip.AddrPortFrom(endpoint, v.set.Port), Source: way.Source, Device: way.Device, Router: way.Via, Prefixes: n.Prefixes,
			VNI: v.set.VNI, MTU: mtu, Narrowed: way.By, MAC: vtep.String(),
		})
	}
	if len(p.Devices) == 2 {
		// A peer may prefer the other family: its packets then come in by the other device than replies
		// leave by, which strict reverse path filtering would drop. Loose (2) overrides it.
		for _, dev := range p.Devices {
			w.Sysctls = append(w.Sysctls, hostnet.Sysctl{Key: "ipv4/conf/" + dev + "/rp_filter", Value: "2"})
		}
	}
	p.Want, p.Hops = w, hops
	return p, nil
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
