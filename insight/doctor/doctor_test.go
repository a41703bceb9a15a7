package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"weft/api"
	"weft/catalog/mode"
	"weft/internal/config"
	"weft/internal/nettest"
)

var built = config.Built{Modes: mode.All(), DefaultMode: "tun", Controls: []string{"static"}}

func subject(t *testing.T, text string) Subject {
	t.Helper()
	c, err := config.Parse("weft.yaml", []byte(text), built)
	if err == nil {
		err = c.Detect(config.Host{Name: os.Hostname, CPUs: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	return Subject{Config: c, Modes: built.Modes, Client: api.NewClient(filepath.Join(t.TempDir(), "none"))}
}

func find(t *testing.T, list []Finding, name string) Finding {
	t.Helper()
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q in %+v", name, list)
	panic("unreachable")
}

// node is a namespace with an underlay: eth0 of this MTU with 192.0.2.1/24 and a default route.
func node(t *testing.T, mtu int) *nettest.NS {
	t.Helper()
	ns, far := nettest.New(t), nettest.New(t)
	if err := nettest.Join(nettest.End{NS: ns, Dev: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		nettest.End{NS: far, Dev: "eth0"}, mtu); err != nil {
		t.Fatal(err)
	}
	if err := ns.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("192.0.2.254"), "eth0"); err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestHealthyNode(t *testing.T) {
	ns := node(t, 1500)
	p := subject(t, "network: {prefixes: [10.244.0.0/16, \"fd00:10:244::/48\"]}")
	ns.Do(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		list := Examine(t.Context(), p)
		for _, f := range list {
			if f.Level == Wrong || f.Level == Missing {
				t.Errorf("%+v", f)
			}
			if f.Level != OK && f.Remedy == "" {
				t.Errorf("no remedy: %+v", f)
			}
		}
		if f := find(t, list, "underlay"); f.Found != "eth0, MTU 1500" {
			t.Errorf("%+v", f)
		}
		if f := find(t, list, "forwarding v4"); f.Level != Note || !strings.Contains(f.Remedy, "the daemon turns it on") {
			t.Errorf("%+v", f)
		}
		if f := find(t, list, "udp port"); f.Found != "4789 is free" {
			t.Errorf("%+v", f)
		}
		if f := find(t, list, "daemon"); f.Level != Note {
			t.Errorf("%+v", f)
		}
	})
}

func TestTroubles(t *testing.T) {
	ns := node(t, 1300)
	p := subject(t, "network: {prefixes: [\"fd00:10:244::/48\"]}")
	ns.Do(func() {
		for key, value := range map[string]string{"ipv4/conf/eth0/rp_filter": "1", "ipv6/conf/all/disable_ipv6": "1"} {
			if err := os.WriteFile(filepath.Join(sysctls, key), []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
		list := Examine(t.Context(), p)
		if f := find(t, list, "underlay"); f.Level != Wrong || !strings.Contains(f.Found, "leaves 1250 bytes inside, 1280 are needed") || !strings.Contains(f.Remedy, "eth0 to 1330") {
			t.Errorf("%+v", f)
		}
		if f := find(t, list, "rp_filter"); f.Level != Note || !strings.Contains(f.Remedy, "net.ipv4.conf.eth0.rp_filter=2") {
			t.Errorf("%+v", f)
		}
		if f := find(t, list, "ipv6"); f.Level != Missing {
			t.Errorf("%+v", f)
		}
	})
}

// TestUnderlayByMode: what has to fit the underlay is what the mode and its cipher add, over the node's own IP version.
func TestUnderlayByMode(t *testing.T) {
	const v6 = "network: {prefixes: [\"fd00:10:244::/48\"]}\nmode: "
	for text, least := range map[string]int{ // of an underlay of IPv4
		"host-gw": 1280, "udp": 1280 + 28, "tun": 1280 + 50, "udp\nencryption: {cipher: auto}": 1280 + 60, "vxlan": 1280 + 50,
	} {
		for mtu, level := range map[int]Level{least: OK, least - 1: Wrong} {
			ns := node(t, mtu)
			b := built
			b.Features = []string{config.FeatureEncryption}
			c, err := config.Parse("weft.yaml", []byte(v6+text), b)
			if err != nil {
				t.Fatal(err)
			}
			ns.Do(func() {
				if f := underlay(Subject{Config: c, Modes: built.Modes}, api.Status{}, nil)[0]; f.Level != level {
					t.Errorf("mode %s, MTU %d: %+v", text, mtu, f)
				}
			})
		}
	}
}

func TestNoUnderlay(t *testing.T) {
	ns := nettest.New(t)
	ns.Do(func() {
		if f := find(t, Examine(t.Context(), Subject{Modes: built.Modes, Client: api.NewClient("/nonexistent")}), "underlay"); f.Level != Wrong || f.Remedy == "" {
			t.Errorf("%+v", f)
		}
	})
}

func TestWhoHasThePort(t *testing.T) {
	ns := node(t, 1500)
	p := subject(t, "network: 10.244.0.0/16")
	ns.Do(func() {
		c, err := net.ListenPacket("udp4", "192.0.2.1:4789")
		if err != nil {
			t.Fatal(err)
		}
		if f := port(p, api.Status{}, false); f.Level != Wrong || !strings.Contains(f.Found, fmt.Sprintf("4789 is in use by process %d (", os.Getpid())) {
			t.Errorf("a process: %+v", f)
		}
		if f := port(p, api.Status{Port: 4789, PID: os.Getpid()}, true); f.Level != OK {
			t.Errorf("the daemon itself: %+v", f)
		}
		c.Close()
		if f := port(p, api.Status{Port: 4789, PID: os.Getpid()}, true); f.Level != Wrong {
			t.Errorf("the daemon has lost it: %+v", f)
		}
		for name, level := range map[string]Level{"flannel.1": Wrong, "weft0": OK} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			link := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789}
			if err := errors.Join(ns.Netlink().LinkAdd(link), ns.LinkUp(name)); err != nil {
				t.Fatal(err)
			}
			if f := port(p, api.Status{Port: 4789, PID: 1}, true); f.Level != level || level == Wrong && !strings.Contains(f.Found, name) {
				t.Errorf("device %s: %+v", name, f)
			}
			if err := ns.Netlink().LinkDel(link); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestDropRemedies(t *testing.T) {
	for name, want := range map[string]string{
		"tun-queue": "weft stages", "socket-overflow": "weft stages", "handshake-overflow": "UDP port 4789", "neighbour-unresolved": "ip neigh show nud failed",
		"machine neighbour-queue-full": "ip neigh show nud failed", "machine neighbour-failed": "ip neigh show nud failed",
		"machine neighbour-table-full": "gc_thresh3", "eth0 queue-dropped": "tc -s qdisc show dev eth0", "eth0 tx-dropped": "ip -s -s link show eth0",
		"weft-vx4 rx-errors": "ip -s -s link show weft-vx4",
	} {
		if got := dropRemedy(name, 4789); !strings.Contains(got, want) {
			t.Errorf("%s: %q does not say %q", name, got, want)
		}
	}
}

func TestDaemonFindings(t *testing.T) {
	list := daemon(api.Status{Ready: true, Mode: "tun", Problems: []api.Problem{{Node: "b", Text: "no endpoint"}},
		Features: map[string]string{"gso": "on", "gro": "off: EINVAL"}, KernelDrops: map[string]uint64{"rxq-overflow": 3, "none": 0}}, nil)
	want := []string{"daemon ok", "cluster wrong", "feature gro note", "kernel drops note"}
	for i, f := range list {
		if got := f.Name + " " + string(f.Level); i >= len(want) || got != want[i] {
			t.Errorf("finding %d: %+v", i, f)
		}
	}
	if len(list) != len(want) {
		t.Errorf("%+v", list)
	}
	if list := daemon(api.Status{Reason: "no device"}, nil); list[0].Level != Wrong || !strings.Contains(list[0].Found, "no device") {
		t.Errorf("%+v", list)
	}
	if list := daemon(api.Status{}, context.DeadlineExceeded); list[0].Level != Wrong {
		t.Errorf("%+v", list)
	}
}
