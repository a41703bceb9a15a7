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
// Where the node speaks BGP, what is learnt by it decides instead (Settings.Learnt): the next hops, of which there may be several, are those that
// were told of, and a prefix that nobody tells of is unreachable. Prefixes outside of the cluster that routers told of are routed, too.
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
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/reach"
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
	groups := map[uint32]bool{} // next-hop objects that are wanted
	var learnt *reach.Learnt    // nil = the kernel is asked alone
	if h.set.Learnt != nil {
		learnt = h.set.Learnt()
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		hop := backend.Hop{Node: n.Name}
		links := map[netip.Addr]link{} // endpoints are asked for once a node
		for _, prefix := range n.Prefixes {
			var via []gateway
			var err error
			if learnt != nil {
				via, err = h.learnt(learnt, n, prefix)
			} else {
				via, err = h.nextHop(prefix, n.Endpoints, links)
			}
			if err != nil {
				problems = append(problems, control.Problem{Node: n.Name, Text: fmt.Sprintf("mode %s does not reach %s: %v", h.set.Mode, prefix, err)})
				continue
			}
			to, router := endpoint(n, via[0].addr) // paths are known by endpoints
			way, _ := u.To(to)
			mtu := u.Inner(to, u.MTU, h.set.Network)
			r := hostnet.Route{Dst: prefix, MTU: uint32(h.set.UnderlayMTU)}
			if mtu < u.MTU {
				r.MTU = uint32(mtu)
			}
			if own := slices.IndexFunc(w.Own, func(a netip.Addr) bool { return a.Is4() == prefix.Addr().Is4() }); own >= 0 {
				r.Src = w.Own[own]
			}
			lead(&w, groups, r, via)
			if !hop.Endpoint.IsValid() {
				hop.Endpoint, hop.Router, hop.Source, hop.Device, hop.MTU, hop.Narrowed = netip.AddrPortFrom(to, 0), router, way.Source, via[0].device, mtu, way.By
				if text := u.Narrow(to, u.MTU, h.set.Network); text != "" {
					problems = append(problems, control.Problem{Node: n.Name, Text: text})
				}
			}
			hop.Prefixes = append(hop.Prefixes, prefix)
		}
		if len(hop.Prefixes) > 0 {
			hops = append(hops, hop)
		}
	}
	if learnt != nil {
		problems = append(problems, learnt.Problems...)
		for _, r := range learnt.Routes {
			if r.Node != "" || slices.ContainsFunc(h.set.Network, r.Prefix.Overlaps) {
				continue
			}
			via, err := h.gateways(r.Prefix, r.Via)
			if err != nil {
				problems = append(problems, control.Problem{Text: fmt.Sprintf("%v, learnt from %s, is not reached: %v", r.Prefix, strings.Join(r.From, ", "), err)})
				continue
			}
			lead(&w, groups, hostnet.Route{Dst: r.Prefix, Metric: outsideMetric, MTU: uint32(h.set.UnderlayMTU)}, via)
		}
	}
	return backend.Plan{Want: w, InnerMTU: u.MTU, Hops: hops, Problems: problems}, nil
}

// outsideMetric is that of routes to prefixes outside of the cluster that routers told of: what the machine has to the very same prefix goes first. A longer
// prefix goes before a shorter one whatever its metric; what must not be taken away so, reach/bgp refuses.
const outsideMetric = 8600

// gateway is a next hop, and the device that it is on the link of.
type gateway struct {
	addr   netip.Addr
	device string
}

// endpoint is which of a node's endpoints packets by a next hop get to, and the router where that is none itself.
func endpoint(n *control.Node, via netip.Addr) (to, router netip.Addr) {
	if slices.Contains(n.Endpoints, via) {
		return via, netip.Addr{}
	}
	for _, a := range n.Endpoints {
		if a.Is4() == via.Is4() {
			return a, via
		}
	}
	return n.Endpoints[0], via
}

// lead adds a route over one next hop, or over several by an object of the kernel's that has them all.
func lead(w *hostnet.Want, groups map[uint32]bool, r hostnet.Route, via []gateway) {
	for _, g := range via {
		if !slices.Contains(w.Watch, g.device) {
			w.Watch = append(w.Watch, g.device)
		}
	}
	if len(via) == 1 {
		r.Via, r.Dev = via[0].addr, via[0].device
		w.Routes = append(w.Routes, r)
		return
	}
	var group hostnet.NextHop
	text := ""
	for i, g := range via {
		one := hostnet.NextHop{ID: objectID(fmt.Sprintf("%v dev %s", g.addr, g.device)), Dev: g.device, Via: g.addr, OnLink: true}
		group.Members[i].ID = one.ID
		text += fmt.Sprintf("%v dev %s;", g.addr, g.device)
		if !groups[one.ID] {
			groups[one.ID] = true
			w.NextHops = append(w.NextHops, one)
		}
	}
	group.ID = objectID(text)
	if !groups[group.ID] {
		groups[group.ID] = true
		w.NextHops = append(w.NextHops, group)
	}
	r.NextHop = group.ID
	w.Routes = append(w.Routes, r)
}

// objectID is the number of a next-hop object: what it is gives it, so that a daemon that starts finds the one it had.
func objectID(text string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(text)) // never fails (hash.Hash)
	return h.Sum32() | 1<<31     // the kernel counts its own from 1
}

// learnt is how BGP reaches a prefix of a node's.
func (h *planner) learnt(l *reach.Learnt, n *control.Node, prefix netip.Prefix) ([]gateway, error) {
	r, ok := l.To(prefix)
	if !ok {
		return nil, errors.New(l.Why(n, prefix))
	}
	return h.gateways(prefix, r.Via)
}

// gateways asks the kernel by which devices the next hops of a prefix are reached. What cannot be is left out, where others can.
func (h *planner) gateways(prefix netip.Prefix, via []netip.Addr) (list []gateway, err error) {
	var errs []error
	for _, a := range via {
		if prefix.Addr().Is6() && a.Is4() { // one such route would have the kernel refuse all
			errs = append(errs, fmt.Errorf("IPv6 needs an IPv6 next hop, and %v is none", a))
			continue
		}
		dev, err := h.onLink(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, gateway{a, dev})
	}
	if len(list) == 0 {
		return nil, errors.Join(errs...)
	}
	return list, nil
}

// link is what the kernel says of an endpoint.
type link struct {
	device string
	err    error
}

// nextHop chooses the endpoint that a prefix is routed to: the most preferred on a link, of the prefix's own family where
// there is one.
func (h *planner) nextHop(prefix netip.Prefix, endpoints []netip.Addr, links map[netip.Addr]link) ([]gateway, error) {
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
				return []gateway{{a, l.device}}, nil
			}
			reasons = append(reasons, l.err.Error())
		}
	}
	if len(reasons) == 0 {
		return nil, errors.New("IPv6 needs an IPv6 next hop: give the node an IPv6 endpoint, or choose another mode")
	}
	return nil, fmt.Errorf("%s: join the nodes to one link, or choose another mode", strings.Join(reasons, "; "))
}
