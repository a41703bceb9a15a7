package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

// eachMode runs a test over every mode, over IPv4.
func eachMode(t *testing.T, test func(t *testing.T, mode string)) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			test(t, m.Name)
		})
	}
}

// problems are those that a node's status names.
func (c *cluster) problems(n *nettest.ClusterNode) (all string, err error) {
	var s struct {
		Problems []struct{ Node, Text string } `json:"problems"`
	}
	err = c.ask(n, &s, "status")
	for _, p := range s.Problems {
		all += p.Node + ": " + p.Text + "\n"
	}
	return all, err
}

// metricPrefix is how network managers give a connected route: with a metric, so that one without wins.
const metricPrefix = `ip addr flush dev %[1]s scope global; ip addr add %[2]s dev %[1]s noprefixroute; ip route add %[3]s dev %[1]s metric 100`

// TestLANInOverlay: the overlay takes nothing of what a node reaches without it, whoever claims it and whatever the configuration says.
func TestLANInOverlay(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		c := up(t, mode, 4, nettest.ClusterOptions{Nodes: 3})
		a, b, lost := c.Nodes[0], c.Nodes[1], c.Nodes[2]

		// A second network of node a, part of what a peer has for its own, and of what nobody has.
		host := nettest.New(t)
		nettest.Pair(t, nettest.End{NS: a.NS, Dev: "eth9"}, nettest.End{NS: host, Dev: "eth9"}, 1500)
		host.MustRun(t, "ip", "addr", "add", "10.244.3.200/25", "dev", "eth9")
		a.NS.MustRun(t, "sh", "-ec", fmt.Sprintf(metricPrefix, "eth9", "10.244.3.201/25", "10.244.3.128/25"))
		lan := netip.MustParseAddr("10.244.3.200")
		const want = "node-c: prefix 10.244.3.0/24 is left out on this node, it would take away this node's own network 10.244.3.128/25 on eth9: give"
		c.eventually("the peer's prefix is left out and named", func() error {
			all, err := c.problems(a)
			if err == nil && !strings.Contains(all, want) {
				err = fmt.Errorf("problems: %s", all)
			}
			return err
		})
		c.eventually("the node reaches its own network", func() error { return ping(a.NS, lan) })
		out, err := nodeDoctor(c, a)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("doctor: %v\n%s", err, out)
		}
		for _, pair := range [][2]*nettest.ClusterNode{{a, b}, {b, lost}} {
			c.eventually("the others are as before", func() error { return ping(pair[0].Pod, pair[1].PodAddrs[0]) })
		}
		a.NS.MustRun(t, "ip", "link", "del", "eth9")
		c.allReach()

		// The network covers the underlay: refused, and nothing is touched.
		c.stop(a, 15)
		a.NS.MustRun(t, "ip", "route", "add", "default", "via", "192.0.2.99")
		before := a.NS.MustRun(t, "ip", "route")
		c.network = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("192.0.0.0/16")}
		c.writeConfig(a)
		for _, args := range [][]string{{"--check"}, nil} {
			out, err := a.NS.Run(weft, append([]string{"daemon", "--config", c.path(a, "weft.yaml")}, args...)...)
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(out, "192.0.0.0/16 covers this node's own network 192.0.2.0/24 on eth0") ||
				!strings.Contains(out, "192.0.0.0/16 covers the router 192.0.2.99 on eth0") {
				t.Errorf("weft daemon %v: %v\n%s", args, err, out)
			}
		}
		if now := a.NS.MustRun(t, "ip", "route"); now != before {
			t.Errorf("routes were\n%s\nand are\n%s", before, now)
		}
	})
}

// nodeDoctor runs `weft doctor` on a node.
func nodeDoctor(c *cluster, n *nettest.ClusterNode) (string, error) {
	return n.NS.Run(weft, "doctor", "--socket", c.path(n, "sock"), "--config", c.path(n, "weft.yaml"), "--peers=false")
}

// TestRuleOfOthers: a routing rule of somebody else leads no packet of the overlay out in clear, in no mode.
func TestRuleOfOthers(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		c := up(t, mode, 4, nettest.ClusterOptions{})
		a := c.Nodes[0]
		a.NS.MustRun(t, "sh", "-ec", "ip route add default dev eth0 table 100; ip rule add from all lookup 100 pref 100")
		c.eventually("a rule of weft's comes first", func() error {
			out, err := a.NS.Run("ip", "route", "get", "10.244.250.1")
			if err == nil || !strings.Contains(out, "No route to host") {
				return fmt.Errorf("%s %v", out, err)
			}
			return nil
		})
		c.allReach()
		if out, _ := nodeDoctor(c, a); !strings.Contains(out, `packets to the overlay do not follow "rule 100`) {
			t.Errorf("doctor:\n%s", out)
		}
	})
}
