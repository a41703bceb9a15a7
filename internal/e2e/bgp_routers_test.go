package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// reasons are why sessions of a node with an address are not up; "up" where they are.
func (c *cluster) bgpReason(n *nettest.ClusterNode, peer fmt.Stringer) string {
	s, err := c.bgp(n)
	if err != nil {
		return err.Error()
	}
	for _, x := range s.sessions {
		switch {
		case x.Peer.String() != peer.String():
		case x.Up:
			return "up"
		default:
			return x.Reason
		}
	}
	return "no such session"
}

// TestBGPRouters: two routers tell of the same prefixes, and packets are spread over both, of both families; one that goes takes its part with it alone.
// A wrong password, a wrong AS and too many prefixes are named, each with its peer, and harm nobody else.
func TestBGPRouters(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "bird", "birdc")
	c := prepare(t, "host-gw", 4, nettest.ClusterOptions{Nodes: 4})
	a, b, one, two := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	c.absent[one.Name], c.absent[two.Name] = true, true
	password := c.path(a, "password")
	c.writeFile(password, "a secret\n")
	c.extra = "bgp:\n  as: 64512\n  peers:\n"
	for _, r := range []*nettest.ClusterNode{one, two} {
		c.extra += fmt.Sprintf("    - {address: %v, as: 64513, password_file: %s, import: [203.0.113.0/24 le 28], max_prefixes: 10, nodes: [%s]}\n    - {address: %q, as: 64513, import: [\"2001:db8:113::/48\"]}\n",
			r.Underlay[0], password, a.Name, r.Underlay[1])
	}
	conf := func(r *nettest.ClusterNode, as int, password, more string) string {
		text := fmt.Sprintf("protocol static s4 { ipv4; route 203.0.113.0/24 blackhole; %s }\nprotocol static s6 { ipv6; route 2001:db8:113::/48 blackhole; }\n", more)
		text += fmt.Sprintf("protocol bgp a4 { local %v as %d; neighbor %v as 64512; connect retry time 1; connect delay time 1; error wait time 1, 2; graceful restart on; password %q; ipv4 { import all; export where source = RTS_STATIC; }; }\n", r.Underlay[0], as, a.Underlay[0], password)
		for _, n := range []*nettest.ClusterNode{a, b} {
			text += fmt.Sprintf("protocol bgp %c6 { local %v as 64513; neighbor %v as 64512; connect retry time 1; ipv6 { import all; export where source = RTS_STATIC; }; }\n", n.Name[len(n.Name)-1], r.Underlay[1], n.Underlay[1])
		}
		return text
	}
	c.bird(one, conf(one, 64513, "a secret", ""))
	c.bird(two, conf(two, 64513, "a secret", ""))
	c.startAll()
	again := func(r *nettest.ClusterNode, conf string) {
		c.birdConf(r, conf)
		c.birdc(r, "configure")
	}
	leads := func(n *nettest.ClusterNode, to string, family int, routers ...*nettest.ClusterNode) func() error {
		return func() error {
			got := routesTo(n, to)
			for _, r := range []*nettest.ClusterNode{one, two} {
				want := false
				for _, x := range routers {
					want = want || x == r
				}
				if strings.Contains(got+" ", fmt.Sprintf("via %v ", r.Underlay[family])) != want {
					return fmt.Errorf("%s to %s: %q, by %s: want %v", n.Name, to, got, r.Name, want)
				}
			}
			return nil
		}
	}
	both := func() error {
		return errors.Join(leads(a, "203.0.113.0/24", 0, one, two)(), leads(a, "2001:db8:113::/48", 1, one, two)(), leads(b, "2001:db8:113::/48", 1, one, two)(), leads(b, "203.0.113.0/24", 0)())
	}
	c.eventually("packets are spread over both routers, and node b has IPv6 alone", both)
	c.eventually("nodes reach each other", func() error { return errors.Join(ping(a.Pod, b.PodAddrs[0]), ping(b.Pod, a.PodAddrs[1])) })

	// Routes of several next hops outlive a daemon, too.
	watch := a.NS.MustStart(t, "ip", "monitor", "route")
	c.daemons[a.Name].Kill()
	<-c.daemons[a.Name].Done()
	c.start(a)
	c.ready(a)
	c.eventually("all has been told again", func() error {
		var s struct{ Settled bool }
		err := c.ask(a, &s, "bgp", "status")
		if err == nil && !s.Settled {
			err = errors.New("it is not settled")
		}
		return errors.Join(err, both())
	})
	watch.Kill()
	for _, to := range []string{"203.0.113.0/24", "2001:db8:113::/48", b.Prefixes[0].String(), b.Prefixes[1].String()} {
		if strings.Contains(watch.Output(), to) {
			t.Errorf("routes to %s have changed while the daemon began anew:\n%s", to, watch.Output())
		}
	}

	c.birdc(two, "disable", "a4")
	c.eventually("the router that is left carries all", leads(a, "203.0.113.0/24", 0, one))
	if err := leads(a, "2001:db8:113::/48", 1, one, two)(); err != nil {
		t.Error(err)
	}
	named := func(r *nettest.ClusterNode, why string) {
		t.Helper()
		c.eventually("it is named: "+why, func() error {
			if got := c.bgpReason(a, r.Underlay[0]); !strings.Contains(got, why) {
				return fmt.Errorf("with %s: %s", r.Name, got)
			}
			if why == "up" {
				return nil
			}
			all, err := c.problems(a)
			if err == nil && !strings.Contains(all, fmt.Sprintf("BGP: no session with %v: ", r.Underlay[0])) {
				err = fmt.Errorf("problems: %s", all)
			}
			return errors.Join(err, leads(a, "203.0.113.0/24", 0, one)(), leads(a, "2001:db8:113::/48", 1, one, two)())
		})
	}
	again(two, conf(two, 64513, "another", ""))
	named(two, "compare the passwords")
	again(two, conf(two, 64999, "a secret", ""))
	named(two, "the autonomous systems differ")
	again(two, conf(two, 64513, "a secret", ""))
	c.birdc(two, "enable", "a4")
	named(two, "up")
	c.eventually("both carry again", both)
	var more strings.Builder
	for i := range 16 {
		fmt.Fprintf(&more, "route 203.0.113.%d/28 blackhole; ", 16*i)
	}
	// None of what it told of stays, though it announced graceful restart: neither what the other tells of, too, nor what it alone told of before.
	again(two, conf(two, 64513, "a secret", "route 203.0.113.240/28 blackhole;"))
	c.eventually("what one router alone tells of goes by it", leads(a, "203.0.113.240/28", 0, two))
	again(two, conf(two, 64513, "a secret", more.String()))
	named(two, "it told of more than 10 prefixes")
	c.eventually("what it alone told of goes", leads(a, "203.0.113.240/28", 0))
}

