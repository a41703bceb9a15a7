package hostnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// many wants n peers with a prefix of each family... of one family per entry, alternating.
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
	names := map[int32]string{l.index: l.name}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		routes, err := dumpRoutes(b.host.rt, fam, names)
		if err != nil {
			return n, err
		}
		for _, r := range routes {
			if r.Dev == l.name {
				n[0]++
			}
		}
		neighbors, err := dumpNeighbors(b.host.rt, fam, l.name, l.index)
		if err != nil {
			return n, err
		}
		n[1] += len(neighbors)
	}
	fdb, err := dumpFDB(b.host.rt, l.name, l.index)
	n[2] = len(fdb)
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

func BenchmarkApply(bm *testing.B) {
	for _, n := range []int{10, 5000} {
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
