package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// etcdNodes is a cluster whose nodes find each other in a real etcd on the first node.
type etcdNodes struct {
	*cluster
	server *nettest.Process
	url    string
}

// upEtcd starts etcd, reserves for every node the prefix its pod lives in, and starts the daemons.
func upEtcd(t *testing.T, mode string, nodes int) *etcdNodes {
	t.Helper()
	c := newEtcd(t, mode, nodes)
	c.launch()
	return c
}

// newEtcd is upEtcd without daemons.
func newEtcd(t *testing.T, mode string, nodes int) *etcdNodes {
	t.Helper()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "etcd")
	c := &etcdNodes{cluster: prepare(t, mode, 4, nettest.ClusterOptions{Nodes: nodes})}
	c.url = fmt.Sprintf("http://%v:2379", c.Nodes[0].Underlay[0])
	c.control = fmt.Sprintf("{kind: etcd, etcd: {endpoints: [%q], lease: 3s}}", c.url)
	c.iface = c.Nodes[0].Iface
	c.startServer()
	c.writeFile(filepath.Join(c.dir, "set.yaml"), fmt.Sprintf("network: {prefixes: [%q, %q]}\ncontrol: %s\n", c.Network()[0], c.Network()[1], c.control))
	set := []string{"network", "set", "--config", filepath.Join(c.dir, "set.yaml")}
	for _, n := range c.Nodes {
		for _, p := range n.Prefixes {
			set = append(set, "--reserve", fmt.Sprintf("%s=%v", n.Name, p))
		}
	}
	c.eventually("etcd takes the network", func() error {
		_, err := c.Nodes[0].NS.Run(weft, set...)
		return err
	})
	return c
}

func (c *etcdNodes) startServer() {
	peer := "http://127.0.0.1:2380"
	c.server = c.Nodes[0].NS.MustStart(c.t, "etcd", "--name=test", "--data-dir="+c.data(), "--listen-client-urls="+c.url, "--advertise-client-urls="+c.url,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=test="+peer, "--logger=zap", "--log-level=warn")
}

func (c *etcdNodes) data() string { return filepath.Join(c.dir, "etcd") }

// problems are those that a node's daemon tells.
func (c *etcdNodes) problems(n *nettest.ClusterNode) (texts []string, err error) {
	var s struct {
		Problems []struct {
			Text string `json:"text"`
		} `json:"problems"`
	}
	err = c.ask(n, &s, "status")
	for _, p := range s.Problems {
		texts = append(texts, p.Text)
	}
	return texts, err
}

func (c *etcdNodes) tells(n *nettest.ClusterNode, text string) {
	c.t.Helper()
	c.eventually(n.Name+" tells: "+text, func() error {
		texts, err := c.problems(n)
		if err == nil && !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, text) }) {
			err = fmt.Errorf("it tells %q", texts)
		}
		return err
	})
}

func (c *etcdNodes) tellsNothing(n *nettest.ClusterNode) {
	c.t.Helper()
	c.eventually(n.Name+" is content", func() error {
		texts, err := c.problems(n)
		if err == nil && len(texts) > 0 {
			err = fmt.Errorf("it tells %q", texts)
		}
		return err
	})
}

// outage is how long etcd is away: longer than a lease.
func outage() time.Duration {
	if os.Getenv("WEFT_TEST_LONG") != "" {
		return 60 * time.Second
	}
	return 6 * time.Second
}

var (
	counts    = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)
	sequences = regexp.MustCompile(`icmp_seq=(\d+) ttl`)
)

// replies reads what a ping that was interrupted printed: how many packets it sent, and how many came back without
// a gap. The last one may be on its way when ping is interrupted.
func replies(output string) (sent, received int) {
	m := counts.FindStringSubmatch(output)
	if m == nil {
		return 0, 0
	}
	sent, _ = strconv.Atoi(m[1])
	back := map[string]bool{}
	for _, seq := range sequences.FindAllStringSubmatch(output, -1) {
		back[seq[1]] = true
	}
	for back[strconv.Itoa(received+1)] {
		received++
	}
	return sent, received
}

