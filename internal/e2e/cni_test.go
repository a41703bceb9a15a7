package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"weft/internal/nettest"
)

// runtime is a container runtime: libcni, the plugin, and the configuration that weft cni install has written.
type runtime struct {
	t    testing.TB
	node *nettest.ClusterNode
	cni  *libcni.CNIConfig
	list *libcni.NetworkConfigList
	dirs []string // that the plugin and libcni write to
}

// box is a container: a network namespace with an id.
type box struct {
	rt  *libcni.RuntimeConf
	ns  *nettest.NS
	ips []netip.Addr
}

// pluginBuilt builds weft-cni once, beside weft and as it is released: `weft cni install` looks for it there.
var pluginBuilt = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", filepath.Join(filepath.Dir(weft), "weft-cni"), "weft/cnibin")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build weft-cni: %w\n%s", err, out)
	}
	return nil
})

// references is where the reference plugins are, and the newest version of CNI that they know: Debian's, or newer ones in a
// directory that WEFT_CNI_PLUGINS names.
func references() (dir, version string) {
	if dir := os.Getenv("WEFT_CNI_PLUGINS"); dir != "" {
		return dir, "1.1.0"
	}
	return "/usr/lib/cni", "1.0.0"
}

func buildPlugin(t *testing.T) {
	t.Helper()
	if err := pluginBuilt(); err != nil {
		t.Fatal(err)
	}
}

// onlyDaemon takes the cluster's own pod from a node: the daemon does not know that it has one of the prefix's addresses.
func (c *cluster) onlyDaemon(n *nettest.ClusterNode) {
	c.t.Helper()
	n.NS.MustRun(c.t, "ip", "link", "delete", n.PodDevice)
}

// install sets the plugin up for a node, in directories of the test.
func (c *cluster) install(n *nettest.ClusterNode, args ...string) *runtime {
	c.t.Helper()
	c.onlyDaemon(n)
	bin, conf := c.path(n, "bin"), c.path(n, "net.d")
	args = append([]string{"cni", "install", "--wait", patience.String(), "--bin-dir", bin, "--conf-dir", conf, "--socket", c.path(n, "sock")}, args...)
	if out, err := exec.Command(weft, args...).CombinedOutput(); err != nil {
		c.t.Fatalf("weft cni install: %v: %s", err, out)
	}
	list, err := libcni.NetworkConfFromFile(filepath.Join(conf, "10-weft.conflist"))
	if err != nil {
		c.t.Fatal(err)
	}
	cache := c.path(n, "cache")
	if err := os.MkdirAll(filepath.Join(cache, "results"), 0o755); err != nil {
		c.t.Fatal(err)
	}
	// Given rather than left to libcni, which makes one at the first call, without care for others at the same time.
	calls := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	return &runtime{c.t, n, libcni.NewCNIConfigWithCacheDir([]string{bin, "/usr/lib/cni"}, cache, calls), list, []string{bin, conf, cache, c.path(n, "state")}}
}

func (r *runtime) box(id string) *box {
	ns := nettest.New(r.t)
	return &box{rt: &libcni.RuntimeConf{ContainerID: id, NetNS: ns.Path(), IfName: "eth0", CapabilityArgs: map[string]any{}}, ns: ns}
}

// inside runs fn in the node's namespace, as runtimes run: plugins work on the namespace that they are called in.
func (r *runtime) inside(fn func() error) (err error) {
	r.node.NS.Do(func() { err = fn() })
	return err
}

func (r *runtime) del(b *box) error {
	return r.inside(func() error { return r.cni.DelNetworkList(r.t.Context(), r.list, b.rt) })
}

