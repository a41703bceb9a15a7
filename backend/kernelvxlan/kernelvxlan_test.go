package kernelvxlan

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/internal/kernel"
	"weft/internal/nettest"
)

// waitLong ends a wait for something that takes a fraction of it, however busy the machine.
const waitLong = nettest.Patience

// opened is a backend and its Host.
type opened struct {
	backend.Backend
	host *hostnet.Host
}

// pair is a cluster whose nodes run a backend each.
type pair struct {
	*nettest.Cluster
	t        testing.TB
	families []int // the underlay families every node announces, in its order of preference: 0 = v4, 1 = v6
	backends []*opened
}

func newPair(t testing.TB, o nettest.ClusterOptions, families ...int) *pair {
	t.Helper()
	nettest.RequireKernel(t, kernel.VXLAN)
	nettest.RequireTool(t, "ping", "ip", "bridge")
	p := &pair{Cluster: nettest.NewCluster(t, o), t: t, families: families}
	for i := range p.Nodes {
		p.backends = append(p.backends, p.open(i, true))
	}
	return p
}

func (p *pair) settings(i int) backend.Settings {
	return backend.Settings{
		Mode: "vxlan", Node: p.Nodes[i].Name, Network: p.Network(), VNI: 42, Port: 4789, Queues: 1,
		Log: zaptest.NewLogger(p.t, zaptest.Level(zap.WarnLevel)).Named(p.Nodes[i].Name),
	}
}

// open makes a backend in node i's namespace.
func (p *pair) open(i int, checksum bool) (b *opened) {
	p.t.Helper()
	var err error
	set := p.settings(i)
	p.Nodes[i].NS.Do(func() {
		if set.Host, err = hostnet.New(set.Log, backend.Owner); err == nil {
			b = &opened{host: set.Host}
			b.Backend, err = backend.ByKernel(set, &planner{set, checksum})
		}
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := errors.Join(b.Close(), b.host.Close()); err != nil {
			p.t.Error(err)
		}
	})
	return b
}

func (p *pair) node(i int) control.Node {
	n := p.Nodes[i]
	c := control.Node{Name: n.Name, Prefixes: n.Prefixes}
	for _, f := range p.families {
		c.Endpoints = append(c.Endpoints, n.Underlay[f])
	}
	return c
}

// state is the cluster as node i sees it.
func (p *pair) state(i int) control.State {
	s := control.State{Self: p.node(i), AsOf: time.Now()}
	for j := range p.Nodes {
		if j != i {
			s.Nodes = append(s.Nodes, p.node(j))
		}
	}
	return s
}

func (p *pair) apply() {
	p.t.Helper()
	for i, b := range p.backends {
		if err := b.Apply(p.state(i)); err != nil {
			p.t.Fatal(err)
		}
	}
}

// ping sends one packet of size bytes (the whole IP packet, fragmentation forbidden) and says how it went.
func ping(from *nettest.NS, to netip.Addr, size int, more ...string) (string, error) {
	header := 20 + 8
	if to.Is6() {
		header = 40 + 8
	}
	args := append([]string{"-n", "-c1", "-W2", "-Mdo", "-s" + strconv.Itoa(size-header), to.String()}, more...)
	return from.Run("ping", args...)
}

func (p *pair) pingAll(size int) {
	p.t.Helper()
	for _, a := range p.Nodes {
		for _, b := range p.Nodes {
			if a == b {
				continue
			}
			for _, to := range b.PodAddrs {
				if _, err := ping(a.Pod, to, size); err != nil {
					p.t.Errorf("pod to pod: %v", err)
				}
				if _, err := ping(a.NS, to, size); err != nil { // from the node's own inner address
					p.t.Errorf("host to pod: %v", err)
				}
			}
		}
	}
}

var underlays = []struct {
	name     string
	families []int
	inner    int // of 1500
	devices  []string
}{
	{"v4", []int{0}, 1450, []string{"weft-vx4"}},
	{"v6", []int{1}, 1430, []string{"weft-vx6"}},
	{"v4 then v6", []int{0, 1}, 1430, []string{"weft-vx4", "weft-vx6"}},
	{"v6 then v4", []int{1, 0}, 1430, []string{"weft-vx6", "weft-vx4"}},
}

