package hostnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/internal/nettest"
)

// heard has a bench's Host hear of all changes, as Run does, until the test ends; but nobody acts on them.
func (b *bench) heard() {
	b.t.Helper()
	listener, err := b.host.listen()
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	b.host.listening.Store(true)
	go func() {
		defer close(ended)
		b.host.follow(ctx, listener, func() {})
	}()
	b.t.Cleanup(func() { cancel(); <-ended })
}

func (b *bench) want() Want { return b.host.owner("test").want }

func (b *bench) doubtful() bool {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	return b.host.doubtful()
}

// peers wants a random choice of twenty peers, each with one of two MACs, endpoints and prefixes, so that peers take over what
// others had.
func peers(random *rand.Rand) Want {
	w := sample()
	w.Routes, w.Neighbors, w.FDB = nil, nil, nil
	taken := map[int]bool{}
	for i := range 20 {
		prefix := 2 * i
		if random.IntN(3) == 0 {
			prefix = 2 * random.IntN(20)
		}
		if random.IntN(4) == 0 || taken[prefix] {
			continue
		}
		taken[prefix] = true
		mac := [6]byte{0x02, 0, 0, byte(random.IntN(2)), 0, byte(i)}
		hop4, hop6 := netip.AddrFrom4([4]byte{10, 244, byte(10 + prefix), 0}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 2, 0x44, 0, byte(10 + prefix)})
		for _, hop := range []netip.Addr{hop4, hop6} {
			bits, src := 24, "10.244.1.1"
			if hop.Is6() {
				bits, src = 64, "fd00:10:244:1::1"
			}
			w.Routes = append(w.Routes, route(netip.PrefixFrom(hop, bits).String(), hop.String(), src))
			w.Neighbors = append(w.Neighbors, Neighbor{Dev: "weft-vx4", IP: hop, MAC: mac})
		}
		w.FDB = append(w.FDB, FDBEntry{Dev: "weft-vx4", MAC: mac, Remote: netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i + 50*random.IntN(2))})})
	}
	return w
}

// TestChanges: a Host that goes from change to change has in the kernel what one has that looks at everything, and its own
// changes are no news to it; those of others are.
func TestChanges(t *testing.T) {
	b := newBench(t)
	random := rand.New(rand.NewPCG(1, 2))
	nettest.Eventually(t, waitLong, func() error { // the underlay's address settles: that is news too
		if out := b.ip("-6", "addr", "show", "tentative"); out != "" {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	b.apply(peers(random))
	b.heard()
	for round := range 60 {
		w := peers(random)
		last := b.host.prev
		b.apply(w)
		if b.host.prev != last {
			t.Fatalf("round %d: it looked at everything", round)
		}
		got := b.kernel()
		other, _ := b.open()
		if err := other.Apply("test", w); err != nil {
			t.Fatal(err)
		}
		if want := b.kernel(); !slices.Equal(got, want) {
			t.Fatalf("round %d: the kernel has\n%s\nwant\n%s", round, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		// In the end, its own changes are no news.
		nettest.Eventually(t, waitLong, func() error {
			if b.doubtful() {
				return fmt.Errorf("round %d: suspects %v", round, b.host.suspects)
			}
			return nil
		})
	}
	for _, cmd := range []string{
		"ip route del " + b.want().Routes[0].Dst.String(),
		"ip neigh del " + b.want().Neighbors[0].IP.String() + " dev weft-vx4",
		"ip neigh replace " + b.want().Neighbors[2].IP.String() + " lladdr 02:00:00:00:00:99 dev weft-vx4 nud reachable",
		"bridge fdb replace " + macString(b.want().FDB[0].MAC) + " dev weft-vx4 dst 192.0.2.77 self permanent",
		"bridge fdb del " + macString(b.want().FDB[1].MAC) + " dev weft-vx4 self",
		"ip route add 10.244.200.0/24 dev weft-vx4 proto 87",
		"ip route replace " + b.want().Routes[2].Dst.String() + " via 192.0.2.2 proto static",
	} {
		b.ns.MustRun(t, "sh", "-c", cmd)
		nettest.Eventually(t, waitLong, func() error {
			if !b.doubtful() {
				return fmt.Errorf("%q is no news", cmd)
			}
			return nil
		})
		want := b.want()
		b.apply(want) // with a look at everything, because of the doubt
		got := b.kernel()
		other, _ := b.open()
		if err := other.Apply("test", want); err != nil {
			t.Fatal(err)
		}
		if again := b.kernel(); !slices.Equal(got, again) {
			t.Errorf("after %q: the kernel has\n%s\nwant\n%s", cmd, strings.Join(got, "\n"), strings.Join(again, "\n"))
		}
	}
}
