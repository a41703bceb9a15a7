package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

// second joins two nodes by a second link, eth1, of this MTU, over which each reaches the other's address on lo. These addresses are
// the nodes' endpoints from here on.
func (c *cluster) second(mtu int) {
	c.t.Helper()
	a, b := c.Nodes[0], c.Nodes[1]
	nettest.Pair(c.t, nettest.End{NS: a.NS, Dev: "eth1", Addrs: nettest.Prefixes("198.51.100.1/24")},
		nettest.End{NS: b.NS, Dev: "eth1", Addrs: nettest.Prefixes("198.51.100.2/24")}, mtu)
	for i, n := range c.Nodes {
		n.NS.MustRun(c.t, "ip", "addr", "add", fmt.Sprintf("203.0.113.%d/32", i+1), "dev", "lo")
		n.NS.MustRun(c.t, "ip", "route", "add", fmt.Sprintf("203.0.113.%d/32", 2-i), "dev", "eth1", "src", fmt.Sprintf("203.0.113.%d", i+1))
		n.Underlay = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}), n.Underlay[1]}
	}
}

// about is what status, `weft config show` and doctor say of a node's underlay: each "device MTU".
func (c *cluster) about(n *nettest.ClusterNode) (said map[string]string, err error) {
	said = map[string]string{}
	var s struct {
		Underlay    []string `json:"underlay"`
		UnderlayMTU int      `json:"underlay_mtu"`
	}
	if err := c.ask(n, &s, "status"); err != nil {
		return nil, err
	}
	if len(s.Underlay) > 0 {
		said["status"] = fmt.Sprint(s.Underlay[0], " ", s.UnderlayMTU)
	}
	for _, command := range []string{"config show", "doctor"} {
		args := append(strings.Fields(command), "--config", c.path(n, "weft.yaml"), "-o", "json")
		if command == "doctor" {
			args = append(args, "--socket", c.path(n, "sock"), "--peers=false")
		}
		var out []byte
		cmd := exec.Command(weft, args...)
		n.NS.Do(func() { out, err = cmd.Output() }) // doctor's exit code says how bad all is
		var list []struct {
			Key, Name, Found string
			Value            any
		}
		if err := json.Unmarshal(out, &list); err != nil {
			return nil, fmt.Errorf("weft %s: %w: %s", command, err, out)
		}
		values := map[string]string{}
		for _, l := range list {
			values[l.Key] = fmt.Sprint(l.Value)
			if l.Name == "underlay" {
				said["doctor"] = strings.ReplaceAll(l.Found, ", MTU", "")
			}
		}
		if command == "config show" {
			said["config show"] = values["node.interface"] + " " + values["node.mtu"]
		}
	}
	return said, nil
}

// agreed waits until all say this of a node's underlay.
func (c *cluster) agreed(n *nettest.ClusterNode, want string) {
	c.t.Helper()
	c.eventually("all say that the underlay is "+want, func() error {
		said, err := c.about(n)
		if err == nil && (said["status"] != want || said["config show"] != want || said["doctor"] != want) {
			err = fmt.Errorf("%v", said)
		}
		return err
	})
}

// TestNarrowWayToAPeer: the endpoints are on lo, node.interface is a card of 1500 bytes, and the peer is reached by another of 1400.
// In every mode the node's MTU is the former's; what is too large for the peer is answered with its MTU, and what is as large as
// that arrives.
func TestNarrowWayToAPeer(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, m.Name, 4, nettest.ClusterOptions{})
			c.second(1400)
			c.iface = "eth0"
			c.launch()
			a, b := c.Nodes[0], c.Nodes[1]
			c.agreed(a, "eth0 1500")
			s, err := c.status(a)
			if err != nil {
				t.Fatal(err)
			}
			var peers []struct {
				MTU    int        `json:"mtu"`
				Device string     `json:"device"`
				Source netip.Addr `json:"source"`
			}
			if err := c.ask(a, &peers, "peers"); err != nil || len(peers) != 1 || peers[0].MTU != s.InnerMTU-100 || peers[0].Device != "eth1" || peers[0].Source != a.Underlay[0] {
				t.Fatalf("peers %+v, %v, inner MTU %d", peers, err, s.InnerMTU)
			}
			const headers = 28 // IP and ICMP
			narrow := peers[0].MTU
			c.eventually("as much as the peer's MTU arrives", func() error {
				return ping(a.Pod, b.PodAddrs[0], "-M", "do", "-s", strconv.Itoa(narrow-headers))
			})
			c.eventually("more is answered with it", func() error {
				out, err := a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(narrow+1-headers), b.PodAddrs[0].String())
				if err == nil || !strings.Contains(out, fmt.Sprintf("mtu=%d", narrow)) && !strings.Contains(out, fmt.Sprintf("mtu = %d", narrow)) {
					return fmt.Errorf("%v: %s", err, out)
				}
				return nil
			})
		})
	}
}

// TestUnderlayOfLo: an endpoint on lo has the device and the MTU of the way to the peers, and follows it.
func TestUnderlayOfLo(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, mode := range []string{"vxlan", "tun", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{})
			c.second(1400)
			c.launch()
			a, b := c.Nodes[0], c.Nodes[1]
			c.agreed(a, "eth1 1400")
			for i, n := range c.Nodes { // the peers move to the other link
				n.NS.MustRun(t, "ip", "route", "replace", fmt.Sprintf("203.0.113.%d/32", 2-i), "dev", "eth0", "src", fmt.Sprintf("203.0.113.%d", i+1))
			}
			c.agreed(a, "eth0 1500")
			c.agreed(b, "eth0 1500")
			c.allReach()
		})
	}
}

// TestInterfaceThatDoesNotDo: node.interface is honoured or refused, never passed over.
func TestInterfaceThatDoesNotDo(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, mode := range []string{"host-gw", "vxlan", "tun"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{})
			nettest.Pair(t, nettest.End{NS: c.Nodes[0].NS, Dev: "eth1", Addrs: nettest.Prefixes("198.51.100.1/24")},
				nettest.End{NS: c.Nodes[1].NS, Dev: "eth1", Addrs: nettest.Prefixes("198.51.100.2/24")}, 9000)
			c.launch()
			a := c.Nodes[0]
			c.agreed(a, "eth0 1500")
			for iface, why := range map[string]string{"eth7": "device eth7 does not exist", "eth1": "eth1 has none of this node's endpoints"} {
				c.stop(a, 15)
				c.iface = iface
				c.start(a)
				c.eventually("with "+iface+" the node is not ready, and says why", func() error {
					var s struct {
						Ready  bool
						Reason string
					}
					if err := c.ask(a, &s, "status"); err != nil || s.Ready || !strings.Contains(s.Reason, why) {
						return fmt.Errorf("%+v, %v", s, err)
					}
					said, err := c.about(a)
					if err != nil || !strings.Contains(said["doctor"], why) || slices.Contains([]string{"eth1 9000", "eth0 1500"}, said["config show"]) {
						return fmt.Errorf("%v, %v", said, err)
					}
					return nil
				})
			}
		})
	}
}
