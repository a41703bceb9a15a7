package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

// caller is who reaches a listener at addr from a namespace, as the listener sees it.
func caller(from, to *nettest.NS, addr netip.Addr) (who netip.Addr, err error) {
	var l net.Listener
	to.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()) })
	if err != nil {
		return who, err
	}
	defer l.Close()
	var c net.Conn
	from.Do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second) })
	if err != nil {
		return who, err
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		return who, err
	}
	defer s.Close()
	return s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}

// strict are settings that operators harden hosts with, or that other software needs (arp_* for LVS).
func strict(t *testing.T, ns *nettest.NS) {
	t.Helper()
	for _, which := range []string{"all", "default"} {
		for _, s := range []struct{ name, value string }{
			{"rp_filter", "1"}, {"arp_ignore", "1"}, {"arp_announce", "2"}, {"arp_filter", "1"}, {"log_martians", "1"},
			{"accept_redirects", "0"}, {"send_redirects", "0"}, {"accept_source_route", "0"}, {"route_localnet", "0"},
		} {
			if err := ns.Sysctl("ipv4/conf/"+which+"/"+s.name, s.value); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range []struct{ name, value string }{{"accept_ra", "0"}, {"autoconf", "0"}, {"accept_redirects", "0"}, {"forwarding", "0"}} {
			if err := ns.Sysctl("ipv6/conf/"+which+"/"+s.name, s.value); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestPods attaches pods to two nodes through their daemons, on hosts with strict settings: they reach each other under their own
// addresses, and the outside under the node's.
func TestPods(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range catalog.Modes {
		styles := []string{"routed"}
		if m.Name == "tun-gso" || m.Name == "vxlan" || m.Name == "tap" {
			styles = append(styles, "bridge")
		}
		for _, style := range styles {
			t.Run(m.Name+"/"+style, func(t *testing.T) {
				t.Parallel()
				c := prepare(t, m.Name, 4, nettest.ClusterOptions{})
				c.extra = "cni: {attach: " + style + "}"
				for _, n := range c.Nodes {
					strict(t, n.NS)
				}
				c.launch()
				pods, results := make([]*nettest.NS, 2), make([]api.AttachResult, 2)
				for i, n := range c.Nodes {
					client := api.NewClient(c.path(n, "sock"))
					defer client.Close()
					pods[i] = nettest.New(t)
					var err error
					results[i], err = client.Attach(t.Context(), api.AttachRequest{ContainerID: "c" + n.Name, IfName: "eth0", Netns: pods[i].Path(), Network: "weft"})
					if err != nil {
						t.Fatal(err)
					}
				}
				for i := range pods {
					j := 1 - i
					for fam := range 2 {
						own, far := results[i].IPs[fam].Address.Addr(), results[j].IPs[fam].Address.Addr()
						c.eventually(fmt.Sprintf("%v reaches %v", own, far), func() error { return ping(pods[i], far) })
						if who, err := caller(pods[i], pods[j], far); err != nil || who != own {
							t.Errorf("pod to pod: from %v, %v; want %v", who, err, own)
						}
						out := c.Nodes[j].Underlay[fam]
						if who, err := caller(pods[i], c.Nodes[j].NS, out); err != nil || who != c.Nodes[i].Underlay[fam] {
							t.Errorf("pod to the outside: from %v, %v; want %v", who, err, c.Nodes[i].Underlay[fam])
						}
					}
				}
			})
		}
	}
}

// TestPodsKilled kills the daemon with SIGKILL at random moments of attaching and detaching. What was answered stands,
// nothing else is left after GC, and no address belongs to two pods.
func TestPodsKilled(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "ip")
	rounds := 12
	if os.Getenv("WEFT_TEST_LONG") == "1" {
		rounds = 100
	}
	c := up(t, "vxlan", 4, nettest.ClusterOptions{})
	n := c.Nodes[0]
	c.onlyDaemon(n)
	client := api.NewClient(c.path(n, "sock"))
	defer client.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	const many = 6
	pods := make([]*nettest.NS, many)
	for i := range pods {
		pods[i] = nettest.New(t)
	}
	request := func(i int) api.AttachRequest {
		return api.AttachRequest{ContainerID: fmt.Sprint("pod", i), IfName: "eth0", Netns: pods[i].Path(), Network: "weft"}
	}
	stands := map[int]api.AttachResult{}
	cutShort := 0
	for round := range rounds {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range pods {
			_, attached := stands[i]
			wg.Go(func() {
				var a api.AttachResult
				var err error
				if attached {
					err = client.Detach(t.Context(), api.DetachRequest{ContainerID: request(i).ContainerID, IfName: "eth0", Network: "weft"})
				} else {
					a, err = client.Attach(t.Context(), request(i))
				}
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil:
					cutShort++
					delete(stands, i) // nobody knows: GC decides
				case attached:
					delete(stands, i)
				default:
					stands[i] = a
				}
			})
		}
		pause := time.NewTimer(time.Duration(rng.IntN(60)) * time.Millisecond) // the random moment
		<-pause.C
		c.stop(n, syscall.SIGKILL)
		wg.Wait()
		c.start(n)
		c.ready(n)
		valid := []api.Attachment{}
		for i := range stands {
			valid = append(valid, api.Attachment{ContainerID: request(i).ContainerID, IfName: "eth0"})
		}
		if err := client.GC(t.Context(), api.GCRequest{Network: "weft", Valid: valid}); err != nil {
			t.Fatal(err)
		}
		owner := map[netip.Addr]int{}
		for i, a := range stands {
			for _, ip := range a.IPs {
				if other, twice := owner[ip.Address.Addr()]; twice {
					t.Fatalf("round %d: %v belongs to pods %d and %d", round, ip.Address, i, other)
				}
				owner[ip.Address.Addr()] = i
			}
			if err := client.Check(t.Context(), api.CheckRequest{AttachRequest: request(i), Expect: a}); err != nil {
				t.Fatalf("round %d: pod %d does not stand: %v", round, i, err)
			}
			if err := ping(n.NS, a.IPs[0].Address.Addr()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		list, err := client.Pods(t.Context())
		if err != nil || len(list) != len(stands) {
			t.Fatalf("round %d: %d pods are listed, %d stand, %v", round, len(list), len(stands), err)
		}
		if links := podLinks(t, n.NS); links != len(stands) {
			t.Fatalf("round %d: %d links for %d pods", round, links, len(stands))
		}
		routes := n.NS.MustRun(t, "ip", "-4", "route", "show", "proto", "87", "scope", "link")
		leaked := 0
		for a := range strings.Lines(routes) {
			if addr, err := netip.ParseAddr(strings.Fields(a)[0]); err == nil {
				if _, ours := owner[addr]; !ours {
					leaked++
				}
			}
		}
		if leaked > 0 {
			t.Fatalf("round %d: %d routes to pods that do not stand:\n%s", round, leaked, routes)
		}
	}
	t.Logf("%d of %d requests were cut short", cutShort, rounds*many)
	if cutShort == 0 {
		t.Error("no request was ever cut short: the test showed nothing")
	}
}

// podLinks counts the links of pods: "weft" and eleven hexadecimal digits.
func podLinks(t *testing.T, ns *nettest.NS) (n int) {
	t.Helper()
	for line := range strings.Lines(ns.MustRun(t, "ip", "-o", "link", "show")) {
		name, _, _ := strings.Cut(strings.TrimSuffix(strings.Fields(line)[1], ":"), "@")
		if len(name) == 15 && strings.HasPrefix(name, "weft") {
			n++
		}
	}
	return n
}
