package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// frr starts FRR's zebra and bgpd in a node's namespace, in place of a daemon; conf is bgpd's.
func (c *cluster) frr(n *nettest.ClusterNode, conf string) {
	c.t.Helper()
	dir, remove, err := nettest.Folder() // paths of its sockets have to be short
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(remove)
	defer func() {
		if c.t.Failed() {
			c.t.Logf("zebra: %s", c.daemons[n.Name+"-zebra"].Output())
		}
	}()
	for _, daemon := range []string{"zebra", "bgpd"} {
		text := "hostname " + n.Name + "\n"
		if daemon == "bgpd" {
			text += conf
		}
		file := filepath.Join(dir, daemon+".conf")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			c.t.Fatal(err)
		}
		n.NS.MustRun(c.t, "chown", "-R", "frr:frr", dir) // whom they become
		c.daemons[n.Name+"-"+daemon] = n.NS.MustStart(c.t, "/usr/lib/frr/"+daemon, "-f", file, "-i", filepath.Join(dir, daemon+".pid"), "-z", filepath.Join(dir, "zserv"), "--vty_socket", dir, "-P", "0", "--log", "stdout")
		if daemon == "zebra" {
			c.eventually("zebra listens", func() error { _, err := os.Stat(filepath.Join(dir, "zserv")); return err })
		}
	}
}

// TestBGPFRR: FRR as the router of the rack, of another AS: what it puts into its kernel and the nodes into theirs, of both families, with passwords; and the
// nodes' routes there outlive a daemon that is killed.
func TestBGPFRR(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "/usr/lib/frr/bgpd")
	c := prepare(t, "host-gw", 4, nettest.ClusterOptions{Nodes: 3})
	a, b, router := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.absent[router.Name] = true
	password := c.path(a, "password")
	c.writeFile(password, "a-secret\n")
	c.extra = fmt.Sprintf(`bgp:
  as: 64512
  peers:
    - {address: %[2]v, as: 64513, password_file: %[1]s, import: [203.0.113.0/24]}
    - {address: "%[3]v", as: 64513, password_file: %[1]s, import: ["2001:db8:113::/48"]}`, password, router.Underlay[0], router.Underlay[1])
	var conf, v6 strings.Builder
	fmt.Fprintf(&conf, "router bgp 64513\n bgp router-id %v\n no bgp ebgp-requires-policy\n no bgp network import-check\n no bgp default ipv4-unicast\n bgp graceful-restart\n", router.Underlay[0])
	for _, n := range []*nettest.ClusterNode{a, b} {
		for i := range 2 {
			fmt.Fprintf(&conf, " neighbor %[1]v remote-as 64512\n neighbor %[1]v password a-secret\n neighbor %[1]v timers connect 1\n", n.Underlay[i])
		}
		fmt.Fprintf(&v6, "  neighbor %v activate\n", n.Underlay[1])
	}
	conf.WriteString(" address-family ipv4 unicast\n  network 203.0.113.0/24\n")
	for _, n := range []*nettest.ClusterNode{a, b} {
		fmt.Fprintf(&conf, "  neighbor %v activate\n", n.Underlay[0])
	}
	fmt.Fprintf(&conf, " exit-address-family\n address-family ipv6 unicast\n  network 2001:db8:113::/48\n%s exit-address-family\n", v6.String())
	c.frr(router, conf.String())
	c.startAll()
	tables := func() error {
		var errs []error
		has := func(n *nettest.ClusterNode, to, part string) {
			if got := routesTo(n, to); !strings.Contains(got, part) {
				errs = append(errs, fmt.Errorf("%s to %s: %q, want %q", n.Name, to, got, part))
			}
		}
		for i, to := range []string{"203.0.113.0/24", "2001:db8:113::/48"} {
			for _, n := range []*nettest.ClusterNode{a, b} {
				has(n, to, fmt.Sprintf("via %v dev eth0 proto 87 metric 8600", router.Underlay[i]))
			}
			has(a, b.Prefixes[i].String(), fmt.Sprintf("via %v dev eth0", b.Underlay[i]))
			has(b, a.Prefixes[i].String(), fmt.Sprintf("via %v dev eth0", a.Underlay[i]))
		}
		for _, n := range []*nettest.ClusterNode{a, b} {
			has(router, n.Prefixes[0].String(), fmt.Sprintf("via %v dev eth0 proto bgp", n.Underlay[0]))
			has(router, n.Prefixes[1].String(), "dev eth0 proto bgp") // by its link-local address, where it said one
		}
		return errors.Join(errs...)
	}
	c.eventually("all three have the same in mind", tables)
	c.eventually("pods are reached from the router", func() error {
		return errors.Join(ping(router.NS, a.PodAddrs[0]), ping(router.NS, b.PodAddrs[1]), ping(a.Pod, b.PodAddrs[1]))
	})
	watch := router.NS.MustStart(t, "ip", "monitor", "route")
	c.daemons[a.Name].Kill()
	<-c.daemons[a.Name].Done()
	c.start(a)
	c.ready(a)
	c.eventually("sessions are up again", func() error {
		var errs []error
		for _, r := range router.Underlay {
			if why := c.bgpReason(a, r); why != "up" {
				errs = append(errs, fmt.Errorf("with %v: %s", r, why))
			}
		}
		return errors.Join(append(errs, tables())...)
	})
	watch.Kill()
	if strings.Contains(watch.Output(), a.Prefixes[0].String()) || strings.Contains(watch.Output(), a.Prefixes[1].String()) {
		t.Errorf("the router's routes have changed:\n%s", watch.Output())
	}
}
