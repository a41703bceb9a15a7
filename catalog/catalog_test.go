package catalog

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/backend"
	"weft/backend/userspace"
	"weft/catalog/mode"
	"weft/control"
	"weft/encap/sealed"
	"weft/hostnet"
	"weft/internal/nettest"
	"weft/packet"
	"weft/xdp"
	"weft/xdp/lib"
)

// TestEveryModeCarries runs each mode's backend for two nodes inside this process, so that the race
// detector sees lanes, repair and status at once.
func TestEveryModeCarries(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range Modes {
		t.Run(m.Name, func(t *testing.T) {
			c, a, b := nettest.TwoNodes(t, 1500)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			backends := map[string]backend.Backend{}
			for _, n := range c.Nodes {
				var be backend.Backend
				var host *hostnet.Host
				var err error
				n.NS.Do(func() {
					if host, err = hostnet.New(zaptest.NewLogger(t).Named(n.Name), backend.Owner); err != nil {
						return
					}
					if be, err = m.New(backend.Settings{Mode: m.Name, Node: n.Name, Network: c.Network(), VNI: 1, Port: m.Port,
						Queues: 1, Host: host, Log: zaptest.NewLogger(t).Named(n.Name)}); err != nil {
						return
					}
					err = be.Apply(stateOf(c, n))
				})
				if err != nil {
					t.Fatalf("%s: %v", n.Name, err)
				}
				done := n.NS.Go(func() error {
					return be.Run(ctx, func(error) {
						if err := be.Apply(stateOf(c, n)); err != nil {
							t.Logf("%s: apply: %v", n.Name, err)
						}
					})
				})
				watched := n.NS.Go(func() error { return host.Run(ctx) })
				t.Cleanup(func() {
					cancel()
					if err := errors.Join(<-done, <-watched); err != nil {
						t.Errorf("%s: Run: %v", n.Name, err)
					}
					if err := errors.Join(be.Close(), host.Close()); err != nil {
						t.Errorf("%s: Close: %v", n.Name, err)
					}
				})
				backends[n.Name] = be
			}
			for _, to := range b.PodAddrs {
				reach(t, a, to)
			}
			s := backends[a.Name].Status()
			mtu := m.Wire.InnerMTU(1500, true, false) // the underlay has both families
			if !s.Ready || s.InnerMTU != mtu || len(s.Hops) != 1 || s.Hops[0].Node != b.Name {
				t.Errorf("status %+v", s)
			}
			// Somebody deletes the device, or what there is without one: it is back without anybody's help.
			for _, device := range s.Devices {
				a.NS.MustRun(t, "ip", "link", "del", device)
			}
			if len(s.Devices) == 0 {
				a.NS.MustRun(t, "ip", "route", "flush", "proto", "87")
				a.NS.MustRun(t, "ip", "-6", "route", "flush", "proto", "87")
			}
			for _, to := range b.PodAddrs {
				reach(t, a, to)
			}
		})
	}
}

// TestEveryModeIsMade: the list and what makes its modes go together, and what the list says is what is made.
func TestEveryModeIsMade(t *testing.T) {
	for _, m := range Modes {
		if m.New == nil {
			t.Errorf("mode %s is in the list, and nothing here makes it", m.Name)
		}
	}
	if len(Modes) != len(makers) {
		t.Errorf("%d modes in the list, %d are made", len(Modes), len(makers))
	}
	if mode.SealOverhead != sealed.HeaderLen+sealed.TagLen {
		t.Errorf("the list says that a seal is %d bytes", mode.SealOverhead)
	}
	for _, name := range mode.Ciphers() {
		if _, err := sealed.CipherByName(name); err != nil {
			t.Error(err)
		}
	}
	for wire, stages := range map[mode.Wire][]packet.Stage{mode.VXLAN: vxlanStages(userspace.Path{InnerMTU: 1400}), mode.IPUDP: ipudpStages(userspace.Path{InnerMTU: 1400})} {
		sum := 0
		for _, s := range stages {
			sum += s.Overhead().Total()
		}
		if sum != wire.Overhead() {
			t.Errorf("%s: the list says %d bytes, the stages %d", wire, wire.Overhead(), sum)
		}
	}
	made := false
	grown := bind(append(mode.All(), mode.Mode{Name: "planted"}), map[string]func(mode.Mode) making{
		"planted": func(mode.Mode) making {
			return making{carry: func(s backend.Settings) (backend.Backend, error) { made = s.Compose != nil; return nil, nil }}
		}})
	if _, err := grown[len(grown)-1].New(backend.Settings{}); err != nil || !made {
		t.Errorf("a mode that was added is not made: %v", err)
	}
}

