package probe

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// udpBatch is how many datagrams one system call moves at most.
const udpBatch = 64

// sender sends trials of paced datagrams. One thread uses it.
type sender struct {
	conn socket
	*pattern
	trial  uint16 // the last one sent
	batch  *burst
	stop   *atomic.Bool
	errors errnos
	sent   uint64 // packets the kernel took, all trials

	sizes    []int // payloads in turn, bytes; nil = all of the batch's
	segments int   // datagrams of a super-packet at most; 0 = each by itself
	limit    Limit
}

// errnos counts refused packets by error number, without allocating.
type errnos [134]uint64 // EHWPOISON is 133

func (e *errnos) add(errno syscall.Errno) { e[min(int(errno), len(e)-1)]++ }

func (e *errnos) byName() map[string]uint64 {
	var names map[string]uint64
	for i, n := range e {
		if n > 0 {
			if names == nil {
				names = map[string]uint64{}
			}
			names[unix.ErrnoName(syscall.Errno(i))] += n
		}
	}
	return names
}

func newSender(conn socket, p *pattern, payload int, stop *atomic.Bool) *sender {
	return &sender{conn: conn, pattern: p, batch: newBurst(udpBatch, payload), stop: stop}
}

// fill makes datagram i of the batch the one of that number.
func (s *sender) fill(i int, seq uint64) {
	b := s.batch.buffer(i)
	if s.sizes != nil {
		b = b[:s.sizes[seq%uint64(len(s.sizes))]]
		s.batch.iovs[i].SetLen(len(b))
	}
	s.put(b, toServer, header{s.trial, seq})
}

// offered is what one trial put on the wire.
type offered struct {
	packets uint64        // the kernel took
	span    time.Duration // from the first packet's time to the last
}

func (o offered) rate() float64 {
	if o.span <= 0 {
		return 0
	}
	return float64(o.packets) / o.span.Seconds()
}

// run sends for length at rate packets a second, or flat out with rate 0.
//
// The schedule is absolute: packet n is due at n/rate, however late the packets before it were (no coordinated
// omission). What is due goes out in one system call; then the thread sleeps, never less than a
// quantum, so that the forwarder that shares its core gets the core, and processor time is
// what sending costs and not what waiting costs.
func (s *sender) run(rate float64, length time.Duration) offered {
	s.trial++
	rate = s.limit.rate(rate, len(s.batch.buffer(0)))
	var o offered
	p := pacer{rate: rate}
	var seq uint64
	clock, last := startClock(), -quantum
	for now := time.Duration(0); now < length && !s.stop.Load(); now = clock.now() {
		n := p.due(now)
		if n == 0 {
			nap(min(p.next(now), length) - now)
			continue
		}
		// Super-packets are for what gathers in a quantum. Above some rate something is due whenever a send has
		// returned, and there would be no more super-packets, nor a sleep.
		if early := last + quantum - now; n < s.segments && rate > 0 && early > 0 {
			nap(early)
			continue
		}
		last = now
		n = min(n, udpBatch)
		for i := range n {
			s.fill(i, seq)
			seq++
		}
		o.packets += s.sendAll(n)
		p.done += float64(n)
		o.span = time.Since(clock.begin)
	}
	if rate > 0 { // the last packet stands for an interval, as all the others do
		o.span = max(o.span, time.Duration(p.done/rate*1e9))
	}
	s.sent += o.packets
	return o
}

// sendAll offers the first n datagrams of the batch to the kernel and counts those it refuses.
func (s *sender) sendAll(n int) (taken uint64) {
	for i := 0; i < n && !s.stop.Load(); {
		k, errno := s.give(i, n)
		switch {
		case errno == 0:
			i += k
			taken += uint64(k)
		case errno == unix.EINTR || errno == unix.EAGAIN: // EAGAIN: no room within a tick
		default:
			s.errors.add(errno)
			i++
		}
	}
	return taken
}

const (
	// quantum is the shortest sleep between sends. Above 1/quantum packets a second, packets go out
	// in bursts of rate × quantum: 10 at 200,000/s, far below any queue on the way.
	quantum = 50 * time.Microsecond

	// maxLag bounds the burst that makes up for a sender held up: what is due longer than this is given up,
	// and the trial offers less than asked for. Without it, one hiccup of the sender
	// would overflow a queue and look like the path's loss.
	maxLag = time.Millisecond
)

// pacer says how many packets are due. Rate 0 means always a full batch.
type pacer struct {
	rate float64 // packets a second
	done float64 // packets sent or given up
}

