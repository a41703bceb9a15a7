package compose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/backend"
	"weft/backend/status"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
)

// carrier plans a route by a device for every node but those that it cannot reach.
type carrier struct {
	device string
	mtu    int
	unfit  map[string]string // why, by node
	asked  int               // nodes it was last asked to plan for
}

func (c *carrier) Self() control.Node {
	return control.Node{Name: "a", Features: []string{c.device}}
}

func (c *carrier) Plan(s *control.State, _ *egress.Underlay) (backend.Plan, error) {
	c.asked = len(s.Nodes)
	p := backend.Plan{InnerMTU: c.mtu, Devices: []string{c.device}, Features: map[string]string{c.device: "on"},
		Want: hostnet.Want{Network: network, Links: []hostnet.Link{{Name: c.device}}}}
	for _, n := range s.Nodes {
		if why := c.unfit[n.Name]; why != "" {
			p.Problems = append(p.Problems, control.Problem{Node: n.Name, Text: why})
			continue
		}
		for _, prefix := range n.Prefixes {
			p.Want.Routes = append(p.Want.Routes, hostnet.Route{Dst: prefix, Dev: c.device})
		}
		p.Want.FDB = append(p.Want.FDB, hostnet.FDBEntry{Dev: c.device, MAC: n.VTEP(), Remote: n.Endpoints[0]})
		p.Hops = append(p.Hops, backend.Hop{Node: n.Name, Prefixes: n.Prefixes, Device: c.device})
	}
	return p, nil
}

var network = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}

func node(i int, ways ...control.Way) control.Node {
	return control.Node{Name: string(rune('a' + i)), Ways: ways, Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})},
		Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)}}
}

func state(nodes ...control.Node) *control.State { return &control.State{Self: node(0), Nodes: nodes} }

var (
	direct = control.Way{Name: control.WayDirect}
	vxlan  = control.Way{Name: control.WayVXLAN, Port: 4789}
	frames = control.Way{Name: control.WayFrames, Port: 4789}
	ipudp  = control.Way{Name: control.WayIPUDP, Port: 8285}
	sealed = control.Way{Name: control.WaySealed, Port: 8473}
)