// TestStatusWhileApplying: who asks how a backend is, as /healthz does, is answered while thousands of nodes are being put in force, and
// is not told before that they are.
func TestStatusWhileApplying(t *testing.T) {
	nettest.RequireRoot(t)
	for _, name := range []string{"host-gw", "vxlan", "tun-gso"} {
		t.Run(name, func(t *testing.T) {
			c, a, b := nettest.TwoNodes(t, 1500)
			m, _ := ModeByName(name)
			var be backend.Backend
			var host *hostnet.Host
			var err error
			a.NS.Do(func() {
				if host, err = hostnet.New(zaptest.NewLogger(t), backend.Owner); err == nil {
					be, err = m.New(backend.Settings{Mode: name, Node: a.Name, Network: c.Network(), VNI: 1, Port: m.Port, Queues: 1, Host: host, Log: zaptest.NewLogger(t)})
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(be.Close(), host.Close()); err != nil {
					t.Error(err)
				}
			}()
			s := stateOf(c, a)
			for i := range 2000 {
				s.Nodes = append(s.Nodes, control.Node{Name: fmt.Sprintf("other-%04d", i), Endpoints: b.Underlay,
					Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)}})
			}
			done := a.NS.Go(func() error { return be.Apply(s) })
			answers := 0
			for done := done; done != nil; {
				ready := be.Status().Ready
				select {
				case err := <-done:
					if err != nil {
						t.Error(err)
					}
					done = nil
				case <-time.After(5 * time.Millisecond): // between two questions
					answers++
					if ready && be.Status().Ready {
						if err := <-done; err != nil { // it may be just over
							t.Error(err)
						}
						done = nil
					}
				}
			}
			if status := be.Status(); !status.Ready || len(status.Hops) != len(s.Nodes) || answers < 3 {
				t.Errorf("ready %t %s, %d peers; %d answers while they were put in force", status.Ready, status.Reason, len(status.Hops), answers)
			}
		})
	}
}

func stateOf(c *nettest.Cluster, self *nettest.ClusterNode) control.State {
	s := control.State{AsOf: time.Now()}
	for _, n := range c.Nodes {
		node := control.Node{Name: n.Name, Endpoints: n.Underlay, Prefixes: n.Prefixes}
		if n == self {
			s.Self = node
		} else {
			s.Nodes = append(s.Nodes, node)
		}
	}
	return s
}

func reach(t *testing.T, from *nettest.ClusterNode, to netip.Addr) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := from.Pod.Run("ping", "-n", "-c", "1", "-W", "1", to.String())
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("pod of %s does not reach %v: %v\n%s", from.Name, to, err, out)
		}
	}
}

// TestFrames: the list of modes says what their AF_XDP ends take.
func TestFrames(t *testing.T) {
	for _, m := range mode.All() {
		want := 0
		switch {
		case m.Name == "xdp-lib":
			want = lib.MaxMTU
		case m.Uses(mode.AFXDP):
			want = xdp.MaxMTU
		}
		if m.Frame != want {
			t.Errorf("mode %s takes packets of %d bytes at most, the list says %d", m.Name, want, m.Frame)
		}
		for _, seals := range []bool{false, true} {
			most := m.MaxMTU(seals)
			if want := m.Frame; m.Frame == 0 || m.Outside == mode.AFXDP {
				if most != want {
					t.Errorf("mode %s: an underlay MTU of %d at most, want %d", m.Name, most, want)
				}
			} else if inner := m.Wire.InnerMTU(most, false, seals); inner != m.Frame {
				t.Errorf("mode %s, sealed %v: an underlay MTU of %d leaves %d, want %d", m.Name, seals, most, inner, m.Frame)
			}
		}
	}
}