// TestPodsTalk over every underlay, in both inner families, with packets up to the inner MTU; and exactly to
// there: one byte more is answered with ICMP, nothing is fragmented on the underlay.
func TestPodsTalk(t *testing.T) {
	for _, u := range underlays {
		t.Run(u.name, func(t *testing.T) {
			p := newPair(t, nettest.ClusterOptions{}, u.families...)
			p.apply()
			p.pingAll(100)
			p.pingAll(u.inner)
			a, b := p.Nodes[0], p.Nodes[1]
			for i, to := range b.PodAddrs {
				out, err := ping(a.Pod, to, u.inner+1)
				if err == nil {
					t.Errorf("a packet of %d bytes passed an MTU of %d:\n%s", u.inner+1, u.inner, out)
				}
				if want := fmt.Sprintf("mtu ?= ?%d", u.inner); !regexp.MustCompile(want).MatchString(out) {
					t.Errorf("family %d: no ICMP that names an MTU of %d:\n%s", i, u.inner, out)
				}
			}
			for _, n := range p.Nodes {
				for _, counter := range []string{"Ip: .*FragCreates", "Ip6FragCreates"} {
					if n := snmp(t, n.NS, counter); n != 0 {
						t.Errorf("%s = %d: the underlay carries fragments", counter, n)
					}
				}
			}
			s := p.backends[0].Status()
			if !s.Ready || s.Reason != "" || s.UnderlayMTU != 1500 || s.InnerMTU != u.inner ||
				!slices.Equal(s.Devices, u.devices) || s.Features["udp-checksum"] != "on" || len(s.Hops) != 1 || s.Repairs != 0 {
				t.Errorf("Status = %+v", s)
			}
			if h := s.Hops[0]; h.Node != "node-b" || h.Endpoint != netip.AddrPortFrom(b.Underlay[u.families[0]], 4789) ||
				h.VNI != 42 || h.MTU != u.inner || len(h.Prefixes) != 2 || h.MAC != control.VTEPMAC("node-b").String() {
				t.Errorf("hop = %+v", h)
			}
		})
	}
}

