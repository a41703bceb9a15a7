// Package hostgw carries traffic by plain routes: no tunnel, no device, no packet through weft. For a peer with prefix
// 10.244.2.0/24 and endpoint E there is
//
//	route  10.244.2.0/24 via E dev eth0 onlink src 10.244.1.1
//
// and packets go out as they are, so that the inner MTU is the underlay's. It needs nodes that share a link: the route of a
// peer behind a router would make that router forward pods' addresses it knows nothing of. Such a peer is refused, named in
// Status.Problems, and its prefixes stay unreachable.
//
// The next hop is an endpoint of the prefix's own family; for an IPv4 prefix of a node that has none on the link, an IPv6 one
// (RFC 5549's way, RTA_VIA). IPv6 over an IPv4 next hop does not exist.
//
// There is no device of weft's to hold this node's own inner addresses. The loopback device does, under address protocol 87.
//
// What of the inner source check the other modes make: the kernel's. Packets come in by the underlay device as any others do, and
// reverse path filtering (net.ipv4.conf.*.rp_filter, which weft leaves as the machine has it) asks whether the source is routed
// back out of that device. So strict filtering refuses this node's own prefix and whatever lives elsewhere; that one peer's pods
// claim addresses of another peer on the same link it cannot see. IPv6 has no such filter outside netfilter.
//
// The kernel keeps all of it: forwarding survives the daemon, and the next one adopts what it finds.
package hostgw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
)

// planner plans routes. It implements backend.Planner.
type planner struct {
	set    backend.Settings
	onLink func(netip.Addr) (device string, err error) // (*hostnet.Host).OnLink
}

// New makes the backend of mode host-gw; see backend.ByKernel. It works in the network namespace of the calling thread.
func New(s backend.Settings) (backend.Backend, error) {
	p, err := NewPlanner(s)
	if err != nil {
		return nil, err
	}
	b, err := backend.ByKernel(s, p)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// NewPlanner makes what New's backend plans by, for one that has other ways besides.
func NewPlanner(s backend.Settings) (backend.Planner, error) {
	if s.Outside != nil {
		return nil, errors.New("hostgw: routes lead to the underlay's next hops, which are in another network namespace")
	}
	return &planner{s, s.Host.OnLink}, nil
}

// Self returns what to publish about this node.
func (h *planner) Self() control.Node { return control.Node{Name: h.set.Node} }

// Plan implements backend.Planner.
func (h *planner) Plan(s *control.State, u *egress.Underlay) (backend.Plan, error) {
	if err := u.Fits(u.MTU, h.set.Network); err != nil {
		return backend.Plan{}, err
	}
	w := hostnet.Want{
		Network: h.set.Network,
		Sysctls: hostnet.Forwarding(h.set.Network),
		Watch:   slices.Clone(u.Devices),
	}
	for _, prefix := range s.Self.Prefixes {
		w.Own = append(w.Own, control.HostAddr(prefix))
	}
	var hops []backend.Hop
	var problems []control.Problem
	for i := range s.Nodes {
		n := &s.Nodes[i]
		hop := backend.Hop{Node: n.Name}
		links := map[netip.Addr]link{} // endpoints are asked for once a node
		for _, prefix := range n.Prefixes {
			via, dev, err := h.nextHop(prefix, n.Endpoints, links)
			if err != nil {
				problems = append(problems, control.Problem{Node: n.Name, Text: fmt.Sprintf("mode %s does not reach %s: %v", h.set.Mode, prefix, err)})
				continue
			}
			way, _ := u.To(via)
			mtu := u.Inner(via, u.MTU, h.set.Network)
			r := hostnet.Route{Dst: prefix, Via: via, Dev: dev, MTU: uint32(h.set.UnderlayMTU)}
			if mtu < u.MTU {
				r.MTU = uint32(mtu)
			}
			if own := slices.IndexFunc(w.Own, func(a netip.Addr) bool { return a.Is4() == prefix.Addr().Is4() }); own >= 0 {
				r.Src = w.Own[own]
			}
			w.Routes = append(w.Routes, r)
			if !hop.Endpoint.IsValid() {
				hop.Endpoint, hop.Source, hop.Device, hop.MTU, hop.Narrowed = netip.AddrPortFrom(via, 0), way.Source, dev, mtu, way.By
				if text := u.Narrow(via, u.MTU, h.set.Network); text != "" {
					problems = append(problems, control.Problem{Node: n.Name, Text: text})
				}
			}
			hop.Prefixes = append(hop.Prefixes, prefix)
			if !slices.Contains(w.Watch, dev) {
				w.Watch = append(w.Watch, dev)
			}
		}
		if len(hop.Prefixes) > 0 {
			hops = append(hops, hop)
		}
	}
	return backend.Plan{Want: w, InnerMTU: u.MTU, Hops: hops, Problems: problems}, nil
}

// link is what the kernel says of an endpoint.
type link struct {
	device string
	err    error
}

// nextHop chooses the endpoint that a prefix is routed to: the most preferred on a link, of the prefix's own family where
// there is one.
func (h *planner) nextHop(prefix netip.Prefix, endpoints []netip.Addr, links map[netip.Addr]link) (via netip.Addr, dev string, err error) {
	v4 := prefix.Addr().Is4()
	var reasons []string
	for _, same := range []bool{true, false} {
		if !same && !v4 {
			break
		}
		for _, a := range endpoints {
			if (a.Is4() == v4) != same {
				continue
			}
			l, asked := links[a]
			if !asked {
				l.device, l.err = h.onLink(a)
				links[a] = l
			}
			if l.err == nil {
				return a, l.device, nil
			}
			reasons = append(reasons, l.err.Error())
		}
	}
	if len(reasons) == 0 {
		return via, "", errors.New("IPv6 needs an IPv6 next hop: give the node an IPv6 endpoint, or choose another mode")
	}
	return via, "", fmt.Errorf("%s: join the nodes to one link, or choose another mode", strings.Join(reasons, "; "))
}
