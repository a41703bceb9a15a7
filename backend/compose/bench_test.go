package compose

import (
	"fmt"
	"net/netip"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/hostnet/egress"
)

// BenchmarkPlan is what choosing adds to what the carriers plan, for a change among 5,000 nodes: of one mode, and of two with peers on either.
func BenchmarkPlan(b *testing.B) {
	const count = 5000
	nodes := make([]control.Node, count)
	for i := range nodes {
		at := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		nodes[i] = control.Node{Name: fmt.Sprintf("n%05d", i), Endpoints: []netip.Addr{at}, Ways: []control.Way{direct, vxlan, frames},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(i>>8), byte(i), 0}), 24)}}
	}
	far := map[string]string{}
	for i := 0; i < count; i += 2 {
		far[nodes[i].Name] = "it is behind a router"
	}
	// The carriers have planned already: only what is done with it is measured.
	for name, carriers := range map[string][]Carrier{
		"one": {{"vxlan", []control.Way{vxlan, frames}, &planned{Planner: &carrier{device: "weft-vx4", mtu: 1450}}}},
		"two": {{"host-gw", []control.Way{direct}, &planned{Planner: &carrier{device: "eth0", mtu: 1500, unfit: far}}},
			{"vxlan", []control.Way{vxlan, frames}, &planned{Planner: &carrier{device: "weft-vx4", mtu: 1450}}}},
	} {
		b.Run(name, func(b *testing.B) {
			s := &control.State{Self: node(0), Nodes: nodes}
			p := New(backend.Settings{}, carriers...)
			if _, err := p.Plan(s, nil); err != nil { // the carriers' part
				b.Fatal(err)
			}
			b.ResetTimer()
			for b.Loop() {
				if _, err := p.Plan(s, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// planned is a carrier that plans once.
type planned struct {
	backend.Planner
	plan *backend.Plan
}

func (p *planned) Plan(s *control.State, u *egress.Underlay) (backend.Plan, error) {
	if p.plan == nil {
		plan, err := p.Planner.Plan(s, u)
		if err != nil {
			return plan, err
		}
		p.plan = &plan
	}
	return *p.plan, nil
}