// snmp reads a counter of /proc/net/snmp or snmp6 of a namespace.
func snmp(t testing.TB, ns *nettest.NS, counter string) (n int) {
	t.Helper()
	if counter == "Ip6FragCreates" {
		for _, line := range strings.Split(ns.MustRun(t, "cat", "/proc/net/snmp6"), "\n") {
			if f := strings.Fields(line); len(f) == 2 && f[0] == counter {
				n, err := strconv.Atoi(f[1])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("no counter %s", counter)
	}
	var names []string
	for _, line := range strings.Split(ns.MustRun(t, "cat", "/proc/net/snmp"), "\n") {
		if !strings.HasPrefix(line, "Ip: ") {
			continue
		}
		if names == nil {
			names = strings.Fields(line)
			continue
		}
		n, err := strconv.Atoi(strings.Fields(line)[slices.Index(names, "FragCreates")])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatal("no counter FragCreates")
	return 0
}

// TestFamiliesMayDiffer: each node sends by its own first family, so that the two directions use different
// devices; strict reverse path filtering, where the machine has it, must not stand in the way.
func TestFamiliesMayDiffer(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0, 1)
	for _, n := range p.Nodes {
		for _, key := range []string{"all", "default"} {
			if err := n.NS.Sysctl("ipv4/conf/"+key+"/rp_filter", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.apply()
	turned := p.state(1)
	slices.Reverse(turned.Self.Endpoints)
	if err := p.backends[1].Apply(turned); err != nil {
		t.Fatal(err)
	}
	if at := p.backends[0].Status().Hops[0].Endpoint.Addr(); at != p.Nodes[1].Underlay[0] {
		t.Errorf("a sends to %v", at)
	}
	if at := p.backends[1].Status().Hops[0].Endpoint.Addr(); at != p.Nodes[0].Underlay[1] {
		t.Errorf("b sends to %v", at)
	}
	p.pingAll(1000)
}

// TestFourNodes: a full mesh over a switch.
func TestFourNodes(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{Nodes: 4}, 0)
	p.apply()
	p.pingAll(500)
	if n := len(p.backends[0].Status().Hops); n != 3 {
		t.Errorf("%d hops, want 3", n)
	}
}

// TestOuterChecksum: tcpdump judges the outer checksum, with the veth's checksum offload off so that it is
// computed before the packet can be seen.
func TestOuterChecksum(t *testing.T) {
	for _, c := range []struct {
		name     string
		checksum bool
		families int
		want     string
	}{
		{"on", true, 0, "[udp sum ok]"}, {"on, v6", true, 1, "[udp sum ok]"},
		{"off", false, 0, "[no cksum]"}, {"off, v6", false, 1, "cksum 0x0000 ->"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nettest.RequireTool(t, "tcpdump", "ethtool")
			p := newPair(t, nettest.ClusterOptions{}, c.families)
			for i := range p.backends {
				p.backends[i] = p.open(i, c.checksum)
				p.Nodes[i].NS.MustRun(t, "ethtool", "-K", "eth0", "tx", "off")
			}
			p.apply()
			dump := p.Nodes[1].NS.MustStart(t, "tcpdump", "-i", "eth0", "-vv", "-n", "-l", "udp", "port", "4789")
			nettest.Eventually(t, waitLong, func() error {
				if _, err := ping(p.Nodes[0].Pod, p.Nodes[1].PodAddrs[0], 100); err != nil {
					return err
				}
				if out := dump.Output(); !strings.Contains(out, "VXLAN") {
					return fmt.Errorf("tcpdump has seen no VXLAN: %s", out)
				}
				return nil
			})
			for _, line := range strings.Split(dump.Output(), "\n") {
				if strings.Contains(line, "VXLAN, flags [I]") && !strings.Contains(line, c.want) {
					t.Errorf("outer header without %s: %s", c.want, line)
				}
			}
			if s := p.backends[0].Status(); (s.Features["udp-checksum"] == "on") != c.checksum {
				t.Errorf("features = %v", s.Features)
			}
		})
	}
}

// TestNodeRemoved: nothing leads to a removed node any more, and what is sent there is refused, not leaked.
func TestNodeRemoved(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	p.apply()
	p.pingAll(100)
	a, b := p.Nodes[0], p.Nodes[1]
	// Where it would leak to: the underlay as default route, as on any machine.
	a.NS.MustRun(t, "ip", "route", "add", "default", "via", b.Underlay[0].String())
	a.NS.MustRun(t, "ip", "-6", "route", "add", "default", "via", b.Underlay[1].String())
	alone := p.state(0)
	alone.Nodes = nil
	if err := p.backends[0].Apply(alone); err != nil {
		t.Fatal(err)
	}
	left := a.NS.MustRun(t, "ip", "route", "show", "table", "all") + a.NS.MustRun(t, "ip", "-6", "route", "show", "table", "all") +
		a.NS.MustRun(t, "ip", "neigh", "show", "nud", "permanent") + a.NS.MustRun(t, "bridge", "fdb", "show", "dev", "weft-vx4")
	for _, gone := range []string{"10.244.2.0", "fd00:10:244:2::", b.Underlay[0].String() + " self", control.VTEPMAC("node-b").String()} {
		if strings.Contains(left, gone) {
			t.Errorf("the removed node's %s is still there:\n%s", gone, left)
		}
	}
	for _, to := range b.PodAddrs {
		out, err := ping(a.Pod, to, 100)
		if err == nil || !strings.Contains(strings.ToLower(out), "unreachable") {
			t.Errorf("ping to the removed node's pod: %v; want unreachable:\n%s", err, out)
		}
	}
	if hops := p.backends[0].Status().Hops; len(hops) != 0 {
		t.Errorf("hops = %v", hops)
	}
	p.apply()
	p.pingAll(100)
}

// TestRefusedBeforeFirstState: New alone keeps pods' packets from leaving in clear.
func TestRefusedBeforeFirstState(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	a, b := p.Nodes[0], p.Nodes[1]
	a.NS.MustRun(t, "ip", "route", "add", "default", "via", b.Underlay[0].String())
	out, err := ping(a.Pod, b.PodAddrs[0], 100)
	if err == nil || !strings.Contains(out, "nreachable") {
		t.Errorf("ping before the first state: %v; want unreachable:\n%s", err, out)
	}
	if s := p.backends[0].Status(); s.Ready || s.Reason == "" {
		t.Errorf("Status before the first state = %+v", s)
	}
}

// run runs a backend's Run until the test ends, and has it look at the state of the moment as the daemon does.
func (p *pair) run(i int) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- p.backends[i].host.Run(ctx) }()
	state := p.state(i)
	go func() {
		done <- p.backends[i].Run(ctx, func(error) {
			if err := p.backends[i].Apply(state); err != nil {
				p.t.Logf("apply: %v", err)
			}
		})
	}()
	p.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			p.t.Errorf("Run = %v", err)
		}
	})
}

