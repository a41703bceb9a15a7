package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

type traced struct {
	Node, Lane, Drop, Peer string
	Src, Dst               netip.Addr
	Steps                  []struct{ Name string }
}

func (t traced) String() string {
	var s []string
	for _, step := range t.Steps {
		s = append(s, step.Name)
	}
	return fmt.Sprintf("%s %s %v → %v (%s): %s: %q", t.Node, t.Lane, t.Src, t.Dst, t.Peer, strings.Join(s, ", "), t.Drop)
}

type tracePath struct {
	Node, Part, Next string
	Arrives          bool
	Steps            []struct{ Where, Found, Verdict, Basis string }
}

type traceReport struct {
	Paths []tracePath
	Probe struct {
		Sent, Failed, Unseen string
		Packets              []traced
	}
}

func (p tracePath) step(where, verdict, found string) error {
	for _, s := range p.Steps {
		if s.Where == where && s.Verdict == verdict && strings.Contains(s.Found, found) {
			return nil
		}
	}
	return fmt.Errorf("%s has no step %q with verdict %s that says %q: %+v", p.Node, where, verdict, found, p.Steps)
}

// trace runs `weft trace` against a node's daemon and decodes its report; exit is its exit code.
func (c *cluster) trace(n, far *nettest.ClusterNode, src, dst netip.Addr, args ...string) (r traceReport, exit int, err error) {
	args = append([]string{"trace", "--socket", c.path(n, "sock"), "--src", src.String(), "--dst", dst.String(), "-o", "json"}, args...)
	if far != nil {
		args = append(args, "--far-socket", c.path(far, "sock"))
	}
	out, err := exec.Command(weft, args...).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		exit = failed.ExitCode()
	} else if err != nil {
		return r, 0, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, exit, fmt.Errorf("weft %v: exit %d: %w: %s", args, exit, err, out)
	}
	return r, exit, nil
}

// TestTrace: in every mode trace tells how a packet gets from one pod to another and why it does not.
func TestTrace(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "nft")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := up(t, m.Name, 4, nettest.ClusterOptions{PodMTU: 2000})
			a, b := c.Nodes[0], c.Nodes[1]
			c.tracesDelivered(a, b)
			c.tracesDropped(a, b)
		})
	}
}

// TestTraceSealed is the same where traffic is sealed.
func TestTraceSealed(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, mode := range []string{"tun", "tun-gso"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, mode, 4, nettest.ClusterOptions{PodMTU: 2000})
			c.writeFile(c.dir+"/psk", "correct horse battery staple\n")
			c.encryption = func(*nettest.ClusterNode) string {
				return fmt.Sprintf("encryption: {cipher: aes-128-gcm, psk_file: %s}", c.dir+"/psk")
			}
			c.launch()
			c.tracesDelivered(c.Nodes[0], c.Nodes[1])
		})
	}
}

// tracesDelivered: both nodes say that the packet passes, and in userspace both see it pass.
func (c *cluster) tracesDelivered(a, b *nettest.ClusterNode) {
	t := c.t
	t.Helper()
	for i, to := range b.PodAddrs {
		c.eventually(fmt.Sprintf("a packet to %v is traced", to), func() error {
			r, exit, err := c.trace(a, b, a.PodAddrs[i], to, "--probe")
			if err != nil {
				return err
			}
			if exit != 0 || len(r.Paths) != 2 || !r.Paths[0].Arrives || !r.Paths[1].Arrives || r.Paths[0].Part != "out" || r.Paths[0].Next != b.Name || r.Paths[1].Part != "in" {
				return fmt.Errorf("exit %d, paths %+v", exit, r.Paths)
			}
			for _, err := range []error{
				r.Paths[0].step("kernel route", "pass", "unicast"), r.Paths[0].step("kernel forwarding", "pass", "is on"),
				r.Paths[1].step("kernel route", "pass", "unicast"), r.Paths[1].step("delivery", "pass", to.String()),
			} {
				if err != nil {
					return err
				}
			}
			if r.Probe.Sent == "" {
				return fmt.Errorf("probe %+v", r.Probe)
			}
			if kernelForwards(c.mode) {
				if !strings.Contains(r.Probe.Unseen, "the kernel forwards") {
					return fmt.Errorf("probe %+v", r.Probe)
				}
				return nil
			}
			if len(r.Probe.Packets) != 2 {
				return fmt.Errorf("probe seen by %v", r.Probe.Packets)
			}
			for _, p := range r.Probe.Packets {
				if p.Drop != "" || p.Src != a.PodAddrs[i] || p.Dst != to || p.Node == a.Name && p.Peer != b.Name || p.Node == b.Name && p.Peer != a.Name ||
					!strings.HasPrefix(p.Steps[0].Name, "recv ") || !strings.HasPrefix(p.Steps[len(p.Steps)-1].Name, "send ") {
					return fmt.Errorf("a walk: %v", p)
				}
			}
			return nil
		})
	}
}

