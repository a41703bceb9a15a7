package hostgw

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/internal/nettest"
)

const patience = nettest.Patience

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
}

// state is the cluster as one node sees it, with the endpoints that pick leaves of each node's.
func state(c *nettest.Cluster, self *nettest.ClusterNode, pick func(n *nettest.ClusterNode) []netip.Addr) control.State {
	s := control.State{AsOf: time.Now()}
	for _, n := range c.Nodes {
		node := control.Node{Name: n.Name, Endpoints: pick(n), Prefixes: n.Prefixes}
		if n == self {
			s.Self = node
		} else {
			s.Nodes = append(s.Nodes, node)
		}
	}
	return s
}

func both(n *nettest.ClusterNode) []netip.Addr  { return n.Underlay }
func only4(n *nettest.ClusterNode) []netip.Addr { return n.Underlay[:1] }
func only6(n *nettest.ClusterNode) []netip.Addr { return n.Underlay[1:] }

// open makes and applies a node's backend, without Run.
func open(t *testing.T, c *nettest.Cluster, n *nettest.ClusterNode, s control.State) backend.Backend {
	t.Helper()
	b := openWith(t, n, backend.Settings{Mode: "host-gw", Node: n.Name, Network: c.Network(), Queues: 1, Log: zaptest.NewLogger(t).Named(n.Name)})
	if err := b.Apply(s); err != nil {
		t.Fatal(err)
	}
	return b
}

