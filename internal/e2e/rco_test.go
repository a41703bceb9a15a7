package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"weft/control"
	"weft/internal/nettest"
)

// TestRCOAcceptedByLinux: a Linux vxlan device with remcsumrx takes what weft sends with remote
// checksum offload, behind UDP_SEGMENT too.
func TestRCOAcceptedByLinux(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "ethtool", "tcpdump")
	for _, family := range []int{4, 6} {
		t.Run(fmt.Sprintf("underlay%d", family), func(t *testing.T) {
			c := &cluster{Cluster: nettest.NewCluster(t, nettest.ClusterOptions{}), t: t, mode: "tun-gso", family: family,
				dir: t.TempDir(), daemons: map[string]*nettest.Process{}, features: "rco"}
			a, b := c.Nodes[0], c.Nodes[1]
			c.writeNodes()
			c.start(a)
			t.Cleanup(func() { c.daemons[a.Name].Kill() })
			c.ready(a)
			s, err := c.status(a)
			if err != nil {
				t.Fatal(err)
			}
			linuxPeer(t, c, b, a, s.InnerMTU)

			capture := b.NS.MustStart(t, "tcpdump", "-ni", b.Iface, "-Q", "in", "-c", "1", "-x",
				fmt.Sprintf("udp dst port 4789 and %s & 0x20 != 0", []string{"udp[9]", "ip6[49]"}[family/6]))
			for i := range a.PodAddrs {
				c.eventually("pod a reaches pod b", func() error { return ping(a.Pod, b.PodAddrs[i]) })
				if err := bulk(a.Pod, b.Pod, b.PodAddrs[i], 8<<20); err != nil {
					t.Errorf("weft → Linux: %v", err)
				}
				if err := bulk(b.Pod, a.Pod, a.PodAddrs[i], 8<<20); err != nil {
					t.Errorf("Linux → weft: %v", err)
				}
			}
			// The capture saw the flag, or what passed above proves nothing about it.
			c.eventually("a datagram with the flag on the wire", func() error {
				select {
				case <-capture.Done():
					return nil
				default:
					return fmt.Errorf("none yet:\n%s", capture.Output())
				}
			})
		})
	}
}

// linuxPeer makes a Linux vxlan device on a node by hand, as the peer of another.
func linuxPeer(t *testing.T, c *cluster, on, peer *nettest.ClusterNode, mtu int) {
	t.Helper()
	run := func(cmd string) { t.Helper(); on.NS.MustRun(t, "sh", "-c", cmd) }
	own, far := control.VTEPMAC(on.Name), control.VTEPMAC(peer.Name)
	run(fmt.Sprintf("ip link add vx0 address %s mtu %d type vxlan id 1 local %s dstport 4789 nolearning udpcsum remcsumrx",
		own, mtu, c.endpoint(on)))
	run("ip link set vx0 up")
	run(fmt.Sprintf("bridge fdb append %s dev vx0 dst %s", far, c.endpoint(peer)))
	for _, p := range peer.Prefixes {
		via := p.Addr()
		fam := "-" + strconv.Itoa(map[bool]int{true: 4, false: 6}[via.Is4()])
		run(fmt.Sprintf("ip %s neigh add %s lladdr %s dev vx0 nud permanent", fam, via, far))
		run(fmt.Sprintf("ip %s route add %s via %s dev vx0 onlink", fam, p, via))
	}
	if out := on.NS.MustRun(t, "ip", "-d", "link", "show", "vx0"); !strings.Contains(out, "remcsumrx") {
		t.Fatalf("the device has no remcsumrx:\n%s", out)
	}
}
