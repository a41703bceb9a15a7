package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// TestMissedFlowsBeginAnew: what connection tracking has decided about flows while masquerading was not in force is forgotten when it
// is, the first time and when somebody flushed the ruleset; nothing else is.
func TestMissedFlowsBeginAnew(t *testing.T) {
	nettest.RequireTool(t, "nft")
	b := newBench(t)
	hook, priority := *nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource
	w := Want{Tables: []Table{{Name: "weft", Family: nftables.TableFamilyINet,
		Chains: []TableChain{{Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: &hook, Priority: &priority,
			Rules: [][]expr.Any{append(Match(netip.MustParsePrefix("10.244.1.0/24"), true, true), &expr.Masq{FullyRandom: true})}}},
		Masquerades: &Masqueraded{From: nettest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), Except: nettest.Prefixes("10.244.0.0/16", "fd00:10:244::/48", "224.0.0.0/4")}}}}
	rt, err := func() (h *netlink.Handle, err error) {
		b.ns.Do(func() { h, err = netlink.NewHandle(unix.NETLINK_NETFILTER) })
		return
	}()
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close()
	flows := []struct {
		src, dst, from, to string // the reply is from … to …
		tcp                uint8  // its state
		stays              bool
	}{
		{"10.244.1.2", "192.0.2.9", "192.0.2.9", "10.244.1.2", 0, false},
		{"10.244.1.2", "198.51.100.1", "192.0.2.9", "10.244.1.2", 0, false}, // behind DNAT
		{"10.244.1.2", "192.0.2.8", "192.0.2.8", "10.244.1.2", 1, false},    // SYN_SENT
		{"fd00:10:244:1::2", "2001:db8::9", "2001:db8::9", "fd00:10:244:1::2", 0, false},
		{"10.244.1.3", "192.0.2.8", "192.0.2.8", "10.244.1.3", 3, true}, // a connection that stands
		{"10.244.1.2", "192.0.2.7", "192.0.2.7", "192.0.2.1", 0, true},  // masqueraded
		{"10.244.1.2", "10.244.2.2", "10.244.2.2", "10.244.1.2", 0, true},
		{"10.244.1.2", "10.96.0.1", "10.244.2.2", "10.244.1.2", 0, true}, // a service of pods
		{"10.244.1.2", "192.0.2.1", "192.0.2.1", "10.244.1.2", 0, true},  // to the node itself
		{"10.244.2.2", "192.0.2.9", "192.0.2.9", "10.244.2.2", 0, true},  // another node's pod
	}
	fill := func() {
		t.Helper()
		for i, f := range flows {
			tuple := func(src, dst string, a, b uint16) netlink.IPTuple {
				return netlink.IPTuple{SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(), SrcPort: a, DstPort: b, Protocol: unix.IPPROTO_UDP}
			}
			flow := &netlink.ConntrackFlow{FamilyType: unix.AF_INET, TimeOut: 100, Forward: tuple(f.src, f.dst, uint16(4000+i), 53), Reverse: tuple(f.from, f.to, 53, uint16(4000+i))}
			if netip.MustParseAddr(f.src).Is6() {
				flow.FamilyType = unix.AF_INET6
			}
			if f.tcp != 0 {
				flow.Forward.Protocol, flow.Reverse.Protocol, flow.ProtoInfo = unix.IPPROTO_TCP, unix.IPPROTO_TCP, &netlink.ProtoInfoTCP{State: f.tcp}
			}
			if err := rt.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(flow.FamilyType), flow); err != nil {
				t.Fatalf("%+v: %v", f, err)
			}
		}
	}
	left := func() error {
		var have []int
		for _, fam := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			list, err := rt.ConntrackTableList(netlink.ConntrackTable, fam)
			if err != nil {
				return err
			}
			for _, f := range list {
				if f.Forward.DstPort == 53 {
					have = append(have, int(f.Forward.SrcPort)-4000)
				}
			}
		}
		slices.Sort(have)
		var want []int
		for i, f := range flows {
			if f.stays {
				want = append(want, i)
			}
		}
		if !slices.Equal(have, want) {
			return fmt.Errorf("flows %v are left, want %v", have, want)
		}
		return nil
	}
	fill()
	b.apply(w)
	if err := left(); err != nil {
		t.Error(err)
	}
	b.guarded(w)
	b.ns.MustRun(t, "nft", "flush ruleset")
	nettest.Eventually(t, 10*time.Second, left)
	if err := rt.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	fill() // while the table is in force nobody looks
	b.ns.MustRun(t, "nft", "flush ruleset")
	nettest.Eventually(t, 10*time.Second, left)
}

// FuzzTracked: whatever the kernel says of a connection is read without a panic.
func FuzzTracked(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 3, 0, 0, 0, 0, 14})
	f.Add([]byte{2, 0, 0, 0, 20, 0, 1, 128, 16, 0, 1, 128, 8, 0, 1, 0, 10, 244, 1, 10, 4, 0, 2, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = tracked(b) })
}