// TestRunRepairsThePath: whatever somebody breaks, pods talk again.
func TestRunRepairsThePath(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0, 1)
	p.apply()
	p.run(0)
	a, b := p.Nodes[0], p.Nodes[1]
	mac := control.VTEPMAC("node-b").String()
	for _, cmd := range []string{
		"ip route del 10.244.2.0/24", "ip -6 route del fd00:10:244:2::/64",
		"ip neigh del 10.244.2.0 dev weft-vx4", "ip neigh del fd00:10:244:2:: dev weft-vx4",
		"bridge fdb del " + mac + " dev weft-vx4 dst 192.0.2.2 self",
		"bridge fdb replace " + mac + " dev weft-vx4 dst 192.0.2.99 self permanent",
		"ip addr del 10.244.1.1/32 dev weft-vx4", "ip link set weft-vx4 down", "ip link set weft-vx4 address 02:00:00:00:00:99",
		"ip link del weft-vx4", "ip link del weft-vx6", "ip route flush proto 87",
	} {
		before := p.backends[0].Status().Repairs
		args := strings.Fields(cmd)
		a.NS.MustRun(t, args[0], args[1:]...)
		nettest.Eventually(t, waitLong, func() error {
			if p.backends[0].Status().Repairs == before {
				return fmt.Errorf("after %q nothing was repaired", cmd)
			}
			for _, to := range b.PodAddrs {
				if out, err := ping(a.Pod, to, 1430); err != nil {
					return fmt.Errorf("after %q: %w: %s", cmd, err, out)
				}
				if _, err := ping(b.Pod, a.PodAddrs[0], 1430); err != nil {
					return fmt.Errorf("after %q: %w", cmd, err)
				}
			}
			return nil
		})
	}
	if s := p.backends[0].Status(); !s.Ready {
		t.Errorf("Status = %+v", s)
	}
}

