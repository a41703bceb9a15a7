package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// bgpState is what `weft bgp` tells.
type bgpState struct {
	sessions []struct {
		Peer     netip.Addr
		Node     string
		Up       bool
		Reason   string
		BFD      string
		Restarts bool
	}
	Routes, Refused []struct {
		Prefix netip.Prefix
		Node   string
		Via    any
		Reason string
	}
}

func (c *cluster) bgp(n *nettest.ClusterNode) (s bgpState, err error) {
	return s, errors.Join(c.ask(n, &s.sessions, "bgp", "peers"), c.ask(n, &s, "bgp", "routes"))
}

// birdConf writes BIRD's configuration; conf are its sessions and what it tells of.
func (c *cluster) birdConf(n *nettest.ClusterNode, conf string) {
	c.t.Helper()
	c.writeFile(c.path(n, "bird.conf"), fmt.Sprintf("router id %v;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n"+
		"protocol kernel { ipv4 { export all; }; merge paths on; }\nprotocol kernel { ipv6 { export all; }; merge paths on; }\n%s\n", n.Underlay[0], conf))
}

// bird starts BIRD in a node's namespace, in place of a daemon.
func (c *cluster) bird(n *nettest.ClusterNode, conf string) {
	c.t.Helper()
	c.birdConf(n, conf)
	c.daemons[n.Name] = n.NS.MustStart(c.t, "bird", "-f", "-c", c.path(n, "bird.conf"), "-s", c.path(n, "bird.ctl"))
}

// birdc reconfigures BIRD.
func (c *cluster) birdc(n *nettest.ClusterNode, words ...string) string {
	c.t.Helper()
	return n.NS.MustRun(c.t, "birdc", append([]string{"-s", c.path(n, "bird.ctl")}, words...)...)
}

// routes are a namespace's routes to a prefix.
func routesTo(n *nettest.ClusterNode, to string) string {
	family := "-4"
	if strings.Contains(to, ":") {
		family = "-6"
	}
	out, err := n.NS.Run("ip", family, "route", "show", to)
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(out), " ")
}