func openWith(t *testing.T, n *nettest.ClusterNode, s backend.Settings) backend.Backend {
	t.Helper()
	var b backend.Backend
	var err error
	if s.Host == nil {
		s.Host = openHost(t, n)
	}
	n.NS.Do(func() { b, err = New(s) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func openHost(t *testing.T, n *nettest.ClusterNode) (h *hostnet.Host) {
	t.Helper()
	var err error
	n.NS.Do(func() { h, err = hostnet.New(zaptest.NewLogger(t), backend.Owner) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func pings(t *testing.T, from *nettest.NS, to netip.Addr, args ...string) {
	t.Helper()
	eventually(t, "a ping to "+to.String(), func() bool {
		_, err := from.Run("ping", append([]string{"-n", "-c", "1", "-W", "1", to.String()}, args...)...)
		return err == nil
	})
}

// refused waits until the kernel answers a ping with unreachable.
func refused(t *testing.T, from *nettest.NS, to netip.Addr) {
	t.Helper()
	eventually(t, "a refusal of "+to.String(), func() bool {
		// Three seconds, since the kernel charges an unreachable route's answer twice to one bucket of a token a second
		// (ip_error and icmp_send in net/ipv4): asked every second, it would never answer again.
		out, err := from.Run("ping", "-n", "-c", "1", "-W", "3", to.String())
		return err != nil && strings.Contains(out, "nreachable")
	})
}

func routes(t *testing.T, n *nettest.ClusterNode) string {
	t.Helper()
	return n.NS.MustRun(t, "ip", "-4", "route", "show", "proto", "87") + n.NS.MustRun(t, "ip", "-6", "route", "show", "proto", "87")
}

// TestFamilies: IPv4 goes by an IPv6 next hop where nodes have no other endpoint, IPv6 by an IPv4 one cannot and is refused.
func TestFamilies(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, tc := range []struct {
		name     string
		pick     func(*nettest.ClusterNode) []netip.Addr
		via      string // of the IPv4 route
		problems int
	}{
		{"both", both, "via 192.0.2.2", 0},
		{"IPv6 only", only6, "via inet6 2001:db8::2", 0},
		{"IPv4 only", only4, "via 192.0.2.2", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, a, b := nettest.TwoNodes(t, 1500)
			backends := []backend.Backend{open(t, c, a, state(c, a, tc.pick)), open(t, c, b, state(c, b, tc.pick))}
			if got := routes(t, a); !strings.Contains(got, "10.244.2.0/24 "+tc.via+" dev eth0 src 10.244.1.1 onlink") {
				t.Errorf("routes:\n%s", got)
			}
			pings(t, a.Pod, b.PodAddrs[0])
			pings(t, a.NS, b.PodAddrs[0])
			s := backends[0].Status()
			if !s.Ready || s.InnerMTU != 1500 || len(s.Hops) != 1 || len(s.Problems) != tc.problems {
				t.Errorf("status %+v", s)
			}
			if tc.problems == 0 {
				pings(t, a.Pod, b.PodAddrs[1])
				pings(t, a.NS, b.PodAddrs[1])
				return
			}
			refused(t, a.Pod, b.PodAddrs[1])
			if p := s.Problems[0]; p.Node != b.Name || !strings.Contains(p.Text, "fd00:10:244:2::/64") || !strings.Contains(p.Text, "IPv6 endpoint") {
				t.Errorf("problem %+v", p)
			}
		})
	}
}

// TestPeerBehindARouter: such a peer is refused and named, and its prefixes stay unreachable, while the others are reached; once
// it is on the link its routes come by themselves, and go again.
func TestPeerBehindARouter(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := nettest.NewCluster(t, nettest.ClusterOptions{Nodes: 3})
	a, b, far := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	behind := func() {
		a.NS.MustRun(t, "ip", "route", "add", "192.0.2.3/32", "via", "192.0.2.2")
		a.NS.MustRun(t, "ip", "-6", "route", "add", "2001:db8::3/128", "via", "2001:db8::2")
	}
	behind()
	host := openHost(t, a)
	be := openWith(t, a, backend.Settings{Mode: "host-gw", Node: a.Name, Network: c.Network(), Queues: 1, Host: host, Log: zaptest.NewLogger(t).Named(a.Name)})
	if err := be.Apply(state(c, a, both)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := a.NS.Go(func() error {
		return be.Run(ctx, func(error) {
			if err := be.Apply(state(c, a, both)); err != nil {
				t.Logf("apply: %v", err)
			}
		})
	})
	watched := a.NS.Go(func() error { return host.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-watched); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	for _, n := range []*nettest.ClusterNode{b, far} {
		open(t, c, n, state(c, n, both))
	}
	check := func(problems int) {
		t.Helper()
		s := be.Status()
		if !s.Ready || len(s.Problems) != problems || len(s.Hops) != 2-min(problems, 1) {
			t.Errorf("status %+v", s)
		}
		for _, p := range s.Problems {
			if p.Node != far.Name || !strings.Contains(p.Text, "behind the router") || !strings.Contains(p.Text, "one link") {
				t.Errorf("problem %+v", p)
			}
		}
	}
	check(2) // one a prefix
	for i := range b.PodAddrs {
		pings(t, a.Pod, b.PodAddrs[i])
		refused(t, a.Pod, far.PodAddrs[i])
	}
	a.NS.MustRun(t, "ip", "route", "del", "192.0.2.3/32", "via", "192.0.2.2")
	a.NS.MustRun(t, "ip", "-6", "route", "del", "2001:db8::3/128", "via", "2001:db8::2")
	for _, to := range far.PodAddrs {
		pings(t, a.Pod, to)
	}
	check(0)
	behind()
	for _, to := range far.PodAddrs {
		refused(t, a.Pod, to)
	}
	check(2)
}

// TestOwnAddresses: the node's inner addresses are on lo under our protocol, a restart adopts them, a person's are left alone, and
// they go with cleanup or when another mode takes over.
func TestOwnAddresses(t *testing.T) {
	nettest.RequireRoot(t)
	c, a, _ := nettest.TwoNodes(t, 1500)
	a.NS.MustRun(t, "ip", "addr", "add", "203.0.113.7/32", "dev", "lo")
	lo := func() string { return a.NS.MustRun(t, "ip", "addr", "show", "dev", "lo") }
	holds := func(want bool) {
		t.Helper()
		for _, own := range []string{"10.244.1.1/32", "fd00:10:244:1::1/128"} {
			if strings.Contains(lo(), own) != want {
				t.Errorf("%s on lo should be %v:\n%s", own, want, lo())
			}
		}
		if !strings.Contains(lo(), "203.0.113.7/32") {
			t.Errorf("a person's address is gone:\n%s", lo())
		}
	}
	open(t, c, a, state(c, a, both))
	holds(true)
	if again := open(t, c, a, state(c, a, both)); again.Status().Repairs != 0 {
		t.Errorf("a restart repaired %d things", again.Status().Repairs)
	}
	holds(true)

	var host *hostnet.Host
	var err error
	a.NS.Do(func() { host, err = hostnet.New(zaptest.NewLogger(t), backend.Owner) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	if err := host.Apply(backend.Owner, hostnet.Want{Network: c.Network()}); err != nil { // a mode that wants none
		t.Fatal(err)
	}
	holds(false)

	open(t, c, a, state(c, a, both))
	holds(true)
	removed, err := host.Cleanup()
	if err != nil || !strings.Contains(strings.Join(removed, "\n"), "address 10.244.1.1 dev lo") {
		t.Errorf("cleanup: %v, removed %q", err, removed)
	}
	holds(false)
	if got := routes(t, a); got != "" {
		t.Errorf("routes after cleanup:\n%s", got)
	}
}

// TestSealedIsRefused: what an earlier, unsealed run left forwarding does not go on in clear.
func TestSealedIsRefused(t *testing.T) {
	nettest.RequireRoot(t)
	c, a, _ := nettest.TwoNodes(t, 1500)
	open(t, c, a, state(c, a, both))
	host := openHost(t, a)
	a.NS.Do(func() {
		_, err := New(backend.Settings{Mode: "host-gw", Node: a.Name, Network: c.Network(), Seal: &backend.Seal{Cipher: "auto"}, Host: host})
		if err == nil || !strings.Contains(err.Error(), "encryption.cipher: none") {
			t.Errorf("New: %v", err)
		}
	})
	if got := routes(t, a); strings.Contains(got, "via") || !strings.Contains(got, "unreachable") {
		t.Errorf("routes:\n%s", got)
	}
}

// TestMTU: node.mtu below the device's is the routes' own.
func TestMTU(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c, a, b := nettest.TwoNodes(t, 1500)
	for _, n := range c.Nodes {
		be := openWith(t, n, backend.Settings{Mode: "host-gw", Node: n.Name, Network: c.Network(), UnderlayMTU: 1400, Log: zaptest.NewLogger(t)})
		if err := be.Apply(state(c, n, both)); err != nil || be.Status().InnerMTU != 1400 {
			t.Fatalf("%v, status %+v", err, be.Status())
		}
	}
	for i, head := range []int{28, 48} {
		pings(t, a.Pod, b.PodAddrs[i], "-M", "do", "-s", map[int]string{28: "1372", 48: "1352"}[head])
		eventually(t, "one byte more is answered", func() bool {
			out, _ := a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", map[int]string{28: "1373", 48: "1353"}[head], b.PodAddrs[i].String())
			return strings.Contains(out, "1400")
		})
	}
	bad := openWith(t, a, backend.Settings{Mode: "host-gw", Node: a.Name, Network: c.Network(), UnderlayMTU: 1000})
	if err := bad.Apply(state(c, a, both)); err == nil || !strings.Contains(err.Error(), "1280") {
		t.Errorf("an MTU of 1000 with IPv6: %v", err)
	}
}
