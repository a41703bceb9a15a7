package testbed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/netlab"
	"weft/internal/nettest"
	"weft/perf/site"
)

// patience bounds waits for a condition; brief is long enough for a packet that may arrive, to arrive.
const (
	patience = nettest.Patience
	brief    = 300 * time.Millisecond
)

// open builds a testbed whose pods are attached with links of mtu bytes.
func open(t *testing.T, nodes, mtu int, layout Layout) *Bed {
	t.Helper()
	nettest.RequireRoot(t)
	nettest.RequireKernel(t, kernel.Veth)
	if nodes > 2 {
		nettest.RequireKernel(t, kernel.Bridge)
	}
	bed, err := Open(Config{Label: Label(t.Name()), Nodes: nodes, MTU: 1500, Layout: layout, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
		mine := func(pid int) bool { return pid == os.Getpid() }
		if left, err := Find(mine); err != nil || !left.Empty() {
			t.Errorf("left behind: %+v, %v", left, err)
		}
	})
	if err := bed.AttachPods(mtu); err != nil {
		t.Fatal(err)
	}
	return bed
}

// route joins the nodes' prefixes by plain routes.
func route(t *testing.T, bed *Bed) {
	t.Helper()
	for _, n := range bed.Nodes {
		for _, far := range bed.Nodes {
			if far == n {
				continue
			}
			for i, p := range far.Prefixes {
				if err := n.Host.Route(p, Underlay, far.Endpoints[i]); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestReach(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			bed := open(t, nodes, 1400, Split)
			if err := bed.Reach(within(t, brief), 1400); err == nil {
				t.Fatal("pods reach each other before anything joins the nodes")
			}
			route(t, bed)
			if err := bed.Reach(within(t, brief), 1401); err == nil {
				t.Fatal("a packet above the pods' MTU arrived")
			}
			if err := bed.Reach(within(t, patience), 1400); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSplit looks at what the layout is made of: where processes may run, and where packets are
// received.
func TestSplit(t *testing.T) {
	for _, layout := range []Layout{Split, Free} {
		t.Run(string(layout), func(t *testing.T) {
			bed := open(t, 2, 1500, layout)
			for _, n := range bed.Nodes {
				want := "0"
				if layout == Split {
					want = cpuMask(n.CPUs)
				}
				for _, ns := range []*Namespace{n.Host, n.Pod} {
					var affinity unix.CPUSet
					masks := map[string]string{}
					if err := ns.Do(func() error {
						files, err := filepath.Glob("/sys/class/net/*0/queues/rx-*/rps_cpus")
						for _, f := range files {
							data, readErr := os.ReadFile(f)
							err = errors.Join(err, readErr)
							masks[f] = strings.TrimLeft(strings.TrimSpace(string(data)), "0,")
						}
						return errors.Join(err, unix.SchedGetaffinity(0, &affinity))
					}); err != nil {
						t.Fatal(err)
					}
					if len(masks) == 0 {
						t.Errorf("%s has no receive queues in its /sys", ns.Name())
					}
					for f, mask := range masks {
						if mask != strings.TrimLeft(want, "0") {
							t.Errorf("%s: %s steers to %q, want %q", ns.Name(), f, mask, want)
						}
					}
					if layout == Split && affinity.Count() != len(n.CPUs) {
						t.Errorf("%s: processes may run on %d cores, want %v", ns.Name(), affinity.Count(), n.CPUs)
					}
				}
			}
			if layout == Split && bed.Nodes[0].CPUs[0] == bed.Nodes[1].CPUs[0] && runtime.NumCPU() > 1 {
				t.Error("both nodes have the same cores")
			}
		})
	}
}

// TestKernelCounts has the kernel drop packets in three places and finds each by its name.
func TestKernelCounts(t *testing.T) {
	bed := open(t, 2, 1500, Free)
	route(t, bed)
	if err := bed.Reach(within(t, patience), 1500); err != nil {
		t.Fatal(err)
	}
	near, far := bed.Nodes[0], bed.Nodes[1]
	send := func(to netip.AddrPort, n int) {
		c, err := near.Pod.listenUDP(near.PodAddr(4))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range n {
			if _, err := c.WriteToUDPAddrPort(make([]byte, 1000), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		to   func(t *testing.T) netip.AddrPort
		n    int
		all  bool // every packet dies
	}{
		{site.SocketRefused, func(*testing.T) netip.AddrPort { return netip.AddrPortFrom(far.PodAddr(4), 9) }, 7, true},
		{site.IPLayer, func(*testing.T) netip.AddrPort { return netip.MustParseAddrPort("203.0.113.1:9") }, 5, true},
		{site.SocketOverflow, func(t *testing.T) netip.AddrPort {
			s, err := far.Pod.listenUDP(far.PodAddr(4)) // which nobody reads
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return netip.MustParseAddrPort(s.LocalAddr().String())
		}, 2000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := c.to(t)
			before, err := bed.KernelCounts()
			if err != nil {
				t.Fatal(err)
			}
			send(to, c.n)
			deadline := time.Now().Add(patience)
			for {
				now, err := bed.KernelCounts()
				if err != nil {
					t.Fatal(err)
				}
				got := now.Since(before)
				if c.all && maps.Equal(got, map[string]uint64{c.name: uint64(c.n)}) || !c.all && got[c.name] > 0 && len(got) == 1 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("the kernel dropped %v, want %d as %s", got, c.n, c.name)
				}
				time.Sleep(20 * time.Millisecond) // between looks at a condition
			}
		})
	}
}

func TestProcess(t *testing.T) {
	bed := open(t, 2, 1500, Free)
	ns := bed.Nodes[0].Pod
	log := filepath.Join(t.TempDir(), "log")
	run := func(script string) *Process {
		p, err := ns.Start("child", log, nil, "/bin/sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var exit *ExitError
	if err := run("echo first; echo last words; exit 3").Wait(within(t, patience)); !errors.As(err, &exit) || exit.Code != 3 || exit.Last != "last words" {
		t.Errorf("a process that failed: %v", err)
	}
	if err := run("test -e /sys/class/net/eth0 && ! test -e /sys/class/net/pod0").Wait(within(t, patience)); err != nil {
		t.Errorf("the process does not see the namespace's devices: %v", err)
	}
	p := run("while :; do :; done")
	for deadline := time.Now().Add(patience); ; {
		used, err := p.CPU()
		if err != nil {
			t.Fatal(err)
		}
		if used.Total() > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a busy process used no processor time")
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
	if err := p.Ended(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting with a dead context: %v", err)
	}
	if p.Ended() == nil {
		t.Error("the process outlived its context")
	}
	// What still runs ends with the bed, whatever it thinks of that, its orphans included; open's
	// clean-up looks for them.
	run("trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & echo deaf; while :; do sleep 1; done")
	for deadline := time.Now().Add(patience); lastLine(log) != "deaf"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the child does not speak")
		}
	}
	all, err := netlab.Inside([]string{ns.Name()})
	if err != nil || len(all) < 2 {
		t.Errorf("processes inside: %v, %v", all, err)
	}
	t.Cleanup(func() {
		for _, pid := range all {
			if !Dead(pid) {
				t.Errorf("process %d outlives its testbed", pid)
			}
		}
	})
	if err := bed.Close(); err != nil {
		t.Error(err)
	}
}

func TestPanicInside(t *testing.T) {
	bed := open(t, 2, 1500, Free)
	defer func() {
		if recover() != "oops" {
			t.Error("the panic did not reach the caller")
		}
		if err := bed.Nodes[0].Host.Do(func() error { return nil }); err != nil {
			t.Errorf("after a panic: %v", err)
		}
	}()
	_ = bed.Nodes[0].Host.Do(func() error { panic("oops") })
}

// TestOpenTwice fails half way, by names that are taken, and must leave nothing of its own and all
// of the other's.
func TestOpenTwice(t *testing.T) {
	bed := open(t, 2, 1500, Free)
	if second, err := Open(Config{Label: Label(t.Name()), Nodes: 2, MTU: 1500, Layout: Free, Dir: t.TempDir()}); err == nil {
		second.Close()
		t.Fatal("two testbeds have the same names")
	}
	route(t, bed)
	if err := bed.Reach(within(t, patience), 1500); err != nil {
		t.Fatal(err)
	}
}

func TestDead(t *testing.T) {
	if Dead(os.Getpid()) {
		t.Error("this process is dead")
	}
	for pid := range 100 {
		if _, err := os.Stat("/proc/" + strconv.Itoa(1<<22-pid)); err != nil {
			if !Dead(1<<22 - pid) {
				t.Error("a process that does not exist lives")
			}
			return
		}
	}
}

// TestNoPlace: the lab's files need a place, and who has none is told how to give one.
func TestNoPlace(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	if dir, err := Dir(); err == nil || !strings.Contains(err.Error(), "set TMPDIR") {
		t.Errorf("%q, %v; want an error that names TMPDIR", dir, err)
	}
}