// tracesDropped: no route, too big, and a source that is not its sender's.
func (c *cluster) tracesDropped(a, b *nettest.ClusterNode) {
	t := c.t
	t.Helper()
	nobody := netip.MustParseAddr("10.244.77.1")
	r, exit, err := c.trace(a, nil, a.PodAddrs[0], nobody)
	if err != nil || exit != 1 || r.Paths[0].Arrives {
		t.Errorf("an unowned address: exit %d, %v, %+v", exit, err, r)
	} else if err := r.Paths[0].step("kernel route", "drop", ""); err != nil {
		t.Error(err)
	}
	s, err := c.status(a)
	if err != nil {
		t.Fatal(err)
	}
	r, exit, err = c.trace(a, nil, a.PodAddrs[0], b.PodAddrs[0], "--size", strconv.Itoa(s.InnerMTU+1))
	if err != nil || exit != 1 || r.Paths[0].Arrives {
		t.Errorf("too large: exit %d, %v, %+v", exit, err, r)
	} else if err := r.Paths[0].step("device", "drop", "too-big"); err != nil {
		t.Error(err)
	}
	// A firewall that lets nothing through.
	a.NS.MustRun(t, "nft", "add table inet closed; add chain inet closed gate { type filter hook forward priority 0; policy drop; }")
	r, exit, err = c.trace(a, nil, a.PodAddrs[0], b.PodAddrs[0])
	if err != nil || exit != 1 {
		t.Errorf("behind a closed firewall: exit %d, %v, %+v", exit, err, r)
	} else if err := r.Paths[0].step("nftables forward", "drop", "inet closed gate"); err != nil {
		t.Error(err)
	}
	a.NS.MustRun(t, "nft", "delete table inet closed")
	// An address that neither node has anything to do with.
	_, exit, err = c.trace(a, nil, nobody, netip.MustParseAddr("10.244.78.1"))
	if exit != 1 || err == nil {
		t.Errorf("neither end here: exit %d, %v", exit, err)
	}
	if kernelForwards(c.mode) {
		return
	}
	// What really passes: a pod that sends from an address that is not its node's.
	fake := netip.MustParseAddr("10.244.88.8")
	a.Pod.MustRun(t, "ip", "addr", "add", fake.String()+"/32", "dev", "lo")
	c.eventually("a spoofed source is traced to its end", func() error {
		var out bytes.Buffer
		cmd := exec.Command(weft, "trace", "--socket", c.path(b, "sock"), "--filter", "src host "+fake.String()+" and drop", "--count", "1", "--for", "3s", "-o", "json")
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			return err
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		for {
			_ = ping(a.Pod, b.PodAddrs[0], "-I", fake.String()) // nobody answers it
			select {
			case err := <-done:
				var p traced
				if err == nil {
					err = json.Unmarshal(out.Bytes(), &p)
				}
				if err == nil && (p.Drop != "wrong-source" || p.Node != b.Name || p.Src != fake || p.Peer != a.Name) {
					err = fmt.Errorf("%v", p)
				}
				return err
			default:
			}
		}
	})
}