// add calls ADD and holds the result to what 1.1.0 says.
func (r *runtime) add(b *box) error {
	var result types.Result
	err := r.inside(func() (err error) {
		result, err = r.cni.AddNetworkList(r.t.Context(), r.list, b.rt)
		return err
	})
	if err != nil {
		return err
	}
	full, err := types100.NewResultFromResult(result)
	if err != nil {
		return err
	}
	b.ips = nil
	for _, ip := range full.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		b.ips = append(b.ips, a.Unmap())
		if i := full.Interfaces[*ip.Interface]; i.Name != "eth0" || i.Sandbox != b.ns.Path() || (i.Mtu == 0) == (result.Version() == "1.1.0") || i.Mac == "" {
			return fmt.Errorf("the address's interface is %v", i)
		}
	}
	if result.Version() != r.list.CNIVersion || len(b.ips) != 2 || len(full.Routes) != 2 {
		return fmt.Errorf("result %v", full)
	}
	return nil
}

func (r *runtime) wantCode(what string, err error, code uint) {
	r.t.Helper()
	var e *types.Error
	if !errors.As(err, &e) || e.Code != code {
		r.t.Errorf("%s: %v; want code %d", what, err, code)
	}
}

// traces are what pods may leave on a node, each as a line: links, addresses, routes and rules of the kernel, files of the
// plugin and of libcni. Indices and counters are left out, a restarted daemon's devices have others, and so are the addresses
// that the kernel gives to devices by itself.
func (r *runtime) traces() map[string]bool {
	r.t.Helper()
	all := map[string]bool{}
	fields := func(kind string, from, to int, cmd ...string) {
		for line := range strings.Lines(withoutProbe(r.node.NS.MustRun(r.t, cmd[0], cmd[1:]...))) {
			line = strings.ReplaceAll(line, " linkdown", "") // of a bridge without ports
			if own := strings.Contains(line, "fe80:") && !strings.Contains(line, "fe80::1 ") && !strings.Contains(line, "fe80::1/"); own {
				continue
			}
			if f := strings.Fields(line); len(f) > from {
				all[kind+" "+strings.Join(f[from:min(to, len(f))], " ")] = true
			}
		}
	}
	fields("link", 1, 2, "ip", "-o", "link")
	fields("address", 1, 4, "ip", "-o", "address")
	for _, family := range []string{"-4", "-6"} {
		fields("route", 0, 99, "ip", family, "route", "show", "table", "all")
		fields("rule", 0, 99, "ip", family, "rule")
	}
	fields("rule", 0, 99, "nft", "--stateless", "list", "ruleset")
	for _, dir := range r.dirs {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just gone
			}
			all["file "+path] = true
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return all
}

// withoutProbe leaves out of a list of ip's or nft's what is of the link by which a node that has pods finds out whether it forwards: that
// comes and goes in its own time.
func withoutProbe(list string) string {
	var kept strings.Builder
	inside := false // its table
	for line := range strings.Lines(list) {
		mine := strings.Contains(line, "weft-probe")
		switch {
		case mine && strings.HasPrefix(line, "table "):
			inside = true
		case inside:
			inside = !strings.HasPrefix(line, "}")
		case !mine:
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// clean says what is on the node that was not there before, or is not there any more.
func (r *runtime) clean(before map[string]bool) error {
	r.t.Helper()
	now := r.traces()
	var differ []string
	for line := range now {
		if !before[line] {
			differ = append(differ, "left: "+line)
		}
	}
	for line := range before {
		if !now[line] {
			differ = append(differ, "gone: "+line)
		}
	}
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return errors.New(strings.Join(differ, "\n"))
}

// TestCNI drives the plugin by libcni as runtimes do: containers on two nodes, in parallel.
func TestCNI(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "ip")
	buildPlugin(t)
	for mode, style := range map[string]string{"tun-gso": "routed", "vxlan": "bridge"} {
		t.Run(mode+"/"+style, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{})
			c.extra = "cni: {attach: " + style + "}"
			c.launch()
			c.life()
		})
	}
	t.Run("delegated", func(t *testing.T) { t.Parallel(); testDelegated(t) })
}

