package link

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/control"
	"weft/internal/nettest"
)

// BenchmarkThousandPeers is what probing costs a node with a thousand peers and two ways to each: probes a second, and the share of a processor
// that asking and answering take together, kernel included.
func BenchmarkThousandPeers(b *testing.B) {
	nettest.RequireRoot(b)
	var ns [2]*nettest.NS
	for i := range ns {
		ns[i] = nettest.New(b)
	}
	nettest.Pair(b, nettest.End{NS: ns[0], Dev: "eth0"}, nettest.End{NS: ns[1], Dev: "eth0"}, 1500)
	a := netip.MustParseAddr("10.244.0.1")
	ns[0].MustRun(b, "sh", "-ec", fmt.Sprintf("ip link set lo up; ip addr add %v/32 dev lo; ip addr add 192.0.2.1/24 dev eth0; ip route add 10.245.0.0/16 via 192.0.2.2 dev eth0", a))
	ns[1].MustRun(b, "sh", "-ec", fmt.Sprintf("ip link set lo up; ip addr add 192.0.2.2/24 dev eth0; ip route add %v via 192.0.2.1 dev eth0; ip route add local 10.245.0.0/16 dev lo", a))
	var peers []netip.Addr
	var targets []Target
	for i := range 1000 {
		at := netip.AddrFrom4([4]byte{10, 245, byte(i >> 8), byte(i)})
		peers = append(peers, at)
		for j, way := range []string{"fast", "slow"} {
			targets = append(targets, Target{Node: fmt.Sprint(i), Way: control.Way{Name: way}, Addr: at, Source: a, Device: "eth0", Chosen: j == 0})
		}
	}
	var probers [2]*Prober
	ctx, cancel := context.WithCancel(b.Context())
	var done []<-chan error
	for i := range probers {
		p := New(nil)
		p.most = 1 << 30 // one stands for a thousand here
		probers[i] = p
		var err error
		if i == 0 {
			ns[i].Do(func() { err = p.Aim([]netip.Addr{a}, peers, targets) })
		} else {
			ns[i].Do(func() { err = p.Aim(peers, []netip.Addr{a}, nil) })
		}
		if err != nil {
			b.Fatal(err)
		}
		done = append(done, ns[i].Go(func() error { p.Run(ctx); return nil }))
	}
	used := func() time.Duration {
		var r unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &r)
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	sent := func() (n, up int) {
		probers[0].mu.Lock()
		defer probers[0].mu.Unlock()
		for _, t := range probers[0].tracks {
			n += t.next
			if t.Up {
				up++
			}
		}
		return n, up
	}
	b.ResetTimer()
	for b.Loop() {
		<-time.After(5 * time.Second) // answers of the first round are in
		began, cpu := time.Now(), used()
		from, _ := sent()
		<-time.After(5 * time.Second)
		to, up := sent()
		seconds := time.Since(began).Seconds()
		b.ReportMetric(float64(to-from)/seconds, "probes/s")
		b.ReportMetric(100*(used()-cpu).Seconds()/seconds, "%processor")
		b.ReportMetric(float64(up), "ways-up")
	}
	b.StopTimer()
	cancel()
	for i, p := range probers {
		<-done[i]
		p.Close()
	}
}
