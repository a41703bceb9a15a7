package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
	"weft/policy"
)

// policed is a cluster with network policies: pods of their names, with servers that answer what they get on TCP 80 and 81, UDP 53 and 54.
type policed struct {
	*cluster
	clients map[string]*api.Client // by node
	pods    map[string]*policedPod
	written int
}

type policedPod struct {
	ns    *nettest.NS
	text  string // of the file: namespace, labels, ports
	addrs []netip.Addr
}

// waits is how long a packet that is denied is waited for. One that is allowed is waited for patiently.
const waits = time.Second

func newPoliced(t *testing.T, mode string) *policed {
	c := &policed{cluster: prepare(t, mode, 4, nettest.ClusterOptions{}), clients: map[string]*api.Client{}, pods: map[string]*policedPod{}}
	c.extra = "policy: {enabled: true, file: " + c.file() + ", verdict_socket: " + c.dir + "/NODE-verdict/sock}"
	for i, n := range c.Nodes {
		name := string(rune('a'+i)) + "0"
		c.pods[name] = &policedPod{ns: n.Pod, addrs: n.PodAddrs, text: fmt.Sprintf("namespace: x, labels: {name: %s, kind: old}, ports: [{name: web, port: %d}, {name: dns, port: 54, protocol: UDP}]", name, 80+i)}
		answerIn(t, n.Pod)
		client := api.NewClient(c.path(n, "sock"))
		t.Cleanup(client.Close)
		c.clients[n.Name] = client
	}
	c.write("")
	c.launch()
	return c
}

func (c *policed) file() string { return c.dir + "/policies.yaml" }

// write writes the file, and a policy of a name of its own by which the nodes' answers tell it.
func (c *policed) write(policies string) {
	c.t.Helper()
	c.written++
	var b strings.Builder
	b.WriteString("namespaces: [{name: x, labels: {team: blue}}, {name: y, labels: {team: red}}]\npods:\n")
	for name, p := range c.pods {
		switch {
		case p.text == "":
		case len(p.addrs) == 0: // it gets them when it is attached
			fmt.Fprintf(&b, "  - {name: %s, node: %s, %s}\n", name, c.Nodes[0].Name, p.text)
		default:
			fmt.Fprintf(&b, "  - {name: %s, addresses: [%q, %q], %s}\n", name, p.addrs[0], p.addrs[1], p.text)
		}
	}
	fmt.Fprintf(&b, "policies:\n%s%s", np(fmt.Sprint("written-", c.written), "none", "{podSelector: {}}"), policies)
	c.writeFile(c.file(), b.String())
}

// inForce waits until all nodes have the file in force.
func (c *policed) inForce() {
	c.t.Helper()
	for name, client := range c.clients {
		c.eventually(fmt.Sprintf("%s has file %d in force", name, c.written), func() error {
			p, err := client.Policies(c.t.Context())
			if err == nil && (p.Problem != "" || p.Since.IsZero() || !slices.ContainsFunc(p.Policies, func(l policy.Listed) bool {
				return l.Policy == fmt.Sprint("none/written-", c.written)
			})) {
				err = fmt.Errorf("%+v", p)
			}
			return err
		})
	}
}

func np(name, namespace, spec string) string {
	return "  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: " + name + ", namespace: " + namespace + "}, spec: " + spec + "}\n"
}

func cnp(name, spec string) string {
	return "  - {apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: " + name + "}, spec: " + spec + "}\n"
}

