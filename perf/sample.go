package perf

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// sample is one run of one test over one contender.
type sample struct {
	metrics   map[string]float64
	busy      busy               // cores above idle
	processes map[string]float64 // cores
	seconds   float64            // of the sample
	result    probe.Result
	lanes     []contender.Lane  // what the lanes counted during it
	kernel    map[string]uint64 // what the kernel dropped during it
	sent      uint64            // packets that left the pods, the generator's and others
}

// before is the state of all counters when a sample begins.
type before struct {
	lanes     []contender.Lane
	kernel    testbed.KernelCounts
	processes map[string]time.Duration
	busy      busy
}

// measure takes one sample.
func (s *stand) measure(ctx context.Context, t probe.Selection, idle busy) (*sample, error) {
	var b before
	var err error
	if b.lanes, err = s.quietLanes(ctx); err != nil {
		return nil, s.because(err)
	}
	if b.kernel, err = s.bed.KernelCounts(); err != nil {
		return nil, err
	}
	if b.processes, err = s.processTimes(); err != nil {
		return nil, s.because(err)
	}
	if b.busy, err = readBusy(); err != nil {
		return nil, err
	}

	result, client, err := s.generate(ctx, t)
	if err != nil {
		return nil, err
	}

	now, err := readBusy()
	if err != nil {
		return nil, err
	}
	times, err := s.processTimes()
	if err != nil {
		return nil, s.because(err)
	}
	lanes, err := s.quietLanes(ctx)
	if err != nil {
		return nil, s.because(err)
	}
	kernel, err := s.bed.KernelCounts()
	if err != nil {
		return nil, err
	}

	cores, seconds := now.since(b.busy)
	m := &sample{
		busy: cores.above(idle), processes: map[string]float64{}, seconds: seconds,
		result: result, kernel: kernel.Since(b.kernel), sent: kernel.SentSince(b.kernel),
	}
	for name, used := range times {
		m.processes[name] = (used - b.processes[name]).Seconds() / seconds
	}
	m.processes[benchName] += client.Seconds() / seconds
	if m.lanes, err = lanesSince(lanes, b.lanes); err != nil {
		return nil, err
	}
	m.metrics, err = metrics(t, result, m.busy)
	return m, err
}

// benchName is what both generators are called in reports.
const benchName = "bench"

// metrics picks the test's figures out of the generator's result; the lab measures cpu itself.
func metrics(t probe.Selection, r probe.Result, b busy) (map[string]float64, error) {
	test, err := probe.Lookup(t.Test)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for _, kind := range test.Metrics {
		v, ok := r.Metric(kind.Name)
		if kind.ByLab {
			v, ok = b.total(), true
		}
		if !ok {
			return nil, fmt.Errorf("perf: the generator's result of %s lacks %s", t.Test, kind.Name)
		}
		m[kind.Name] = v
	}
	return m, nil
}

// processTimes is the processor time used so far, by name.
func (s *stand) processTimes() (map[string]time.Duration, error) {
	times := map[string]time.Duration{}
	for _, p := range append(slices.Clone(s.overlay.Processes()), s.server) {
		used, err := p.CPU()
		if err != nil {
			return nil, err
		}
		times[p.Name] += used
	}
	return times, nil
}

// quietLanes reads the lanes once nothing moves in them any more: two equal readings.
func (s *stand) quietLanes(ctx context.Context) ([]contender.Lane, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	last, err := s.overlay.Lanes(ctx)
	if err != nil || last == nil {
		return nil, err
	}
	for {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("perf: packets still move %s after the generators stopped: %w", settle, ctx.Err())
		}
		now, err := s.overlay.Lanes(ctx)
		if err != nil {
			return nil, err
		}
		if slices.EqualFunc(now, last, sameLane) {
			return now, nil
		}
		last = now
	}
}

func sameLane(a, b contender.Lane) bool {
	return a.Node == b.Node && a.Name == b.Name && a.Received == b.Received && a.Sent == b.Sent && maps.Equal(a.Drops, b.Drops)
}

// sortedKeys is a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
