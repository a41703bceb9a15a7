package hostgw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/reach"
)

// TestPlan: what is planned needs no kernel. One peer on the link, one behind a router, and one IPv6 prefix without an IPv6 next hop.
func TestPlan(t *testing.T) {
	h := &planner{set: backend.Settings{Mode: "host-gw", Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
		onLink: func(a netip.Addr) (string, error) {
			if a == netip.MustParseAddr("192.0.2.2") {
				return "eth0", nil
			}
			return "", errors.New("behind the router 192.0.2.254")
		}}
	u := &egress.Underlay{Local: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Device: "eth0", MTU: 1500, Devices: []string{"eth0"}}
	node := func(name, endpoint string, prefixes ...string) control.Node {
		n := control.Node{Name: name, Endpoints: []netip.Addr{netip.MustParseAddr(endpoint)}}
		for _, p := range prefixes {
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
		}
		return n
	}
	s := &control.State{Self: node("a", "192.0.2.1", "10.244.1.0/24"), Nodes: []control.Node{
		node("b", "192.0.2.2", "10.244.2.0/24", "fd00:10:244:2::/64"), node("c", "198.51.100.3", "10.244.3.0/24")}}
	p, err := h.Plan(s, u)
	if err != nil {
		t.Fatal(err)
	}
	own := netip.MustParseAddr("10.244.1.1")
	if p.InnerMTU != 1500 || !slices.Equal(p.Want.Own, []netip.Addr{own}) || len(p.Want.Links) != 0 ||
		!slices.Equal(p.Want.Routes, []hostnet.Route{{Dst: netip.MustParsePrefix("10.244.2.0/24"), Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0", Src: own}}) ||
		len(p.Hops) != 1 || p.Hops[0].Node != "b" || len(p.Problems) != 2 || !strings.Contains(p.Problems[0].Text, "IPv6 next hop") || p.Problems[1].Node != "c" {
		t.Errorf("%+v", p)
	}
	// What is heard of a path on the link counts as it does elsewhere.
	via := netip.MustParseAddr("192.0.2.2")
	for heard, want := range map[int]int{1400: 1400, 500: 576} {
		u.Paths = map[netip.Addr]egress.Path{via: {Source: u.Local[0], Device: "eth0", MTU: 1500, Heard: heard, By: egress.ByProbes}}
		p, err := h.Plan(s, u)
		if err != nil || p.Want.Routes[0].MTU != uint32(want) || p.Hops[0].MTU != want || p.Hops[0].Narrowed != egress.ByProbes ||
			slices.ContainsFunc(p.Problems, func(p control.Problem) bool { return strings.Contains(p.Text, "carries packets of 500 bytes") }) != (heard == 500) {
			t.Errorf("%d bytes: %+v, %v", heard, p, err)
		}
	}
}

// TestPlanLearnt: what BGP has told decides by which next hops peers are reached, one or several, and what is not told of is not reached; what lies
// outside of the cluster is routed behind what the machine has.
func TestPlanLearnt(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	tor1, tor2, b := addr("192.0.2.253"), addr("192.0.2.254"), addr("192.0.2.2")
	l := &reach.Learnt{Settled: true, Routes: []reach.Route{
		{Prefix: prefix("10.244.2.0/24"), Node: "b", Via: []netip.Addr{b}},
		{Prefix: prefix("10.244.3.0/24"), Node: "c", Via: []netip.Addr{tor1, tor2}},
		{Prefix: prefix("10.244.5.0/24"), Node: "e", Via: []netip.Addr{addr("203.0.113.7"), tor1}},
		{Prefix: prefix("198.51.100.0/24"), Via: []netip.Addr{tor1, tor2}},
		{Prefix: prefix("2001:db8:5::/48"), Via: []netip.Addr{tor1}, From: []string{"192.0.2.254"}},
		{Prefix: prefix("203.0.113.0/24"), Via: []netip.Addr{addr("203.0.113.7")}, From: []string{"192.0.2.254"}},
	}, Sessions: []reach.Session{{Peer: addr("192.0.2.4"), Node: "d", Reason: "connection refused"}}, Problems: []control.Problem{{Text: "BGP: told"}}}
	h := &planner{set: backend.Settings{Mode: "host-gw", Network: []netip.Prefix{prefix("10.244.0.0/16")}, Learnt: func() *reach.Learnt { return l }},
		onLink: func(a netip.Addr) (string, error) {
			if a == addr("203.0.113.7") {
				return "", errors.New("203.0.113.7 is behind a router")
			}
			return "eth0", nil
		}}
	u := &egress.Underlay{Local: []netip.Addr{addr("192.0.2.1")}, Device: "eth0", MTU: 1500, Devices: []string{"eth0"}}
	s := &control.State{Self: control.Node{Name: "a", Endpoints: u.Local}}
	for i, name := range []string{"b", "c", "d", "e"} {
		s.Nodes = append(s.Nodes, control.Node{Name: name, Endpoints: []netip.Addr{addr(fmt.Sprintf("192.0.2.%d", i+2))}, Prefixes: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i+2))}})
	}
	p, err := h.Plan(s, u)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Want.NextHops) != 3 || p.Want.NextHops[2].Members[0].ID != p.Want.NextHops[0].ID || p.Want.NextHops[2].Members[1].ID != p.Want.NextHops[1].ID || p.Want.NextHops[2].Members[2].ID != 0 {
		t.Fatalf("next hops %+v", p.Want.NextHops)
	}
	group := p.Want.NextHops[2].ID
	want := []hostnet.Route{{Dst: prefix("10.244.2.0/24"), Via: b, Dev: "eth0"}, {Dst: prefix("10.244.3.0/24"), NextHop: group}, {Dst: prefix("10.244.5.0/24"), Via: tor1, Dev: "eth0"},
		{Dst: prefix("198.51.100.0/24"), NextHop: group, Metric: 8600}}
	if !slices.Equal(p.Want.Routes, want) {
		t.Errorf("routes %v, want %v", p.Want.Routes, want)
	}
	if len(p.Hops) != 3 || p.Hops[0].Router.IsValid() || p.Hops[0].Endpoint.Addr() != b || p.Hops[1].Router != tor1 || p.Hops[1].Endpoint.Addr() != addr("192.0.2.3") {
		t.Errorf("hops %+v", p.Hops)
	}
	var problems []string
	for _, x := range p.Problems {
		problems = append(problems, x.Node+": "+x.Text)
	}
	if !slices.Equal(problems, []string{"d: mode host-gw does not reach 10.244.4.0/24: BGP: no session with 192.0.2.4: connection refused", ": BGP: told",
		": 2001:db8:5::/48, learnt from 192.0.2.254, is not reached: IPv6 needs an IPv6 next hop, and 192.0.2.253 is none",
		": 203.0.113.0/24, learnt from 192.0.2.254, is not reached: 203.0.113.7 is behind a router"}) {
		t.Errorf("problems %q", problems)
	}
}
