package probe

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pathPatience is how long the first datagram may take to get through: neighbours are resolved
	// and caches warmed by it, before anything is counted as loss.
	pathPatience = 3 * time.Second
	pathRetry    = 100 * time.Millisecond
)

// openUDP connects control and data for a UDP test and checks the size against the path.
func openUDP(ctx context.Context, s Spec, role string) (c *client, tx *sender, payload int, err error) {
	payload, err = udpPayload(s.param("size"), s.Target.Addr())
	if err != nil {
		return nil, nil, 0, err
	}
	if mix := s.mix(); mix != nil {
		payload = slices.Max(mix) - ipHeader(s.Target.Addr()) - udpHeader
	}
	c, ready, err := connect(ctx, s, job{Role: role, Payload: payload, GRO: s.param(gro.Name) == 1})
	if err != nil {
		return nil, nil, 0, err
	}
	conn, err := dialUDP(ctx, s, dataAddr(s, ready))
	if err != nil {
		c.close()
		return nil, nil, 0, fmt.Errorf("data socket: %w", err)
	}
	tx = newSender(conn, s.pattern(ready), payload, &c.stop)
	tx.limit = s.Limit
	mtu, err := conn.pathMTU(s.Target.Addr())
	switch {
	case err != nil: // the path will say
		err = nil
	case s.param(imix.Name) == 1:
		tx.sizes = payloads(imixSizes, mtu, s.Target.Addr())
		payload = slices.Max(tx.sizes)
	case max(s.param("size"), s.param(second.Name)) > mtu:
		err = tooLarge(s, mtu)
	}
	if s.param(second.Name) > 0 {
		tx.sizes = payloads(s.mix(), maxPacket, s.Target.Addr())
	}
	if err == nil && s.param(gso.Name) == 1 {
		err = tx.segment(payload)
	}
	if err != nil {
		tx.conn.close()
		c.close()
		return nil, nil, 0, err
	}
	return c, tx, payload, nil
}

func tooLarge(s Spec, mtu int) error {
	return fmt.Errorf("size %d: the path to %s carries IP packets of at most %d", max(s.param("size"), s.param(second.Name)), s.Target.Addr(), mtu)
}

// unreachable says why no datagram of a size came through; arrived are those that the server saw, and strangers what came instead.
func unreachable(s Spec, tx *sender, arrived, strangers uint64) error {
	if tx.errors[unix.EMSGSIZE] > 0 {
		if mtu, err := tx.conn.pathMTU(s.Target.Addr()); err == nil {
			return tooLarge(s, mtu)
		}
	}
	if strangers > 0 {
		return fmt.Errorf("%d UDP packets came through and none was as it was sent: the path damages them, or strangers send to the port", strangers)
	}
	if to, err := tx.conn.remote(); err == nil && s.Key != nil { // the ports are the operator's affair
		if arrived > 0 {
			return fmt.Errorf("UDP %s: %d packets of %d bytes arrived there, and no answer came back in %s, though TCP does: is UDP filtered in the direction back from port %d?",
				to, arrived, s.param("size"), pathPatience, to.Port())
		}
		return fmt.Errorf("UDP %s: no packet of %d bytes arrived there in %s, though TCP does: is UDP filtered in the direction to port %d, or a link's MTU smaller?",
			to, s.param("size"), pathPatience, to.Port())
	}
	return fmt.Errorf("no UDP packet of %d bytes came through in %s, though TCP does: is UDP filtered, or a link's MTU smaller?",
		s.param("size"), pathPatience)
}

// runTrials is the generator of a test that sends trials to a sink; measure decides which.
func runTrials(measure func(*trials, Spec, *Result) (map[string]float64, error)) func(context.Context, Spec, *Result) error {
	return func(ctx context.Context, s Spec, r *Result) error { return runUDP(ctx, s, r, measure) }
}

func runUDP(ctx context.Context, s Spec, r *Result, measure func(*trials, Spec, *Result) (map[string]float64, error)) error {
	c, tx, payload, err := openUDP(ctx, s, roleUDPSink)
	if err != nil {
		return err
	}
	defer c.close()
	defer tx.conn.close()
	r.Payload = payload
	lab := &trials{c: c, tx: tx}
	if err := lab.check(s); err != nil {
		return err
	}
	begin := time.Now()
	values, err := measure(lab, s, r)
	if err = c.blame(err); err != nil {
		return err
	}
	r.Seconds = time.Since(begin).Seconds()
	all, err := c.finish()
	if err != nil {
		return err
	}
	r.Generated, r.Delivered = tx.sent, all.Packets
	r.Duplicates, r.Reordered, r.Bytes, r.Integrity = all.Duplicates, all.Reordered, all.Bytes, all.Integrity
	r.KernelDrops = map[string]uint64{socketOverflow: all.Overflow}
	r.SendErrors = tx.errors.byName()
	r.report(values)
	return nil
}