func (c *cluster) life() {
	t := c.t
	var nodes []*runtime
	var boxes []*box
	var before []map[string]bool
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		r := c.install(n, "--chain", "")
		if r.list.CNIVersion != "1.1.0" {
			t.Fatalf("libcni chose %s", r.list.CNIVersion)
		}
		nodes = append(nodes, r)
		// Once in and out, so that what stays for good (bridge, firewall) is there before the count.
		first := r.box("first")
		if err := errors.Join(r.add(first), r.del(first)); err != nil {
			t.Fatal(err)
		}
		before = append(before, r.traces())
		for i := range 4 {
			b := r.box(fmt.Sprintf("%s-box-%d", n.Name, i))
			boxes = append(boxes, b)
			wg.Go(func() {
				if err := r.add(b); err != nil {
					t.Errorf("ADD: %v", err)
				}
			})
		}
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	seen := map[netip.Addr]bool{}
	for _, to := range boxes {
		for _, ip := range to.ips {
			if seen[ip] {
				t.Errorf("%v is given twice", ip)
			}
			seen[ip] = true
			for _, from := range []*box{boxes[0], boxes[4]} {
				c.eventually(fmt.Sprintf("%s reaches %v", from.rt.ContainerID, ip), func() error { return ping(from.ns, ip) })
			}
		}
	}
	a, b := nodes[0], boxes[0]
	ctx := t.Context()
	if err := errors.Join(a.cni.CheckNetworkList(ctx, a.list, b.rt), a.cni.GetStatusNetworkList(ctx, a.list)); err != nil {
		t.Errorf("CHECK and STATUS: %v", err)
	}
	again := *b
	a.wantCode("a second ADD", a.add(&again), 102)
	if err := ping(b.ns, boxes[4].ips[0]); err != nil {
		t.Errorf("after a refused second ADD: %v", err)
	}
	gone := *boxes[1]
	gone.rt = &libcni.RuntimeConf{ContainerID: "gone", NetNS: "/run/netns/weft-none", IfName: "eth0"}
	a.wantCode("ADD without a namespace", a.add(&gone), 3)
	far := a.box("far")
	far.rt.CapabilityArgs["ips"] = []string{"198.51.100.1/32"}
	a.wantCode("ADD of an address outside the prefix", a.add(far), 101)
	far.rt.CapabilityArgs = map[string]any{"ips": []string{strings.TrimSuffix(c.Nodes[0].Prefixes[0].Addr().String(), "0") + "77"}, "mac": "02:00:00:00:00:77"}
	if err := a.add(far); err != nil || !strings.HasSuffix(far.ips[0].String(), ".77") || !strings.Contains(far.ns.MustRun(t, "ip", "link", "show", "eth0"), "02:00:00:00:00:77") {
		t.Errorf("ips and mac: %v, %v", far.ips, err)
	}
	for _, broken := range [][]string{{"ip", "route", "del", "default"}, {"ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"}} {
		state := func() string {
			return far.ns.MustRun(t, "ip", "route", "show", "default") + far.ns.MustRun(t, "ip", "-br", "link", "show", "eth0")
		}
		whole := state()
		far.ns.MustRun(t, broken[0], broken[1:]...)
		// The daemon may have mended it first.
		if err := a.cni.CheckNetworkList(ctx, a.list, far.rt); err != nil || state() != whole {
			a.wantCode("CHECK after "+strings.Join(broken, " "), err, 103)
		}
		if err := errors.Join(a.del(far), func() error { far.rt.CapabilityArgs = nil; return a.add(far) }()); err != nil {
			t.Errorf("DEL and ADD: %v", err)
		}
	}

	// Without a daemon.
	c.stop(c.Nodes[0], syscall.SIGTERM)
	a.wantCode("ADD without a daemon", a.add(a.box("late")), 11)
	a.wantCode("STATUS without a daemon", a.cni.GetStatusNetworkList(ctx, a.list), 50)
	if err := a.del(b); err == nil || !strings.Contains(err.Error(), "not reachable") {
		t.Errorf("DEL without a daemon: %v", err)
	}
	c.start(c.Nodes[0])
	c.ready(c.Nodes[0])
	if err := a.del(b); err != nil {
		t.Errorf("DEL, asked again: %v", err)
	}
	for range 2 {
		if err := a.del(b); err != nil {
			t.Errorf("DEL, repeated: %v", err)
		}
	}
	// A namespace that dies first, then GC of all but one.
	if err := boxes[1].ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.del(boxes[1]); err != nil {
		t.Errorf("DEL of a dead namespace: %v", err)
	}
	keep := boxes[2]
	// Else libcni itself calls DEL for what is stale.
	if results := filepath.Join(c.path(c.Nodes[0], "cache"), "results"); errors.Join(os.RemoveAll(results), os.Mkdir(results, 0o755)) != nil {
		t.Fatal("no directory of results")
	}
	if err := a.cni.GCNetworkList(ctx, a.list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: keep.rt.ContainerID, IfName: "eth0"}}}); err != nil {
		t.Errorf("GC: %v", err)
	}
	if err := ping(keep.ns, boxes[4].ips[0]); err != nil {
		t.Errorf("a valid attachment after GC: %v", err)
	}
	if out, err := boxes[3].ns.Run("ip", "link", "show", "eth0"); err == nil {
		t.Errorf("GC left %s", out)
	}
	for _, r := range nodes {
		if err := r.cni.GCNetworkList(ctx, r.list, &libcni.GCArgs{}); err != nil {
			t.Errorf("GC: %v", err)
		}
	}
	for i, r := range nodes {
		c.eventually("nothing is left on "+r.node.Name, func() error { return r.clean(before[i]) })
	}
}

