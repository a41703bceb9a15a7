package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestCNIChain runs the chain that `weft cni install` writes, with portmap and bandwidth: a pod's port is reached through its
// node from everywhere, the pod itself among it, and its rates are limited. Nothing of it stays.
func TestCNIChain(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ip", "nft", "tc", "iptables", "ip6tables", "ping")
	buildPlugin(t)
	for _, style := range []string{"routed", "bridge"} {
		t.Run(style, func(t *testing.T) { t.Parallel(); testChain(t, style) })
	}
}

func testChain(t *testing.T, style string) {
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{})
	c.extra = "cni: {attach: " + style + "}"
	c.launch()
	node, other := c.Nodes[0], c.Nodes[1]
	if err := os.MkdirAll(c.path(node, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, version := references()
	for _, name := range []string{"portmap", "bandwidth"} {
		if err := os.Symlink(filepath.Join(dir, name), filepath.Join(c.path(node, "bin"), name)); err != nil {
			t.Fatal(err)
		}
	}
	r := c.install(node)
	if r.list.CNIVersion != version || len(r.list.Plugins) != 3 {
		t.Fatalf("version %s, %d plugins; the plugins of the chain know %s", r.list.CNIVersion, len(r.list.Plugins), version)
	}
	published := func(id string) *box {
		b := r.box(id)
		b.rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}
		b.rt.CapabilityArgs["bandwidth"] = map[string]any{"ingressRate": 80_000_000, "ingressBurst": 80_000_000, "egressRate": 40_000_000, "egressBurst": 40_000_000}
		return b
	}
	// Once in and out, so that what stays for good (portmap's own chains) is there before the count.
	first := published("first")
	if err := errors.Join(r.add(first), r.del(first)); err != nil {
		t.Fatal(err)
	}
	before := r.traces()
	web, beside := published("web"), r.box("beside")
	if err := errors.Join(r.add(web), r.add(beside)); err != nil {
		t.Fatal(err)
	}
	serve(t, web.ns, "[::]:80")
	asks := func(who string, from *nettest.NS, addr netip.Addr, port uint16) {
		t.Helper()
		to := netip.AddrPortFrom(addr, port).String()
		c.eventually(who+" reaches the pod at "+to, func() error { return served(from, to) })
	}
	for fam, host := range node.Underlay {
		asks("another host", other.NS, host, 8080)
		asks("a pod of another node", other.Pod, host, 8080)
		asks("the node itself", node.NS, host, 8080)
		asks("a pod beside it", beside.ns, host, 8080)
		asks("the pod itself", web.ns, host, 8080) // hairpin
		asks("the node, without the port", node.NS, web.ips[fam], 80)
	}
	asks("the node, by loopback", node.NS, netip.MustParseAddr("127.0.0.1"), 8080)

	limits := node.NS.MustRun(t, "tc", "qdisc", "show")
	for _, rate := range []string{"tbf", "rate 80Mbit", "rate 40Mbit"} {
		if !strings.Contains(limits, rate) {
			t.Errorf("no %q among the qdiscs:\n%s", rate, limits)
		}
	}
	// In CHECK of a pod of both families Debian's portmap looks for IPv4's rules among those of IPv6; newer ones do not.
	if version == "1.1.0" {
		if err := r.inside(func() error { return r.cni.CheckNetworkList(t.Context(), r.list, web.rt) }); err != nil {
			t.Errorf("CHECK of the chain: %v", err)
		}
	}
	for _, b := range []*box{web, beside} {
		if err := r.del(b); err != nil {
			t.Errorf("DEL of the chain: %v", err)
		}
	}
	c.eventually("nothing is left", func() error { return r.clean(before) })
}

// serve answers with "served" whoever connects to an address of a namespace.
func serve(t *testing.T, ns *nettest.NS, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(s, "served")
			s.Close()
		}
	}()
}

// served asks at an address.
func served(from *nettest.NS, addr string) error {
	var s net.Conn
	var err error
	from.Do(func() { s, err = net.DialTimeout("tcp", addr, time.Second) })
	if err != nil {
		return err
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(time.Second))
	answer, err := io.ReadAll(s)
	if string(answer) != "served" {
		return fmt.Errorf("%q is the answer: %w", answer, err)
	}
	return nil
}