// TestRunFollowsUnderlayMTU: the devices' MTU is derived anew when the underlay's changes; an underlay that
// loses its address leaves what is in force alone, says so, and recovers.
func TestRunFollowsUnderlay(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	p.apply()
	p.run(0)
	a := p.Nodes[0]
	status := func(ok func(backend.Status) bool) {
		t.Helper()
		nettest.Eventually(t, waitLong, func() error {
			if s := p.backends[0].Status(); !ok(s) {
				return fmt.Errorf("status = %+v", s)
			}
			return nil
		})
	}
	a.NS.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1400")
	status(func(s backend.Status) bool { return s.Ready && s.UnderlayMTU == 1400 && s.InnerMTU == 1350 })
	if out := a.NS.MustRun(t, "ip", "link", "show", "weft-vx4"); !strings.Contains(out, "mtu 1350") {
		t.Errorf("the device has %s", out)
	}
	a.NS.MustRun(t, "ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
	status(func(s backend.Status) bool { return !s.Ready && strings.Contains(s.Reason, "192.0.2.1") })
	a.NS.MustRun(t, "ip", "route", "del", "10.244.2.0/24")
	nettest.Eventually(t, waitLong, func() error {
		_, err := a.NS.Run("ip", "route", "get", "10.244.2.10")
		return err
	})
	a.NS.MustRun(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
	status(func(s backend.Status) bool { return s.Ready && s.Reason == "" })
	p.pingAll(1350)
}

// flood pings from pod a to pod b every 2 ms until stop, which returns which of how many were lost.
func (p *pair) flood(to netip.Addr) (stop func() (lost []int, sent int)) {
	p.t.Helper()
	proc := p.Nodes[0].Pod.MustStart(p.t, "ping", "-n", "-i", "0.002", "-s", "500", to.String())
	answered := func() int { return strings.Count(proc.Output(), "time=") }
	nettest.Eventually(p.t, waitLong, func() error {
		if answered() == 0 {
			return errors.New("the flood does not flow")
		}
		return nil
	})
	return func() (lost []int, sent int) {
		p.t.Helper()
		enough := answered() + 200 // some traffic after the last change, too
		nettest.Eventually(p.t, waitLong, func() error {
			if answered() < enough {
				return errors.New("the flood has stopped flowing")
			}
			return nil
		})
		proc.Signal(os.Interrupt)
		if err := proc.Wait(); err != nil {
			p.t.Fatal(err)
		}
		// By sequence numbers: what was under way at the end is not lost.
		seen := map[string]bool{}
		for _, m := range regexp.MustCompile(`icmp_seq=(\d+) ttl`).FindAllStringSubmatch(proc.Output(), -1) {
			seen[m[1]] = true
			if n, _ := strconv.Atoi(m[1]); n > sent {
				sent = n
			}
		}
		for i := 1; i <= sent; i++ {
			if !seen[strconv.Itoa(i)] {
				lost = append(lost, i)
			}
		}
		return lost, sent
	}
}

// TestRestartLosesNothing: a daemon that ends and its successor, again and again, cost no packet.
func TestRestartLosesNothing(t *testing.T) {
	for _, u := range underlays[:2] {
		t.Run(u.name, func(t *testing.T) {
			p := newPair(t, nettest.ClusterOptions{}, u.families...)
			p.apply()
			for _, to := range p.Nodes[1].PodAddrs {
				stop := p.flood(to)
				for range 10 {
					b := p.open(0, true)
					if err := b.Apply(p.state(0)); err != nil {
						t.Fatal(err)
					}
					if n := b.Status().Repairs; n != 0 {
						t.Errorf("the successor repaired %d objects; want it to adopt them", n)
					}
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if lost, sent := stop(); len(lost) > 0 {
					t.Errorf("packets %v of %d lost across 10 restarts", lost, sent)
				}
			}
		})
	}
}

// TestKilledDaemonLosesNothing: the same with a process of its own and SIGKILL.
func TestKilledDaemonLosesNothing(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	if err := p.backends[1].Apply(p.state(1)); err != nil {
		t.Fatal(err)
	}
	kill := p.daemon()
	stop := p.flood(p.Nodes[1].PodAddrs[0])
	kill()
	for range 3 {
		kill := p.daemon()
		kill()
	}
	if err := p.backends[0].Apply(p.state(0)); err != nil {
		t.Fatal(err)
	}
	if lost, sent := stop(); len(lost) > 0 {
		t.Errorf("packets %v of %d lost across kills", lost, sent)
	}
	if n := p.backends[0].Status().Repairs; n != 0 {
		t.Errorf("%d repairs after kills; want adoption", n)
	}
}

// daemon starts this test binary as a process that runs node a's backend, and returns once it has applied.
func (p *pair) daemon() (kill func()) {
	p.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperDaemon$")
	cmd.Env = append(os.Environ(), "WEFT_TEST_HELPER_DAEMON=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.Nodes[0].NS.StartCmd(cmd); err != nil {
		p.t.Fatal(err)
	}
	killed := false
	kill = func() {
		if killed {
			return
		}
		killed = true
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	p.t.Cleanup(kill)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "applied" {
			return kill
		}
	}
	p.t.Fatal("the daemon process ended before it applied")
	return nil
}

// TestHelperDaemon is not a test: it is the process that daemon starts.
func TestHelperDaemon(t *testing.T) {
	if os.Getenv("WEFT_TEST_HELPER_DAEMON") == "" {
		return
	}
	p := &pair{t: t, families: []int{0}, Cluster: &nettest.Cluster{Nodes: []*nettest.ClusterNode{
		{Name: "node-a", Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Prefixes: prefixes(1)},
		{Name: "node-b", Underlay: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, Prefixes: prefixes(2)},
	}}}
	set := p.settings(0)
	var err error
	if set.Host, err = hostnet.New(set.Log, backend.Owner); err != nil {
		t.Fatal(err)
	}
	b, err := backend.ByKernel(set, &planner{set, true})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(p.state(0)); err != nil {
		t.Fatal(err)
	}
	fmt.Println("applied")
	if err := set.Host.Run(t.Context()); err != nil { // until killed
		t.Fatal(err)
	}
}

func prefixes(i int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i)),
	}
}

// TestPeerChanges: a peer's new MAC, endpoint and prefix are in force after one Apply, the old ones gone.
func TestPeerChanges(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	p.apply()
	b := p.Nodes[1]
	b.NS.MustRun(t, "ip", "addr", "add", "192.0.2.22/24", "dev", "eth0")
	for i, backend := range p.backends {
		s := p.state(i)
		peer := &s.Self
		if i == 0 {
			peer = &s.Nodes[0]
		}
		peer.MAC = control.MAC{0x02, 1, 2, 3, 4, 5}
		peer.Endpoints = []netip.Addr{netip.MustParseAddr("192.0.2.22")}
		if err := backend.Apply(s); err != nil {
			t.Fatal(err)
		}
	}
	p.pingAll(1450)
	fdb := p.Nodes[0].NS.MustRun(t, "bridge", "fdb", "show", "dev", "weft-vx4")
	if strings.TrimSpace(fdb) != "02:01:02:03:04:05 dst 192.0.2.22 self permanent" {
		t.Errorf("FDB of a = %q", fdb)
	}
}

