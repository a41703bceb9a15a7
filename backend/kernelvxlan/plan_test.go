package kernelvxlan

import (
	"net/netip"
	"slices"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/packet"
)

// TestPlan: what is planned needs no kernel. One peer with a prefix of each family, one that shares no family of the underlay.
func TestPlan(t *testing.T) {
	network := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	v := &planner{set: backend.Settings{Network: network, VNI: 7, Port: 4789}, checksum: true}
	u := &egress.Underlay{Local: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Device: "eth0", MTU: 1500, Devices: []string{"eth0"}}
	s := &control.State{Self: control.Node{Name: "a", Prefixes: prefixes(1)}, Nodes: []control.Node{
		{Name: "b", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Prefixes: prefixes(2)},
		{Name: "c", Endpoints: []netip.Addr{netip.MustParseAddr("2001:db8::3")}, Prefixes: prefixes(3)},
	}}
	p, err := v.Plan(s, u)
	if err != nil {
		t.Fatal(err)
	}
	mac := [6]byte(control.VTEPMAC("b"))
	hop4, hop6 := netip.MustParseAddr("10.244.2.0"), s.Nodes[0].Prefixes[1].Addr()
	if p.InnerMTU != 1450 || !slices.Equal(p.Devices, []string{device4}) || len(p.Want.Links) != 1 || *p.Want.Links[0].Vxlan != (hostnet.Vxlan{VNI: 7, Port: 4789,
		Local: u.Local[0], Checksum: true}) || p.Want.Links[0].MTU != 1450 ||
		!slices.Equal(p.Want.FDB, []hostnet.FDBEntry{{Dev: device4, MAC: mac, Remote: netip.MustParseAddr("192.0.2.2")}}) ||
		!slices.Equal(p.Want.Neighbors, []hostnet.Neighbor{{Dev: device4, IP: hop4, MAC: mac}, {Dev: device4, IP: hop6, MAC: mac}}) ||
		len(p.Want.Routes) != 2 || p.Want.Routes[0].Via != hop4 || p.Want.Routes[0].Src != netip.MustParseAddr("10.244.1.1") || len(p.Hops) != 1 || p.Hops[0].Node != "b" {
		t.Errorf("%+v", p)
	}
	if p.Want.Routes[0].MTU != 0 || p.Hops[0].MTU != 1450 || p.Hops[0].Device != "" {
		t.Errorf("towards a peer that nothing is known of: %+v, %+v", p.Want.Routes[0], p.Hops[0])
	}
	u.Paths = map[netip.Addr]egress.Path{s.Nodes[0].Endpoints[0]: {Source: u.Local[0], Device: "vpn0", MTU: 1420}}
	if p, err = v.Plan(s, u); err != nil || p.InnerMTU != 1450 || p.Want.Routes[0].MTU != 1370 || p.Want.Routes[1].MTU != 1370 || p.Hops[0].MTU != 1370 ||
		p.Hops[0].Device != "vpn0" || p.Hops[0].Source != u.Local[0] {
		t.Errorf("towards a peer by a narrower device: %+v, %v", p, err)
	}
	// What routers have told the kernel narrows no further than IPv6 needs, and is named.
	u.Paths = map[netip.Addr]egress.Path{s.Nodes[0].Endpoints[0]: {Source: u.Local[0], Device: "eth0", MTU: 1500, Heard: 600, By: egress.ByKernel}}
	if p, err = v.Plan(s, u); err != nil || p.Hops[0].MTU != packet.MinIPv6MTU || p.Want.Routes[0].MTU != packet.MinIPv6MTU || p.Hops[0].Narrowed != egress.ByKernel || len(p.Problems) != 1 {
		t.Errorf("towards a peer that a router says little of: %+v, %v", p, err)
	}
	u.MTU = 1300
	if _, err := v.Plan(s, u); err == nil {
		t.Error("an MTU of 1300 leaves less than IPv6 needs, and no error")
	}
}