// answerIn starts the servers of a pod.
func answerIn(t *testing.T, ns *nettest.NS) {
	t.Helper()
	for _, port := range []int{80, 81} {
		var l net.Listener
		var err error
		ns.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
	}
	for _, port := range []int{53, 54} {
		var u net.PacketConn
		var err error
		ns.Do(func() { u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 64)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
	}
}

// passes says whether what a pod sends is answered.
func passes(from *nettest.NS, q policy.Traffic, wait time.Duration) bool {
	if q.Protocol == 1 {
		return ping(from, q.Dst) == nil
	}
	network := map[policy.Protocol]string{policy.TCP: "tcp", policy.UDP: "udp"}[q.Protocol]
	deadline := time.Now().Add(wait)
	for time.Now().Before(deadline) { // UDP may be lost for other reasons
		var conn net.Conn
		var err error
		from.Do(func() { conn, err = net.DialTimeout(network, netip.AddrPortFrom(q.Dst, q.Port).String(), wait) })
		if err != nil {
			return false
		}
		_ = conn.SetDeadline(time.Now().Add(wait / 2))
		b := make([]byte, 1)
		_, err = conn.Write(b)
		if err == nil {
			_, err = conn.Read(b)
		}
		conn.Close()
		if err == nil {
			return true
		}
	}
	return false
}

// agrees holds packets between all pods against the evaluator, and returns how many were denied.
func (c *policed) agrees(step string) (denied int) {
	c.t.Helper()
	data, err := os.ReadFile(c.file())
	if err != nil {
		c.t.Fatal(err)
	}
	world, err := policy.Parse(c.file(), data)
	if err != nil {
		c.t.Fatal(err)
	}
	c.inForce()
	var wg sync.WaitGroup
	for src, from := range c.pods {
		for dst, to := range c.pods {
			for family := range 2 {
				for _, q := range []policy.Traffic{{Protocol: policy.TCP, Port: 80}, {Protocol: policy.TCP, Port: 81}, {Protocol: policy.UDP, Port: 53}, {Protocol: policy.UDP, Port: 54}, {Protocol: 1}} {
					if src == dst {
						continue
					}
					q.Src, q.Dst = from.addrs[family], to.addrs[family]
					want := world.Evaluate(q)
					if !want.Allowed {
						denied++
					}
					wg.Go(func() {
						wait := waits
						if want.Allowed {
							wait = patience
						}
						if got := passes(from.ns, q, wait); got != want.Allowed && !(want.Allowed && q.Protocol == 1 && passes(from.ns, q, wait)) {
							c.t.Errorf("%s: %s to %s: %s: passes: %v, want %v: %v; %v", step, src, dst, q, got, want.Allowed, want.Egress.Reason, want.Ingress.Reason)
						}
					})
				}
			}
		}
	}
	wg.Wait()
	return denied
}

// TestPolicy: what passes is what the evaluator says, between pods of one node and of two, over both families; a pod of which nothing is
// known reaches nobody; a change ends connections that it denies and no others; a dead daemon opens nothing.
func TestPolicy(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "python3")
	for _, m := range catalog.Modes {
		if os.Getenv("WEFT_TEST_LONG") == "" && !slices.Contains([]string{"vxlan", "tun-gso"}, m.Name) {
			continue
		}
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			testPolicy(t, newPoliced(t, m.Name))
		})
	}
}