// TestBGPReflector: nodes that know each other by a route reflector alone, BIRD here, which keeps their next hops.
func TestBGPReflector(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "bird")
	c := prepare(t, "host-gw", 4, nettest.ClusterOptions{Nodes: 4})
	reflector := c.Nodes[3]
	c.absent[reflector.Name] = true
	c.extra = fmt.Sprintf(`bgp:
  as: 64512
  mesh: false
  peers:
    - {address: %v, as: 64512, import: [10.244.0.0/16 le 24]}
    - {address: "%v", as: 64512, import: ["fd00:10:244::/48 le 64"]}`, reflector.Underlay[0], reflector.Underlay[1])
	var conf strings.Builder
	for _, n := range c.Nodes[:3] {
		for i, family := range []string{"ipv4", "ipv6"} {
			fmt.Fprintf(&conf, "protocol bgp %c%d { local %v as 64512; neighbor %v as 64512; rr client; graceful restart on; %s { import all; export all; }; }\n", n.Name[len(n.Name)-1], i, reflector.Underlay[i], n.Underlay[i], family)
		}
	}
	c.bird(reflector, conf.String())
	c.startAll()
	c.eventually("every node has the others' routes, and so has the reflector", func() error {
		for _, n := range c.Nodes {
			for _, other := range c.Nodes[:3] {
				for i, p := range other.Prefixes {
					if got, want := routesTo(n, p.String()), fmt.Sprintf("via %v dev eth0", other.Underlay[i]); n != other && !strings.Contains(got, want) {
						return fmt.Errorf("%s to %v: %q, want %q", n.Name, p, got, want)
					}
				}
			}
		}
		return nil
	})
	for i := range 2 {
		c.eventually("pods reach pods", func() error { return ping(c.Nodes[0].Pod, c.Nodes[2].PodAddrs[i]) })
	}
}

// TestBGPWays: a node that does not speak BGP is reached in VXLAN where that is the next way, with the reason, and as it is once it speaks.
func TestBGPWays(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "[host-gw, vxlan]", 4, nettest.ClusterOptions{})
	a, b := c.Nodes[0], c.Nodes[1]
	c.told, c.dual = true, true
	c.modes = map[string]string{a.Name: "[host-gw, vxlan]", b.Name: "[host-gw, vxlan]"}
	c.startAll()
	c.stop(a, 15)
	c.extra = "bgp: {as: 64512}"
	c.start(a)
	c.ready(a)
	reached := func(way, why string) func() error {
		return func() error {
			p := c.towards(a, b)
			if p.Way != way || !strings.Contains(p.Reason, why) {
				return fmt.Errorf("%+v", p)
			}
			return errors.Join(ping(a.Pod, b.PodAddrs[0]), ping(a.Pod, b.PodAddrs[1]))
		}
	}
	c.eventually("it is reached in VXLAN, for nobody listens there", reached("vxlan:4789", "nobody listens on TCP port 179 there"))
	c.stop(b, 15)
	c.start(b)
	c.ready(b)
	c.eventually("it is reached as it is", reached("direct", ""))
}