// TestSelfProblems: what cannot work says why, and Guard stays.
func TestSelfProblems(t *testing.T) {
	for _, c := range []struct {
		name string
		mtu  int
		edit func(*control.State)
		want string
	}{
		{"no endpoint", 1500, func(s *control.State) { s.Self.Endpoints = nil }, "no endpoint"},
		{"foreign endpoint", 1500, func(s *control.State) { s.Self.Endpoints[0] = netip.MustParseAddr("203.0.113.1") }, "203.0.113.1"},
		{"small MTU", 1300, func(*control.State) {}, "1280"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, nettest.ClusterOptions{MTU: c.mtu}, 0)
			s := p.state(0)
			c.edit(&s)
			err := p.backends[0].Apply(s)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Apply = %v, want %q in it", err, c.want)
			}
			st := p.backends[0].Status()
			if st.Ready || !strings.Contains(st.Reason, c.want) {
				t.Errorf("Status = %+v", st)
			}
			if c.mtu != 1500 {
				return
			}
			if err := p.backends[0].Apply(p.state(0)); err != nil || !p.backends[0].Status().Ready {
				t.Errorf("Apply of a good state afterwards = %v", err)
			}
		})
	}
}

// TestPeerWithoutCommonFamily: is left out, and harms nobody.
func TestPeerWithoutCommonFamily(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{Nodes: 3}, 0)
	p.apply()
	s := p.state(0)
	s.Nodes[1].Endpoints = []netip.Addr{netip.MustParseAddr("2001:db8::3")}
	if err := p.backends[0].Apply(s); err != nil {
		t.Fatal(err)
	}
	if h := p.backends[0].Status().Hops; len(h) != 1 || h[0].Node != "node-b" {
		t.Errorf("hops = %v", h)
	}
	if _, err := ping(p.Nodes[0].Pod, p.Nodes[1].PodAddrs[0], 100); err != nil {
		t.Error(err)
	}
}

// fiveThousand is a state of 5,000 more nodes with a prefix of each family.
func fiveThousand(s control.State) control.State {
	s.Nodes = slices.Clone(s.Nodes)
	for i := range 5000 {
		s.Nodes = append(s.Nodes, control.Node{
			Name:      fmt.Sprintf("peer-%04d", i),
			Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})},
			Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24),
				netip.MustParsePrefix(fmt.Sprintf("fd00:10:1:%x::/64", i)),
			},
		})
	}
	return s
}

func TestFiveThousandNodes(t *testing.T) {
	p := newPair(t, nettest.ClusterOptions{}, 0)
	p.apply()
	s := fiveThousand(p.state(0))
	b := p.backends[0]
	if err := b.Apply(s); err != nil {
		t.Fatal(err)
	}
	if n := len(b.Status().Hops); n != 5001 {
		t.Errorf("%d hops", n)
	}
	a := p.Nodes[0]
	routes := a.NS.MustRun(t, "ip", "route", "show", "dev", "weft-vx4") + a.NS.MustRun(t, "ip", "-6", "route", "show", "proto", "87", "dev", "weft-vx4")
	if n := strings.Count(routes, "\n"); n != 2*5001 {
		t.Errorf("%d routes, want %d", n, 2*5001)
	}
	p.pingAll(1450)
	stop := p.flood(p.Nodes[1].PodAddrs[0])
	for range 3 {
		if err := b.Apply(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Apply(p.state(0)); err != nil { // 5,000 leave, one stays
		t.Fatal(err)
	}
	if lost, sent := stop(); len(lost) > 0 {
		t.Errorf("packets %v of %d to a node that stayed were lost", lost, sent)
	}
	if n := b.Status().Repairs; n != 0 {
		t.Errorf("%d repairs", n)
	}
}

func BenchmarkApply5000(bm *testing.B) {
	p := newPair(bm, nettest.ClusterOptions{}, 0)
	s := fiveThousand(p.state(0))
	if err := p.backends[0].Apply(s); err != nil {
		bm.Fatal(err)
	}
	for bm.Loop() {
		if err := p.backends[0].Apply(s); err != nil {
			bm.Fatal(err)
		}
	}
}
