package probe

import (
	"context"
	"fmt"
	"time"
)

// growth is how long the streams of loaded-rr may grow before round trips are timed beside them, and how long they stay after the last
// one; no more than a tenth of the test.
const growth = 500 * time.Millisecond

// runLoadedRoundTrips bounces one datagram beside TCP connections that fill the path in the direction of the requests: what their queues
// do to others' latency (flent's rrul in small). Either without the other is no answer.
func runLoadedRoundTrips(ctx context.Context, s Spec, r *Result) error {
	small, bulk := s, s
	small.Limit, bulk.Limit = s.Limit.share(.1), s.Limit.share(.9)
	trips, err := openRoundTrips(ctx, small)
	if err != nil {
		return err
	}
	defer trips.close()

	ctx, cancel := context.WithCancel(ctx)
	load := Result{kinds: r.kinds}
	var loadErr error
	begun, over := make(chan struct{}), make(chan struct{})
	wait := background(func() {
		defer close(over)
		if loadErr = stream(ctx, bulk, &load, func() { close(begun) }); loadErr != nil {
			trips.stop.Store(true) // none is timed without it
		}
	})
	defer wait()
	defer cancel()

	select {
	case <-begun:
	case <-over:
		return fmt.Errorf("the stream: %w", loadErr)
	}
	grown := min(s.Duration/10, growth)
	select {
	case <-time.After(grown):
	case <-over:
	case <-trips.dead:
	}
	values, err := trips.run(s.Duration-2*grown, r)
	first := false // that failed
	select {
	case <-over:
		first = loadErr != nil
	default:
	}
	if err != nil {
		cancel()
	}
	wait()
	switch {
	case loadErr != nil && (err == nil || first):
		return fmt.Errorf("the stream: %w", loadErr)
	case err != nil:
		return err
	}
	r.Congestion, r.Retransmits, r.Bytes, r.Intervals = load.Congestion, load.Retransmits, load.Bytes, load.Intervals
	r.Add(load.Integrity)
	r.Generated, r.Delivered = 0, 0 // no account of datagrams holds beside segments that are lost, too
	values["throughput"], _ = load.Metric("throughput")
	r.report(values)
	return nil
}
