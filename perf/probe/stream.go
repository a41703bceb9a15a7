package probe

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// counter has a cache line of its own: one thread adds, others read.
type counter struct {
	atomic.Uint64
	_ [56]byte
}

// runTCPStream fills TCP connections for the duration, or writes at a fixed rate (cpu-fixed). The receiver's
// clock decides: its first byte starts the duration, and it says when that is over.
func runTCPStream(ctx context.Context, s Spec, r *Result) error {
	return stream(ctx, s, r, func() {})
}

// stream is runTCPStream that says when it has begun.
func stream(ctx context.Context, s Spec, r *Result, begun func()) error {
	flows := max(s.param("flows"), 1)
	c, ready, err := connect(ctx, s, job{Role: roleTCPSink, Flows: flows, Congestion: s.Congestion})
	if err != nil {
		return err
	}
	defer c.close()
	conns, err := dialFlows(ctx, s, ready, flows)
	if err != nil {
		return err
	}
	defer closeAll(conns)
	r.Congestion, r.Payload = conns[0].congestion(), frameSize

	// Answered when the server has all connections; sent payload is ignored by a sink.
	if _, err := c.ask(message{Type: msgStart, Payload: frameSize}, msgReady, 2*controlTimeout); err != nil {
		return err
	}
	p := s.pattern(ready)
	errs := make([]error, flows)
	waits := make([]func(), flows)
	for i, conn := range conns {
		waits[i] = background(func() {
			errs[i] = fill(conn, p, i, s.Limit.bytes(s.Params["rate"]/8)/float64(flows), &c.stop)
			c.stop.Store(true) // one lost connection ends the test
		})
	}
	begun()
	m, err := c.await(msgCounts, s.Duration+2*controlTimeout)
	c.stop.Store(true)
	for _, wait := range waits {
		wait()
	}
	for _, ferr := range errs {
		if err == nil && ferr != nil {
			err = fmt.Errorf("data connection: %w", ferr)
		}
	}
	if err != nil {
		return err
	}
	for _, conn := range conns {
		if info, err := conn.tcpInfo(); err == nil {
			r.Retransmits += uint64(info.Total_retrans)
		}
		_ = unix.Shutdown(int(conn), unix.SHUT_WR) // the server reads to the end
	}
	all, err := c.finish()
	if err != nil {
		return err
	}
	r.Integrity = all.Integrity
	r.Seconds = time.Duration(m.Counts.SpanNS).Seconds()
	r.Bytes, r.Intervals = m.Counts.Bytes, m.Counts.Intervals
	throughput := 0.0
	if r.Seconds > 0 {
		throughput = float64(r.Bytes) * 8 / r.Seconds
	}
	r.report(map[string]float64{"throughput": throughput})
	return nil
}

// introduction is the trial of the headers that introduce data connections; their sequence number is the flow's.
const introduction = 1<<16 - 1

// dialFlows opens the data connections, each introduced by a header.
func dialFlows(ctx context.Context, s Spec, ready message, n int) ([]socket, error) {
	var conns []socket
	p := s.pattern(ready)
	for flow := range n {
		dialCtx, cancel := context.WithTimeout(ctx, controlTimeout)
		conn, err := dialTCP(dialCtx, s, dataAddr(s, ready))
		cancel()
		if err == nil {
			conns = append(conns, conn)
			intro := make([]byte, probeHeader)
			p.put(intro, toServer, header{introduction, uint64(flow)})
			_, err = conn.writeFull(intro, new(atomic.Bool))
		}
		if err != nil {
			closeAll(conns)
			return nil, fmt.Errorf("data connection: %w", s.silent(dataAddr(s, ready), err))
		}
	}
	return conns, nil
}