// TestEtcdOutage: etcd is killed under traffic, stays away for longer than a lease, and comes back,
// once with its data and once without any. No packet is lost, and everybody knows.
func TestEtcdOutage(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"vxlan", "tun-gso"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := upEtcd(t, mode, 3)
			a, last := c.Nodes[0], c.Nodes[2]
			for _, wipe := range []bool{false, true} {
				traffic := a.Pod.MustStart(t, "ping", "-n", "-i", "0.01", last.PodAddrs[0].String())
				c.server.Kill()
				c.tells(a, "does not answer")
				c.tells(last, "does not answer")
				time.Sleep(outage()) // the outage's length is what is tested
				if wipe {
					if err := os.RemoveAll(c.data()); err != nil {
						t.Fatal(err)
					}
				}
				c.startServer()
				for _, n := range c.Nodes {
					c.tellsNothing(n)
				}
				traffic.Signal(os.Interrupt)
				<-traffic.Done()
				if sent, received := replies(traffic.Output()); received == 0 || sent-received > 1 {
					t.Errorf("wiped %v: %s", wipe, traffic.Output()[max(0, len(traffic.Output())-300):])
				} else {
					t.Logf("wiped %v: %d packets sent, %d received", wipe, sent, received)
				}
			}
		})
	}
}

// TestEtcdJoin registers nodes one by one: each gets its route on all three real daemons. How long
// that took is logged, at full size (scripts/test-long) for 200 nodes.
func TestEtcdJoin(t *testing.T) {
	t.Parallel()
	joins := 20
	if os.Getenv("WEFT_TEST_LONG") != "" {
		joins = 200
	}
	for _, mode := range []string{"vxlan", "tun-gso"} {
		t.Run(mode, func(t *testing.T) {
			c := upEtcd(t, mode, 3)
			var took []time.Duration
			for i := range joins {
				began := time.Now()
				p, err := c.register(i)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range c.Nodes {
					for { // a route of an overlay address without a node is `unreachable`, an error
						if _, err = n.NS.Netlink().RouteGet(p.Addr().Next().AsSlice()); err == nil {
							break
						}
						if time.Since(began) > patience {
							t.Fatalf("%s has no route to %v: %v", n.Name, p, err)
						}
					}
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("%d nodes, from registration until 3 daemons forward: p50 %v, p99 %v, longest %v", joins,
				took[joins/2], took[joins*99/100], took[joins-1])
		})
	}
}

// register puts a node into etcd by one transaction, as its daemon would.
func (c *etcdNodes) register(i int) (netip.Prefix, error) {
	name, by := fmt.Sprintf("extra-%d", i), `"owner":{"id":"extra","epoch":1}`
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(20 + i), 0}), 24)
	return p, c.put("/weft/nodes/"+name, fmt.Sprintf(`{"endpoints":["192.0.2.%d"],"prefixes":[%q],%s}`, 20+i, p, by),
		fmt.Sprintf("/weft/prefixes/%v-24", p.Addr()), fmt.Sprintf(`{"node":%q,%s}`, name, by))
}

// put writes keys and their values into etcd by one transaction.
func (c *etcdNodes) put(pairs ...string) error {
	var puts []any
	for i := 0; i < len(pairs); i += 2 {
		puts = append(puts, map[string]any{"requestPut": map[string][]byte{"key": []byte(pairs[i]), "value": []byte(pairs[i+1])}})
	}
	return c.txn(puts)
}

// txn does these operations, as the JSON gateway has them, by one transaction.
func (c *etcdNodes) txn(operations []any) error {
	body, err := json.Marshal(map[string]any{"success": operations})
	if err != nil {
		return err
	}
	var conn net.Conn
	c.Nodes[0].NS.Do(func() { conn, err = net.Dial("tcp", strings.TrimPrefix(c.url, "http://")) })
	if err != nil {
		return err
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	resp, err := client.Post(c.url+"/v3/kv/txn", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: %s", resp.Status)
	}
	return nil
}

// TestEtcdKeys: `weft keys gen` on each node is all that sealed traffic takes where nodes register themselves.
func TestEtcdKeys(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	c := newEtcd(t, "tun-gso", 2)
	c.encryption = func(n *nettest.ClusterNode) string {
		return fmt.Sprintf("encryption: {cipher: auto, key_file: %s}", c.path(n, "key"))
	}
	for _, n := range c.Nodes {
		keys(t, "gen", "--file", c.path(n, "key"))
	}
	c.launch()
	for _, n := range c.Nodes {
		var peers []struct {
			Session struct {
				Established bool `json:"established"`
			} `json:"session"`
		}
		if err := c.ask(n, &peers, "peers"); err != nil || len(peers) != 1 || !peers[0].Session.Established {
			t.Errorf("%s: %+v %v", n.Name, peers, err)
		}
	}
}
