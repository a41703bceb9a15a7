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
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft/backend"
	"weft/catalog/mode"
	"weft/control"
	"weft/internal/egress"
	"weft/internal/hostnet"
)

// Backend programs routes. It implements backend.Backend.
type Backend struct {
	set  backend.Settings
	log  *zap.Logger
	host *hostnet.Host
	ways *egress.Finder

	applying sync.Mutex // held by Apply; mu, which Status takes, is not held while the kernel works

	mu       sync.Mutex
	state    *control.State // the last applied; nil before the first
	carries  bool           // a state has been in force
	under    egress.Underlay
	hops     []backend.Hop
	problems []control.Problem
	err      error // why the last state is not wholly in force
}

// New makes the backend of mode host-gw. It puts the unreachable routes of s.Network in force, and nothing else yet. It works in
// the network namespace of the calling thread.
func New(s backend.Settings) (backend.Backend, error) {
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	host := s.Host
	if err := host.Guard(s.Network); err != nil {
		return nil, err
	}
	if s.Seal != nil {
		// Not with the routes of an earlier, unsealed run in force: they would go on sending in clear.
		return nil, errors.Join(fmt.Errorf("hostgw: mode %s cannot seal traffic: set encryption.cipher: none, or mode: %s", s.Mode, mode.Default),
			host.Refuse(s.Network))
	}
	if s.Fault != nil {
		return nil, errors.New("hostgw: the kernel forwards: there is no stage for a fault: take a mode with lanes, or no --fault")
	}
	return &Backend{set: s, log: s.Log, host: host,
		ways: egress.NewFinder(host, egress.Choice{Interface: s.Interface, MTU: s.UnderlayMTU})}, nil
}

// Self returns what to publish about this node.
func (b *Backend) Self() control.Node { return control.Node{Name: b.set.Node} }

// Apply makes the kernel follow s.
func (b *Backend) Apply(s control.State) error {
	b.applying.Lock()
	defer b.applying.Unlock()
	b.mu.Lock()
	b.state = &s
	b.mu.Unlock()
	return b.sync()
}

// Run follows the underlay until ctx ends; what others remove or change, the Host puts back.
func (b *Backend) Run(ctx context.Context, look func(broken error)) error {
	changed := b.host.Changed(backend.Owner)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			look(nil)
		}
	}
}

// Close does nothing: the kernel goes on forwarding.
func (b *Backend) Close() error { return nil }

// sync brings the kernel in line with b.state. The caller holds b.applying, and so may read what b.mu guards.
func (b *Backend) sync() error {
	u, err := b.derive()
	if err != nil {
		if len(b.under.Devices) == 0 {
			return b.done(err)
		}
		u = &b.under // the underlay is not well now; nodes still come and go
	}
	if b.under.MTU != u.MTU || !slices.Equal(b.under.Devices, u.Devices) {
		b.log.Info("path", zap.Strings("device", u.Devices), zap.Int("mtu", u.MTU))
	}
	want, hops, problems := b.want(u)
	for _, problem := range problems {
		if !slices.Contains(b.problems, problem) {
			b.log.Warn("peer refused", zap.String("peer", problem.Node), zap.String("reason", problem.Text))
		}
	}
	b.mu.Lock()
	b.under, b.hops, b.problems = *u, hops, problems
	b.mu.Unlock()
	return b.done(errors.Join(err, b.host.Apply(backend.Owner, want)))
}

// done takes note of how it went.
func (b *Backend) done(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.carries = err, b.carries || err == nil
	return err
}

// derive finds devices and MTU by what the source granted this node, and by how it reaches the others.
func (b *Backend) derive() (*egress.Underlay, error) {
	u, err := b.ways.Derive(b.state.Self, b.state.Nodes)
	if err != nil {
		return nil, err
	}
	return u, u.Fits(u.MTU, b.set.Network)
}

// want says what the kernel must hold, how each peer is reached, and who is not and why.
func (b *Backend) want(u *egress.Underlay) (hostnet.Want, []backend.Hop, []control.Problem) {
	w := hostnet.Want{
		Network: b.set.Network,
		Sysctls: hostnet.Forwarding(b.set.Network),
		Watch:   slices.Clone(u.Devices),
	}
	for _, prefix := range b.state.Self.Prefixes {
		w.Own = append(w.Own, control.HostAddr(prefix))
	}
	var hops []backend.Hop
	var problems []control.Problem
	for i := range b.state.Nodes {
		n := &b.state.Nodes[i]
		hop := backend.Hop{Node: n.Name}
		links := map[netip.Addr]link{} // endpoints are asked for once a node
		for _, prefix := range n.Prefixes {
			via, dev, err := b.nextHop(prefix, n.Endpoints, links)
			if err != nil {
				problems = append(problems, control.Problem{Node: n.Name, Text: fmt.Sprintf("mode %s does not reach %s: %v", b.set.Mode, prefix, err)})
				continue
			}
			r := hostnet.Route{Dst: prefix, Via: via, Dev: dev, MTU: uint32(b.set.UnderlayMTU)}
			if own := slices.IndexFunc(w.Own, func(a netip.Addr) bool { return a.Is4() == prefix.Addr().Is4() }); own >= 0 {
				r.Src = w.Own[own]
			}
			w.Routes = append(w.Routes, r)
			if !hop.Endpoint.IsValid() {
				way, _ := u.To(via)
				hop.Endpoint, hop.MTU = netip.AddrPortFrom(via, 0), way.MTU
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
	return w, hops, problems
}

// link is what the kernel says of an endpoint.
type link struct {
	device string
	err    error
}

// nextHop chooses the endpoint that a prefix is routed to: the most preferred on a link, of the prefix's own family where
// there is one.
func (b *Backend) nextHop(prefix netip.Prefix, endpoints []netip.Addr, links map[netip.Addr]link) (via netip.Addr, dev string, err error) {
	v4 := prefix.Addr().Is4()
	var errs []error
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
				l.device, l.err = b.host.OnLink(a)
				links[a] = l
			}
			if l.err == nil {
				return a, l.device, nil
			}
			errs = append(errs, l.err)
		}
	}
	if len(errs) == 0 {
		return via, "", errors.New("IPv6 needs an IPv6 next hop: give the node an IPv6 endpoint, or choose another mode")
	}
	return via, "", fmt.Errorf("%w: join the nodes to one link, or choose another mode", errors.Join(errs...))
}

// Status reports the routes and who is not reached.
func (b *Backend) Status() backend.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := backend.Status{
		Ready: b.carries && b.err == nil, Underlay: b.under.Devices, UnderlayMTU: b.under.MTU, InnerMTU: b.under.MTU, Repairs: b.host.Repairs(),
		Features: map[string]string{}, KernelDrops: map[string]uint64{}, Hops: slices.Clone(b.hops), Problems: slices.Clone(b.problems),
	}
	switch {
	case b.err != nil:
		s.Reason = b.err.Error()
	case b.state == nil:
		s.Reason = "no state from the control plane yet"
	case !b.carries:
		s.Reason = "the first state is being put in force"
	}
	return s
}
