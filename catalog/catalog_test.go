package catalog

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/backend"
	"weft/control"
	"weft/internal/hostnet"
	"weft/internal/nettest"
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
				done := n.NS.Go(func() error { return be.Run(ctx) })
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
			mtu := 1430 // the underlay has both families
			switch m.Name {
			case "udp":
				mtu = 1452
			case "host-gw":
				mtu = 1500
			}
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
	deadline := time.Now().Add(10 * time.Second)
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
