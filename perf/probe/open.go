package probe

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// openTrial is the trial of the datagrams that are timed; the first asks whether the path is there.
const openTrial = 2

// runUDPOpenRoundTrips sends datagrams on a schedule, whether or not the replies to earlier ones have come (an open loop), and counts each
// round trip from when the request was due. So a path, or a generator, that is held up for a while is late for all that was due
// meanwhile, where one request at a time would simply have asked less often (coordinated omission).
func runUDPOpenRoundTrips(ctx context.Context, s Spec, r *Result) error {
	c, tx, payload, err := openUDP(ctx, s, roleUDPEcho)
	if err != nil {
		return err
	}
	defer c.close()
	defer tx.conn.close()
	first := &bouncer{sender: tx, reply: make([]byte, payload+1)}
	if err := first.reach(c, s); err != nil {
		return err
	}
	// A thread that sleeps in the kernel keeps its place in Go's scheduler until the monitor takes it away, up to 10 ms later. The two here must not
	// wait for each other's, also where the process has one core.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 3)))
	o := newOpenLoop(tx, s.Limit.rate(s.Params["rate"], payload), payload)
	wait := background(o.receive)
	span := o.send(s.Duration)
	o.linger()
	o.over.Store(true)
	wait()
	if err := c.failed(); err != nil {
		return err
	}
	if o.replies == 0 {
		return fmt.Errorf("no reply within %s", s.Duration)
	}
	all, err := c.finish()
	if err != nil {
		return err
	}
	r.Payload, r.Seconds, r.Transactions = payload, span.Seconds(), o.replies
	r.Generated = tx.sent + all.Replies
	r.Delivered = all.Packets + first.replies + o.replies
	r.Duplicates = all.Duplicates + first.duplicates + o.duplicates
	r.Bytes = all.Bytes
	r.Add(all.Integrity)
	r.Add(first.checked)
	r.Add(o.checked)
	r.KernelDrops = map[string]uint64{socketOverflow: all.Overflow + uint64(tx.conn.overflow())}
	r.SendErrors = tx.errors.byName()
	r.Latency = o.times.distribution()
	values := o.times.metrics(max(span, o.last))
	missing := o.due - min(o.due, o.replies+r.CorruptPackets)
	values["loss"] = float64(missing) / float64(o.due)
	r.report(values)
	if missing > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d of %d requests had no reply; they are in no latency", missing, o.due))
	}
	return nil
}

// openLoop is the client of udp-open-rr: one thread sends, one receives.
type openLoop struct {
	*sender
	rate  float64 // packets a second
	begin time.Time
	from  uint64        // packets that the sender had sent before
	due   uint64        // requests whose time came; the sender's until it has ended
	over  atomic.Bool   // nothing more is waited for
	heard atomic.Uint64 // replies so far

	// The receiver's until it has ended.
	reply      []byte
	checked    Integrity
	win        window
	times      histogram
	replies    uint64
	duplicates uint64
	last       time.Duration // when the last one came
}

func newOpenLoop(tx *sender, rate float64, payload int) *openLoop {
	tx.trial = openTrial
	return &openLoop{sender: tx, rate: rate, from: tx.sent, reply: make([]byte, payload+1), begin: time.Now()}
}

// at is when request seq is due, since begin.
func (o *openLoop) at(seq uint64) time.Duration { return time.Duration(float64(seq) / o.rate * 1e9) }

// send sends what is due until length is over. Nothing is given up: what a held-up thread could not send in time goes out at once, late.
func (o *openLoop) send(length time.Duration) time.Duration {
	clock := startClock()
	clock.begin = o.begin
	for !o.stop.Load() {
		now := clock.now()
		n := 0
		for ; n < udpBatch && o.at(o.due) <= min(now, length); n++ {
			o.fill(n, o.due)
			o.due++
		}
		switch {
		case n > 0:
			o.sent += o.sendAll(n)
		case o.at(o.due) > length:
			return length
		default:
			nap(o.at(o.due) - now)
		}
	}
	return time.Since(o.begin)
}

// receive times replies until over.
func (o *openLoop) receive() {
	clock := startClock()
	clock.begin = o.begin
	for !o.over.Load() && !o.stop.Load() {
		n, err := unix.Read(int(o.conn), o.reply)
		now := clock.now()
		if err != nil {
			continue
		}
		h, ok := o.checked.datagram(o.pattern, o.reply[:n], toClient)
		if !ok || h.trial != openTrial {
			continue
		}
		if o.win.see(h.seq) == duplicate {
			o.duplicates++
			continue
		}
		o.times.record(now - o.at(h.seq))
		o.replies++
		o.heard.Store(o.replies)
		o.last = now
	}
}

// linger waits for the replies that are still on their way; none is, once none has come for lostAfter.
func (o *openLoop) linger() {
	heard, since := o.heard.Load(), time.Now()
	for heard < o.sent-o.from && time.Since(since) < lostAfter && !o.stop.Load() {
		time.Sleep(time.Millisecond)
		if now := o.heard.Load(); now != heard {
			heard, since = now, time.Now()
		}
	}
}
