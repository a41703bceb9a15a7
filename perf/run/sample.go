package run

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/site"
)

// sample is one run of one test over one contender.
type sample struct {
	metrics    map[string]float64
	busy       machine.Cores      // what the machine did besides taken off
	background float64            // cores, what was taken off
	processes  map[string]float64 // cores
	seconds    float64            // of the sample
	result     probe.Result
	moved      site.Moved
}

// settle bounds how long packets may still move after a sample.
const settle = 15 * time.Second

// freshFor is how long a setup that has just come up carries the test before it counts: lanes learn how to wait, and pages are touched the first time.
const freshFor = time.Second

// take brings a setup up where it is not, and takes one sample.
func take(ctx context.Context, s site.Setup, t probe.Selection, d time.Duration, idle machine.Cores) (m *sample, err error) {
	fresh, err := s.Up(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Down(context.WithoutCancel(ctx))) }()
	if fresh {
		if _, _, err := s.Generate(ctx, t, min(d, freshFor)); err != nil {
			return nil, err
		}
	}
	return measure(ctx, s, t, d, idle)
}

// measure takes one sample; idle is what the machines do without it.
func measure(ctx context.Context, s site.Setup, t probe.Selection, d time.Duration, idle machine.Cores) (*sample, error) {
	before, err := quiet(ctx, s)
	if err != nil {
		return nil, err
	}
	used, err := s.Times(ctx)
	if err != nil {
		return nil, err
	}
	begin, err := s.Busy(ctx)
	if err != nil {
		return nil, err
	}
	result, client, err := s.Generate(ctx, t, d)
	if err != nil {
		return nil, err
	}
	end, err := s.Busy(ctx)
	if err != nil {
		return nil, err
	}
	times, err := s.Times(ctx)
	if err != nil {
		return nil, err
	}
	after, err := quiet(ctx, s)
	if err != nil {
		return nil, err
	}

	for name := range times {
		times[name] = times[name].Since(used[name])
	}
	times[site.Generator] = times[site.Generator].Plus(client)
	cores, seconds := end.Since(begin)
	m := &sample{
		busy: cores.Above(idle).AtLeast(times, seconds), background: idle.Total(),
		processes: map[string]float64{}, seconds: seconds, result: result,
	}
	for name, used := range times {
		m.processes[name] = used.Total().Seconds() / seconds
	}
	if m.moved, err = after.Since(before); err != nil {
		return nil, err
	}
	m.metrics, err = metrics(t, result, m.busy)
	return m, err
}

// metrics picks the test's figures out of the generator's result; cpu is measured here. Those of a test without an answer are NaN.
func metrics(t probe.Selection, r probe.Result, c machine.Cores) (map[string]float64, error) {
	test, err := probe.Lookup(t.Test)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for _, kind := range test.Metrics {
		v, ok := r.Metric(kind.Name)
		switch {
		case kind.ByLab:
			v, ok = c.Total(), true
		case r.Unanswered != "":
			v, ok = math.NaN(), true
		}
		if !ok {
			return nil, fmt.Errorf("the generator's result of %s lacks %s", t.Test, kind.Name)
		}
		m[kind.Name] = v
	}
	return m, nil
}

// quiet reads the counters once nothing moves any more: two equal readings.
func quiet(ctx context.Context, s site.Setup) (site.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	last, err := s.Count(ctx)
	for err == nil {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return last, fmt.Errorf("packets still move %s after the generators stopped: %w", settle, ctx.Err())
		}
		var now site.Reading
		if now, err = s.Count(ctx); err == nil && now.Same(last) {
			return now, nil
		}
		last = now
	}
	return last, err
}

// sortedKeys is a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
