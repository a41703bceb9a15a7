package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft/api"
	"weft/catalog/mode"
	"weft/hostnet/egress"
	"weft/internal/nettest"
)

// TestPathMTU: two routers between the nodes, and a link between these that carries less than the nodes' own. What the kernel or a router says
// of the path reaches pods and `weft peers`, and is forgotten when it is another one.
func TestPathMTU(t *testing.T) {
	eachMode(t, func(t *testing.T, name string) {
		if known(name).Wire == mode.Direct {
			return // there is no path but the link
		}
		c := prepare(t, name, 4, nettest.ClusterOptions{})
		a, b := c.Nodes[0], c.Nodes[1]
		r, q := nettest.New(t), nettest.New(t)
		a.NS.MustRun(t, "ip", "link", "del", "eth0")
		nettest.Pair(t, nettest.End{NS: a.NS, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24")}, nettest.End{NS: r, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.254/24")}, 1500)
		nettest.Pair(t, nettest.End{NS: b.NS, Dev: "eth0", Addrs: nettest.Prefixes("198.51.100.2/24")}, nettest.End{NS: q, Dev: "eth0", Addrs: nettest.Prefixes("198.51.100.254/24")}, 1500)
		nettest.Pair(t, nettest.End{NS: r, Dev: "eth1", Addrs: nettest.Prefixes("10.1.1.1/30")}, nettest.End{NS: q, Dev: "eth1", Addrs: nettest.Prefixes("10.1.1.2/30")}, 1400)
		a.NS.MustRun(t, "ip", "route", "add", "default", "via", "192.0.2.254")
		b.NS.MustRun(t, "ip", "route", "add", "default", "via", "198.51.100.254")
		r.MustRun(t, "ip", "route", "add", "default", "via", "10.1.1.2")
		q.MustRun(t, "ip", "route", "add", "default", "via", "10.1.1.1")
		for _, ns := range []*nettest.NS{r, q} {
			if err := ns.Sysctl("ipv4/ip_forward", "1"); err != nil {
				t.Fatal(err)
			}
		}
		b.Underlay[0] = netip.MustParseAddr("198.51.100.2")
		c.launch()

		s, err := c.status(a)
		if err != nil {
			t.Fatal(err)
		}
		carries := func(what string, underlay int) {
			t.Helper()
			want := s.InnerMTU - (1500 - underlay)
			c.eventually(what, func() error {
				var peers []struct {
					Node string `json:"node"`
					MTU  int    `json:"mtu"`
				}
				if err := c.ask(a, &peers, "peers"); err != nil {
					return err
				}
				if len(peers) != 1 || peers[0].MTU != want {
					return fmt.Errorf("peers %+v, want an MTU of %d", peers, want)
				}
				return nil
			})
		}
		for _, to := range b.PodAddrs {
			if err := bulk(a.Pod, b.Pod, to, 1<<20); err != nil {
				t.Errorf("a stream to %v: %v", to, err)
			}
		}
		carries("a router has said what it carries", 1400)
		c.eventually("a pod is told", func() error {
			out, err := a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", fmt.Sprint(s.InnerMTU-28), b.PodAddrs[0].String())
			if err == nil {
				return errors.New("a packet passed that does not fit")
			}
			want := fmt.Sprintf("mtu = %d", s.InnerMTU-100)
			if out2, _ := a.Pod.Run("ip", "route", "get", b.PodAddrs[0].String()); !containsAny(out+out2, want, fmt.Sprintf("mtu=%d", s.InnerMTU-100), fmt.Sprintf("mtu %d", s.InnerMTU-100)) {
				return fmt.Errorf("%s\n%s", out, out2)
			}
			return nil
		})

		width := func(mtu string) {
			for _, ns := range []*nettest.NS{r, q} {
				ns.MustRun(t, "ip", "link", "set", "eth1", "mtu", mtu)
			}
		}
		width("1500")
		a.NS.MustRun(t, "ip", "route", "replace", "default", "via", "192.0.2.254", "mtu", "1300")
		a.NS.MustRun(t, "ip", "route", "flush", "cache")
		carries("a route says less", 1300)
		a.NS.MustRun(t, "ip", "route", "replace", "default", "via", "192.0.2.254")
		a.NS.MustRun(t, "ip", "route", "flush", "cache")
		carries("and no more", 1500)
		c.eventually("large packets pass", func() error { return ping(b.NS, a.PodAddrs[0], "-s", "1000") })

		// Routers that say nothing: packets of full size find it out, and when it is over.
		for _, ns := range []*nettest.NS{r, q} {
			ns.MustRun(t, "nft", "add table inet quiet; add chain inet quiet o { type filter hook output priority 0; }; add rule inet quiet o icmp type destination-unreachable drop; add rule inet quiet o icmpv6 type packet-too-big drop")
		}
		width("1400")
		carries("full-size packets are lost", 1400)
		var peers []api.Peer
		if err := c.ask(a, &peers, "peers"); err != nil || len(peers) != 1 || peers[0].Narrowed != egress.ByProbes {
			t.Errorf("peers %+v, %v", peers, err)
		}
		c.eventually("b has found it out as well", func() error {
			if err := c.ask(b, &peers, "peers"); err != nil || len(peers) != 1 || peers[0].Narrowed == "" {
				return fmt.Errorf("peers %+v, %w", peers, err)
			}
			return nil
		})
		for _, to := range b.PodAddrs {
			if err := bulk(a.Pod, b.Pod, to, 1<<20); err != nil {
				t.Errorf("a stream to %v past routers that say nothing: %v", to, err)
			}
		}
		width("1500")
		carries("full-size packets arrive", 1500)
	})
}

// containsAny says whether a text has one of the words.
func containsAny(s string, words ...string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}
