package userspace

import (
	"net/netip"
	"sync"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/ipnet"
	"weft/packet"
)

// planner plans the path, the table of the lanes and what the kernel must hold for both. It implements backend.Planner.
type planner struct {
	kind Kind
	set  backend.Settings
	seal int    // bytes that sealing adds; 0 where nothing is sealed
	key  string // the public key to announce; "" = none

	mu    sync.Mutex
	ids   map[string]uint32 // of nodes, by name
	built built             // of the last plan
}

// Self returns what to announce about this node.
func (p *planner) Self() control.Node {
	return control.Node{Name: p.set.Node, MAC: control.VTEPMAC(p.set.Node), Features: p.kind.Features, PublicKey: p.key}
}

// Plan implements backend.Planner.
func (p *planner) Plan(s *control.State, under *egress.Underlay) (backend.Plan, error) {
	state := *s
	state.Self = under.Self(s.Self) // with the endpoints in use
	path, err := p.path(state.Self, under)
	if err != nil {
		return backend.Plan{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.built = p.build(&state, path, under)
	var problems []control.Problem
	for _, h := range p.built.hops {
		if text := under.Narrow(h.Endpoint.Addr(), path.InnerMTU, p.set.Network); text != "" {
			problems = append(problems, control.Problem{Node: h.Node, Text: text})
		}
	}
	return backend.Plan{Want: p.want(&state, path, under), InnerMTU: path.InnerMTU, Devices: []string{device}, Hops: p.built.hops, Problems: problems}, nil
}

// last is what the last plan is made of.
func (p *planner) last() built {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.built
}

// id is a node's number; false where it was never planned for.
func (p *planner) id(node string) (id uint32, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, known = p.ids[node]
	return id, known
}

// path derives the fixed part of the path from what the source granted this node, and from how it reaches the others.
func (p *planner) path(self control.Node, under *egress.Underlay) (Path, error) {
	path := Path{Device: device, Local: under.Local, Underlay: under.Device, UnderlayMTU: under.MTU, Port: p.set.Port, VNI: p.set.VNI,
		MAC: self.VTEP(), Queues: p.set.Queues, Network: p.set.Network, Outside: p.set.Outside}
	if seal := p.set.Seal; seal != nil {
		path.Port, path.Sealed = seal.Port, true
		if len(seal.PermitPlain) > 0 {
			path.PlainPort = p.set.Port
		}
	}
	path.InnerMTU = packet.InnerMTU(path.UnderlayMTU, under.V6(), p.kind.Overhead+p.seal)
	return path, under.Fits(path.InnerMTU, p.set.Network)
}

// want says what the kernel must hold for this path.
func (p *planner) want(s *control.State, path Path, under *egress.Underlay) hostnet.Want {
	w := hostnet.Want{
		Network: p.set.Network,
		Sysctls: hostnet.Forwarding(p.set.Network),
		Links:   []hostnet.Link{{Name: device, MTU: path.InnerMTU}},
		Watch:   under.Devices,
	}
	ethernet := p.kind.Inner == packet.Ethernet
	if ethernet {
		w.Links[0].MAC, w.Links[0].Quiet = path.MAC, true
		w.Addrs = append(w.Addrs, hostnet.Addr{Dev: device, Prefix: netip.PrefixFrom(linkLocal(path.MAC), 64)})
	}
	own := hostAddrs(s.Self)
	for _, a := range own {
		w.Addrs = append(w.Addrs, hostnet.Addr{Dev: device, Prefix: ipnet.Host(a)})
	}
	w.Routes = make([]hostnet.Route, 0, 2*len(s.Nodes))
	for _, n := range s.Nodes {
		at, ok := control.Endpoint(s.Self, n)
		if !ok {
			continue
		}
		for _, prefix := range n.Prefixes {
			r := hostnet.Route{Dst: prefix, Dev: device}
			if mtu := path.towards(at, under); mtu < path.InnerMTU {
				r.MTU = uint32(mtu)
			}
			if ethernet {
				r.Via = control.HostAddr(prefix) // which the peer itself holds: it answers ARP and neighbour discovery
			}
			for _, a := range own {
				if a.Is4() == prefix.Addr().Is4() {
					r.Src = a
					break
				}
			}
			w.Routes = append(w.Routes, r)
		}
	}
	return w
}

// linkLocal returns the IPv6 link-local address that follows from a MAC (RFC 4291 appendix A). Neighbour discovery on an
// Ethernet device starts from one. Ours is added ready for use: the kernel's own would be checked for duplicates for a
// second first, and until then no neighbour would be asked for.
func linkLocal(mac control.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 0x02, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func hostAddrs(self control.Node) (own []netip.Addr) {
	for _, p := range self.Prefixes {
		own = append(own, control.HostAddr(p))
	}
	return own
}