// TestBGPBFD: two routers that are watched by BFD tell of the same prefixes. One is cut off behind the bridge, so that no device notices: its next hops go long before
// the hold time is over, and come back with it. A router without BFD is named. WEFT_TEST_LONG=1: in both families, and with the time that it takes.
func TestBGPBFD(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "bird")
	c := prepare(t, "host-gw", 4, nettest.ClusterOptions{Nodes: 4})
	a, one, two, deaf := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	long := os.Getenv("WEFT_TEST_LONG") != ""
	prefixes := []string{"203.0.113.0/24", "2001:db8:113::/48"}
	if !long {
		prefixes = prefixes[:1]
	}
	c.extra = "bgp:\n  as: 64512\n  mesh: false\n  peers:\n"
	for _, r := range []*nettest.ClusterNode{one, two, deaf} {
		c.absent[r.Name] = true
		on := "bfd on; "
		if r == deaf {
			on = ""
		}
		bird := "protocol bfd { accept direct; interface \"eth0\" { min rx interval 200 ms; min tx interval 200 ms; multiplier 3; }; }\nprotocol static s4 { ipv4; route 203.0.113.0/24 blackhole; }\nprotocol static s6 { ipv6; route 2001:db8:113::/48 blackhole; }\n"
		for i, prefix := range prefixes {
			c.extra += fmt.Sprintf("    - {address: %q, as: 64513, bfd: true, import: [%q]}\n", r.Underlay[i], prefix)
			bird += fmt.Sprintf("protocol bgp a%d { local %v as 64513; neighbor %v as 64512; connect retry time 1; connect delay time 1; error wait time 1, 2; %s%s { import all; export where source = RTS_STATIC; }; }\n",
				i, r.Underlay[i], a.Underlay[i], on, []string{"ipv4", "ipv6"}[i])
		}
		c.bird(r, bird)
	}
	c.startAll()
	watched := func(r *nettest.ClusterNode, up bool, bfd string) func() error {
		return func() error {
			s, err := c.bgp(a)
			for _, x := range s.sessions {
				if slices.Contains(r.Underlay, x.Peer) && (x.Up != up || x.BFD != bfd || x.Restarts) {
					err = errors.Join(err, fmt.Errorf("%v: up %v (%s), BFD %s, restarts %v", x.Peer, x.Up, x.Reason, x.BFD, x.Restarts))
				}
			}
			return err
		}
	}
	by := func(routers ...*nettest.ClusterNode) func() error {
		return func() error {
			var errs []error
			for i, to := range prefixes {
				got := routesTo(a, to)
				for _, r := range []*nettest.ClusterNode{one, two, deaf} {
					if has := strings.Contains(got+" ", fmt.Sprintf("via %v ", r.Underlay[i])); has != slices.Contains(routers, r) {
						now, _ := c.bgp(a)
						errs = append(errs, fmt.Errorf("to %s: %q: %+v", to, got, now))
					}
				}
			}
			return errors.Join(errs...)
		}
	}
	c.eventually("packets are spread over all", by(one, two, deaf))
	c.eventually("two are heard by BFD", func() error {
		return errors.Join(watched(one, true, "up")(), watched(two, true, "up")(), watched(deaf, true, "down")())
	})
	c.eventually("the one that is not is named", func() error {
		all, err := c.problems(a)
		if want := fmt.Sprintf("BGP: %v is not heard by BFD", deaf.Underlay[0]); err == nil && !strings.Contains(all, want) {
			err = fmt.Errorf("problems: %s", all)
		}
		return err
	})
	port := "port3" // of the third node
	c.Fabric.MustRun(t, "ip", "link", "set", port, "down")
	cut := time.Now()
	c.eventually("the others carry all", by(one, deaf))
	took := time.Since(cut)
	t.Logf("next hops of a router that is cut off were gone after %v", took)
	if long && took > 5*time.Second { // its hold time is 9 s, of which 6 are left at least
		t.Errorf("it was not BFD that noticed: %v", took)
	}
	c.eventually("that is why", func() error {
		if why := c.bgpReason(a, two.Underlay[0]); why == "up" {
			return errors.New(why)
		}
		return errors.Join(watched(one, true, "up")(), watched(two, false, "down")())
	})
	c.Fabric.MustRun(t, "ip", "link", "set", port, "up")
	c.eventually("it carries again", func() error { return errors.Join(by(one, two, deaf)(), watched(two, true, "up")()) })
}
