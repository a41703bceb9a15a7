package e2e

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/api"
	"weft/internal/nettest"
)

// BenchmarkScale is one real daemon in a cluster of 5,000 others that exist in the store only: how long from its start until it
// forwards to all of them, what it keeps in memory, what one node that joins or leaves costs it, and what goes over its wire for
// both. Of several daemons (-benchtime 5x) the worst is reported. Needs root; Kubernetes is skipped where
// WEFT_KUBE_APISERVER does not say where a kube-apiserver is (scripts/test-long builds one).
//
//	go test ./internal/e2e -run '^$' -bench Scale -benchtime 5x
func BenchmarkScale(b *testing.B) {
	b.Run("etcd", func(b *testing.B) {
		c := &etcdNodes{cluster: scaleCluster(b)}
		c.url = fmt.Sprintf("http://%v:2379", c.Nodes[0].Underlay[0])
		c.control = fmt.Sprintf("{kind: etcd, etcd: {endpoints: [%q]}}", c.url)
		nettest.RequireTool(b, "etcd")
		c.startServer()
		s := &etcdScale{c}
		c.writeFile(c.path(c.Nodes[1], "set.yaml"), fmt.Sprintf("network: {prefixes: [\"%s\"]}\ncontrol: %s\n", quoted(c.network), c.control))
		c.eventually("etcd takes the network", func() error {
			_, err := c.Nodes[0].NS.Run(weft, "network", "set", "--config", c.path(c.Nodes[1], "set.yaml"))
			return err
		})
		s.fill(b)
		benchmarkScale(b, c.cluster, s)
	})
	b.Run("kubernetes", func(b *testing.B) {
		binary := nettest.RequireGiven(b, "WEFT_KUBE_APISERVER")
		k := startKubernetes(scaleCluster(b), binary)
		k.control = fmt.Sprintf("{kind: kubernetes, kubernetes: {kubeconfig: %s}}", k.kubeconfig)
		s := &kubeScale{k}
		s.fill(b)
		k.register(k.Nodes[1], k.Nodes[1].Prefixes...)
		benchmarkScale(b, k.cluster, s)
	})
}

// others is how many nodes there are beside the daemon's own.
const others = 5000

// scaleCluster is two nodes: the first holds the store, the second gets a daemon.
func scaleCluster(b *testing.B) *cluster {
	nettest.RequireRoot(b)
	c := prepare(b, "", 4, nettest.ClusterOptions{})
	c.iface = c.Nodes[1].Iface
	c.network = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:10:244::/48")}
	return c
}

// store is where simulated nodes are.
type store interface {
	join(i int) error
	leave(i int) error
}

// simulated is node i of the store, of any number of them.
func simulated(i int) (name string, endpoint netip.Addr, prefixes []netip.Prefix) {
	return fmt.Sprintf("n%04d", i), netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", 0x1000+i)),
	}
}

// publicKey is that of node i: no two nodes may have one.
func publicKey(i int) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(make([]byte, 28), uint32(1+i)))
}

func benchmarkScale(b *testing.B, c *cluster, s store) {
	for _, mode := range []string{"vxlan", "tun-gso"} {
		b.Run(mode, func(b *testing.B) {
			c.mode = mode
			worst := map[string]float64{}
			for range b.N {
				for unit, value := range c.scaleOnce(b, s) {
					worst[unit] = max(worst[unit], value)
				}
			}
			for unit, value := range worst {
				b.ReportMetric(value, unit)
			}
			b.ReportMetric(0, "ns/op") // means nothing here
		})
	}
}

// scaleOnce is the life of one daemon; it returns figures by their units.
func (c *cluster) scaleOnce(b *testing.B, s store) map[string]float64 {
	n := c.Nodes[1]
	client := api.NewClient(c.path(n, "sock"))
	defer client.Close()
	wire := c.wire(b, n)
	began := time.Now()
	c.start(n)
	daemon := c.daemons[n.Name]
	defer func() {
		c.stop(n, syscall.SIGTERM)
		n.NS.MustRun(b, weft, "cleanup", "--state-dir", c.path(n, "state"), "--socket", c.path(n, "sock"))
		if err := os.RemoveAll(c.path(n, "state")); err != nil { // the next one begins with nothing
			b.Fatal(err)
		}
	}()
	until := func(what string, ok func() bool) {
		b.Helper()
		for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) { // between looks
			if time.Now().After(deadline) {
				b.Fatalf("not within %v: %s\n%s", patience, what, daemon.Output())
			}
		}
	}
	forwards := func(i int) bool {
		_, _, prefixes := simulated(i)
		return !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool {
			_, err := n.NS.Netlink().RouteGet(p.Addr().Next().AsSlice())
			return err != nil
		})
	}
	until("ready", func() bool {
		s, err := client.Status(context.Background())
		return err == nil && s.Ready && s.Control.Nodes == others+1 && !s.Apply.Applied.IsZero()
	})
	ready := time.Since(began)
	joined := c.wire(b, n) - wire
	for i := range others {
		if !forwards(i) {
			b.Fatalf("it is ready, and has no route to node %d", i)
		}
	}
	started := memory(b, daemon.PID())

	const changes = 100
	change := func(k int) {
		i := others + k/2
		do := s.join
		if k%2 == 1 {
			do = s.leave
		}
		if err := do(i); err != nil {
			b.Fatal(err)
		}
		until("the change is in force", func() bool { return forwards(i) == (k%2 == 0) })
	}
	change(0) // the first ones warm up
	change(1)
	wire, cpu := c.wire(b, n), cpuTime(b, daemon.PID())
	for k := range changes {
		change(k)
	}
	used, changed := cpuTime(b, daemon.PID())-cpu, c.wire(b, n)-wire
	settled := memory(b, daemon.PID())
	figures := map[string]float64{
		"s-until-ready": ready.Seconds(), "MB-wire/start": joined / 1e6, "MB-peak": max(started.peak, settled.peak) / 1e6, "MB-anon": settled.anon / 1e6, "MB-resident": settled.resident / 1e6,
		"cpu-ms/change": used.Seconds() * 1e3 / changes, "B-wire/change": changed / changes,
	}
	if k, ok := s.(*kubeScale); ok {
		cpu, wire := cpuTime(b, daemon.PID()), c.wire(b, n)
		for i := range changes {
			k.alive(b, i)
		}
		if err := s.join(others); err != nil { // what comes after them has been seen: so have they
			b.Fatal(err)
		}
		until("the last join", func() bool { return forwards(others) })
		figures["cpu-ms/heartbeat"] = (cpuTime(b, daemon.PID()) - cpu).Seconds() * 1e3 / changes
		figures["B-wire/heartbeat"] = (c.wire(b, n) - wire) / changes
		if err := s.leave(others); err != nil {
			b.Fatal(err)
		}
		until("the last leave", func() bool { return !forwards(others) })
	}
	return figures
}