// testDelegated has Debian's host-local give out the addresses.
func testDelegated(t *testing.T) {
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{})
	c.launch()
	r := c.install(c.Nodes[0], "--chain", "")
	data := t.TempDir()
	list, err := libcni.NetworkConfFromBytes([]byte(fmt.Sprintf(`{"cniVersion":"1.0.0","name":"weft","plugins":[{"type":"weft-cni","socket":%q,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.244.1.128/28"}],[{"subnet":"fd00:10:244:1:80::/112"}]]}}]}`, c.path(c.Nodes[0], "sock"), data)))
	if err != nil {
		t.Fatal(err)
	}
	r.list = list
	taken := func() (n int) {
		for _, pattern := range []string{"10.*", "fd00*"} {
			found, _ := filepath.Glob(filepath.Join(data, "weft", pattern))
			n += len(found)
		}
		return n
	}
	var boxes []*box
	var wg sync.WaitGroup
	for i := range 4 {
		b := r.box(fmt.Sprint("d", i))
		boxes = append(boxes, b)
		wg.Go(func() {
			result, err := r.cni.AddNetworkList(t.Context(), list, b.rt)
			if err != nil {
				t.Errorf("ADD: %v", err)
				return
			}
			full, err := types100.NewResultFromResult(result)
			if err != nil || len(full.IPs) != 2 {
				t.Errorf("%v, %v", full, err)
				return
			}
			for _, ip := range full.IPs {
				a, _ := netip.AddrFromSlice(ip.Address.IP)
				b.ips = append(b.ips, a.Unmap())
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	if taken() != 8 {
		t.Errorf("host-local has %d addresses, want 8", taken())
	}
	for _, ip := range boxes[1].ips {
		c.eventually(fmt.Sprintf("%v is reached", ip), func() error {
			return errors.Join(ping(boxes[0].ns, ip), ping(c.Nodes[1].Pod, ip))
		})
	}
	if err := r.cni.CheckNetworkList(t.Context(), list, boxes[0].rt); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	for _, b := range boxes {
		if err := r.cni.DelNetworkList(t.Context(), list, b.rt); err != nil {
			t.Errorf("DEL: %v", err)
		}
	}
	if taken() != 0 {
		t.Errorf("host-local still has %d addresses", taken())
	}
}