// fill writes a flow's frames until stop, at bytesPerSecond or, with 0, as fast as the connection takes them.
func fill(conn socket, p *pattern, flow int, bytesPerSecond float64, stop *atomic.Bool) error {
	clock := startClock()
	written := 0.0
	for n := uint64(0); ; n, written = n+1, written+frameSize {
		due := time.Duration(0)
		if bytesPerSecond > 0 {
			due = time.Duration(written / bytesPerSecond * 1e9)
		}
		for left := due - clock.now(); left > 0 && !stop.Load(); left = due - clock.now() {
			nap(min(left, tick))
		}
		if stopped, err := conn.writeFull(p.frame(toServer, flow, n), stop); stopped || err != nil {
			return err
		}
	}
}

// serveTCPSink reads all flows for the job's duration, counted from the first byte.
func (s *session) serveTCPSink() error {
	l, err := s.listenTCP()
	if err != nil {
		return err
	}
	defer l.Close()
	flows, err := s.accept(l)
	if err != nil {
		return err
	}
	defer closeAll(flows)
	l.Close()
	if _, err := s.expect(msgStart); err != nil {
		return err
	}

	received := make([]counter, len(flows))
	checks := make([]flowCheck, len(flows))
	begun := make(chan time.Time, len(flows))
	p := s.pattern()
	var cut atomic.Bool
	var waits []func()
	for i, flow := range flows {
		checks[i] = flowCheck{p: p, dir: toServer, flow: i}
		waits = append(waits, background(func() { drain(flow, &checks[i], &received[i], begun, &cut) }))
	}
	end := func(patience time.Duration) {
		defer time.AfterFunc(patience, func() { cut.Store(true) }).Stop()
		for _, wait := range waits {
			wait()
		}
	}
	defer end(0)
	over := s.watch()
	if err := s.write(message{Type: msgReady}); err != nil {
		return err
	}

	var begin time.Time
	select {
	case begin = <-begun:
	case err := <-over:
		return err
	}
	total := func() (n uint64) {
		for i := range received {
			n += received[i].Load()
		}
		return n
	}
	intervals, span, ended := sample(begin, s.job.duration(), over, func() (uint64, uint64) { return total(), 0 })
	if ended {
		return nil
	}
	c := &counts{SpanNS: span.Nanoseconds(), Intervals: intervals}
	for _, i := range intervals {
		c.Bytes += i.Bytes
	}
	if err := s.write(message{Type: msgCounts, Counts: c}); err != nil {
		return err
	}
	if err := <-over; err != nil {
		return err
	}
	end(controlTimeout / 2) // what was under way is verified, too
	for i := range checks {
		c.Add(checks[i].Integrity)
	}
	return s.write(message{Type: msgCounts, Counts: c})
}

// drain reads and checks a flow until it ends. It copies the data out, as an application would: MSG_TRUNC
// would spare the receiver the copy and flatter everything measured.
func drain(flow socket, check *flowCheck, received *counter, begun chan<- time.Time, stop *atomic.Bool) {
	buf := make([]byte, frameSize)
	clock := startClock()
	for first := true; !stop.Load(); clock.now() {
		n, err := unix.Read(int(flow), buf)
		if err != nil && again(err) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if first {
			begun <- time.Now()
			first = false
		}
		received.Add(uint64(n))
		check.take(buf[:n])
	}
}

// maxIntervals keeps the samples of a long test within one control message.
const maxIntervals = 100

// sample reads a counter at even intervals, 100 ms or a hundredth of the duration, until begin +
// duration. ended is true when over fired first.
func sample(begin time.Time, duration time.Duration, over <-chan error, read func() (bytes, packets uint64)) (list []Interval, span time.Duration, ended bool) {
	step := max(duration/maxIntervals, 100*time.Millisecond)
	var bytes, packets uint64
	for next := step; span < duration; next += step {
		select {
		case <-over:
			return list, span, true
		case <-time.After(min(next, duration) - time.Since(begin)):
		}
		now := time.Since(begin)
		b, p := read()
		list = append(list, Interval{(now - span).Seconds(), b - bytes, p - packets})
		bytes, packets, span = b, p, now
	}
	return list, span, false
}
