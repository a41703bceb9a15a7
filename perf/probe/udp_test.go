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
	p := newPattern(7)
	r := &receiver{pattern: p}
	b := newBurst(8, 64)
	at := time.Now()
	feed := func(hs ...header) {
		for i, h := range hs {
			p.put(b.buffer(i)[:40], toServer, h)
			b.msgs[i].len = 40
		}
		at = at.Add(time.Millisecond)
		r.count(b, len(hs), at)
	}
	feed(header{1, 0}, header{1, 2}, header{1, 1}, header{1, 2})
	feed(header{1, 3})
	got, _ := r.snapshot(1)
	if c := got.counts(); c.Packets != 4 || c.Reordered != 1 || c.Duplicates != 1 || c.Bytes != 160 || c.SpanNS != 1e6 {
		t.Errorf("trial 1: %+v", c)
	}
	feed(header{2, 2}, header{1, 4}, header{2, 3})
	b.msgs[0].len = 4 // shorter than a header
	r.count(b, 1, at)
	if s, _ := r.snapshot(2); s.packets != 2 || s.reordered != 0 || s.duplicates != 0 {
		t.Errorf("trial 2: %+v", s)
	}
	if s, _ := r.snapshot(1); s.packets != 0 {
		t.Errorf("trial 1 is still counted: %+v", s)
	}
	if all := r.total(); all.Packets != 7 || all.Duplicates != 1 || all.Reordered != 1 || all.CorruptPackets != 1 || all.Verified != 8*40+4 {
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
	a, err = dialUDP(context.Background(), Spec{}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.close)
	return a, b
}

func TestSendingAndCountingAllocateNothing(t *testing.T) {
	a, b := pair(t)
	var stop atomic.Bool
	tx := newSender(a, newPattern(1), 36, &stop)
	rx := &receiver{pattern: tx.pattern}
	batch := newBurst(udpBatch, 64)
	p := pacer{rate: 1e6}
	var seq uint64
	if n := testing.AllocsPerRun(200, func() {
		n := max(min(p.due(time.Duration(seq)), 16), 1)
		for i := range n {
			tx.fill(i, seq)
			seq++
		}
		taken := tx.sendAll(n)
		for taken > 0 {
			k, errno := b.recv(batch, 0)
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
	if all := rx.total(); all.Packets != seq || all.Duplicates+all.Reordered+all.Corrupt != 0 {
		t.Errorf("%d sent, counted %+v", seq, all)
	}
}

// What does not fit into a receiver's buffer is counted by the kernel, packet by packet.
func TestOverflowIsExact(t *testing.T) {
	a, b := pair(t)
	var stop atomic.Bool
	tx := newSender(a, newPattern(1), 1000, &stop)
	for b.overflow() < 10 {
		tx.sent += tx.sendAll(udpBatch)
	}
	lost := uint64(b.overflow())
	batch := newBurst(udpBatch, 1000)
	for kept := tx.sent - lost; kept > 0; {
		n, errno := b.recv(batch, 0)
		if errno != 0 {
			t.Fatalf("%d packets missing: %v", kept, errno)
		}
		kept -= uint64(n)
	}
	if n, errno := b.recv(batch, 0); errno == 0 {
		t.Errorf("%d packets too many", n)
	}
}

func TestSendErrorsHaveNames(t *testing.T) {
	a, _ := pair(t)
	var stop atomic.Bool
	tx := newSender(a, newPattern(1), 65520, &stop) // larger than a datagram can be
	if taken := tx.sendAll(3); taken != 0 {
		t.Errorf("the kernel took %d", taken)
	}
	if got := tx.errors.byName(); got["EMSGSIZE"] != 3 || len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// Whatever comes, each datagram is counted once: as new, as a duplicate or as corrupt.
func FuzzReceiver(f *testing.F) {
	p := newPattern(1)
	b := make([]byte, 40)
	p.put(b, toServer, header{1, 1})
	f.Add(b, b)
	p.put(b, toServer, header{1, 1<<48 - 1})
	f.Add(b, []byte{})
	r := &receiver{pattern: p}
	batch := newBurst(2, 128)
	f.Fuzz(func(t *testing.T, x, y []byte) {
		batch.msgs[0].len = uint32(copy(batch.buffer(0), x))
		batch.msgs[1].len = uint32(copy(batch.buffer(1), y))
		before := r.total()
		r.count(batch, 2, time.Time{})
		after := r.total()
		sum := func(c counts) uint64 { return c.Packets + c.Duplicates + c.CorruptPackets }
		if n := sum(after) - sum(before); n != 2 {
			t.Errorf("2 datagrams counted as %d", n)
		}
	})
}
