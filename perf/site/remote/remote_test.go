package remote_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/perf/history"
	"weft/perf/result"
	"weft/perf/testbed"
)

// patience bounds waits for a condition; it measures nothing.
const patience = 60 * time.Second

// weft is the binary under test: agents, generators and the daemons of overlays are it.
var weft string

func TestMain(m *testing.M) {
	os.Exit(nettest.WithWeft(func(path string) int {
		weft = path
		return m.Run()
	}))
}

// hosts are two machines, with an agent on each: namespaces that the test makes.
type hosts struct {
	t         testing.TB
	a, b      *nettest.NS
	agents    [2]*nettest.Process
	dir, file string
	addrs     [2]string
}

const addrA, addrB = "192.0.2.1", "198.51.100.2"

// newHosts are hosts without links and agents, and a secret.
func newHosts(t testing.TB) *hosts {
	t.Helper()
	nettest.RequireRoot(t)
	h := &hosts{t: t, a: nettest.New(t), b: nettest.New(t), dir: t.TempDir(), addrs: [2]string{addrA, addrB}}
	h.file = filepath.Join(h.dir, "secret")
	if err := os.WriteFile(h.file, []byte("a secret for the length of a test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// start makes hosts that are joined by a router with its own MTU; flags are the agents' besides the secret.
func start(t testing.TB, middle int, flags ...string) *hosts {
	t.Helper()
	h := newHosts(t)
	router := nettest.New(t)
	nettest.Pair(t, nettest.End{NS: h.a, Dev: "eth0"}, nettest.End{NS: router, Dev: "ra"}, 1500)
	nettest.Pair(t, nettest.End{NS: h.b, Dev: "eth0"}, nettest.End{NS: router, Dev: "rb"}, 1500)
	router.MustRun(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for _, c := range []struct {
		ns        *nettest.NS
		dev, addr string
	}{{h.a, "eth0", addrA + "/24"}, {router, "ra", "192.0.2.254/24"}, {h.b, "eth0", addrB + "/24"}, {router, "rb", "198.51.100.254/24"}} {
		c.ns.MustRun(t, "ip", "addr", "add", c.addr, "dev", c.dev)
	}
	h.a.MustRun(t, "ip", "route", "add", "default", "via", "192.0.2.254")
	h.b.MustRun(t, "ip", "route", "add", "default", "via", "198.51.100.254")
	if middle != 1500 {
		router.MustRun(t, "ip", "link", "set", "rb", "mtu", fmt.Sprint(middle))
		router.MustRun(t, "ip", "link", "set", "ra", "mtu", fmt.Sprint(middle))
	}
	h.agents = [2]*nettest.Process{h.agent(h.a, flags...), h.agent(h.b, flags...)}
	return h
}

func (h *hosts) agent(ns *nettest.NS, args ...string) *nettest.Process {
	h.t.Helper()
	return h.started(ns, weft, append([]string{"bench", "serve", "--secret", h.file}, args...)...)
}

// started is an agent that listens, and of which nothing may be left at the end.
func (h *hosts) started(ns *nettest.NS, name string, args ...string) *nettest.Process {
	h.t.Helper()
	p := ns.MustStart(h.t, name, args...)
	nettest.Eventually(h.t, patience, func() error {
		if !strings.Contains(p.Output(), "listening on") {
			return fmt.Errorf("the agent does not listen:\n%s", p.Output())
		}
		return nil
	})
	h.t.Cleanup(func() {
		p.Kill()
		<-p.Done()
		nettest.Eventually(h.t, patience, func() error { return nothing(p.PID()) })
	})
	return p
}

// measuring waits until a contender is measured on the second host. What comes before it is the machine's affair, for as long as the client goes on.
func (h *hosts) measuring(client *nettest.Process) {
	h.t.Helper()
	nettest.Eventually(h.t, 5*patience, func() error {
		select {
		case <-client.Done():
			h.t.Fatalf("the client has ended before:\n%s", client.Output())
		default:
		}
		left, err := testbed.Find(func(pid int) bool { return pid == h.agents[1].PID() })
		if err == nil && len(left.Processes) < 2 { // a daemon, and a generator
			err = fmt.Errorf("nothing is measured: %+v\n%s", left, h.agents[1].Output())
		}
		return err
	})
}

// nothing says what there is of an agent in the machine.
func nothing(pids ...int) error {
	left, err := testbed.Find(func(pid int) bool { return slices.Contains(pids, pid) })
	if err == nil && !left.Empty() {
		err = fmt.Errorf("left behind: %+v", left)
	}
	return err
}

// run measures and returns what was found, and what was said.
func (h *hosts) run(args ...string) (r *result.Result, said string, err error) {
	h.t.Helper()
	out := filepath.Join(h.t.TempDir(), "out")
	args = append([]string{"bench", "run", "alpha=" + h.addrs[0], "beta=" + h.addrs[1], "--secret", h.file, "--warmup", "0", "--out", out}, args...)
	said, err = h.a.Run(weft, args...)
	for _, p := range h.agents {
		if e := nothing(p.PID()); e != nil {
			h.t.Errorf("after the run: %v", e)
		}
	}
	if r, readErr := result.Read(filepath.Join(out, "result.json")); readErr == nil {
		return r, said, err
	}
	return nil, said, err
}

// row is the first figure of a contender on a path.
func row(t testing.TB, r *result.Result, contender, path, metric string) result.Row {
	t.Helper()
	for _, row := range r.Results {
		if row.Contender == contender && row.Path == path && row.Metric == metric {
			return row
		}
	}
	t.Errorf("no row of %s, %s, %s", contender, path, metric)
	return result.Row{}
}

// daemon starts a daemon of weft on the first host, as anybody may have one there, and returns its socket.
func (h *hosts) daemon() string {
	h.t.Helper()
	file, nodes, socket := filepath.Join(h.dir, "weft.yaml"), filepath.Join(h.dir, "nodes.yaml"), filepath.Join(h.dir, "weft.sock")
	for name, text := range map[string]string{
		nodes: fmt.Sprintf("nodes:\n  - {name: a, endpoints: [%s], prefixes: [10.244.1.0/24]}\n  - {name: b, endpoints: [%s], prefixes: [10.244.2.0/24]}\n", addrA, addrB),
		file: fmt.Sprintf("node: {name: a}\nnetwork: {prefixes: [10.244.0.0/16]}\nmode: tun\ncni: {masquerade: false}\napi: {socket: %q}\nstate_dir: %q\ncontrol: {kind: static, static: {file: %q}}\n",
			socket, h.dir, nodes),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	p := h.a.MustStart(h.t, weft, "daemon", "--config", file)
	nettest.Eventually(h.t, patience, func() error {
		out, err := h.a.Run("ip", "route", "show", "dev", "weft0") // its last part
		if err != nil || !strings.Contains(out, "10.244.2.0/24") {
			return fmt.Errorf("%v\n%s\n%s", err, out, p.Output())
		}
		return nil
	})
	return socket
}

// TestBetweenHosts measures the underlay, overlays of every kind and somebody else's tunnel between two hosts, one of which has a daemon of weft.
func TestBetweenHosts(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	for _, c := range []struct {
		ns                *nettest.NS
		local, far, inner string
	}{{h.a, addrA, addrB, "10.99.0.1/24"}, {h.b, addrB, addrA, "10.99.0.2/24"}} {
		c.ns.MustRun(t, "ip", "link", "add", "theirs", "type", "vxlan", "id", "7", "dstport", "4790", "local", c.local, "remote", c.far)
		c.ns.MustRun(t, "ip", "addr", "add", c.inner, "dev", "theirs")
		c.ns.MustRun(t, "ip", "link", "set", "theirs", "mtu", "1450", "up")
	}
	daemon := h.daemon()
	const everything = "ip -o link; ip -4 addr; ip route show table all | grep -ve ^multicast -e fe80:; ip rule; nft list ruleset; sysctl -a 2>/dev/null | grep forwarding"
	before, err := h.a.Run("sh", "-c", everything)
	if err != nil {
		t.Fatal(err)
	}
	r, said, err := h.run("--contenders", "bare,vxlan,tun,tun-gso,tun-gso+auto", "--path", "10.99.0.1=10.99.0.2", "--tests", "udp-stream:size=600:rate=1e6,tcp-rr,tcp-stream:flows=2,udp-rr:family=6",
		"--duration", "150ms", "--repeat", "1")
	if r == nil {
		t.Fatalf("%v\n%s", err, said)
	}
	if len(r.Hosts) != 2 || r.Hosts[0].Name != "alpha" || r.Hosts[1].Name != "beta" || r.Hosts[0].Cores == 0 {
		t.Errorf("hosts %+v", r.Hosts)
	}
	for contender, mtu := range map[string]int{"bare": 1500, "vxlan": 1450, "tun": 1450, "tun-gso": 1450, "tun-gso+auto": 1418, "path 10.99.0.1=10.99.0.2": 1450} {
		for _, path := range []string{"alpha → beta", "beta → alpha"} {
			for _, metric := range []string{"throughput", "loss", "p50"} {
				if got := row(t, r, contender, path, metric); !got.Median.Known() || got.InnerMTU != mtu {
					t.Errorf("%s, %s, %s: %+v", contender, path, metric, got)
				}
			}
		}
	}
	for _, f := range r.Failed {
		six := strings.Contains(f.Test, "family=6") && (f.Contender == "bare" || strings.HasPrefix(f.Contender, "path")) && strings.Contains(f.Reason, "no address of IPv6")
		if !six {
			t.Errorf("failed: %+v", f)
		}
	}
	if sum := r.Verified(); sum.Verified == 0 || sum.Corrupt != 0 {
		t.Errorf("verified %+v", sum)
	}
	for _, b := range r.Conservation {
		if b.PathBalance != nil || !b.OK {
			t.Errorf("account %+v", b)
		}
	}
	if out, err := h.a.Run(weft, "status", "--socket", daemon); err != nil {
		t.Errorf("the daemon that was there before: %v\n%s", err, out)
	}
	after, err := h.a.Run("sh", "-c", everything)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range slices.Concat(was, is) {
		if !slices.Contains(was, line) || !slices.Contains(is, line) {
			t.Errorf("the host is not as it was: %s", line)
		}
	}
	if !strings.Contains(said, "alpha → beta") {
		t.Errorf("the table names no path:\n%s", said)
	}
}

// TestFaults: each gives a right figure, or none and the reason.
func TestFaults(t *testing.T) {
	nettest.RequireTool(t, "nft")
	drop := func(ns func(*hosts) *nettest.NS, rule string) func(*hosts) {
		return func(h *hosts) {
			h.t.Helper()
			for _, line := range []string{"add table inet faults", "add chain inet faults in { type filter hook input priority 0; }", "add rule inet faults in " + rule} {
				ns(h).MustRun(h.t, "nft", line)
			}
		}
	}
	a, b := func(h *hosts) *nettest.NS { return h.a }, func(h *hosts) *nettest.NS { return h.b }
	there := "alpha → beta"
	for name, c := range map[string]struct {
		middle int
		fault  func(*hosts)
		args   string
		fails  []string // in the reason of that path's failure; none = it does not fail
		check  func(*testing.T, *result.Result)
	}{
		"path MTU": {middle: 1280, args: "--tests tcp-stream,udp-rr", check: func(t *testing.T, r *result.Result) {
			if got := row(t, r, "bare", there, "throughput"); got.InnerMTU != 1280 || !(got.Median > 0) {
				t.Errorf("%+v", got)
			}
		}},
		"loss": {fault: drop(b, "udp dport 8481 numgen random mod 100 < 5 drop"), args: "--tests udp-stream:size=100:rate=4e6 --duration 1s", check: func(t *testing.T, r *result.Result) {
			// Of 5,000 packets or more 5 % are lost: the deviation is 0.3 %.
			if got := row(t, r, "bare", there, "loss"); math.Abs(float64(got.Median)-.05) > .02 {
				t.Errorf("%+v", got)
			}
			if got := row(t, r, "bare", "beta → alpha", "loss"); got.Median > .01 {
				t.Errorf("the way back: %+v", got)
			}
		}},
		"loss, search": {fault: drop(b, "udp dport 8481 numgen random mod 100 < 5 drop"), args: "--tests udp-rate:size=100 --duration 300ms", check: func(t *testing.T, r *result.Result) {
			if got := row(t, r, "bare", there, "rate"); got.Median.Known() {
				t.Errorf("a rate without loss where there is none: %+v", got)
			}
		}},
		"UDP blocked there": {fault: drop(b, "udp dport 8481 drop"), args: "--tests udp-rr",
			fails: []string{there, addrB + ":8481", "no packet", "in the direction to port 8481"}},
		"UDP blocked back": {fault: drop(a, "udp sport 8481 drop"), args: "--tests udp-rr",
			fails: []string{there, addrB + ":8481", "arrived there, and no answer", "in the direction back from port 8481"}},
		"TCP blocked":        {fault: drop(b, "tcp dport 8481 drop"), args: "--tests tcp-rr", fails: []string{there, "TCP port 8481 of " + addrB + " does not answer"}},
		"generators blocked": {fault: drop(b, "tcp dport 8480 drop"), args: "--tests tcp-rr", fails: []string{there, "TCP port 8480 of " + addrB + " does not answer"}},
		"overlay blocked": {fault: drop(b, "udp dport 8482 drop"), args: "--tests tcp-rr --contenders bare,tun", check: func(t *testing.T, r *result.Result) {
			if got := row(t, r, "bare", there, "p50"); !got.Median.Known() {
				t.Errorf("the underlay: %+v", got)
			}
			if len(r.Failed) == 0 || r.Failed[0].Contender != "tun" || !strings.Contains(r.Failed[0].Reason, there) {
				t.Errorf("failed: %+v", r.Failed)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.middle == 0 {
				c.middle = 1500
			}
			h := start(t, c.middle)
			if c.fault != nil {
				c.fault(h)
			}
			args := append([]string{"--repeat", "1"}, strings.Fields(c.args)...)
			if !strings.Contains(c.args, "--duration") {
				args = append(args, "--duration", "150ms")
			}
			r, said, err := h.run(args...)
			if r == nil {
				t.Fatalf("%v\n%s", err, said)
			}
			if c.check != nil {
				c.check(t, r)
			}
			if len(c.fails) == 0 {
				return
			}
			var reasons string
			for _, f := range r.Failed {
				reasons += f.Reason + "\n"
			}
			found := slices.ContainsFunc(strings.Split(reasons, "\n"), func(reason string) bool {
				return !slices.ContainsFunc(c.fails, func(word string) bool { return !strings.Contains(reason, word) })
			})
			if !found || err == nil {
				t.Errorf("%v; the reasons are\n%swant one with %q", err, reasons, c.fails)
			}
			for _, row := range r.Results {
				if row.Path == there && row.Median.Known() {
					t.Errorf("a figure all the same: %+v", row)
				}
			}
		})
	}
}

// TestHostDies kills one agent, and then the client, in the middle of a round with an overlay: what was found says so, and nothing is left
// anywhere, once the next agent has started.
func TestHostDies(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	long := []string{"bench", "run", "alpha=" + addrA, "beta=" + addrB, "--secret", h.file, "--contenders", "bare,tun", "--tests", "tcp-stream", "--duration", "500ms", "--repeat", "40", "--warmup", "0"}

	out := filepath.Join(h.dir, "died")
	client := h.a.MustStart(t, weft, append(long, "--out", out)...)
	h.measuring(client)
	h.agents[1].Kill()
	select {
	case <-client.Done():
	case <-time.After(patience):
		t.Fatalf("the client goes on without its host:\n%s", client.Output())
	}
	r, err := result.Read(filepath.Join(out, "result.json"))
	if err != nil {
		t.Fatalf("%v\n%s", err, client.Output())
	}
	if len(r.Failed) == 0 || !strings.Contains(r.Failed[0].Reason, "beta") || !strings.Contains(r.Failed[0].Reason, "lost") || len(r.Results) > 0 {
		t.Errorf("failed %+v, results %+v", r.Failed, r.Results)
	}
	dead := h.agents[1].PID()
	left, err := testbed.Find(func(pid int) bool { return pid == dead })
	if err != nil || len(left.Processes) > 0 {
		t.Errorf("processes outlive their agent: %+v, %v", left, err)
	}
	h.agents[1] = h.agent(h.b) // which sweeps
	if err := nothing(dead, h.agents[0].PID()); err != nil {
		t.Error(err)
	}

	client = h.a.MustStart(t, weft, append(long, "--out", filepath.Join(h.dir, "killed"))...)
	h.measuring(client)
	client.Kill()
	nettest.Eventually(t, patience, func() error { return nothing(h.agents[0].PID(), h.agents[1].PID()) })
	if _, said, err := h.run("--tests", "tcp-rr", "--duration", "100ms", "--repeat", "1"); err != nil { // and they are free again
		t.Errorf("%v\n%s", err, said)
	}
}

// TestPods: an agent in a pod of each host measures the network between pods that somebody else made, beside the hosts' own and under the hosts' names.
func TestPods(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	for i, host := range []*nettest.NS{h.a, h.b} {
		pod := nettest.New(t)
		nettest.Pair(t, nettest.End{NS: pod, Dev: "eth0"}, nettest.End{NS: host, Dev: "pod"}, 1500)
		host.MustRun(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		host.MustRun(t, "ip", "addr", "add", fmt.Sprintf("10.77.%d.1/24", i), "dev", "pod")
		pod.MustRun(t, "ip", "addr", "add", fmt.Sprintf("10.77.%d.5/24", i), "dev", "eth0")
		pod.MustRun(t, "ip", "route", "add", "default", "via", fmt.Sprintf("10.77.%d.1", i))
		local, far := []string{addrA, addrB}[i], []string{addrB, addrA}[i]
		host.MustRun(t, "ip", "link", "add", "theirs", "type", "vxlan", "id", "7", "dstport", "4790", "local", local, "remote", far)
		host.MustRun(t, "ip", "addr", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", "theirs")
		host.MustRun(t, "ip", "link", "set", "theirs", "mtu", "1400", "up")
		host.MustRun(t, "ip", "route", "add", fmt.Sprintf("10.77.%d.0/24", 1-i), "via", fmt.Sprintf("10.99.0.%d", 2-i))
		h.agent(pod)
	}
	r, said, err := h.run("--contenders", "bare", "--pod", "alpha=10.77.0.5", "--pod", "beta=10.77.1.5", "--tests", "tcp-rr,udp-stream:size=600:rate=1e6", "--duration", "150ms", "--repeat", "1")
	if err != nil || r == nil {
		t.Fatalf("%v\n%s", err, said)
	}
	for contender, mtu := range map[string]int{"bare": 1500, "pods": 1400} {
		for _, path := range []string{"alpha → beta", "beta → alpha"} {
			for _, metric := range []string{"p50", "throughput"} {
				if got := row(t, r, contender, path, metric); !got.Median.Known() || got.InnerMTU != mtu {
					t.Errorf("%s, %s, %s: %+v", contender, path, metric, got)
				}
			}
		}
	}
	for _, args := range [][]string{{"--pod", "gamma=10.77.0.5"}, {"--pod", "alpha=10.77.0.5"}, {"--pod", "alpha=10.77.0.5", "--pod", "alpha=10.77.1.5"}} {
		if _, said, err := h.run(append(args, "--tests", "tcp-rr")...); err == nil || !strings.Contains(said+err.Error(), "--pod") {
			t.Errorf("%v: %v\n%s", args, err, said)
		}
	}
}

// TestXDP: contenders over AF_XDP are measured where the agents say that these may use the hosts' own devices, which are then as they were.
func TestXDP(t *testing.T) {
	nettest.RequireKernel(t, kernel.AFXDP)
	t.Parallel()
	h := start(t, 1500, "--xdp")
	for _, c := range []struct {
		contenders string
		mtus       map[string]int
	}{{"bare,xdp,xdp-udp,tun-xdp+auto", map[string]int{"bare": 1500, "xdp": 1450, "xdp-udp": 1450, "tun-xdp+auto": 1418}}, {"xdp-lib", map[string]int{"xdp-lib": 1450}}} {
		r, said, err := h.run("--contenders", c.contenders, "--tests", "tcp-rr,udp-stream:size=600:rate=1e6", "--duration", "150ms", "--repeat", "1")
		if r == nil {
			t.Fatalf("%v\n%s", err, said)
		}
		for contender, mtu := range c.mtus {
			for _, path := range []string{"alpha → beta", "beta → alpha"} {
				for _, metric := range []string{"p50", "throughput"} {
					if got := row(t, r, contender, path, metric); !got.Median.Known() || got.InnerMTU != mtu {
						t.Errorf("%s, %s, %s: %+v", contender, path, metric, got)
					}
				}
			}
		}
		if len(r.Failed) > 0 || len(r.Unsupported) > 0 {
			t.Errorf("%v, failed %+v, unsupported %+v", err, r.Failed, r.Unsupported)
		}
	}
	for _, ns := range []*nettest.NS{h.a, h.b} {
		if out := ns.MustRun(t, "ip", "-o", "link", "show", "eth0"); strings.Contains(out, "xdp") {
			t.Errorf("a program is left: %s", out)
		}
	}
}

// TestInterrupted: Ctrl-C at the client, and at an agent, in the middle of a round with overlays leaves nothing on any host, and no folder.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	long := []string{"bench", "run", "alpha=" + addrA, "beta=" + addrB, "--secret", h.file, "--contenders", "bare,tun,vxlan", "--tests", "tcp-stream", "--duration", "500ms", "--repeat", "40", "--warmup", "0"}
	out := filepath.Join(h.dir, "interrupted")
	client := h.a.MustStart(t, weft, append(long, "--out", out)...)
	h.measuring(client)
	client.Signal(os.Interrupt)
	var code *exec.ExitError
	if err := client.Wait(); !errors.As(err, &code) || code.ExitCode() != 130 {
		t.Errorf("the client ends with %v\n%s", err, client.Output())
	}
	nettest.Eventually(t, patience, func() error { return nothing(h.agents[0].PID(), h.agents[1].PID()) })
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("a folder without results is left: %v", err)
	}

	client = h.a.MustStart(t, weft, append(long, "--out", out)...)
	h.measuring(client)
	h.agents[1].Signal(os.Interrupt)
	if err := h.agents[1].Wait(); !errors.As(err, &code) || code.ExitCode() != 130 {
		t.Errorf("the agent ends with %v\n%s", err, h.agents[1].Output())
	}
	if err := nothing(h.agents[1].PID()); err != nil {
		t.Error(err)
	}
	if err := client.Wait(); err == nil {
		t.Error("a run without one of its hosts is complete")
	}
	nettest.Eventually(t, patience, func() error { return nothing(h.agents[0].PID()) })
	r, err := result.Read(filepath.Join(out, "result.json"))
	if err != nil {
		t.Fatalf("%v\n%s", err, client.Output())
	}
	if len(r.Failed) == 0 || !strings.Contains(r.Failed[0].Reason, "beta") || len(r.Results) > 0 {
		t.Errorf("failed %+v, results %+v", r.Failed, r.Results)
	}
}

// get asks a server on the first host for a page.
func (h *hosts) get(at, path string) (string, error) {
	var c net.Conn
	var err error
	h.a.Do(func() { c, err = net.Dial("tcp", at) }) // what is dialled is of the namespace, whoever uses it
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(r.Body)
	return string(data), err
}

// TestAgain: with --every runs follow each other, a host that is away is a gap with its reason, and metrics, page and history say so.
func TestAgain(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	out := filepath.Join(h.dir, "again")
	client := h.a.MustStart(t, weft, "bench", "run", "alpha="+addrA, "beta="+addrB, "--secret", h.file, "--tests", "tcp-rr,loaded-rr", "--duration", "200ms", "--repeat", "1", "--warmup", "0",
		"--every", "1s", "--max-rate", "1e8", "--metrics", "127.0.0.1:9471", "--out", out)
	page := func(path string) (text string) {
		t.Helper()
		nettest.Eventually(t, patience, func() (err error) {
			text, err = h.get("127.0.0.1:9471", path)
			return err
		})
		return text
	}
	metrics := func(line string) {
		t.Helper()
		nettest.Eventually(t, patience, func() error {
			if text := page("/metrics"); !strings.Contains(text, line) {
				return fmt.Errorf("no %q in\n%s\n%s", line, text, client.Output())
			}
			return nil
		})
	}
	const measured = `weft_bench_measured{contender="bare",from="alpha",test="loaded-rr:family=4:flows=1:size=64",to="beta"} `
	metrics(measured + "1")
	metrics(`weft_bench_path_mtu_bytes{contender="bare",from="beta",to="alpha"} 1500`)
	h.agents[1].Kill()
	metrics("weft_bench_complete 0")
	metrics(measured + "0")
	if text := page("/metrics"); strings.Contains(text, "weft_bench_round_trip_seconds{") {
		t.Errorf("figures of a host that is away:\n%s", text)
	}
	h.agents[1] = h.agent(h.b)
	metrics(measured + "1")
	if text := page("/"); !strings.Contains(text, "Over time") || !strings.Contains(text, "What did not work") {
		t.Errorf("the page: %s", text)
	}
	client.Signal(os.Interrupt)
	<-client.Done()
	runs, err := history.Read(filepath.Join(out, "history.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, run := range runs {
		if run.Error != "" || len(run.Failed) > 0 {
			bad++
		} else {
			good++
		}
	}
	if good < 2 || bad < 1 {
		t.Errorf("%d good runs, %d bad ones", good, bad)
	}
	for _, name := range []string{"report.html", "result.json", "result.csv", "table.txt"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestOneAway: of three hosts one is away: again and again, the other two are measured, and what is missing is named; once, nothing is.
func TestOneAway(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	const third = "192.0.2.77" // nobody's, in alpha's own network
	out := filepath.Join(h.dir, "again")
	hosts := []string{"bench", "run", "alpha=" + addrA, "beta=" + addrB, "gamma=" + third, "--secret", h.file, "--tests", "tcp-rr", "--duration", "100ms", "--repeat", "1", "--warmup", "0", "--out"}
	client := h.a.MustStart(t, weft, append(hosts, out, "--every", "1s", "--metrics", "")...)
	var r *result.Result
	nettest.Eventually(t, patience, func() (err error) {
		r, err = result.Read(filepath.Join(out, "result.json"))
		return err
	})
	client.Signal(os.Interrupt)
	<-client.Done()
	if len(r.Failed) != 1 || !strings.Contains(r.Failed[0].Reason, "host gamma is left out: the agent at "+third) {
		t.Errorf("failed: %+v", r.Failed)
	}
	for _, path := range []string{"alpha → beta", "beta → alpha"} {
		row(t, r, "bare", path, "p50")
	}
	if said, err := h.a.Run(weft, append(hosts, filepath.Join(h.dir, "once"))...); err == nil || !strings.Contains(said+err.Error(), "the agent at "+third) {
		t.Errorf("%v\n%s", err, said)
	}
}

// TestWho: the wrong secret, an address of nobody and a busy agent are told apart, and nothing is measured.
func TestWho(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	wrong := filepath.Join(h.dir, "wrong")
	if err := os.WriteFile(wrong, []byte("another secret of many bytes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, says string }{
		{"--secret " + wrong, "do not know each other"},
		{"--secret " + h.file + " --path 10.9.9.1=10.9.9.2", "no agent has the address 10.9.9.1"},
		{"--secret " + h.file + " --duration 5m", "at most 1m0s"},
		{"", "nobody may measure for just anybody"},
	} {
		out, err := h.a.Run(weft, append([]string{"bench", "run", addrA, addrB, "--json", filepath.Join(h.dir, "r.json")}, strings.Fields(c.args)...)...)
		if err == nil || !strings.Contains(out+err.Error(), c.says) {
			t.Errorf("%s: %v\n%s\nwant %q", c.args, err, out, c.says)
		}
	}
	out, err := h.a.Run(weft, "bench", "run", addrA, addrB, "--dry-run", "--path", "10.9.9.1=10.9.9.2")
	if err != nil || !strings.Contains(out, "nothing was sent") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestUnits: systemd understands the agent's unit, and that of measuring again and again.
func TestUnits(t *testing.T) {
	nettest.RequireTool(t, "systemd-analyze")
	for name, command := range map[string]string{"weft-bench.service": "serve", "weft-bench-watch.service": "run"} {
		text, err := os.ReadFile("../../../deploy/systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		installed := strings.Replace(string(text), "ExecStart=/usr/local/bin/weft bench "+command+" ", "ExecStart="+weft+" bench "+command+" ", 1)
		if installed == string(text) {
			t.Fatalf("%s starts something else", name)
		}
		unit := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(unit, []byte(installed), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestStrangers: while strangers knock at an agent a thousand times, a run is carried out to its end, and all of it.
func TestStrangers(t *testing.T) {
	t.Parallel()
	h := start(t, 1500)
	ended := make(chan struct{})
	knocked := make(chan int, 1)
	go h.b.Do(func() {
		n := 0
		defer func() { knocked <- n }()
		for ; n < 1000 || !closed(ended); n++ {
			c, err := net.Dial("tcp", addrB+":8479")
			if err != nil {
				continue
			}
			_, _ = c.Write(bytes.Repeat([]byte{22}, 64))
			c.Close()
			time.Sleep(time.Millisecond)
		}
	})
	r, said, err := h.run("--contenders", "bare", "--tests", "tcp-rr,udp-stream:size=600:rate=1e6", "--duration", "300ms", "--repeat", "2")
	close(ended)
	if n := <-knocked; err != nil || r == nil || len(r.Failed) > 0 || n < 1000 {
		t.Errorf("%d strangers: %v\n%s", n, err, said)
	}
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