// socketOverflow names the drops of a receiving socket whose buffer was full.
const socketOverflow = "socket-overflow"

func measureStream(l *trials, s Spec, r *Result) (map[string]float64, error) {
	t, err := l.run(s.Params["rate"]/8/float64(r.Payload), s.Duration)
	if err != nil {
		return nil, err
	}
	r.Trials = []Trial{t}
	return map[string]float64{"throughput": t.Rate * float64(r.Payload) * 8, "loss": t.Loss}, nil
}

func measureRate(l *trials, s Spec, r *Result) (map[string]float64, error) {
	found, err := search(l.run, sinceNow(), s.Duration)
	r.Trials, r.Unanswered = found.trials, found.lacking()
	if r.Unanswered != "" {
		return nil, err
	}
	return map[string]float64{"rate": found.best.Rate, "loss": found.best.Loss}, err
}

// measureOverload gives the search two thirds of the time, and the overload the last.
func measureOverload(l *trials, s Spec, r *Result) (map[string]float64, error) {
	found, err := search(l.run, sinceNow(), s.Duration*2/3)
	r.Trials, r.Unanswered = found.trials, found.lacking()
	if err != nil || r.Unanswered != "" {
		return nil, err
	}
	t, err := l.run(found.best.Rate*s.Params["factor"], s.Duration/3)
	r.Trials = append(r.Trials, t)
	if asked := found.best.Rate * s.Params["factor"]; t.Offered < keptUp*asked {
		r.Notes = append(r.Notes, fmt.Sprintf("the sender reached %.0f of the %.0f packet/s to offer", t.Offered, asked))
	}
	return map[string]float64{"rate": t.Rate}, err
}

func sinceNow() func() time.Duration {
	begin := time.Now()
	return func() time.Duration { return time.Since(begin) }
}

// Trial is one burst of packets at one rate and what became of it.
type Trial struct {
	Target    float64 `json:"target"`  // packet/s asked for; 0 = flat out
	Offered   float64 `json:"offered"` // packet/s the sender reached
	Rate      float64 `json:"rate"`    // packet/s delivered
	Loss      float64 `json:"loss"`    // ratio
	Seconds   float64 `json:"seconds"`
	Sent      uint64  `json:"sent"`
	Received  uint64  `json:"received"`
	Corrupt   uint64  `json:"corrupt,omitempty"`   // received, but not as sent; neither received nor lost
	Overflow  uint64  `json:"overflow,omitempty"`  // lost in the receiver's socket
	Confirmed bool    `json:"confirmed,omitempty"` // a long trial that judges what the short ones found
}

// keptUp is the share of the asked rate below which a note says that the sender was the limit.
const keptUp = 0.97

// trials runs trials on a session.
type trials struct {
	c        *client
	tx       *sender
	overflow uint64 // as of the last trial
	corrupt  uint64 // datagrams, as of the last trial
}

// check sends single datagrams until one arrives.
func (l *trials) check(s Spec) error {
	var strangers uint64
	for begin := time.Now(); time.Since(begin) < pathPatience; {
		o := l.tx.run(1, time.Nanosecond)
		c, err := l.count(o.packets)
		if err != nil {
			return err
		}
		if c.Packets > 0 {
			return nil
		}
		strangers = c.Strangers
		if l.tx.errors[unix.EMSGSIZE] > 0 {
			break
		}
		time.Sleep(pathRetry)
	}
	return unreachable(s, l.tx, 0, strangers)
}

// count asks what arrived of the last trial.
func (l *trials) count(sent uint64) (counts, error) {
	m, err := l.c.ask(message{Type: msgCount, Trial: l.tx.trial, Sent: sent}, msgCounts, controlTimeout)
	if err != nil {
		return counts{}, err
	}
	return *m.Counts, nil
}

// run sends one trial and has it counted. With rate 0 it sends flat out.
func (l *trials) run(rate float64, length time.Duration) (Trial, error) {
	o := l.tx.run(rate, length)
	c, err := l.count(o.packets)
	if err != nil {
		return Trial{}, err
	}
	if o.packets == 0 {
		return Trial{}, fmt.Errorf("the kernel took no packet: %v", l.tx.errors.byName())
	}
	corrupt := c.CorruptPackets - l.corrupt // they are not lost
	t := Trial{
		Target: rate, Offered: o.rate(), Seconds: o.span.Seconds(), Sent: o.packets, Received: c.Packets, Corrupt: corrupt,
		Loss: 1 - float64(c.Packets+corrupt)/float64(o.packets), Overflow: c.Overflow - l.overflow,
	}
	// Delivered per second of whichever took longer: what was still queued when the sender had
	// ended was not carried at the sender's rate.
	t.Rate = float64(c.Packets) / max(o.span, time.Duration(c.SpanNS)).Seconds()
	l.overflow, l.corrupt = c.Overflow, c.CorruptPackets
	return t, nil
}

