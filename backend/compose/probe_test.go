package compose

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/reach/link"
)

// prober knows nothing, and fails as it is told.
type prober struct{ err error }

func (p *prober) Aim(_, _ []netip.Addr, _ []link.Target) error { return p.err }
func (p *prober) State(_, _ string) link.State                 { return link.State{} }

// TestProbeTrouble: a node that cannot answer probes does not say that it does, and names the reason.
func TestProbeTrouble(t *testing.T) {
	by := &prober{err: errors.New("UDP port 4787 is taken")}
	p := New(backend.Settings{}, Carrier{"host-gw", []control.Way{direct}, &carrier{device: "eth0", mtu: 1500}}, Carrier{"vxlan", []control.Way{vxlan}, &carrier{device: "weft-vx4", mtu: 1450}})
	p.Probe(by)
	s := state(node(1, direct, vxlan))
	for _, c := range []struct {
		err     error
		answers bool
	}{{nil, true}, {by.err, false}, {nil, true}} {
		by.err = c.err
		plan, err := p.Plan(s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if says := slices.Contains(p.Self().Features, control.FeatureProbe); says != c.answers {
			t.Errorf("%v: it says that it answers: %v", c.err, says)
		}
		if named := strings.Contains(problems(plan), "a: ways are not probed, and this node does not say that it answers: UDP port 4787 is taken"); named == c.answers {
			t.Errorf("%v: %s", c.err, problems(plan))
		}
	}
}

// TestSilentPeer: who does not say what it takes is sent VXLAN, or what the last mode sends, and named.
func TestSilentPeer(t *testing.T) {
	c := func(mode string, ways ...control.Way) Carrier {
		return Carrier{mode, ways, &carrier{device: mode, mtu: 1450}}
	}
	for _, x := range []struct {
		carriers []Carrier
		want     string
	}{
		{[]Carrier{c("host-gw", direct), c("vxlan", vxlan, frames), c("udp", ipudp)}, "vxlan"},
		{[]Carrier{c("vxlan", vxlan, frames), c("tun-gso", control.Way{Name: control.WayVXLAN, Port: 4788})}, "vxlan"},
		{[]Carrier{c("host-gw", direct), c("udp", ipudp)}, "udp"},
	} {
		p := New(backend.Settings{}, x.carriers...)
		plan, err := p.Plan(state(node(1), node(2, direct, vxlan)), nil)
		if first := x.carriers[0].Mode; err != nil || routes(plan) != "b:"+x.want+" c:"+first {
			t.Errorf("%s, %v", routes(plan), err)
		}
		if text := problems(plan); !strings.HasPrefix(text, "b: it does not say by which ways it takes packets, and is sent ") || strings.Contains(text, "c:") {
			t.Error(text)
		}
	}
}