// TestBGP: two nodes of one AS and BIRD as a router of another. The nodes find each other by themselves and the router is told of both, in IPv4
// and IPv6; it is believed what its import lists, and refused and named for all else; what was learnt outlives a daemon that is killed, here and at the router.
func TestBGP(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "bird", "birdc")
	c := prepare(t, "host-gw", 4, nettest.ClusterOptions{Nodes: 3})
	a, b, router := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.absent[router.Name] = true
	password := c.path(a, "password")
	c.writeFile(password, "a secret\n")
	c.extra = fmt.Sprintf(`bgp:
  as: 64512
  password_file: %[1]s
  peers:
    - {address: %[2]v, as: 64513, password_file: %[1]s, import: [203.0.113.0/24, 192.0.0.0/8 le 32], max_prefixes: 20}
    - {address: "%[3]v", as: 64513, import: ["2001:db8:113::/48 le 64"]}`, password, router.Underlay[0], router.Underlay[1])
	session := func(n *nettest.ClusterNode, more string) string {
		peer := func(family int, ip, text string) string {
			return fmt.Sprintf("protocol bgp %c%d { local %v as 64513; neighbor %v as 64512; graceful restart on; %s %s { import all; export where source = RTS_STATIC; }; }\n",
				n.Name[len(n.Name)-1], 4+2*family, router.Underlay[family], n.Underlay[family], text, ip)
		}
		return peer(0, "ipv4", more) + peer(1, "ipv6", "")
	}
	conf := func(statics string) string {
		return "protocol static s4 { ipv4; " + statics + " }\nprotocol static s6 { ipv6; route 2001:db8:113:5::/64 blackhole; }\n" + session(a, `password "a secret";`) + session(b, `password "a secret";`)
	}
	c.bird(router, conf("route 203.0.113.0/24 blackhole;"))
	c.startAll()

	nodes := []*nettest.ClusterNode{a, b}
	eachRoute := func(want func(n *nettest.ClusterNode) map[string]string) func() error {
		return func() error {
			for _, n := range c.Nodes {
				for to, part := range want(n) {
					if got := routesTo(n, to); !strings.Contains(got, part) || part == "" && got != "" {
						return fmt.Errorf("%s to %s: %q, want %q", n.Name, to, got, part)
					}
				}
			}
			return nil
		}
	}
	tables := func(n *nettest.ClusterNode) map[string]string {
		want := map[string]string{}
		for _, other := range nodes {
			if other == n {
				continue
			}
			for i, p := range other.Prefixes {
				want[p.String()] = fmt.Sprintf("via %v dev eth0", other.Underlay[i])
			}
		}
		if n != router {
			want["203.0.113.0/24"] = fmt.Sprintf("via %v dev eth0 proto 87 metric 8600", router.Underlay[0])
			want["2001:db8:113:5::/64"] = fmt.Sprintf("via %v dev eth0 proto 87 metric 8600", router.Underlay[1])
		}
		return want
	}
	c.eventually("all three have the same in mind", eachRoute(tables))
	c.eventually("pods reach pods", func() error {
		return errors.Join(ping(a.Pod, b.PodAddrs[0]), ping(b.Pod, a.PodAddrs[1]), ping(router.NS, a.PodAddrs[0]), ping(router.NS, b.PodAddrs[1]))
	})
	settled := func(n *nettest.ClusterNode) error {
		s, err := c.bgp(n)
		for _, x := range s.sessions {
			if !x.Up || !x.Restarts {
				err = errors.Join(err, fmt.Errorf("%s with %v (%s): up %v, %s, restarts %v", n.Name, x.Peer, x.Node, x.Up, x.Reason, x.Restarts))
			}
		}
		if len(s.sessions) != 4 || len(s.Refused) > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %+v", n.Name, s))
		}
		return err
	}
	c.eventually("all sessions are up", func() error { return errors.Join(settled(a), settled(b)) })

	// A daemon is killed and comes back: nobody's routes change.
	watch := router.NS.MustStart(t, "ip", "monitor", "route")
	c.daemons[a.Name].Kill()
	<-c.daemons[a.Name].Done()
	c.start(a)
	c.ready(a)
	c.eventually("all sessions are up again", func() error { return errors.Join(settled(a), settled(b)) })
	if err := eachRoute(tables)(); err != nil {
		t.Error(err)
	}
	watch.Kill()
	for _, p := range slices.Concat(a.Prefixes, b.Prefixes) {
		if strings.Contains(watch.Output(), p.String()) {
			t.Errorf("the router's routes have changed:\n%s", watch.Output())
		}
	}

	// It is drained: nobody is sent to it by its routes, also after a restart, and then it is told of again.
	drain := func(args ...string) {
		t.Helper()
		var said struct{ Drained bool }
		if err := c.ask(a, &said, append([]string{"drain"}, args...)...); err != nil || said.Drained == (len(args) > 0) {
			t.Errorf("weft drain %v: %+v, %v", args, said, err)
		}
	}
	drain()
	drained := func() error {
		want := tables(router)
		for _, p := range a.Prefixes {
			want[p.String()] = ""
		}
		for to, part := range want {
			if got := routesTo(router, to); !strings.Contains(got, part) || part == "" && got != "" {
				return fmt.Errorf("%s: %q, want %q", to, got, part)
			}
		}
		return nil
	}
	c.eventually("it is drained", drained)
	c.daemons[a.Name].Kill()
	<-c.daemons[a.Name].Done()
	c.start(a)
	c.eventually("all sessions are up while it is drained", func() error { return settled(a) })
	if err := drained(); err != nil {
		t.Error(err)
	}
	drain("--undo")
	c.eventually("it is told of again", eachRoute(tables))

	// The router tells of what is not its own to tell of.
	refused := map[string]string{"192.0.2.128/25": "it would take away this node's own network 192.0.2.0/24", "0.0.0.0/0": "own prefixes", b.Prefixes[0].String(): "it belongs to node-b", "10.244.77.0/24": "no node owns it", "198.51.100.0/24": "import does not list it"}
	var statics strings.Builder
	for p := range refused {
		fmt.Fprintf(&statics, "route %s blackhole; ", p)
	}
	c.birdConf(router, conf("route 203.0.113.0/24 blackhole; "+statics.String()))
	c.birdc(router, "configure")
	c.eventually("what the router may not tell of is refused and named", func() error {
		s, err := c.bgp(a)
		if err != nil {
			return err
		}
		for p, why := range refused {
			if !slices.ContainsFunc(s.Refused, func(r struct {
				Prefix netip.Prefix
				Node   string
				Via    any
				Reason string
			}) bool {
				return r.Prefix.String() == p && strings.Contains(r.Reason, why)
			}) {
				return fmt.Errorf("%s is not refused because %s: %+v", p, why, s.Refused)
			}
		}
		all, err := c.problems(a)
		if err == nil && !strings.Contains(all, "10.244.2.0/24 from 192.0.2.3 is not taken: it belongs to node-b") {
			err = fmt.Errorf("problems: %s", all)
		}
		return err
	})
	want := tables(a)
	want["198.51.100.0/24"], want["10.244.77.0/24"], want["192.0.2.128/25"] = "", "", ""
	if err := eachRoute(func(n *nettest.ClusterNode) map[string]string {
		if n == a {
			return want
		}
		return nil
	})(); err != nil {
		t.Error(err)
	}
}
