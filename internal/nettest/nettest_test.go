package nettest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"weft/internal/netlab"
)

func TestRunAndStart(t *testing.T) {
	ns := New(t)
	if out := ns.MustRun(t, "ip", "-o", "link"); !strings.Contains(out, "lo:") || strings.Count(out, "\n") != 1 {
		t.Errorf("ip link = %q", out)
	}
	if _, err := ns.Run("sh", "-c", "echo told; exit 3"); err == nil || !strings.Contains(err.Error(), "told") {
		t.Errorf("a failing command's error = %v; want its output in it", err)
	}
	p := ns.MustStart(t, "sleep", "1000")
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("Close left the process running")
	}
	if _, err := os.Stat(ns.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close left %s: %v", ns.Path(), err)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func TestSweepTakesTheDeadOnly(t *testing.T) {
	live := New(t)
	// A namespace named after a process that has ended, with something still running in it.
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("weft-test-sweep%d", os.Getpid())
	orphaned := fmt.Sprintf("%s-%d-1", prefix, dead.Process.Pid)
	foreign := fmt.Sprintf("%s-notapid-1", prefix)
	for _, name := range []string{orphaned, foreign} {
		if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", foreign).Run() })
	sleeper := exec.Command("ip", "netns", "exec", orphaned, "sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	waitIn(t, sleeper.Process.Pid, filepath.Join(netlab.Dir, orphaned))

	t.Setenv("TMPDIR", t.TempDir())
	built, remove, err := Folder()
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	left := filepath.Join(os.TempDir(), fmt.Sprintf("%s-%d-123", prefix, dead.Process.Pid))
	if err := os.WriteFile(filepath.Join(built, "weft"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(left, "in"), 0o755); err != nil {
		t.Fatal(err)
	}

	removed, err := Sweep(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(removed, []string{orphaned}) {
		t.Errorf("swept %v, want %s alone", removed, orphaned)
	}
	if err := sleeper.Wait(); err == nil {
		t.Error("the process in the swept namespace ended by itself; want it killed")
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("a dead test's folder is left: %v", err)
	}
	if _, err := os.Stat(filepath.Join(built, "weft")); err != nil {
		t.Errorf("sweep took this test's own folder: %v", err)
	}
	for _, name := range []string{live.Name(), foreign} {
		if _, err := os.Stat(filepath.Join(netlab.Dir, name)); err != nil {
			t.Errorf("sweep took %s: %v", name, err)
		}
	}
}

// waitIn waits until the process is inside the namespace: `ip netns exec` enters it after the fork.
func waitIn(t *testing.T, pid int, path string) {
	t.Helper()
	want, err := netns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	for {
		have, err := netns.GetFromPid(pid)
		if err != nil {
			t.Fatal(err)
		}
		same := have.Equal(want)
		_ = have.Close()
		if same {
			return
		}
	}
}

func TestClusterUnderlayAndPods(t *testing.T) {
	for _, o := range []ClusterOptions{{Nodes: 1}, {MTU: 9000}, {Bridge: true}, {Nodes: 4}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			RequireTool(t, "ping")
			c := NewCluster(t, o)
			a := c.Nodes[0]
			for _, n := range c.Nodes {
				for i, pod := range n.PodAddrs {
					n.NS.MustRun(t, "ping", "-c1", "-W2", pod.String())
					// A pod reaches its own node's underlay address: default route and forwarding work.
					n.Pod.MustRun(t, "ping", "-c1", "-W2", n.Underlay[i].String())
				}
				for _, u := range n.Underlay {
					a.NS.MustRun(t, "ping", "-c1", "-W2", u.String())
				}
				if n != a {
					if out, err := a.Pod.Run("ping", "-c1", "-W1", n.PodAddrs[0].String()); err == nil {
						t.Errorf("pods reach each other without an overlay: %s", out)
					}
				}
			}
			mtu := o.MTU
			if mtu == 0 {
				mtu = 1500
			}
			l, err := a.NS.Netlink().LinkByName("eth0")
			if err != nil || l.Attrs().MTU != mtu {
				t.Errorf("underlay MTU = %v, %v; want %d", l, err, mtu)
			}
		})
	}
}