// wire is how many bytes went over a node's underlay, both ways.
func (c *cluster) wire(b *testing.B, n *nettest.ClusterNode) float64 {
	b.Helper()
	link, err := n.NS.Netlink().LinkByName(n.Iface)
	if err != nil {
		b.Fatal(err)
	}
	s := link.Attrs().Statistics
	return float64(s.RxBytes + s.TxBytes)
}

type etcdScale struct{ *etcdNodes }

// keys are a node's, and their values.
func (etcdScale) keys(i int) (pairs []string) {
	name, at, prefixes := simulated(i)
	by := fmt.Sprintf(`"owner":{"id":"0123456789abcdef0123456789abcdef-%d","epoch":1}`, i)
	pairs = []string{"/weft/nodes/" + name, fmt.Sprintf(
		`{"endpoints":["%v"],"prefixes":["%s"],"mac":"02:00:00:00:%02x:%02x","features":["rco"],"public_key":%q,%s}`,
		at, quoted(prefixes), i>>8, i&255, publicKey(i), by)}
	for _, p := range prefixes {
		pairs = append(pairs, fmt.Sprintf("/weft/prefixes/%v-%d", p.Addr(), p.Bits()), fmt.Sprintf(`{"node":%q,%s}`, name, by))
	}
	return pairs
}

func (s etcdScale) fill(b *testing.B) {
	const at = 40 // nodes, of three keys each: a transaction has 128 operations at most
	for i := 0; i < others; i += at {
		var pairs []string
		for j := i; j < min(i+at, others); j++ {
			pairs = append(pairs, s.keys(j)...)
		}
		if err := s.put(pairs...); err != nil {
			b.Fatal(err)
		}
	}
}

func (s etcdScale) join(i int) error { return s.put(s.keys(i)...) }

func (s etcdScale) leave(i int) error {
	var ops []any
	for pair := range slices.Chunk(s.keys(i), 2) {
		ops = append(ops, map[string]any{"requestDeleteRange": map[string][]byte{"key": []byte(pair[0])}})
	}
	return s.txn(ops)
}

type kubeScale struct{ *kubeNodes }

// object is a Node as its kubelet and its weft daemon make it, with the labels and the 50 images that a kubelet tells.
func (kubeScale) object(i int) string {
	name, at, prefixes := simulated(i)
	labels, images := map[string]string{}, []any{}
	for j := range 20 {
		labels[fmt.Sprintf("example.org/label-%d", j)] = strings.Repeat("v", 30)
	}
	for j := range 50 {
		images = append(images, map[string]any{"sizeBytes": 1 << 26, "names": []string{
			fmt.Sprintf("registry.example.org/library/image-%d@sha256:%064x", j, j), fmt.Sprintf("registry.example.org/library/image-%d:v1.2.3", j)}})
	}
	text, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"name": name, "labels": labels, "annotations": map[string]string{
			"weft.network/vtep-mac": fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255), "weft.network/vni": "1",
			"weft.network/public-key": publicKey(i)}},
		"spec": map[string]any{"podCIDR": prefixes[0], "podCIDRs": prefixes},
		"status": map[string]any{"addresses": []any{map[string]any{"type": "InternalIP", "address": at}}, "images": images,
			"conditions": []any{map[string]any{"type": "Ready", "status": "True"}}},
	})
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (s kubeScale) fill(b *testing.B) {
	const at = 8 // requests at a time
	var group sync.WaitGroup
	for part := range at {
		group.Go(func() {
			for i := part; i < others; i += at {
				if err := s.join(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	if group.Wait(); b.Failed() {
		b.FailNow()
	}
}

func (s kubeScale) join(i int) error {
	_, err := s.do(http.MethodPost, nodesPath, jsonBody, s.object(i))
	return err
}

func (s kubeScale) leave(i int) error {
	name, _, _ := simulated(i)
	_, err := s.do(http.MethodDelete, nodesPath+"/"+name, "", "")
	return err
}

// alive is a kubelet's sign of life.
func (s kubeScale) alive(b *testing.B, i int) {
	name, _, _ := simulated(i)
	s.must(http.MethodPatch, nodesPath+"/"+name+"/status", "application/strategic-merge-patch+json",
		fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339)))
}