// routes says by which device each node is reached.
func routes(p backend.Plan) string {
	var words []string
	for _, r := range p.Want.Routes {
		if r.Metric >= standbyMetric {
			continue
		}
		words = append(words, fmt.Sprintf("%c:%s", 'a'+rune(r.Dst.Addr().As4()[2]), r.Dev))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func problems(p backend.Plan) string {
	var lines []string
	for _, problem := range p.Problems {
		lines = append(lines, problem.Node+": "+problem.Text)
	}
	return strings.Join(lines, "\n")
}

// TestOneMode: who takes what is sent is reached, also who does not say; who does not is named, with both ways.
func TestOneMode(t *testing.T) {
	c := &carrier{device: "weft-vx4", mtu: 1450}
	p := New(backend.Settings{}, Carrier{Mode: "vxlan", Ways: []control.Way{vxlan, frames}, Planner: c})
	if self := p.Self(); !slices.Equal(self.Ways, []control.Way{vxlan, frames}) || self.Name != "a" || !slices.Equal(self.Features, []string{"weft-vx4"}) {
		t.Errorf("%+v", self)
	}
	s := state(node(1), node(2, vxlan), node(3, ipudp), node(4, frames))
	plan, err := p.Plan(s, nil)
	if err != nil || routes(plan) != "b:weft-vx4 c:weft-vx4 e:weft-vx4" {
		t.Fatalf("%s, %v", routes(plan), err)
	}
	want := "d: no way leads to it: vxlan:4789 is unfit: it takes ipudp:8285, and mode vxlan sends vxlan:4789, frames:4789: choose modes with a way in common, and the same ports"
	if problems(plan) != want {
		t.Errorf("%s\nwant %s", problems(plan), want)
	}
	hops := slices.Clone(plan.Hops)
	unreached := p.Tell(hops)
	if len(unreached) != 1 || unreached[0].Node != "d" || unreached[0].Reached() || !strings.Contains(unreached[0].Reason, "it takes ipudp:8285") {
		t.Errorf("%+v", unreached)
	}
	if hops[0].Way != "vxlan:4789" || hops[2].Way != "frames:4789" || hops[0].State != status.StateAssumed || !hops[0].Reached() {
		t.Errorf("%+v", hops)
	}
	if c, known := p.Choice("d"); !known || c.Way != "" || !slices.Equal(c.Takes, []string{"ipudp:8285"}) || len(c.Candidates) != 1 || len(c.Changes) != 0 {
		t.Errorf("%+v, %v", c, known)
	}
	if c, known := p.Choice("b"); !known || c.Way != "vxlan:4789" || len(c.Takes) != 0 || !c.Candidates[0].Chosen {
		t.Errorf("%+v, %v", c, known)
	}
	if _, known := p.Choice("a"); known {
		t.Error("this node is its own peer")
	}
	// It changes its mode: reached, and the change is remembered.
	s = state(node(1), node(2, vxlan), node(3, ipudp, vxlan), node(4, frames))
	if plan, err = p.Plan(s, nil); err != nil || routes(plan) != "b:weft-vx4 c:weft-vx4 d:weft-vx4 e:weft-vx4" || len(plan.Problems) != 0 {
		t.Fatalf("%s, %s, %v", routes(plan), problems(plan), err)
	}
	if c, _ := p.Choice("d"); c.Way != "vxlan:4789" || len(c.Changes) != 1 || c.Changes[0].From != "" || !strings.Contains(c.Changes[0].Reason, "before, vxlan:4789 is unfit") || c.Since.IsZero() {
		t.Errorf("%+v", c)
	}
	// Nobody is left whom it could not reach: the list is handed on as it is.
	if c.asked != 4 {
		t.Errorf("%d nodes", c.asked)
	}
	if plan, _ := p.Plan(state(node(1)), nil); len(p.peers) != 0 || routes(plan) != "b:weft-vx4" {
		t.Errorf("remembered: %v", p.peers)
	}
}

// TestSelf: what the others are told of this node, and what it is, differ.
func TestSelf(t *testing.T) {
	p := New(backend.Settings{}, Carrier{Mode: "udp", Ways: []control.Way{ipudp}, Planner: &carrier{device: "weft0"}})
	s := state(node(1, ipudp))
	s.Self.Ways = []control.Way{vxlan}
	if plan, err := p.Plan(s, nil); err != nil || !strings.Contains(problems(plan), "a: the others are told that this node takes vxlan:4789, and it takes ipudp:8285") {
		t.Errorf("%s, %v", problems(plan), err)
	}
	s.Self.Ways = []control.Way{ipudp}
	if plan, err := p.Plan(s, nil); err != nil || len(plan.Problems) != 0 {
		t.Errorf("%s, %v", problems(plan), err)
	}
}

// TestSealed: nothing goes in clear to a node that takes it so, but by permission.
func TestSealed(t *testing.T) {
	seal := &backend.Seal{Port: 8473, PermitPlain: []string{"c"}}
	p := New(backend.Settings{Seal: seal}, Carrier{Mode: "tun", Ways: []control.Way{sealed, vxlan}, Planner: &carrier{device: "weft0"}})
	plan, err := p.Plan(state(node(1, sealed), node(2, vxlan), node(3, vxlan), node(4, vxlan, sealed)), nil)
	if err != nil || routes(plan) != "b:weft0 c:weft0 e:weft0" {
		t.Fatalf("%s, %v", routes(plan), err)
	}
	if !strings.Contains(problems(plan), "d: no way leads to it: sealed:8473 is unfit: it takes vxlan:4789, and mode tun sends sealed:8473:") {
		t.Error(problems(plan))
	}
	hops := slices.Clone(plan.Hops)
	p.Tell(hops)
	if hops[0].Way != "sealed:8473" || hops[1].Way != "vxlan:4789" || hops[2].Way != "sealed:8473" {
		t.Errorf("%+v", hops)
	}
}

// TestTwoModes: each peer is reached by the first mode that can, and all that the other one needs for it is there already.
func TestTwoModes(t *testing.T) {
	now := time.Unix(1000, 0)
	first := &carrier{device: "eth0", mtu: 1500, unfit: map[string]string{"c": "it is behind a router"}}
	second := &carrier{device: "weft-vx4", mtu: 1450}
	p := New(backend.Settings{}, Carrier{"host-gw", []control.Way{direct}, first}, Carrier{"vxlan", []control.Way{vxlan, frames}, second})
	p.now = func() time.Time { return now }
	s := state(node(1, direct, vxlan), node(2, direct, vxlan), node(3, vxlan), node(4, ipudp))
	plan, err := p.Plan(s, nil)
	if err != nil || routes(plan) != "b:eth0 c:weft-vx4 d:weft-vx4" {
		t.Fatalf("%s, %v", routes(plan), err)
	}
	if plan.InnerMTU != 1450 || !slices.Equal(plan.Devices, []string{"eth0", "weft-vx4"}) || len(plan.Want.Links) != 2 || len(plan.Features) != 2 || len(plan.Want.FDB) != 1+3 ||
		!slices.Contains(plan.Want.Sysctls, hostnet.Sysctl{Key: "ipv4/conf/weft-vx4/rp_filter", Value: "2"}) {
		t.Errorf("%+v", plan)
	}
	if len(plan.Hops) != 3 || plan.Hops[0].Device != "eth0" || plan.Hops[1].Node != "c" {
		t.Errorf("%+v", plan.Hops)
	}
	if text := problems(plan); strings.Contains(text, "c:") || !strings.HasPrefix(text, "e: no way leads to it: direct is unfit: it takes ipudp:8285, and mode host-gw sends direct; vxlan:4789 is unfit") {
		t.Error(text)
	}
	hops := slices.Clone(plan.Hops)
	if unreached := p.Tell(hops); len(unreached) != 1 || hops[0].Way != "direct" || hops[0].Reason != "" || hops[1].Way != "vxlan:4789" ||
		hops[1].Reason != "direct is unfit: it is behind a router" {
		t.Errorf("%+v, %+v", hops, unreached)
	}
	// One moves to this side of the router, another one behind it.
	now = now.Add(time.Minute)
	first.unfit = map[string]string{"b": "it is behind a router"}
	if plan, err = p.Plan(s, nil); err != nil || routes(plan) != "b:weft-vx4 c:eth0 d:weft-vx4" {
		t.Fatalf("%s, %v", routes(plan), err)
	}
	c, _ := p.Choice("b")
	if last := c.Changes[len(c.Changes)-1]; c.Way != "vxlan:4789" || last != (status.Change{At: now, From: "direct", To: "vxlan:4789", Reason: "direct is unfit: it is behind a router"}) ||
		!c.Since.Equal(now) || len(c.Candidates) != 2 || !c.Candidates[1].Chosen || c.Candidates[0].State != status.StateUnfit {
		t.Errorf("%+v", c)
	}
	if c, _ = p.Choice("c"); c.Way != "direct" || c.Changes[len(c.Changes)-1].Reason != "direct can be used; before, direct is unfit: it is behind a router" {
		t.Errorf("%+v", c)
	}
	for i := range 100 {
		first.unfit = map[string]string{"b": "it is behind a router", "c": "it is behind a router"}
		if i%2 == 0 {
			delete(first.unfit, "c")
		}
		if _, err := p.Plan(s, nil); err != nil {
			t.Fatal(err)
		}
	}
	if c, _ = p.Choice("c"); len(c.Changes) != maxChanges {
		t.Errorf("%d changes are remembered", len(c.Changes))
	}
}
