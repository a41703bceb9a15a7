package userspace

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/ipnet"
	"weft/packet"
)

// TestPlan: what is planned needs no kernel. One peer at the full MTU, one behind a narrower link, and one of a family that this node
// has not; for packets, for frames, and sealed.
func TestPlan(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	node := func(name, endpoint, own string) control.Node {
		return control.Node{Name: name, MAC: control.VTEPMAC(name), Endpoints: []netip.Addr{addr(endpoint)}, Prefixes: []netip.Prefix{prefix(own)}}
	}
	s := &control.State{Self: node("a", "192.0.2.1", "10.244.1.0/24"), Nodes: []control.Node{
		node("b", "192.0.2.2", "10.244.2.0/24"), node("c", "198.51.100.3", "10.244.3.0/24"), node("d", "2001:db8::4", "10.244.4.0/24")}}
	u := &egress.Underlay{Local: []netip.Addr{addr("192.0.2.1")}, Device: "eth0", MTU: 1500, Devices: []string{"eth0"}, Paths: map[netip.Addr]egress.Path{
		addr("192.0.2.2"):    {Source: addr("192.0.2.1"), Device: "eth0", MTU: 1500},
		addr("198.51.100.3"): {Source: addr("192.0.2.1"), Device: "eth0", Via: addr("192.0.2.254"), MTU: 1400},
	}}
	own := addr("10.244.1.1")
	for name, c := range map[string]struct {
		kind  Kind
		seal  *backend.Seal
		inner int
		via   func(netip.Prefix) netip.Addr
	}{
		"packets": {Kind{Overhead: 22}, nil, 1450, func(netip.Prefix) netip.Addr { return netip.Addr{} }},
		"frames":  {Kind{Overhead: 22, Inner: packet.Ethernet}, nil, 1450, control.HostAddr},
		"sealed":  {Kind{Overhead: 22}, &backend.Seal{Port: 4790, PermitPlain: []string{"b"}}, 1418, func(netip.Prefix) netip.Addr { return netip.Addr{} }},
	} {
		t.Run(name, func(t *testing.T) {
			p := &planner{kind: c.kind, set: backend.Settings{Node: "a", Network: []netip.Prefix{prefix("10.244.0.0/16")}, Port: 4789, VNI: 1, Queues: 2, Seal: c.seal},
				ids: map[string]uint32{}}
			if c.seal != nil {
				p.seal = 32
			}
			plan, err := p.Plan(s, u)
			if err != nil {
				t.Fatal(err)
			}
			w := plan.Want
			if plan.InnerMTU != c.inner || len(w.Links) != 1 || w.Links[0].Name != device || w.Links[0].MTU != c.inner || !slices.Equal(plan.Devices, []string{device}) ||
				!slices.Contains(w.Addrs, hostnet.Addr{Dev: device, Prefix: ipnet.Host(own)}) || !slices.Equal(w.Watch, u.Devices) || !slices.Equal(w.Network, p.set.Network) {
				t.Errorf("%+v", plan)
			}
			if c.kind.Inner == packet.Ethernet && (!w.Links[0].Quiet || w.Links[0].MAC != control.VTEPMAC("a") || len(w.Addrs) != 2) {
				t.Errorf("links %+v, addresses %+v", w.Links, w.Addrs)
			}
			b, d := prefix("10.244.2.0/24"), prefix("10.244.3.0/24")
			want := []hostnet.Route{{Dst: b, Dev: device, Src: own, Via: c.via(b)}, {Dst: d, Dev: device, Src: own, Via: c.via(d), MTU: uint32(c.inner - 100)}}
			if !slices.Equal(w.Routes, want) {
				t.Errorf("routes %+v, want %+v", w.Routes, want)
			}
			if len(plan.Hops) != 2 || plan.Hops[0].Node != "b" || plan.Hops[1].MTU != c.inner-100 || plan.Hops[1].Router != addr("192.0.2.254") {
				t.Errorf("hops %+v", plan.Hops)
			}
			now := p.last()
			if hop, ok := now.table.Lookup(addr("10.244.3.9")); !ok || hop.Path.MTU() != c.inner-100 {
				t.Errorf("the lanes' table: %+v, %v", hop, ok)
			}
			if c.seal != nil && (now.path.Port != 4790 || now.path.PlainPort != 4789 || now.peers[0].Plain == nil || now.peers[1].Plain != nil) {
				t.Errorf("sealed: %+v, %+v", now.path, now.peers)
			}
		})
	}
	dual := []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:244::/48")}
	spoken := *u
	spoken.Paths = map[netip.Addr]egress.Path{addr("192.0.2.2"): {Source: addr("192.0.2.1"), Device: "eth0", MTU: 1500, Heard: 600}}
	narrow := &planner{kind: Kind{Overhead: 22}, set: backend.Settings{Node: "a", Network: dual, Port: 4789, VNI: 1, Queues: 2}, ids: map[string]uint32{}}
	if plan, err := narrow.Plan(s, &spoken); err != nil || plan.Hops[0].MTU != packet.MinIPv6MTU || len(plan.Problems) != 1 || plan.Problems[0].Node != "b" {
		t.Errorf("a word of less than IPv6 needs: %+v, %v", plan, err)
	}
	small := *u
	small.MTU = 80
	p := &planner{kind: Kind{Overhead: 22}, set: backend.Settings{Network: []netip.Prefix{prefix("10.244.0.0/16")}}, ids: map[string]uint32{}}
	if _, err := p.Plan(s, &small); err == nil || !strings.Contains(err.Error(), "raise the MTU of eth0") {
		t.Errorf("an underlay of 80 bytes: %v", err)
	}
}
