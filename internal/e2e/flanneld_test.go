package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// sameSubnetEnv holds what weft hands over to Flannel's CNI plugin to what flanneld does.
func sameSubnetEnv(t *testing.T, far *nettest.ClusterNode, theirs string, near *nettest.ClusterNode, ours string) {
	t.Helper()
	want, err := os.ReadFile(theirs)
	if err != nil {
		t.Fatal(err)
	}
	first := func(n *nettest.ClusterNode) string { return n.Prefixes[0].Addr().Next().String() }
	got, err := os.ReadFile(ours)
	if want := strings.ReplaceAll(string(want), first(far), first(near)); err != nil || string(got) != want {
		t.Errorf("%s: %v\n%s, want\n%s", ours, err, got, want)
	}
}

// TestFlanneld joins a weft node to a node that runs the real flanneld, through etcd in Flannel's
// schema, and sends both ways. scripts/test-long builds flanneld and says where it is.
func TestFlanneld(t *testing.T) {
	t.Parallel()
	flanneld := nettest.RequireGiven(t, "WEFT_FLANNELD")
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "etcd")
	for _, mode := range []string{"vxlan", "tun", "tun-gso", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			c := &etcdNodes{cluster: prepare(t, mode, 4, nettest.ClusterOptions{})}
			a, b := c.Nodes[0], c.Nodes[1]
			c.url = fmt.Sprintf("http://%v:2379", a.Underlay[0])
			c.startServer()
			const prefix = "/coreos.com/network"
			c.eventually("etcd takes Flannel's configuration", func() error {
				return c.put(prefix+"/config", `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`)
			})
			for _, n := range c.Nodes { // so that each gets the prefix its pod lives in
				key := fmt.Sprintf("%s/subnets/%v-24", prefix, n.Prefixes[0].Addr())
				if err := c.put(key, fmt.Sprintf(`{"PublicIP":"%v","PublicIPv6":null}`, n.Underlay[0])); err != nil {
					t.Fatal(err)
				}
			}
			env := filepath.Join(c.dir, "subnet.env")
			far := b.NS.MustStart(t, flanneld, "--etcd-endpoints="+c.url, "--iface="+b.Iface, "--subnet-file="+env, "--iptables-forward-rules=false", "--v=1")
			c.network, c.iface = c.Network()[:1], a.Iface
			c.control = fmt.Sprintf("{kind: etcd, subnet_env: %s, etcd: {endpoints: [%q], schema: flannel}}", c.path(a, "subnet.env"), c.url)
			c.start(a)
			near := c.daemons[a.Name]
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("weft:\n%s\nflanneld:\n%s", near.Output(), far.Output())
				}
			})
			c.ready(a)
			for _, ends := range [][2]*nettest.ClusterNode{{a, b}, {b, a}} {
				to := ends[1].PodAddrs[0]
				c.eventually(fmt.Sprintf("pod of %s reaches %v", ends[0].Name, to), func() error { return ping(ends[0].Pod, to) })
				c.eventually(fmt.Sprintf("%s itself reaches %v", ends[0].Name, to), func() error { return ping(ends[0].NS, to) })
				if err := bulk(ends[0].Pod, ends[1].Pod, to, 4<<20); err != nil {
					t.Errorf("%s → %s: %v", ends[0].Name, ends[1].Name, err)
				}
			}
			var nodes []struct {
				Name     string         `json:"name"`
				Prefixes []netip.Prefix `json:"prefixes"`
			}
			if err := c.ask(a, &nodes, "nodes"); err != nil || len(nodes) != 2 || !strings.Contains(fmt.Sprint(nodes), b.Underlay[0].String()) {
				t.Errorf("nodes %v %v", nodes, err)
			}
			sameSubnetEnv(t, b, env, a, c.path(a, "subnet.env"))
			// flanneld comes back with another MAC: traffic follows.
			far.Kill()
			if out, err := b.NS.Run("ip", "link", "del", "flannel.1"); err != nil {
				t.Fatal(out, err)
			}
			far = b.NS.MustStart(t, flanneld, "--etcd-endpoints="+c.url, "--iface="+b.Iface, "--subnet-file="+env, "--iptables-forward-rules=false")
			c.eventually("traffic follows flanneld's new MAC", func() error { return ping(a.Pod, b.PodAddrs[0]) })
			c.eventually("and back", func() error { return ping(b.Pod, a.PodAddrs[0]) })
		})
	}
}
