package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/control"
	"weft/internal/nettest"
)

// TestProber: two nodes joined by two devices, each of which is a way. One is cut in one direction only: who sends that way knows, and who
// receives by it is not misled by what it hears.
func TestProber(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ip", "nft")
	var ns [2]*nettest.NS
	for i := range ns {
		ns[i] = nettest.New(t)
	}
	inner := []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.2.1")}
	devices := []string{"fast0", "slow0"}
	for _, dev := range devices {
		nettest.Pair(t, nettest.End{NS: ns[0], Dev: dev}, nettest.End{NS: ns[1], Dev: dev}, 1500)
	}
	for i, n := range ns {
		for _, key := range []string{"all", "fast0", "slow0"} {
			if err := n.Sysctl("ipv4/conf/"+key+"/rp_filter", "0"); err != nil {
				t.Fatal(err)
			}
		}
		n.MustRun(t, "sh", "-ec", fmt.Sprintf("ip link set lo up; ip addr add %[1]v/32 dev lo; ip route add %[2]v dev fast0; ip route add %[2]v dev slow0 metric 100", inner[i], inner[1-i]))
	}
	var probers [2]*Prober
	ctx, cancel := context.WithCancel(t.Context())
	var done []<-chan error
	for i := range probers {
		p := New(zaptest.NewLogger(t))
		probers[i] = p
		var targets []Target
		for j, dev := range devices {
			targets = append(targets, Target{Node: "peer", Way: control.Way{Name: dev}, Addr: inner[1-i], Source: inner[i], Device: dev, Chosen: j == 0})
		}
		var err error
		ns[i].Do(func() { err = p.Aim(inner[i:i+1], inner[1-i:2-i], targets) })
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, ns[i].Go(func() error { p.Run(ctx); return nil }))
	}
	t.Cleanup(func() {
		cancel()
		for i, p := range probers {
			<-done[i]
			p.Close()
		}
	})
	eventually := func(what string, cond func() error) {
		t.Helper()
		for deadline := time.Now().Add(nettest.Patience); ; <-time.After(10 * time.Millisecond) {
			err := cond()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	up := func(i int, way string, want bool) error {
		if s := probers[i].State("peer", way); !s.Known || s.Up != want {
			return fmt.Errorf("node %d, %s: %+v", i, way, s)
		}
		return nil
	}
	eventually("both ways work", func() error {
		return errors.Join(up(0, "fast0", true), up(0, "slow0", true), up(1, "fast0", true), up(1, "slow0", true))
	})
	if s := probers[0].State("nobody", "fast0"); s.Known {
		t.Errorf("%+v", s)
	}
	// What node 0 sends by fast0 is lost; what comes from there arrives, and is answered by slow0, as traffic is that goes on.
	ns[1].MustRun(t, "sh", "-ec", "nft add table netdev f; nft 'add chain netdev f in { type filter hook ingress device fast0 priority 0; }'; nft add rule netdev f in udp dport 4787 drop")
	eventually("the sender knows", func() error { return errors.Join(up(0, "fast0", false), up(0, "slow0", true)) })
	ns[0].MustRun(t, "sh", "-ec", fmt.Sprintf("ip route del %[1]v dev fast0; ip route add %[1]v dev fast0 metric 200", inner[1]))
	eventually("the receiver is right", func() error { return errors.Join(up(1, "fast0", true), up(1, "slow0", true)) })
	ns[1].MustRun(t, "nft", "delete", "table", "netdev", "f")
	eventually("it is back", func() error { return up(0, "fast0", true) })
	ns[0].MustRun(t, "ip", "link", "del", "slow0")
	eventually("a device that is gone is no way", func() error { return up(0, "slow0", false) })
}
