package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft/api"
	"weft/insight/doctor"
	"weft/internal/config"
	"weft/internal/kernel"
	"weft/internal/nettest"
)

// patience bounds every wait for a condition.
const patience = nettest.Patience

// binary is this command, built once, when a test first asks for it.
var binary = sync.OnceValues(func() (string, error) {
	return nettest.Weft(binaryDir)
})

// binaryDir is where TestMain wants the binary.
var binaryDir string

func TestMain(m *testing.M) {
	dir, remove, err := nettest.Folder()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaryDir = dir
	code := m.Run()
	remove()
	os.Exit(code)
}

// rig is a cluster of two nodes whose daemons run the vxlan mode.
type rig struct {
	*nettest.Cluster
	t    *testing.T
	dir  string
	weft string
	a, b *nettest.ClusterNode
}

func newRig(t *testing.T) *rig {
	nettest.RequireKernel(t, kernel.VXLAN)
	nettest.RequireTool(t, "ping")
	c, a, b := nettest.TwoNodes(t, 1500)
	weft, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Cluster: c, t: t, dir: t.TempDir(), weft: weft, a: a, b: b}
	r.write("nodes.yaml", r.nodes())
	for _, n := range c.Nodes {
		r.write(n.Name+".yaml", fmt.Sprintf("node: {name: %s}\nnetwork: {prefixes: [%q, %q]}\nmode: vxlan\ncontrol: {static: {file: %s}}\napi: {socket: %s}\nstate_dir: %s\n",
			n.Name, c.Network()[0], c.Network()[1], r.path("nodes.yaml"), r.socket(n), r.path(n.Name+"-state")))
	}
	return r
}

func (r *rig) path(name string) string              { return filepath.Join(r.dir, name) }
func (r *rig) socket(n *nettest.ClusterNode) string { return r.path(n.Name + ".sock") }

func (r *rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) nodes() string {
	s := "nodes:\n"
	for _, n := range r.Nodes {
		s += fmt.Sprintf("- {name: %s, endpoints: [%q, %q], prefixes: [%q, %q]}\n", n.Name, n.Underlay[0], n.Underlay[1], n.Prefixes[0], n.Prefixes[1])
	}
	return s
}

func (r *rig) start(n *nettest.ClusterNode) *nettest.Process {
	r.t.Helper()
	p := n.NS.MustStart(r.t, r.weft, "daemon", "--config", r.path(n.Name+".yaml"))
	r.t.Cleanup(func() {
		p.Kill()
		if r.t.Failed() {
			r.t.Logf("daemon %s:\n%s", n.Name, p.Output())
		}
	})
	return p
}

// run runs a command on a node and returns what it printed and its exit code.
func (r *rig) run(n *nettest.ClusterNode, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	return run(r.t, n.NS.StartCmd, r.weft, args...)
}

