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

// TestFlanneld joins a weft node to a node that runs the real flanneld, through etcd in Flannel's
// schema, and sends both ways. scripts/test-long builds flanneld and says where it is.
func TestFlanneld(t *testing.T) {
	flanneld := os.Getenv("WEFT_FLANNELD")
	if flanneld == "" {
		return // Debian has no package of it: scripts/test-long runs this
	}
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
			c.writeFile(c.path(a, "weft.yaml"), fmt.Sprintf(`node: {name: %s, interface: %s}
network: 10.244.0.0/16
mode: %s
control: {kind: etcd, etcd: {endpoints: [%q], schema: flannel}}
api: {socket: %s}
state_dir: %s
`, a.Name, a.Iface, mode, c.url, c.path(a, "sock"), c.path(a, "state")))
			near := a.NS.MustStart(t, weft, "daemon", "--config", c.path(a, "weft.yaml"))
			c.daemons[a.Name] = near
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
