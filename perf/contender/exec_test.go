package contender

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/perf/testbed"
)

// patience bounds how long a contender may take to carry packets; it measures nothing.
const patience = nettest.Patience

func bed(t *testing.T, label string, mtu int) *testbed.Bed {
	t.Helper()
	nettest.RequireRoot(t)
	nettest.RequireKernel(t, kernel.Veth)
	b, err := testbed.Open(testbed.Config{Label: label, Nodes: 3, MTU: mtu, Layout: testbed.Free, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func script(t *testing.T, body string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return file
}

func up(t *testing.T, b *testbed.Bed, name string) (Overlay, error) {
	t.Helper()
	c, err := Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := c[0].Needs(); err != nil {
		return nil, &UnsupportedError{Reason: err.Error()}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c[0].Up(ctx, Env{Bed: b})
}

// TestExecVXLAN: the example carries packets of its MTU between all pods, and leaves nothing on the nodes.
func TestExecVXLAN(t *testing.T) {
	b := bed(t, "exec-vxlan", 1500)
	x, err := up(t, b, "exec:../../examples/contenders/vxlan")
	if err != nil {
		t.Fatal(err)
	}
	if x.InnerMTU() != 1450 || len(x.Processes()) != 0 || len(b.Network) != 2 {
		t.Errorf("inner MTU %d, processes %v, families %d", x.InnerMTU(), x.Processes(), len(b.Network))
	}
	reach(t, b, x.InnerMTU())
	if err := x.(Downer).Down(); err != nil {
		t.Error(err)
	}
	for _, n := range b.Nodes {
		if _, err := n.Host.Netlink().LinkByName("weftx"); err == nil {
			t.Errorf("node %s still has the device", n.Name)
		}
	}
}

// TestExecFlannel: the example runs a real flanneld on every node, with each of its backends. scripts/test-long builds flanneld.
func TestExecFlannel(t *testing.T) {
	t.Setenv("FLANNELD", nettest.RequireGiven(t, "WEFT_FLANNELD"))
	for backend, mtu := range map[string]int{"vxlan": 1450, "host-gw": 1500, "udp": 1472} {
		t.Run(backend, func(t *testing.T) {
			t.Setenv("FLANNEL_BACKEND", backend)
			b := bed(t, "exec-flannel", 1500)
			x, err := up(t, b, "exec:../../examples/contenders/flannel")
			if err != nil {
				t.Fatal(err)
			}
			if x.InnerMTU() != mtu || len(x.Processes()) != 3 || len(b.Network) != 1 {
				t.Errorf("inner MTU %d, processes %v, families %d", x.InnerMTU(), x.Processes(), len(b.Network))
			}
			reach(t, b, x.InnerMTU())
			used, err := x.Processes()[0].CPU()
			if err != nil || used.Total() == 0 {
				t.Errorf("flanneld and etcd of node a have used %v, %v", used, err)
			}
			if err := x.(Downer).Down(); err != nil {
				t.Error(err)
			}
		})
	}
}

func reach(t *testing.T, b *testbed.Bed, mtu int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := errors.Join(b.AttachPods(mtu), b.Reach(ctx, mtu)); err != nil {
		t.Error(err)
	}
}

// TestExecStays: a program that stays is a process of the contender, and ends with it; it may do without IPv6.
func TestExecStays(t *testing.T) {
	b := bed(t, "exec-stays", 1500)
	file := script(t, `case $1 in
up) trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done ;;
addresses) echo mtu 1400; echo prefix ${WEFT_PREFIXES%% *} ;;
down) echo $WEFT_NODE >>$WEFT_SHARED/down ;;
esac
`)
	x, err := up(t, b, "exec:"+file)
	if err != nil {
		t.Fatal(err)
	}
	all := x.Processes()
	if len(all) != 3 || all[0].Name != "own-a" || len(b.Network) != 1 {
		t.Errorf("processes %v, families %d", all, len(b.Network))
	}
	if err := x.(Downer).Down(); err != nil {
		t.Error(err)
	}
	for _, p := range all {
		if p.Ended() == nil {
			t.Errorf("%s lives on", p.Name)
		}
	}
	if said, err := os.ReadFile(filepath.Join(filepath.Dir(b.Nodes[0].Dir), "down")); err != nil || string(said) != "a\nb\nc\n" {
		t.Errorf("down ran on %q, %v", said, err)
	}
}

// TestExecTrouble: a program that fails, lies or lingers is an error that says so, down is run, and nothing is left in the
// namespaces once the testbed has closed.
func TestExecTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		body, says  string
		unsupported bool
	}{
		"unsupported": {"echo 'no such kernel' >&2; exit 3", "no such kernel", true},
		"fails":       {"[ $1 != verify ] || { echo broken >&2; exit 1; }", "broken", false},
		"up fails on one": {`case $1 in
up) ip link add weftleft type bridge; setsid sleep 1000 >/dev/null 2>&1 & [ $WEFT_NODE = a ] || { echo 'not here' >&2; exit 1; } ;;
down) ip link del weftleft ;;
esac`, "not here", false},
		"no MTU":       {"[ $1 != addresses ] || echo prefix 10.244.1.0/24", "no line \"mtu N\"", false},
		"an MTU above": {"[ $1 != addresses ] || echo mtu 9000", "more than the underlay", false},
		"no IPv4":      {"[ $1 != addresses ] || echo mtu 1400", "the lab needs IPv4", false},
		"gibberish":    {"[ $1 != addresses ] || echo mtu many", "from 576", false},
	} {
		t.Run(name, func(t *testing.T) {
			b := bed(t, "exec-trouble", 1500)
			var namespaces []*testbed.Namespace
			for _, n := range b.Nodes {
				namespaces = append(namespaces, n.Host)
			}
			_, err := up(t, b, "exec:"+script(t, c.body))
			var unsupported *UnsupportedError
			if err == nil || !strings.Contains(err.Error(), c.says) || errors.As(err, &unsupported) != c.unsupported {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
			for _, ns := range namespaces {
				if _, err := ns.Netlink().LinkByName("weftleft"); !errors.As(err, &netlink.LinkNotFoundError{}) {
					t.Errorf("%s: down did not run: %v", ns.Name(), err)
				}
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			left, err := testbed.Find(func(pid int) bool { return pid == os.Getpid() })
			left.Dirs = nil
			if err != nil || len(left.Namespaces)+len(left.Processes) > 0 {
				t.Errorf("left behind: %+v, %v", left, err)
			}
		})
	}
	if _, err := Parse("exec:"); err == nil {
		t.Error("a program without a name")
	}
	for _, file := range []string{"/nosuchfile", "/etc/passwd", "/tmp"} {
		if _, err := up(t, nil, "exec:"+file); err == nil {
			t.Errorf("%s is no program", file)
		}
	}
}

// TestPresets: each is a contender that there is, and keeps its name.
func TestPresets(t *testing.T) {
	rows := Rows()
	for _, p := range Presets() {
		list, err := Parse(p.Name)
		if err != nil || list[0].Name != p.Name {
			t.Errorf("%s: %v, %v", p.Name, list, err)
		}
		if slices.ContainsFunc(rows, func(r Row) bool { return r.Name == p.Name }) {
			t.Errorf("%s is a contender, too", p.Name)
		}
	}
	if list, err := Parse("weave-sleeve-encrypted"); err != nil || list[0].Cipher != "chacha20-poly1305" {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := Parse("flannel-vxlan,canal,vxlan-nocsum"); err != nil || len(list) != 3 {
		t.Errorf("one contender under three names: %v, %v", list, err)
	}
}

// TestEthernet: devices towards each peer carry packets; Geneve is made alike, of another kind.
func TestEthernet(t *testing.T) {
	nettest.RequireRoot(t)
	if err := kernel.VXLAN.Probe(); err != nil {
		t.Fatal(err)
	}
	b := bed(t, "ethernet", 1500)
	x, err := upEthernet(b, 1450, func(attrs netlink.LinkAttrs, n, far *testbed.Node) netlink.Link {
		return &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 100 + 7*int(min(n.Name[0], far.Name[0])) + int(max(n.Name[0], far.Name[0])), Port: 4789,
			SrcAddr: n.Endpoints[0].AsSlice(), Group: far.Endpoints[0].AsSlice(), UDPCSum: true}
	})
	if err != nil {
		t.Fatal(err)
	}
	reach(t, b, x.InnerMTU())
}

// TestKernelContenders: each carries packets where the kernel has it, and says why not where it has not.
func TestKernelContenders(t *testing.T) {
	nettest.RequireRoot(t)
	for _, name := range []string{"wireguard", "ipip", "geneve"} {
		t.Run(name, func(t *testing.T) {
			b := bed(t, name, 1500)
			x, err := up(t, b, name)
			var unsupported *UnsupportedError
			switch {
			case errors.As(err, &unsupported):
				if !strings.Contains(unsupported.Reason, "this kernel has no ") {
					t.Error(err)
				}
			case err != nil:
				t.Error(err)
			default:
				reach(t, b, x.InnerMTU())
			}
		})
	}
}

func FuzzParseAddresses(f *testing.F) {
	f.Add("mtu 1450\nprefix 10.244.1.0/24\nprefix fd00::/64\n")
	f.Add("mtu x")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseAddresses(text)
		if err == nil && (c.mtu < 576 || c.mtu > 65535) {
			t.Errorf("MTU %d", c.mtu)
		}
	})
}