// runUDPRoundTrips bounces one datagram. A lost one is waited for no longer than lostAfter.
func runUDPRoundTrips(ctx context.Context, s Spec, r *Result) error {
	t, err := openRoundTrips(ctx, s)
	if err != nil {
		return err
	}
	defer t.close()
	values, err := t.run(s.Duration, r)
	r.report(values)
	return err
}

// roundTrips is a session of round trips, over a path that has answered.
type roundTrips struct {
	*client
	b       *bouncer
	payload int
}

func openRoundTrips(ctx context.Context, s Spec) (*roundTrips, error) {
	c, tx, payload, err := openUDP(ctx, s, roleUDPEcho)
	if err != nil {
		return nil, err
	}
	t := &roundTrips{c, &bouncer{sender: tx, reply: make([]byte, payload+1)}, payload}
	if err := t.b.reach(c, s); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *roundTrips) close() {
	t.b.conn.close()
	t.client.close()
}

// run bounces for a length of time, and returns the figures: those of latency, and the share of requests without a reply.
func (t *roundTrips) run(length time.Duration, r *Result) (map[string]float64, error) {
	b, h := t.b, new(histogram)
	elapsed, err := repeat(t.client, length, h, func() (bool, error) { return b.bounce(lostAfter), nil })
	if err != nil {
		return nil, err
	}
	b.drain()
	all, err := t.finish()
	if err != nil {
		return nil, err
	}
	r.Payload, r.Seconds, r.Transactions = t.payload, elapsed.Seconds(), h.total
	r.Generated = b.sent + all.Replies
	r.Delivered = all.Packets + b.replies
	r.Duplicates = all.Duplicates + b.duplicates
	r.Bytes = all.Bytes
	r.Add(all.Integrity)
	r.Add(b.checked)
	r.KernelDrops = map[string]uint64{socketOverflow: all.Overflow + uint64(b.conn.overflow())}
	r.SendErrors = b.errors.byName()
	r.Latency = h.distribution()
	missing := b.seq - min(b.seq, b.replies+r.CorruptPackets)
	if missing > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d of %d requests had no reply; they are in no latency", missing, b.seq))
	}
	values := h.metrics(elapsed)
	values["loss"] = float64(missing) / float64(b.seq)
	return values, nil
}

// lostAfter is when a reply counts as lost.
const lostAfter = 200 * time.Millisecond

// bouncer is the client of udp-rr.
type bouncer struct {
	*sender
	reply      []byte
	checked    Integrity
	win        window
	seq        uint64 // of the next request
	replies    uint64
	duplicates uint64
}

// reach sends requests until one is answered.
func (b *bouncer) reach(c *client, s Spec) error {
	reached := false
	for begin := time.Now(); !reached && time.Since(begin) < pathPatience && !c.stop.Load(); {
		reached = b.bounce(pathRetry)
		if b.errors[unix.EMSGSIZE] > 0 {
			break
		}
	}
	if err := c.failed(); err != nil {
		return err
	}
	if !reached {
		all, err := c.finish()
		if err != nil {
			return err
		}
		return unreachable(s, b.sender, all.Packets, all.Strangers+b.checked.CorruptPackets)
	}
	return nil
}

// bounce sends a request and waits for its reply, and not for a late one's.
func (b *bouncer) bounce(patience time.Duration) (completed bool) {
	seq := b.seq
	b.seq++
	b.trial = 1
	b.fill(0, seq)
	request := b.batch.buffer(0)
	if _, err := unix.Write(int(b.conn), request); err != nil {
		if errno, ok := err.(unix.Errno); ok {
			b.errors.add(errno)
		}
		nap(time.Millisecond) // a path that refuses is not asked in a tight loop
		return false
	}
	b.sent++
	good := false
	b.await(patience, func(h header, ok bool) bool {
		good = ok && h.seq == seq
		return good || !ok // whose reply a damaged one was is not known, but one request is on the way
	})
	return good
}

// drain takes the replies that are still on their way, so that none counts as lost for being late.
func (b *bouncer) drain() {
	missing := func() bool { return b.replies+b.checked.CorruptPackets < b.sent }
	if missing() {
		b.await(lostAfter, func(header, bool) bool { return !missing() })
	}
}

// await takes replies until enough says so of one, which may be damaged, or none comes for the length of patience.
func (b *bouncer) await(patience time.Duration, enough func(h header, ok bool) bool) {
	var begin time.Time // read the clock only when a wait was in vain
	for !b.stop.Load() {
		n, err := unix.Read(int(b.conn), b.reply)
		if err != nil {
			if begin.IsZero() {
				begin = time.Now().Add(-tick)
			}
			if time.Since(begin) >= patience {
				return
			}
			continue
		}
		h, ok := b.checked.datagram(b.pattern, b.reply[:n], toClient)
		if ok {
			if b.win.see(h.seq) == duplicate {
				b.duplicates++
				continue
			}
			b.replies++
		}
		if enough(h, ok) {
			return
		}
	}
}