// due is the number of packets whose time has come.
func (p *pacer) due(now time.Duration) int {
	if p.rate == 0 {
		return udpBatch
	}
	due := p.rate*now.Seconds() + 1 - p.done // the first is due at once
	if most := max(p.rate*maxLag.Seconds(), 1); due > most {
		p.done += due - most
		due = most
	}
	return int(max(due, 0))
}

// next is when to look again.
func (p *pacer) next(now time.Duration) time.Duration {
	at := time.Duration(p.done / p.rate * 1e9)
	return max(at, now+quantum)
}

// window tells new packets from duplicates among the last windowSize sequence numbers of a trial.
type window struct {
	seen [windowSize / 64]uint64
	next uint64 // highest sequence number + 1
}

const windowSize = 1 << 20 // a second at a million packets a second

type verdict int

const (
	inOrder verdict = iota
	reordered
	duplicate
)

// see records a sequence number. One too old for the window is taken for reordered.
func (w *window) see(seq uint64) verdict {
	bit := uint64(1) << (seq % 64)
	word := &w.seen[seq/64%uint64(len(w.seen))]
	if seq >= w.next {
		w.clear(w.next, seq)
		*word |= bit
		w.next = seq + 1
		return inOrder
	}
	if w.next-seq > windowSize {
		return reordered
	}
	if *word&bit != 0 {
		return duplicate
	}
	*word |= bit
	return reordered
}

// clear forgets what the bits of [from, to] stood for a window ago.
func (w *window) clear(from, to uint64) {
	if to-from >= windowSize {
		w.seen = [windowSize / 64]uint64{}
		return
	}
	for seq := from; seq <= to; {
		word := &w.seen[seq/64%uint64(len(w.seen))]
		if seq%64 == 0 && to-seq >= 63 {
			*word = 0
			seq += 64
			continue
		}
		*word &^= 1 << (seq % 64)
		seq++
	}
}

// receiver checks and counts the datagrams of a client. Its thread calls count; others call snapshot.
type receiver struct {
	*pattern
	win window

	mu    sync.Mutex
	trial uint16
	now   tally // the trial's
	all   tally // everything, late packets of earlier trials included
	Integrity
}

type tally struct {
	packets, duplicates, reordered, bytes, replies uint64

	first, last time.Time // arrivals
}

func (t *tally) add(v verdict, payload int) {
	switch v {
	case duplicate:
		t.duplicates++
		return
	case reordered:
		t.reordered++
	}
	t.packets++
	t.bytes += uint64(payload)
}

func (t *tally) counts() counts {
	return counts{
		Packets: t.packets, Duplicates: t.duplicates, Reordered: t.reordered, Bytes: t.bytes,
		Replies: t.replies, SpanNS: t.last.Sub(t.first).Nanoseconds(),
	}
}

// count takes the n messages of a batch that arrived by now, each a datagram or several joined.
func (r *receiver) count(b *burst, n int, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range n {
		data, each := b.received(i), b.segment(i)
		for len(data) > each {
			r.take(data[:each], now)
			data = data[each:]
		}
		r.take(data, now)
	}
}

// one takes a datagram that came by itself, and says whether it is as it was sent.
func (r *receiver) one(data []byte) (h header, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(data, time.Now())
}

// take checks and counts one datagram. The caller holds r.mu.
func (r *receiver) take(data []byte, now time.Time) (h header, ok bool) {
	if h, ok = r.datagram(r.pattern, data, toServer); !ok { // of which trial, only its header could say
		r.now.last = now
		return h, false
	}
	switch {
	case h.trial == r.trial:
	case int16(h.trial-r.trial) > 0:
		r.trial, r.now = h.trial, tally{first: now}
		r.win.next = 0
	default: // late: it belongs to a trial already judged
		r.all.add(inOrder, len(data))
		return h, true
	}
	v := r.win.see(h.seq)
	r.now.add(v, len(data))
	r.all.add(v, len(data))
	r.now.last = now
	return h, true
}

// snapshot returns what arrived of a trial, and when the last of it did, and the corrupt datagrams so far, of any trial.
func (r *receiver) snapshot(trial uint16) (t tally, corrupt uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if trial != r.trial {
		return tally{}, r.CorruptPackets
	}
	return r.now, r.CorruptPackets
}

// total is everything that arrived.
func (r *receiver) total() counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.all.counts()
	c.Integrity = r.Integrity
	return c
}
