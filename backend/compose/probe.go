package compose

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft/backend"
	"weft/backend/status"
	"weft/control"
	"weft/reach/link"
)

// Prober is what finds out which ways work: a *link.Prober.
type Prober interface {
	// Aim says what is probed from now on, and whose probes are answered.
	Aim(own, peers []netip.Addr, targets []link.Target) error
	// State is what is known of a way to a node.
	State(node, way string) link.State
}

// Probe has a Prober say which ways work. It is called before the first Plan.
func (p *Planner) Probe(by Prober) { p.prober = by }

// link is what is known of a way to a node. Of one that does not answer probes nothing is.
func (p *Planner) link(n *control.Node, way control.Way) Link {
	if p.prober == nil || !slices.Contains(n.Features, control.FeatureProbe) {
		return Link{}
	}
	s := p.prober.State(n.Name, way.String())
	switch {
	case !s.Known:
		return Link{}
	case s.Up:
		return Link{State: status.StateUp, Since: s.Since}
	}
	return Link{State: status.StateDown, Reason: s.Reason, Since: s.Since}
}

// aim has the ways probed that a node may be reached by. The lock is held.
func (p *Planner) aim(s *control.State, plans []backend.Plan) {
	if p.prober == nil {
		return
	}
	own := make([]netip.Addr, 0, len(s.Self.Prefixes))
	for _, prefix := range s.Self.Prefixes {
		own = append(own, control.HostAddr(prefix))
	}
	devices := make([]map[netip.Prefix]string, len(plans)) // by which each carrier's routes lead
	for i := range plans {
		devices[i] = make(map[netip.Prefix]string, len(plans[i].Want.Routes))
		for _, r := range plans[i].Want.Routes {
			devices[i][r.Dst] = r.Dev
		}
	}
	var peers []netip.Addr
	var targets []link.Target
	for i := range s.Nodes {
		n := &s.Nodes[i]
		for _, prefix := range n.Prefixes {
			peers = append(peers, control.HostAddr(prefix))
		}
		r := p.peers[n.Name]
		if r == nil || !slices.Contains(n.Features, control.FeatureProbe) {
			continue
		}
		prefix, source, ok := common(n.Prefixes, own)
		if !ok {
			continue
		}
		for j := range r.candidates {
			c := &r.candidates[j]
			if dev := devices[j][prefix]; c.state != status.StateUnfit && dev != "" {
				targets = append(targets, link.Target{Node: n.Name, Way: c.way, Addr: control.HostAddr(prefix), Source: source, Device: dev, Chosen: j == r.chosen})
			}
		}
	}
	if err := p.prober.Aim(own, peers, targets); err != nil {
		if text := err.Error(); text != p.trouble {
			p.log.Warn("not all ways are probed", zap.Error(err))
			p.trouble = text
		}
		return
	}
	p.trouble = ""
}

// common is the first prefix of a family that this node has an inner address of, and that address.
func common(prefixes []netip.Prefix, own []netip.Addr) (prefix netip.Prefix, source netip.Addr, ok bool) {
	for _, p := range prefixes {
		for _, a := range own {
			if a.Is4() == p.Addr().Is4() {
				return p, a, true
			}
		}
	}
	return prefix, source, false
}

// Probed is a backend whose ways are probed.
type Probed struct {
	backend.Backend
	prober *link.Prober
}

// WithProber has a backend call for another Apply when the Prober knows something new. It closes the Prober.
func WithProber(b backend.Backend, p *link.Prober) *Probed { return &Probed{b, p} }

// Run implements backend.Backend.
func (b *Probed) Run(ctx context.Context, look func(broken error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var both sync.WaitGroup
	defer both.Wait()
	defer cancel()
	both.Go(func() { b.prober.Run(ctx) })
	both.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-b.prober.News():
				look(nil)
			}
		}
	})
	return b.Backend.Run(ctx, look)
}

// Close implements backend.Backend.
func (b *Probed) Close() error {
	b.prober.Close()
	return b.Backend.Close()
}