func run(t *testing.T, start func(*exec.Cmd) error, weft string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(weft, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("weft %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// answer asks a node's daemon and decodes its JSON.
func answer[T any](r *rig, n *nettest.ClusterNode, args ...string) (v T, err error) {
	out, errs, code := r.run(n, append(args, "--socket", r.socket(n), "-o", "json")...)
	if code != 0 {
		return v, fmt.Errorf("exit code %d: %s", code, errs)
	}
	return v, json.Unmarshal([]byte(out), &v)
}

func (r *rig) eventually(what string, ok func() error) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for err := ok(); err != nil; err = ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("never: %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // between looks
	}
}

func (r *rig) status(n *nettest.ClusterNode, what string, ok func(api.Status) bool) (s api.Status) {
	r.t.Helper()
	r.eventually(n.Name+" "+what, func() (err error) {
		if s, err = answer[api.Status](r, n, "status"); err == nil && !ok(s) {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	return s
}

// reach pings from pod to pod, v4 and v6, until it works.
func (r *rig) reach() {
	r.t.Helper()
	for _, to := range r.b.PodAddrs {
		r.eventually("ping "+to.String(), func() error {
			_, err := r.a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", to.String())
			return err
		})
	}
}

func ready(s api.Status) bool { return s.Ready }

func TestDaemonAnswers(t *testing.T) {
	r := newRig(t)
	r.start(r.a)
	r.start(r.b)
	s := r.status(r.a, "ready", ready)
	r.status(r.b, "ready", ready)
	r.reach()
	if s.Node != "node-a" || s.Mode != "vxlan" || s.Control.Nodes != 2 || s.InnerMTU == 0 || len(s.Problems) != 0 || s.Port != 4789 {
		t.Errorf("status %+v", s)
	}
	nodes, err := answer[[]api.Node](r, r.a, "nodes")
	if err != nil || len(nodes) != 2 || !nodes[0].Self || nodes[1].Prefixes[0] != r.b.Prefixes[0] {
		t.Errorf("nodes %+v, %v", nodes, err)
	}
	peers, err := answer[[]api.Peer](r, r.a, "peers")
	if err != nil || len(peers) != 1 || peers[0].Node != "node-b" || peers[0].Endpoint.Addr() != r.b.Underlay[0] || peers[0].MTU != s.InnerMTU {
		t.Errorf("peers %+v, %v", peers, err)
	}
	routes, err := answer[[]api.Route](r, r.a, "routes")
	if err != nil || len(routes) != 4 || routes[1].Prefix != r.b.Prefixes[0] || !routes[1].Endpoint.IsValid() {
		t.Errorf("routes %+v, %v", routes, err)
	}
	if lanes, err := answer[[]api.Lane](r, r.a, "stages"); err != nil || lanes == nil || len(lanes) != 0 {
		t.Errorf("lanes %+v, %v", lanes, err)
	}
	for command, want := range map[string][]string{
		"status": {"ready", "yes", "node-a", "10.244.1.0/24"}, "nodes": {"NODE", "node-a *", "192.0.2.2"}, "peers": {"ENDPOINT", "node-b", ":4789"},
		"routes": {"PREFIX", "here", "10.244.2.0/24"}, "stages": {"no lanes"}, "doctor": {"4789 is the daemon's", "ready, mode vxlan, 2 nodes"},
	} {
		args := []string{command, "--socket", r.socket(r.a)}
		if command == "doctor" {
			args = append(args, "--config", r.path("node-a.yaml"))
		}
		out, errs, code := r.run(r.a, args...)
		for _, w := range want {
			if code != 0 || !strings.Contains(out, w) {
				t.Errorf("weft %s: exit code %d, no %q in\n%s%s", command, code, w, out, errs)
			}
		}
	}
	out, _, _ := r.run(r.a, "config", "show", "--config", r.path("node-a.yaml"), "-o", "json")
	var shown []config.Shown
	if err := json.Unmarshal([]byte(out), &shown); err != nil || len(shown) != len(config.Keys()) || shown[1].Value != "eth0" || shown[1].From != config.FromDetected {
		t.Errorf("config show: %v\n%s", err, out)
	}
}

// A userspace mode has lanes, and they account for every packet.
func TestLanes(t *testing.T) {
	r := newRig(t)
	nettest.RequireKernel(t, kernel.TUN)
	for _, n := range r.Nodes {
		text, err := os.ReadFile(r.path(n.Name + ".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		r.write(n.Name+".yaml", strings.Replace(string(text), "mode: vxlan", "mode: tun", 1))
		r.start(n)
	}
	r.status(r.a, "ready", ready)
	r.status(r.b, "ready", ready)
	r.reach()
	if out, err := r.a.Pod.Run("ping", "-n", "-c", "1", "-W", "1", "10.244.77.1"); err == nil {
		t.Errorf("an address of nobody answers: %s", out)
	}
	r.eventually("the lanes have counted", func() error {
		lanes, err := answer[[]api.Lane](r, r.a, "stages")
		if err != nil {
			return err
		}
		directions := map[string]bool{}
		for _, l := range lanes {
			lost := uint64(0)
			for _, s := range l.Stages {
				for _, n := range s.Drops {
					lost += n
				}
			}
			if l.Received != l.Sent+lost {
				t.Errorf("lane %s: %d received, %d sent, %d dropped", l.Name, l.Received, l.Sent, lost)
			}
			direction, _, _ := strings.Cut(l.Name, "/")
			directions[direction] = directions[direction] || l.Sent > 0
		}
		if !directions["out"] || !directions["in"] {
			return fmt.Errorf("not both directions: %+v", lanes)
		}
		return nil
	})
	peers, err := answer[[]api.Peer](r, r.a, "peers")
	if err != nil || len(peers) != 1 || peers[0].TxPackets == 0 || peers[0].RxBytes == 0 {
		t.Errorf("peers %+v, %v", peers, err)
	}
	if out, _, code := r.run(r.a, "stages", "--socket", r.socket(r.a)); code != 0 || !strings.Contains(out, "lane out/0") || !strings.Contains(out, "ns/packet") {
		t.Errorf("exit code %d\n%s", code, out)
	} else {
		t.Log("\n" + out)
	}
}

func TestBrokenNodesFileKeepsTraffic(t *testing.T) {
	r := newRig(t)
	r.start(r.a)
	r.start(r.b)
	r.status(r.a, "ready", ready)
	r.reach()
	r.write("nodes.yaml", "nodes: [{name: node-a")
	s := r.status(r.a, "complains", func(s api.Status) bool { return len(s.Problems) == 1 })
	if !strings.Contains(s.Problems[0].Text, "is not in force") || s.Control.Nodes != 2 || !s.Ready {
		t.Errorf("status %+v", s)
	}
	if out, _, code := r.run(r.a, "doctor", "--socket", r.socket(r.a), "--config", r.path("node-a.yaml")); code != exitFailed || !strings.Contains(out, "is not in force") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	r.reach()
	r.write("nodes.yaml", r.nodes())
	r.status(r.a, "is content", func(s api.Status) bool { return len(s.Problems) == 0 && s.Ready })
	r.reach()
}

func TestKilledDaemonComesBack(t *testing.T) {
	r := newRig(t)
	first := r.start(r.a)
	r.start(r.b)
	r.status(r.a, "ready", ready)
	r.reach()
	first.Kill()
	if _, err := os.Lstat(r.socket(r.a)); err != nil {
		t.Errorf("the test wants a dead socket: %v", err)
	}
	_, errs, code := r.run(r.a, "status", "--socket", r.socket(r.a))
	if code != exitUnreachable || !strings.Contains(errs, "connection refused") {
		t.Errorf("status of a dead daemon: exit code %d, %s", code, errs)
	}
	r.reach() // the kernel forwards on
	second := r.start(r.a)
	s := r.status(r.a, "ready", ready)
	if s.PID != second.PID() {
		t.Errorf("pid %d answers, want %d", s.PID, second.PID())
	}
	r.reach()
}

func TestOneDaemonThenCleanup(t *testing.T) {
	r := newRig(t)
	p := r.start(r.a)
	r.status(r.a, "ready", ready)
	_, errs, code := r.run(r.a, "daemon", "--config", r.path("node-a.yaml"))
	if code != exitFailed || !strings.Contains(errs, "another daemon is running (pid "+fmt.Sprint(p.PID())+")") {
		t.Errorf("a second daemon: exit code %d, %s", code, errs)
	}
	cleanup := []string{"cleanup", "--state-dir", r.path("node-a-state"), "--socket", r.socket(r.a)}
	if _, errs, code := r.run(r.a, cleanup...); code != exitFailed || !strings.Contains(errs, "another daemon is running") {
		t.Errorf("cleanup beside a daemon: exit code %d, %s", code, errs)
	}
	r.status(r.a, "still ready", ready)
	r.end(p, syscall.SIGTERM, exitDone)
	if out, err := r.a.NS.Run("ip", "route", "show", "type", "unreachable"); err != nil || !strings.Contains(out, "10.244.0.0/16") {
		t.Errorf("nothing guards the overlay after the end: %v\n%s", err, out)
	}
	out, errs, code := r.run(r.a, cleanup...)
	if code != exitDone || !strings.Contains(out, "link weft") || !strings.Contains(out, "unreachable 10.244.0.0/16") {
		t.Errorf("cleanup: exit code %d\n%s%s", code, out, errs)
	}
	if out, err := r.a.NS.Run("ip", "route", "show", "table", "all"); err != nil || strings.Contains(out, "10.244.0.0") || strings.Contains(out, "proto 87") {
		t.Errorf("after cleanup: %v\n%s", err, out)
	}
	if out, _, code := r.run(r.a, cleanup...); code != exitDone || out != "nothing to remove\n" {
		t.Errorf("cleanup, again: exit code %d, %s", code, out)
	}
	p = r.start(r.a)
	r.status(r.a, "ready after cleanup", ready)
	r.end(p, syscall.SIGINT, exitInterrupted)
}

// end sends a signal to a daemon and looks at its exit code.
func (r *rig) end(p *nettest.Process, s syscall.Signal, want int) {
	r.t.Helper()
	p.Signal(s)
	select {
	case <-p.Done():
	case <-time.After(patience):
		r.t.Fatalf("the daemon ignores %v:\n%s", s, p.Output())
	}
	var exit *exec.ExitError
	code := 0
	if err := p.Wait(); errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	if code != want || !strings.Contains(p.Output(), `"stopped"`) {
		r.t.Errorf("after %v: exit code %d, want %d:\n%s", s, code, want, p.Output())
	}
}

func TestRefusals(t *testing.T) {
	r := newRig(t)
	r.write("nodes.yaml", strings.ReplaceAll(r.nodes(), "node-a", "node-z"))
	_, errs, code := r.run(r.a, "daemon", "--config", r.path("node-a.yaml"))
	if code != exitUsage || !strings.Contains(errs, `this node, \"node-a\", is not among`) && !strings.Contains(errs, `this node, "node-a", is not among`) {
		t.Errorf("a node that is not in the file: exit code %d, %s", code, errs)
	}
	if out, err := r.a.NS.Run("ip", "link", "show", "weft0"); err == nil {
		t.Errorf("a refused daemon leaves a device: %s", out)
	}
	r.write("nodes.yaml", r.nodes()+"- {name: x, endpoints: [192.0.2], prefixes: [10.244.9.0/24]}\n")
	_, errs, code = r.run(r.a, "daemon", "--check", "--config", r.path("node-a.yaml"))
	if code != exitUsage || strings.Count(errs, "\nweft: ") != 1 || !strings.Contains(errs, `:4: "192.0.2" is not an address`) {
		t.Errorf("check: exit code %d, %s", code, errs)
	}
	r.write("nodes.yaml", r.nodes())
	if out, errs, code := r.run(r.a, "daemon", "--check", "--config", r.path("node-a.yaml")); code != exitDone || !strings.Contains(out, "is good") {
		t.Errorf("check of good files: exit code %d, %s%s", code, out, errs)
	}
}

// Without a nodes file the node is alone, and its daemon works.
func TestAlone(t *testing.T) {
	r := newRig(t)
	if err := r.a.NS.AddRoute(nettest.Prefixes("0.0.0.0/0")[0], r.b.Underlay[0], r.a.Iface); err != nil {
		t.Fatal(err)
	}
	r.write("node-a.yaml", fmt.Sprintf("network: 10.244.0.0/16\nmode: vxlan\napi: {socket: %s}\nstate_dir: %s\n", r.socket(r.a), r.path("state")))
	if _, err := os.Stat(config.DefaultNodes); err == nil {
		nettest.Skip(t, "this machine has a "+config.DefaultNodes)
	}
	p := r.start(r.a)
	s := r.status(r.a, "ready", ready)
	if s.Control.Nodes != 1 || fmt.Sprint(s.Prefixes) != "[10.244.0.0/16]" || fmt.Sprint(s.Endpoints) != fmt.Sprint(r.a.Underlay) || !strings.Contains(p.Output(), "no peers") {
		t.Errorf("status %+v\n%s", s, p.Output())
	}
}

func TestDoctorWithoutADaemon(t *testing.T) {
	r := newRig(t)
	out, _, code := r.run(r.a, "doctor", "--socket", r.socket(r.a), "--config", r.path("node-a.yaml"), "-o", "json")
	var findings []doctor.Finding
	if err := json.Unmarshal([]byte(out), &findings); err != nil || len(findings) < 8 {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	if code != exitDone || !strings.Contains(out, "eth0, MTU 1500") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	r.write("nodes.yaml", "nodes: []")
	if out, _, code := r.run(r.a, "doctor", "--socket", r.socket(r.a), "--config", r.path("node-a.yaml")); code != exitFailed || !strings.Contains(out, "is not among the 0 nodes") {
		t.Errorf("a bad nodes file: exit code %d:\n%s", code, out)
	}
}