func testPolicy(t *testing.T, c *policed) {
	a, client := c.Nodes[0], c.clients[c.Nodes[0].Name]
	ns := nettest.New(t)
	var attached api.AttachResult
	c.eventually("a pod is attached", func() (err error) { // not before policies are in force
		attached, err = client.Attach(t.Context(), api.AttachRequest{ContainerID: "a1", IfName: "eth0", Netns: ns.Path(), Network: "weft"})
		return err
	})
	p := &policedPod{ns: ns}
	for _, ip := range attached.IPs {
		p.addrs = append(p.addrs, ip.Address.Addr())
	}
	answerIn(t, ns)

	// Nothing is known of it yet: it reaches nobody, and nobody reaches it.
	for family := range 2 {
		for _, other := range c.Nodes {
			if passes(ns, policy.Traffic{Dst: other.PodAddrs[family], Protocol: policy.UDP, Port: 53}, waits) || passes(other.Pod, policy.Traffic{Dst: p.addrs[family], Protocol: policy.TCP, Port: 80}, waits) {
				t.Errorf("packets pass between %v, of which nothing is known, and %v", p.addrs[family], other.PodAddrs[family])
			}
		}
	}
	c.denied(a, "unknown", "", 4)

	p.text = "namespace: y, labels: {name: a1, kind: new}, ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]"
	c.pods["a1"] = p
	steps := []struct{ name, policies string }{
		{"open", ""},
		{"ingress by selectors", np("in", "x", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {name: a0}}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}, {from: [{namespaceSelector: {matchLabels: {team: red}}}], ports: [{port: web}]}]}")},
		{"egress by named ports and ranges", np("out", "y", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: web}, {port: dns, protocol: UDP}]}]}") +
			np("out", "x", "{podSelector: {matchLabels: {name: b0}}, policyTypes: [Egress], egress: [{ports: [{port: 40, endPort: 80}, {protocol: UDP}]}]}")},
		{"blocks and exceptions", np("blocks", "x", fmt.Sprintf("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [%q]}}, {ipBlock: {cidr: \"fd00:10:244::/48\", except: [%q]}}]}]}",
			c.Nodes[1].Prefixes[0], c.Nodes[1].Prefixes[1]))},
		{"tiers", cnp("deny", "{tier: Admin, priority: 10, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: red}}}], protocols: [{tcp: {destinationPort: {range: {start: 81, end: 90}}}}]}]}") +
			cnp("pass", "{tier: Admin, priority: 5, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {name: b0}}}}, ingress: [{action: Pass, from: [{namespaces: {matchLabels: {team: red}}}]}]}") +
			cnp("base", "{tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {kind: old}}}}], protocols: [{udp: {}}]}]}") +
			np("free", "y", "{podSelector: {}, policyTypes: [Egress], egress: [{}]}")},
	}
	denied := 0
	for _, s := range steps {
		c.write(s.policies)
		n := c.agrees(s.name)
		if n == 0 && s.policies != "" {
			t.Errorf("%s denies nothing", s.name)
		}
		denied += n
	}
	t.Logf("%d connections were to be denied", denied)

	c.live(np("in", "x", "{podSelector: {matchLabels: {name: b0}}, ingress: [{ports: [{port: 81}]}]}"))

	c.traced()
	c.asked()

	// A file that is wrong changes nothing, nor does a daemon's death.
	good, err := os.ReadFile(c.file())
	if err != nil {
		t.Fatal(err)
	}
	c.writeFile(c.file(), string(good)+"wrong: here\n")
	c.eventually("the mistake is told", func() error {
		q, err := client.Policies(t.Context())
		if err == nil && !strings.Contains(q.Problem, "unknown key") {
			err = errors.New(q.Problem)
		}
		return err
	})
	to80 := policy.Traffic{Dst: c.Nodes[1].PodAddrs[0], Protocol: policy.TCP, Port: 80}
	if passes(a.Pod, to80, waits) {
		t.Error("a wrong file opened what was closed")
	}
	c.writeFile(c.file(), string(good))
	b := c.Nodes[1]
	c.stop(b, syscall.SIGKILL)
	if passes(p.ns, policy.Traffic{Dst: b.PodAddrs[1], Protocol: policy.TCP, Port: 80}, waits) {
		t.Error("a daemon's death opened what was closed")
	}
	c.start(b)
	c.ready(b)
	c.inForce()
	if passes(a.Pod, to80, waits) {
		t.Error("a new daemon opened what was closed")
	}
	to81 := to80
	to81.Port = 81
	if !passes(a.Pod, to81, patience) {
		t.Error("what is allowed does not pass a new daemon")
	}
	for _, n := range c.Nodes { // the probe's addresses are no pod's of which nothing is known
		if strings.Contains(c.daemons[n.Name].Output(), "pods' packets are not forwarded") {
			t.Errorf("%s takes its own policies for what stops pods' packets", n.Name)
		}
	}
}

