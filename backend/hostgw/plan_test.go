package hostgw

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
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
