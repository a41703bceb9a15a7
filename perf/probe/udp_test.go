package probe

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// The window against a map that forgets nothing.
func TestWindowAgainstMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	w, seen, next := new(window), map[uint64]bool{}, uint64(0)
	for range 200000 {
		var seq uint64
		switch k := rng.IntN(1000); {
		case k == 0:
			seq = next + rng.Uint64N(3*windowSize) // a long outage
		case k < 100:
			seq = next + rng.Uint64N(200)
		case k < 300:
			seq = next - min(next, 1+rng.Uint64N(300)) // late or twice
		default:
			seq = next
		}
		want := inOrder
		switch {
		case seq < next && seen[seq]:
			want = duplicate
		case seq < next:
			want = reordered
		}
		seen[seq], next = true, max(next, seq+1)
		if got := w.see(seq); got != want {
			t.Fatalf("seq %d, next %d: got %v, want %v", seq, next, got, want)
		}
	}
	if got := w.see(next - windowSize - 1); got != reordered {
		t.Errorf("a packet too old for the window: got %v", got)
	}
}

// A new trial starts from an empty window, whatever the last one left in it.
func TestReceiverTrials(t *testing.T) {
	r := &receiver{token: 7}
	b := newBurst(8, 64)
	at := time.Now()
	feed := func(hs ...header) {
		for i, h := range hs {
			h.put(b.buffer(i))
			b.msgs[i].len = 40
		}
		at = at.Add(time.Millisecond)
		r.count(b, len(hs), at)
	}
	feed(header{7, 1, 0}, header{7, 1, 2}, header{7, 1, 1}, header{7, 1, 2}, header{8, 1, 3})
	feed(header{7, 1, 3})
	got := r.snapshot(1)
	if c := got.counts(); c.Packets != 4 || c.Reordered != 1 || c.Duplicates != 1 || c.Bytes != 160 || c.SpanNS != 1e6 {
		t.Errorf("trial 1: %+v", c)
	}
	feed(header{7, 2, 2}, header{7, 1, 4}, header{7, 2, 3})
	b.msgs[0].len = 4 // shorter than a header
	r.count(b, 1, at)
	if s := r.snapshot(2); s.packets != 2 || s.reordered != 0 || s.duplicates != 0 {
		t.Errorf("trial 2: %+v", s)
	}
	if s := r.snapshot(1); s.packets != 0 {
		t.Errorf("trial 1 is still counted: %+v", s)
	}
	if all := r.total(); all.packets != 7 || all.duplicates != 1 || all.reordered != 1 {
		t.Errorf("total: %+v", all)
	}
}

// The schedule is absolute: being held up is made up for, but by no more than maxLag's worth.
func TestPacer(t *testing.T) {
	p := pacer{rate: 1e6}
	send := func(now time.Duration) int {
		n := p.due(now)
		p.done += float64(n)
		return n
	}
	for _, step := range []struct {
		now  time.Duration
		want int
	}{
		{0, 1},
		{500 * time.Nanosecond, 0},
		{time.Microsecond, 1},
		{100 * time.Microsecond, 99},
		{900 * time.Microsecond, 800},
		{100 * time.Millisecond, 1000}, // 99,100 were due
		{100*time.Millisecond + 10*time.Microsecond, 10},
	} {
		if got := send(step.now); got != step.want {
			t.Errorf("at %s: %d due, want %d", step.now, got, step.want)
		}
	}
	if next := p.next(time.Second); next != time.Second+quantum {
		t.Errorf("a fast pacer looks again at %s", next)
	}
	slow := pacer{rate: 10, done: 1}
	if next := slow.next(0); next != 100*time.Millisecond {
		t.Errorf("a slow pacer looks again at %s", next)
	}
}

// pair returns two connected UDP sockets on loopback.
func pair(t *testing.T) (a, b socket) {
	t.Helper()
	b, port, err := listenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.close)
	a, err = dialUDP(context.Background(), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a, b
}

func TestSendingAndCountingAllocateNothing(t *testing.T) {
	a, b := pair(t)
	var stop atomic.Bool
	tx := newSender(a, 1, 36, &stop)
	rx := &receiver{token: 1}
	batch := newBurst(udpBatch, 64)
	p := pacer{rate: 1e6}
	var seq uint64
	if n := testing.AllocsPerRun(200, func() {
		n := max(min(p.due(time.Duration(seq)), 16), 1)
		for i := range n {
			header{1, 1, seq}.put(tx.batch.buffer(i))
			seq++
		}
		taken := tx.sendAll(n)
		for taken > 0 {
			k, errno := b.recv(batch)
			if errno != 0 {
				t.Fatal(errno)
			}
			rx.count(batch, k, time.Time{})
			taken -= uint64(k)
		}
		nap(time.Microsecond)
	}); n != 0 {
		t.Errorf("a batch sent and counted allocates %v times", n)
	}
	if all := rx.total(); all.packets != seq || all.duplicates+all.reordered != 0 {
		t.Errorf("%d sent, counted %+v", seq, all)
	}
}

// What does not fit into a receiver's buffer is counted by the kernel, packet by packet.
func TestOverflowIsExact(t *testing.T) {
	a, b := pair(t)
	var stop atomic.Bool
	tx := newSender(a, 1, 1000, &stop)
	for b.overflow() < 10 {
		tx.sent += tx.sendAll(udpBatch)
	}
	lost := uint64(b.overflow())
	batch := newBurst(udpBatch, 1000)
	for kept := tx.sent - lost; kept > 0; {
		n, errno := b.recv(batch)
		if errno != 0 {
			t.Fatalf("%d packets missing: %v", kept, errno)
		}
		kept -= uint64(n)
	}
	if n, errno := b.recv(batch); errno == 0 {
		t.Errorf("%d packets too many", n)
	}
}

func TestSendErrorsHaveNames(t *testing.T) {
	a, _ := pair(t)
	var stop atomic.Bool
	tx := newSender(a, 1, 65520, &stop) // larger than a datagram can be
	if taken := tx.sendAll(3); taken != 0 {
		t.Errorf("the kernel took %d", taken)
	}
	if got := tx.errors.byName(); got["EMSGSIZE"] != 3 || len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

func FuzzReceiver(f *testing.F) {
	b := make([]byte, probeHeader)
	header{1, 1, 1}.put(b)
	f.Add(b, b)
	header{1, 1, 1 << 63}.put(b)
	f.Add(b, []byte{})
	r := &receiver{token: 1}
	batch := newBurst(2, 128)
	f.Fuzz(func(t *testing.T, x, y []byte) {
		batch.msgs[0].len = uint32(copy(batch.buffer(0), x))
		batch.msgs[1].len = uint32(copy(batch.buffer(1), y))
		before := r.total()
		r.count(batch, 2, time.Time{})
		after := r.total()
		if n := after.packets + after.duplicates - before.packets - before.duplicates; n > 2 {
			t.Errorf("2 datagrams counted as %d", n)
		}
	})
}