// live has connections to b0 stand while a policy comes that denies port 80, and goes.
func (c *policed) live(deny string) {
	t := c.t
	c.write("")
	c.inForce()
	type standing struct {
		conn net.Conn
		port int
	}
	var conns []standing
	for _, from := range []string{"a0", "a1"} {
		for family := range 2 {
			for _, port := range []int{80, 81} {
				var conn net.Conn
				var err error
				c.pods[from].ns.Do(func() {
					conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(c.pods["b0"].addrs[family], uint16(port)).String(), patience)
				})
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns = append(conns, standing{conn, port})
				if err := echoes(conn, patience); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	before := c.count(c.Nodes[1], "ended", "")
	c.write(deny)
	c.inForce()
	for _, s := range conns {
		wait := waits
		if s.port == 81 {
			wait = patience
		}
		if err := echoes(s.conn, wait); (err == nil) != (s.port == 81) {
			t.Errorf("after the deny: %v → %v: %v", s.conn.LocalAddr(), s.conn.RemoteAddr(), err)
		}
	}
	// Which of the two counts a packet, is a matter of whether its connection was marked when it came.
	b := c.Nodes[1]
	c.eventually("node-b counts what the change denied", func() error {
		if by, ended := c.count(b, "NetworkPolicy", "x/in"), c.count(b, "ended", "")-before; by+ended < 4 {
			return fmt.Errorf("%d packets by the policy and %d of ended connections, want 4 together", by, ended)
		}
		return nil
	})
}

// traced: `weft trace` names the policy that drops a packet, in words and, where there are lanes, by packets as they are dropped; so does a capture.
func (c *policed) traced() {
	t, b := c.t, c.Nodes[1]
	client := c.clients[b.Name]
	const why = "isolated by NetworkPolicy x/in, of which no rule allows it"
	q := api.PathQuestion{Src: c.pods["a0"].addrs[0], Dst: c.pods["b0"].addrs[0], Protocol: 6, SPort: 4000, DPort: 80}
	path, err := client.Path(t.Context(), q)
	if err != nil || path.Arrives || !slices.ContainsFunc(path.Steps, func(s api.PathStep) bool {
		return s.Where == "network policy" && s.Verdict == "drop" && strings.Contains(s.Found, "ingress of pod x/b0: denied: "+why) && s.Remedy != ""
	}) {
		t.Errorf("the way of a denied packet: %+v, %v", path, err)
	}
	q.DPort = 81
	if path, err = client.Path(t.Context(), q); err != nil || !path.Arrives || !slices.ContainsFunc(path.Steps, func(s api.PathStep) bool {
		return s.Where == "network policy" && s.Verdict == "pass" && strings.Contains(s.Found, "allowed by NetworkPolicy x/in, rule ingress[0]")
	}) {
		t.Errorf("the way of an allowed packet: %+v, %v", path, err)
	}
	if !known(c.mode).Lanes() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := errors.New("found")
	started := make(chan struct{})
	go func() {
		<-started
		for ctx.Err() == nil {
			passes(c.pods["a0"].ns, policy.Traffic{Dst: q.Dst, Protocol: policy.TCP, Port: 80}, waits)
		}
	}()
	if err := client.Trace(ctx, "drop policy-denied", func() { close(started) }, func(p api.Traced) error {
		if p.Drop == "policy-denied" && p.Direction == "in" && p.Dst == q.Dst && p.DPort == 80 && strings.Contains(p.Why, why) {
			return found
		}
		return nil
	}); !errors.Is(err, found) {
		t.Errorf("the trace shows no packet that the policy drops: %v", err)
	}
	var file bytes.Buffer
	if _, err := client.Capture(ctx, api.CaptureRequest{Drops: true, Filter: "drop policy-denied and tcp port 80", Count: 1}, &file, func() {}); err != nil {
		t.Error(err)
	}
	// The policy by its name, or that a change ended the connection: one that stood before sends again.
	if !bytes.Contains(file.Bytes(), []byte("drop policy-denied: denied: "+why)) && !bytes.Contains(file.Bytes(), []byte("drop policy-denied: a change of policies denied its connection")) {
		t.Errorf("the capture names no policy: %d bytes", file.Len())
	}
}

// asked: a process of an attached pod is told what policies say of its own connections, and nobody is told of others'.
func (c *policed) asked() {
	t, pod := c.t, c.pods["a1"]
	const script = `
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(("GET /v1/verdict?%s HTTP/1.0\r\nHost: weft\r\n\r\n" % sys.argv[2]).encode())
answer = b""
while True:
    part = s.recv(4096)
    if not part: break
    answer += part
print(answer.decode())
`
	socket := c.path(c.Nodes[0], "verdict/sock")
	b0 := c.pods["b0"].addrs
	for _, q := range []struct {
		ns          *nettest.NS
		query, want string
	}{
		{pod.ns, fmt.Sprintf("dst=%s&port=80", b0[0]), `{"allowed":false}`},
		{pod.ns, fmt.Sprintf("dst=%s&port=81", b0[1]), `{"allowed":true}`},
		{pod.ns, fmt.Sprintf("src=%s&dst=%s&port=81", c.pods["a0"].addrs[0], b0[0]), "neither end is an address of the caller's pod"},
		{c.Nodes[0].NS, fmt.Sprintf("src=%s&dst=%s&port=81", pod.addrs[0], b0[0]), "only pods of this node are answered"},
	} {
		if out := q.ns.MustRun(t, "python3", "-c", script, socket, q.query); !strings.Contains(out, q.want) {
			t.Errorf("%s: %s, want %s", q.query, out, q.want)
		}
	}
}

func echoes(conn net.Conn, wait time.Duration) error {
	_ = conn.SetDeadline(time.Now().Add(wait))
	b := []byte{7}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	_, err := conn.Read(b)
	return err
}

// count returns how many packets of a policy a node has denied.
func (c *policed) count(n *nettest.ClusterNode, tier, name string) (packets uint64) {
	c.t.Helper()
	p, err := c.clients[n.Name].Policies(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, d := range p.Denied {
		if d.Tier == tier && d.Policy == name {
			packets += d.Packets
		}
	}
	return packets
}

// denied waits until a node has counted denied packets of a policy.
func (c *policed) denied(n *nettest.ClusterNode, tier, name string, least uint64) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%s counts what %s %s denied", n.Name, tier, name), func() error {
		if packets := c.count(n, tier, name); packets < least {
			return fmt.Errorf("%d, want %d", packets, least)
		}
		return nil
	})
}
