package probe

import (
	"context"
	"fmt"
	"sync/atomic"
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

	// The stream is this goroutine's, which has the thread and with it the network namespace that its connections are made in.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	load := Result{kinds: r.kinds}
	grown := min(s.Duration/10, growth)
	var values map[string]float64
	var failed atomic.Bool // the stream
	first := false         // that failed
	over, wait := make(chan struct{}), func() {}
	loadErr := stream(ctx, bulk, &load, func() {
		wait = background(func() {
			select {
			case <-time.After(grown):
			case <-over:
			case <-trips.dead:
			}
			values, err = trips.run(s.Duration-2*grown, r)
			first = failed.Load()
			if err != nil {
				cancel()
			}
		})
	})
	if loadErr != nil {
		failed.Store(true)
		trips.stop.Store(true) // none is timed without it
	}
	close(over)
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
