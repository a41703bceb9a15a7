package hostnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// many wants n peers with one prefix each, v4 and v6 in turn.
func many(t testing.TB, n int) Want {
	t.Helper()
	w := sample()
	w.Network = append(w.Network, netip.MustParsePrefix("10.0.0.0/8"))
	w.Routes, w.Neighbors, w.FDB = nil, nil, nil
	for i := range n {
		mac := [6]byte{0x02, 0, 0, 0, byte(i >> 8), byte(i)}
		hop, dst, src := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24, "10.244.1.1"
		if i%2 == 1 {
			hop, dst, src = netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%x::", i)), 64, "fd00:10:244:1::1"
		}
		p := netip.PrefixFrom(hop, dst)
		w.Routes = append(w.Routes, route(p.String(), hop.String(), src))
		w.Neighbors = append(w.Neighbors, Neighbor{Dev: "weft-vx4", IP: hop, MAC: mac})
		w.FDB = append(w.FDB, FDBEntry{Dev: "weft-vx4", MAC: mac, Remote: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})})
	}
	return w
}

// count returns how many routes over weft-vx4, neighbours and FDB entries the kernel has.
func (b *bench) count() (n [3]int, err error) {
	l, err := b.host.linkByName("weft-vx4")
	if err != nil {
		return n, err
	}
	names := map[int]string{l.Attrs().Index: "weft-vx4"}
	routes, err := dumpRoutes(b.host.strict, names)
	if err != nil {
		return n, err
	}
	for _, r := range routes {
		if r.Dev == "weft-vx4" {
			n[0]++
		}
	}
	neighbors, err := dumpNeighbors(b.host.rt, names)
	if err != nil {
		return n, err
	}
	fdb, err := dumpFDB(b.host.raw.fdb, names)
	n[1], n[2] = len(neighbors), len(fdb)
	return n, err
}

func TestFiveThousand(t *testing.T) {
	b := newBench(t)
	w := many(t, 5000)
	b.apply(w)
	if n, err := b.count(); err != nil || n != [3]int{5000, 5000, 5000} {
		t.Fatalf("%d routes, neighbours, FDB entries, %v; want 5000 each", n, err)
	}
	// The oracle agrees.
	out := b.ip("-4", "route", "show", "proto", "87", "dev", "weft-vx4") + b.ip("-6", "route", "show", "proto", "87", "dev", "weft-vx4")
	if n := strings.Count(out, "\n"); n != 5000 {
		t.Errorf("iproute2 counts %d routes", n)
	}
	b.ip("route", "del", "10.0.6.0/24")
	b.ip("neigh", "del", "10.0.8.0", "dev", "weft-vx4")
	b.apply(w)
	if b.host.Repairs() != 2 {
		t.Errorf("repairs = %d, want the 2 objects removed", b.host.Repairs())
	}
	// A flap takes everything with it; the log stays readable.
	b.ip("link", "set", "weft-vx4", "down")
	b.apply(w)
	if n, err := b.count(); err != nil || n != [3]int{5000, 5000, 5000} {
		t.Errorf("after a flap %d, %v", n, err)
	}
	if lines := b.logs.FilterMessageSnippet("repaired").Len(); lines > 2+maxRepairLines+2 {
		t.Errorf("%d log lines for one flap", lines)
	}
	less := many(t, 10)
	b.apply(less)
	if n, err := b.count(); err != nil || n != [3]int{10, 10, 10} {
		t.Errorf("after removal of the rest %d, %v", n, err)
	}
}

// TestApplyAmidChanges: others change the same tables all the time, so that dumps are interrupted; Apply neither
// fails nor sees anything missing, be it by the same Host or by one that has just started.
func TestApplyAmidChanges(t *testing.T) {
	b := newBench(t)
	w := many(t, 2000)
	b.apply(w)
	churn := b.ns.MustStart(t, "sh", "-c", `while :; do
		ip link add other0 type bridge; ip link set other0 up; ip addr add 172.20.0.1/24 dev other0
		ip route add 172.21.0.0/24 dev other0; ip -6 route add 2001:db8:9::/64 dev other0
		ip neigh add 172.20.0.9 lladdr 02:00:00:00:00:99 dev other0; ip link del other0; done`)
	for range 15 {
		b.apply(w)
		started, logs := b.open()
		if err := started.Apply("test", w); err != nil {
			t.Fatal(err)
		}
		if n := logs.FilterMessage("changed").Len(); n != 0 {
			t.Errorf("a Host that has just started changed %v", logs.All())
		}
	}
	churn.Kill()
	if n := b.host.Repairs(); n != 0 {
		t.Errorf("%d repairs of objects that nobody touched: %v", n, b.logs.All())
	}
}

func BenchmarkApply(bm *testing.B) {
	for _, n := range []int{10, 5000, 10000} {
		bm.Run(fmt.Sprintf("peers=%d/first", n), func(bm *testing.B) {
			b := newBench(bm)
			w := many(bm, n)
			for bm.Loop() {
				bm.StopTimer()
				b.apply(Want{})
				bm.StartTimer()
				b.apply(w)
			}
		})
		bm.Run(fmt.Sprintf("peers=%d/again", n), func(bm *testing.B) {
			b := newBench(bm)
			w := many(bm, n)
			b.apply(w)
			bm.ReportAllocs()
			for bm.Loop() {
				b.apply(w)
			}
		})
	}
}
