package xdp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// Accounting: every frame of a UMEM is in exactly one place.

// audit lists every frame of a queue pair's memory at a quiet moment and says which are missing or in two places. It returns how
// many are where.
func audit(t *testing.T, u *umem, pairs []*pair, held ...*packet.Batch) map[string]int {
	t.Helper()
	count, err := places(u, pairs, nil, held...)
	if err != nil {
		t.Error(err)
	}
	return count
}

// places is audit while the kernel holds some frames that are in no ring.
func places(u *umem, pairs []*pair, kernels []uint64, held ...*packet.Batch) (count map[string]int, err error) {
	where := make(map[uint64]string, u.frames)
	add := func(f uint64, place string) {
		f &^= u.size - 1
		if other, twice := where[f]; twice {
			err = errors.Join(err, fmt.Errorf("frame %#x is in %s and in %s", f, other, place))
		}
		if f >= uint64(len(u.mem)) {
			err = errors.Join(err, fmt.Errorf("%s holds %#x, which is no frame", place, f))
		}
		where[f] = place
	}
	for _, f := range u.reserve {
		add(f, "reserve")
	}
	for _, f := range kernels {
		add(f, "the kernel")
	}
	for _, q := range pairs {
		// The fill and TX rings are ours to produce and the kernel's to consume, the others the reverse.
		for i := atomic.LoadUint32(q.rx.fill.consumer); i != q.rx.fill.mine; i++ {
			add(q.rx.fill.entries[i&q.rx.fill.mask], "fill")
		}
		for i := q.rx.rx.mine; i != atomic.LoadUint32(q.rx.rx.producer); i++ {
			add(q.rx.rx.entries[i&q.rx.rx.mask].Addr, "RX")
		}
		for i := atomic.LoadUint32(q.tx.tx.consumer); i != q.tx.tx.mine; i++ {
			add(q.tx.tx.entries[i&q.tx.tx.mask].Addr, "TX")
		}
		for i := q.tx.completion.mine; i != atomic.LoadUint32(q.tx.completion.producer); i++ {
			add(q.tx.completion.entries[i&q.tx.completion.mask], "completion")
		}
		for _, f := range q.tx.free {
			if f%u.size != 0 {
				err = errors.Join(err, fmt.Errorf("%#x is free, which is no frame", f))
			}
			add(f, "free")
		}
	}
	for _, b := range held {
		for i := range b.Slots() {
			if f, ok := u.owner(b.Slots()[i].Memory()); ok {
				add(f, "slot")
			}
		}
	}
	if len(where) != u.frames {
		err = errors.Join(err, fmt.Errorf("%d frames are accounted for, of %d", len(where), u.frames))
	}
	count = map[string]int{}
	for _, place := range where {
		count[place]++
	}
	return count, err
}

// own is the rings of our own.
func own(rings []Rings) (all []*pair) {
	for _, r := range rings {
		all = append(all, r.(*pair))
	}
	return all
}

// count holds the lane's side of the account, exactly and under load: what was put into the fill ring and not yet
// received is a full ring, what was sent and not yet completed plus what is free is another.
func (q *pair) count(t *testing.T) {
	t.Helper()
	if n := q.rx.fill.mine - q.rx.rx.mine; n != q.rx.rx.mask+1 {
		t.Fatalf("%d frames in the receiver's rings, want %d", n, q.rx.rx.mask+1)
	}
}

func (q *pair) countSent(t *testing.T) {
	t.Helper()
	if n := q.tx.tx.mine - q.tx.completion.mine + uint32(len(q.tx.free)); n != q.tx.tx.mask+1 {
		t.Fatalf("%d frames in the sender's rings and list, want %d", n, q.tx.tx.mask+1)
	}
}

// settled waits until the kernel holds no frame that is in neither ring: nothing is being received or sent.
func settled(t *testing.T, pairs []*pair) {
	t.Helper()
	until(t, "quiet rings", func() bool {
		for _, q := range pairs {
			received := atomic.LoadUint32(q.rx.rx.producer)
			if atomic.LoadUint32(q.rx.fill.consumer) != received {
				return false
			}
			if atomic.LoadUint32(q.tx.tx.consumer) != q.tx.tx.mine || atomic.LoadUint32(q.tx.completion.producer) != q.tx.tx.mine {
				return false
			}
		}
		return true
	})
}