// TestCNIExhausted uses a prefix up: ADD says so and does nothing, STATUS says so, and an address given back serves again.
func TestCNIExhausted(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ip", "nft")
	buildPlugin(t)
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{})
	n := c.Nodes[0]
	n.Prefixes = nettest.Prefixes("10.244.1.0/29", "fd00:10:244:1::/64") // the first holds 5 pods: not .0, .1 and .7
	c.writeNodes()
	c.start(n)
	c.ready(n)
	r := c.install(n, "--chain", "")
	ctx := t.Context()
	var boxes []*box
	for i := range 5 {
		b := r.box(fmt.Sprint("b", i))
		boxes = append(boxes, b)
		if err := errors.Join(r.cni.GetStatusNetworkList(ctx, r.list), r.add(b)); err != nil {
			t.Fatal(err)
		}
	}
	before := r.traces()
	late := r.box("late")
	for range 2 {
		err := r.add(late)
		r.wantCode("ADD without an address left", err, 100)
		if err == nil || !strings.Contains(err.Error(), "no address is left in [10.244.1.0/29]") {
			t.Errorf("ADD without an address left: %v", err)
		}
		r.wantCode("STATUS without an address left", r.cni.GetStatusNetworkList(ctx, r.list), 50)
	}
	if err := r.clean(before); err != nil {
		t.Errorf("refused ADDs left: %v", err)
	}
	if links := late.ns.MustRun(t, "ip", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("refused ADDs left in the pod: %s", links)
	}
	free := boxes[2].ips[0]
	if err := r.del(boxes[2]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.cni.GetStatusNetworkList(ctx, r.list), r.add(late)); err != nil || late.ips[0] != free {
		t.Errorf("after DEL of %v: %v, %v", free, late.ips, err)
	}
	r.wantCode("STATUS, used up again", r.cni.GetStatusNetworkList(ctx, r.list), 50)
}

// cnitool runs the specification's own tool with a node's directories, in its namespace.
func (c *cluster) cnitool(tool string, r *runtime, args ...string) (string, error) {
	cmd := c.asRuntime(r.node, append([]string{"env", "CNI_PATH=/opt/cni/bin:/usr/lib/cni", tool}, args...)...)
	return r.node.NS.Run(cmd[0], cmd[1:]...)
}

// TestCNITool drives the plugin by cnitool: every command, and what it says where it fails.
func TestCNITool(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ip", "nft", "ping", "unshare")
	buildPlugin(t)
	tool := filepath.Join(t.TempDir(), "cnitool")
	if out, err := exec.Command("go", "build", "-o", tool, "github.com/containernetworking/cni/cnitool").CombinedOutput(); err != nil {
		t.Fatalf("build cnitool: %v\n%s", err, out)
	}
	c := up(t, "tun-gso", 4, nettest.ClusterOptions{})
	r := c.install(c.Nodes[0], "--chain", "")
	pod := nettest.New(t)
	done := func(args ...string) string {
		t.Helper()
		out, err := c.cnitool(tool, r, args...)
		if err != nil {
			t.Errorf("cnitool %v: %v", args, err)
		}
		return out
	}
	refused := func(words string, args ...string) {
		t.Helper()
		if out, err := c.cnitool(tool, r, args...); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("cnitool %v: %v: %s; want %q", args, err, out, words)
		}
	}
	done("add", "weft", pod.Path()) // once in and out: what stays for good
	done("del", "weft", pod.Path())
	before := r.traces()
	done("status", "weft", pod.Path())
	var result struct {
		CNIVersion string
		Interfaces []struct {
			Name, Sandbox string
			MTU           int
		}
		IPs []struct{ Address netip.Prefix }
	}
	if out := done("add", "weft", pod.Path()); json.Unmarshal([]byte(out), &result) != nil || result.CNIVersion != "1.1.0" || len(result.IPs) != 2 ||
		len(result.Interfaces) != 2 || result.Interfaces[1].MTU != 1450 || result.Interfaces[1].Sandbox != pod.Path() {
		t.Fatalf("cnitool add: %s", out)
	}
	for _, ip := range result.IPs {
		c.eventually("the pod is reached over the overlay", func() error { return ping(c.Nodes[1].Pod, ip.Address.Addr()) })
	}
	done("check", "weft", pod.Path())
	refused("is attached to weft already", "add", "weft", pod.Path())
	// What somebody takes out of a pod is back so soon that no runtime finds it missing.
	pod.MustRun(t, "ip", "route", "del", "default")
	c.eventually("the pod's default route is back", func() error {
		if out := pod.MustRun(t, "ip", "route", "show", "default"); out == "" {
			return errors.New("there is none")
		}
		return nil
	})
	done("check", "weft", pod.Path())
	for range 2 {
		done("del", "weft", pod.Path())
	}
	done("add", "weft", pod.Path())
	// libcni detaches all that it remembers; to the plugin's own GC cnitool does not say what is valid.
	refused("cni.dev/valid-attachments", "gc", "weft", pod.Path())
	if err := r.clean(before); err != nil {
		t.Errorf("after GC: %v", err)
	}
	c.stop(c.Nodes[0], syscall.SIGTERM)
	refused("not reachable", "status", "weft", pod.Path())
	refused("not reachable", "add", "weft", pod.Path())
}
