package probe

import (
	"context"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestOpenLoopAfterAStall: a path that stands still for a while is late for every request that was due meanwhile, not for one.
func TestOpenLoopAfterAStall(t *testing.T) {
	const rate, stall, duration = 5000, 200 * time.Millisecond, 600 * time.Millisecond
	h := newHosts(t, 1500)
	time.AfterFunc(duration/3, func() {
		h.server.Signal(syscall.SIGSTOP)
		time.AfterFunc(stall, func() { h.server.Signal(syscall.SIGCONT) })
	})
	r, err := h.run(Spec{Test: "udp-open-rr", Params: Params{"rate": rate}, Duration: duration})
	if err != nil {
		t.Fatal(err)
	}
	// A third of all requests were due during the stall, and waited for half of it on average.
	late := slices.IndexFunc(r.Latency, func(q Quantile) bool { return q.Quantile == .85 })
	if got := r.Latency[late].Us; got < float64(stall.Microseconds())/4 {
		t.Errorf("85 %% took at most %v µs, though a third waited for a path that stood still for %s", got, stall)
	}
	if want := uint64(rate * duration.Seconds()); r.Transactions < want*99/100 || r.Transactions > want+1 {
		t.Errorf("%d round trips, want %d: none is given up", r.Transactions, want)
	}
}

// TestIMIX: packets are of three sizes in the proportions of the mix, and of no more than the path carries.
func TestIMIX(t *testing.T) {
	for to, want := range map[string][]int{"192.0.2.1": {16, 548, 1422}, "2001:db8::1": {16, 528, 1402}} {
		count := map[int]int{}
		for _, p := range payloads(imixSizes, 1450, netip.MustParseAddr(to)) {
			count[p]++
		}
		if count[want[0]] != 7 || count[want[1]] != 4 || count[want[2]] != 1 {
			t.Errorf("to %s: %v, want %v as 7, 4 and 1", to, count, want)
		}
	}
	r, err := Run(context.Background(), Spec{Test: "udp-rate", Params: Params{"imix": 1}, Target: serve(t, Config{}), Duration: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	conserved(t, r)
	// Loopback carries them uncut: 16, 548 and 1472 bytes of payload. Trials may end within a turn, and a full socket may meet one size more
	// than another: the sizes are not even nearly as many of each, which would be 679 bytes.
	mean := float64(r.Bytes) / float64(r.Delivered)
	if want := float64(7*16+4*548+1472) / 12; mean < want*.8 || mean > want*1.2 {
		t.Errorf("%v bytes a packet, want %v", mean, want)
	}
	if err := (Spec{Test: "udp-rate", Params: Params{"imix": 1, "gso": 1}, Target: netip.MustParseAddrPort("192.0.2.1:1"), Duration: time.Second}).Validate(); err == nil {
		t.Error("super-packets of a mix are taken")
	}
}
