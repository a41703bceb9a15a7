package probe

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// streamBuffer is what one write or read of a TCP stream moves, bytes: iperf3's default, too.
const streamBuffer = 128 << 10

// counter has a cache line of its own: one thread adds, others read.
type counter struct {
	atomic.Uint64
	_ [56]byte
}

// runTCPStream fills TCP connections for the duration, or writes at a fixed rate (cpu-fixed). The receiver's
// clock decides: its first byte starts the duration, and it says when that is over.
func runTCPStream(ctx context.Context, s Spec, r *Result) error {
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
	r.Congestion, r.Payload = conns[0].congestion(), streamBuffer

	// Answered when the server has all connections; sent payload is ignored by a sink.
	if _, err := c.ask(message{Type: msgStart, Payload: streamBuffer}, msgReady, 2*controlTimeout); err != nil {
		return err
	}
	errs := make([]error, flows)
	waits := make([]func(), flows)
	for i, conn := range conns {
		waits[i] = background(func() {
			errs[i] = fill(conn, s.Params["rate"]/8/float64(flows), &c.stop)
			c.stop.Store(true) // one lost connection ends the test
		})
	}
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
	}
	if _, err := c.finish(); err != nil {
		return err
	}
	r.Seconds = time.Duration(m.Counts.SpanNS).Seconds()
	r.Bytes, r.Intervals = m.Counts.Bytes, m.Counts.Intervals
	throughput := 0.0
	if r.Seconds > 0 {
		throughput = float64(r.Bytes) * 8 / r.Seconds
	}
	r.report(map[string]float64{"throughput": throughput})
	return nil
}

// dialFlows opens the data connections, each introduced by the token.
func dialFlows(ctx context.Context, s Spec, ready message, n int) ([]socket, error) {
	var conns []socket
	for range n {
		dialCtx, cancel := context.WithTimeout(ctx, controlTimeout)
		conn, err := dialTCP(dialCtx, dataAddr(s, ready), s.Congestion)
		cancel()
		if err == nil {
			conns = append(conns, conn)
			_, err = conn.writeFull(binary.BigEndian.AppendUint64(nil, ready.Token), new(atomic.Bool))
		}
		if err != nil {
			closeAll(conns)
			return nil, fmt.Errorf("data connection: %w", err)
		}
	}
	return conns, nil
}

// fill writes until stop, at bytesPerSecond or, with 0, as fast as the connection takes it.
func fill(conn socket, bytesPerSecond float64, stop *atomic.Bool) error {
	buf := make([]byte, streamBuffer)
	clock := startClock()
	for written := 0.0; ; written += float64(len(buf)) {
		due := time.Duration(0)
		if bytesPerSecond > 0 {
			due = time.Duration(written / bytesPerSecond * 1e9)
		}
		for left := due - clock.now(); left > 0 && !stop.Load(); left = due - clock.now() {
			nap(min(left, tick))
		}
		if stopped, err := conn.writeFull(buf, stop); stopped || err != nil {
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
	begun := make(chan time.Time, len(flows))
	for i, flow := range flows {
		wait := background(func() { drain(flow, &received[i], begun, &s.stop) })
		defer wait()
	}
	defer s.stop.Store(true) // deferred last, so that it runs before the waits
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
	return s.write(message{Type: msgCounts, Counts: c})
}

// drain reads a flow until it ends. It copies the data out, as an application would: MSG_TRUNC
// would spare the receiver the copy and flatter everything measured.
func drain(flow socket, received *counter, begun chan<- time.Time, stop *atomic.Bool) {
	buf := make([]byte, streamBuffer)
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