// TestAccounting pushes 100,000 packets, a million with WEFT_TEST_LONG=1, through a pair in both directions at once, with stages
// that drop some, packets too large to send, devices on either side that go down and up, and a peer that dies and comes back; and
// then finds every frame.
func TestAccounting(t *testing.T) {
	total := 100_000
	if os.Getenv("WEFT_TEST_LONG") != "" {
		total = 1_000_000
	}
	u := newUnderlay(t)
	c := testConfig()
	c.RingSize = 512
	inside, outside := openBoth(t, u, c)
	hop := hopTo(addrsB[0])
	resolve(t, outside, hop)
	u.b.MustRun(t, "ethtool", "-K", "eth0", "tx", "off")
	far := datagrams(t, u.b, addrsB[0], testPort)
	host := sniff(t, u.a, "weft0", true)
	inner := packettest.UDP(netip.MustParseAddrPort("10.244.1.2:1000"), netip.MustParseAddrPort("10.244.2.3:2000"), 100, 1)

	var carried [2]atomic.Int64
	var enough atomic.Bool
	var dropped [2]packet.Drops
	lane := func(dir int, from, to packet.Queue, in, out *pair) *packet.Batch {
		b := packettest.NewBatch(from, packet.BatchSize, 0)
		random := rand.New(rand.NewPCG(uint64(dir), 7))
		for !enough.Load() {
			if err := from.Recv(b); err != nil {
				t.Error(err)
				return b
			}
			in.count(t)
			carried[dir].Add(int64(b.Len()))
			packets := b.Packets()
			for i := range packets {
				p := &packets[i]
				p.Hop, p.Flow = hop, random.Uint32()
				switch random.IntN(20) {
				case 0:
					p.Drop = packet.NoRoute
				case 1:
					p.Resize(1500) // larger than either side takes
				case 2:
					p.Prepend(8)
				}
			}
			b.Compact(&dropped[dir])
			if err := to.Send(b); err != nil {
				t.Error(err)
				return b
			}
			b.Compact(&dropped[dir])
			out.countSent(t)
		}
		return b
	}

	stop := make(chan struct{})
	halt := sync.OnceFunc(func() { close(stop) })
	var feeders, lanes sync.WaitGroup
	feed := func(send func() error) {
		feeders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = send() // fails while the link is down
				}
			}
		})
	}
	feed(func() error { return host.write(inner) })
	feed(func() error { _, err := far.WriteToUDPAddrPort(inner, hopTo(addrsA[0]).Path.Dst); return err })
	batches := make([]*packet.Batch, 2)
	lanes.Go(func() {
		batches[0] = lane(0, inside.Queues()[0], outside.Queues()[0], own(inside.rings)[0], own(outside.rings)[0])
	})
	lanes.Go(func() {
		batches[1] = lane(1, outside.Queues()[0], inside.Queues()[0], own(outside.rings)[0], own(inside.rings)[0])
	})
	t.Cleanup(func() { // where the test has failed half-way
		enough.Store(true)
		inside.Close()
		outside.Close()
		lanes.Wait()
		halt()
		feeders.Wait()
	})
	progress := func() int { return int(carried[0].Load() + carried[1].Load()) }
	for i := 0; progress() < total; i++ {
		next := progress() + total/50
		until(t, "packets to be carried", func() bool { return progress() >= next })
		switch i % 10 {
		case 1: // the underlay, at our end
			u.a.MustRun(t, "ip", "link", "set", "eth0", "down")
		case 2:
			u.a.MustRun(t, "ip", "link", "set", "eth0", "up")
		case 3: // and at the far end
			u.b.MustRun(t, "ip", "link", "set", "eth0", "down")
		case 4:
			u.b.MustRun(t, "ip", "link", "set", "eth0", "up")
		case 5: // the peer is gone: nobody answers for its address
			u.b.MustRun(t, "ip", "addr", "del", addrsB[0].String()+"/24", "dev", "eth0")
			u.a.MustRun(t, "ip", "neigh", "flush", "dev", "eth0")
		case 6:
			u.b.MustRun(t, "ip", "addr", "add", addrsB[0].String()+"/24", "dev", "eth0")
		case 7:
			u.a.MustRun(t, "ip", "link", "set", "weft0", "down")
		case 8:
			u.a.MustRun(t, "ip", "link", "set", "weft0", "up")
		}
	}
	for _, ns := range []*nettest.NS{u.a, u.b} { // whatever came last
		ns.MustRun(t, "ip", "link", "set", "eth0", "up")
	}
	u.b.MustRun(t, "ip", "addr", "replace", addrsB[0].String()+"/24", "dev", "eth0")
	u.a.MustRun(t, "ip", "link", "set", "weft0", "up")
	enough.Store(true)
	lanes.Wait()
	halt()
	feeders.Wait()
	both := []*pair{own(inside.rings)[0], own(outside.rings)[0]}
	for _, q := range both {
		q.tx.again() // what waits for a link that is up again
	}
	settled(t, both)
	umem := own(inside.rings)[0].umem
	t.Logf("%d frames: %v", umem.frames, audit(t, umem, both, batches...))
	t.Logf("carried %d and %d, dropped %v and %v, kernel %v and %v", carried[0].Load(), carried[1].Load(),
		dropped[0].Map(), dropped[1].Map(), inside.KernelDrops(), outside.KernelDrops())
	for dir, name := range []string{"out", "in"} {
		if dropped[dir][packet.TooBig] == 0 || dropped[dir][packet.NoRoute] == 0 {
			t.Errorf("lane %s: no packet was too big, or dropped by a stage: %v", name, dropped[dir].Map())
		}
	}
	if dropped[0][packet.Unresolved] == 0 {
		t.Errorf("no packet to a dead peer: %v", dropped[0].Map())
	}
	if st := outside.Statistics(); st.Rx_invalid_descs+st.Tx_invalid_descs != 0 {
		t.Errorf("invalid descriptors: %+v", st)
	}
}
