package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

type finding struct{ Name, Level, Found, Remedy string }

// doctor asks a node's doctor and returns what is found about its peers.
func (c *cluster) doctor(n *nettest.ClusterNode) (peers []finding, err error) {
	cmd := exec.Command(weft, "doctor", "--config", c.path(n, "weft.yaml"), "--socket", c.path(n, "sock"), "-o", "json")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := n.NS.StartCmd(cmd); err != nil {
		return nil, err
	}
	_ = cmd.Wait() // its exit code says how bad all that it found is
	var all []finding
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out.Bytes())
	}
	for _, f := range all {
		if strings.HasPrefix(f.Name, "peer") {
			peers = append(peers, f)
		}
	}
	return peers, nil
}

// diagnosed waits until a's doctor finds just this about the peers; found and remedy are regular expressions.
func (c *cluster) diagnosed(level, found, remedy string) {
	c.t.Helper()
	c.eventually("doctor finds "+found, func() error {
		list, err := c.doctor(c.Nodes[0])
		if err == nil && (len(list) != 1 || list[0].Level != level || !regexp.MustCompile(found).MatchString(list[0].Found) || !regexp.MustCompile(remedy).MatchString(list[0].Remedy)) {
			err = fmt.Errorf("%q", list)
		}
		return err
	})
}

// TestDoctorVisitsPeers: in every mode doctor finds healthy peers healthy, and names what is wrong with others.
func TestDoctorVisitsPeers(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "nft")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := up(t, m.Name, 4, nettest.ClusterOptions{})
			a, b := c.Nodes[0], c.Nodes[1]
			s, err := c.status(a)
			if err != nil {
				t.Fatal(err)
			}
			c.diagnosed("ok", fmt.Sprintf("all 1 answer through the tunnel, also packets of %d bytes", s.InnerMTU), "")

			// The peer's interface takes less than this node believes, and so drops what is larger.
			b.NS.MustRun(t, "ip", "link", "set", b.Iface, "mtu", "1400")
			// A veth takes 4 bytes more than its MTU: a VLAN tag's.
			c.diagnosed("wrong", fmt.Sprintf("packets above (%d|%d) bytes do not come back through the tunnel, %d should", s.InnerMTU-100, s.InnerMTU-96, s.InnerMTU),
				"set node.mtu: 140[04] on all nodes")
			b.NS.MustRun(t, "ip", "link", "set", b.Iface, "mtu", "1500")
			b.NS.MustRun(t, "ip", "addr", "replace", netip.PrefixFrom(b.Underlay[1], 64).String(), "dev", b.Iface, "nodad")
			c.ready(b)
			c.diagnosed("ok", "all 1 answer", "")

			if m.Port != 0 && !pastKernel(m.Name) { // which sees packets before nftables does
				b.NS.MustRun(t, "nft", fmt.Sprintf("add table inet blocker; add chain inet blocker in { type filter hook input priority 0; }; add rule inet blocker in udp dport %d drop", m.Port))
				c.diagnosed("wrong", fmt.Sprintf("UDP port %d is dropped on the way there or back", m.Port), fmt.Sprintf("let UDP port %d in", m.Port))
				b.NS.MustRun(t, "nft", "delete table inet blocker")
				c.diagnosed("ok", "all 1 answer", "")
			}
			if !kernelForwards(m.Name) {
				c.stop(b, syscall.SIGTERM)
				c.diagnosed("wrong", fmt.Sprintf("answers at %v, but refuses UDP port %d", b.Underlay[0], m.Port), "start its daemon")
			}
			b.NS.MustRun(t, "ip", "link", "set", b.Iface, "down")
			c.diagnosed("wrong", fmt.Sprintf("answers neither through the tunnel nor at %v", b.Underlay[0]), "ip route get")
		})
	}
}

// TestDoctorNamesAnotherMTU: a peer that is told a smaller MTU than its link has sends smaller packets than it takes.
func TestDoctorNamesAnotherMTU(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "tun-gso", 4, nettest.ClusterOptions{})
	c.nodeMTU = map[string]int{"node-b": 1400}
	c.launch()
	c.diagnosed("wrong", "its own packets are cut into pieces of at most 13", "here the underlay's is 1500")
}
