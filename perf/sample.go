package perf

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// sample is one run of one test over one contender.
type sample struct {
	metrics    map[string]float64
	busy       busy               // cores, what the machine did besides taken off
	background float64            // cores, what was taken off
	processes  map[string]float64 // cores
	seconds    float64            // of the sample
	result     probe.Result
	moved      moved
}

// moved is what the counters around the generators counted during a sample.
type moved struct {
	lanes     []contender.Lane
	kernel    map[string]uint64 // what the kernel dropped
	segments  testbed.Segments  // of the generators' TCP
	multicast uint64            // packets that the nodes sent of themselves
}

// reading is the state of all packet counters at a moment when nothing moves.
type reading struct {
	lanes  []contender.Lane
	kernel testbed.KernelCounts
	drops  contender.Drops
}

// measure takes one sample; idle is what the machine does without it.
func (s *stand) measure(ctx context.Context, t probe.Selection, idle busy) (*sample, error) {
	before, err := s.quiet(ctx)
	if err != nil {
		return nil, s.because(err)
	}
	used, err := s.processTimes()
	if err != nil {
		return nil, s.because(err)
	}
	begin, err := readBusy()
	if err != nil {
		return nil, err
	}
	result, client, err := s.betweenPods(ctx, t)
	if err != nil {
		return nil, err
	}
	end, err := readBusy()
	if err != nil {
		return nil, err
	}
	times, err := s.processTimes()
	if err != nil {
		return nil, s.because(err)
	}
	after, err := s.quiet(ctx)
	if err != nil {
		return nil, s.because(err)
	}

	for name := range times {
		times[name] = times[name].Since(used[name])
	}
	times[benchName] = times[benchName].Plus(client)
	cores, seconds := end.since(begin)
	m := &sample{
		busy: cores.above(idle).atLeast(times, seconds), background: idle.total(),
		processes: map[string]float64{}, seconds: seconds, result: result,
	}
	for name, used := range times {
		m.processes[name] = used.Total().Seconds() / seconds
	}
	if m.moved, err = after.since(before); err != nil {
		return nil, err
	}
	m.metrics, err = metrics(t, result, m.busy)
	return m, err
}

// benchName is what both generators are called in reports.
const benchName = "bench"

// metrics picks the test's figures out of the generator's result; the lab measures cpu itself. Those of a test without an answer are NaN.
func metrics(t probe.Selection, r probe.Result, b busy) (map[string]float64, error) {
	test, err := probe.Lookup(t.Test)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for _, kind := range test.Metrics {
		v, ok := r.Metric(kind.Name)
		switch {
		case kind.ByLab:
			v, ok = b.total(), true
		case r.Unanswered != "":
			v, ok = math.NaN(), true
		}
		if !ok {
			return nil, fmt.Errorf("perf: the generator's result of %s lacks %s", t.Test, kind.Name)
		}
		m[kind.Name] = v
	}
	return m, nil
}

// processTimes is the processor time used so far, by name.
func (s *stand) processTimes() (map[string]testbed.CPUTime, error) {
	times := map[string]testbed.CPUTime{}
	for _, p := range append(slices.Clone(s.overlay.Processes()), s.server) {
		used, err := p.CPU()
		if err != nil {
			return nil, err
		}
		times[p.Name] = times[p.Name].Plus(used)
	}
	return times, nil
}

// quiet reads the counters once nothing moves any more: two equal readings.
func (s *stand) quiet(ctx context.Context) (reading, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	last, err := s.read(ctx)
	for err == nil {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return last, fmt.Errorf("perf: packets still move %s after the generators stopped: %w", settle, ctx.Err())
		}
		var now reading
		if now, err = s.read(ctx); err == nil && now.same(last) {
			return now, nil
		}
		last = now
	}
	return last, err
}

func (s *stand) read(ctx context.Context) (r reading, err error) {
	if r.lanes, err = s.overlay.Lanes(ctx); err != nil {
		return r, err
	}
	if r.drops, err = s.overlay.Drops(ctx); err != nil {
		return r, err
	}
	r.kernel, err = s.bed.KernelCounts()
	return r, err
}

func (r reading) same(o reading) bool {
	return slices.EqualFunc(r.lanes, o.lanes, sameLane) && maps.Equal(r.drops.Kernel, o.drops.Kernel) && r.kernel.Same(o.kernel)
}

func sameLane(a, b contender.Lane) bool {
	return a.Node == b.Node && a.Name == b.Name && a.Received == b.Received && a.Sent == b.Sent && maps.Equal(a.Drops, b.Drops)
}

// sortedKeys is a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
