package run

import (
	"math"

	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// rows summarises the samples of one test over one contender: one row for each of its figures.
func rows(c site.About, t probe.Selection, samples []*sample) ([]result.Row, error) {
	test, err := probe.Lookup(t.Test)
	if err != nil {
		return nil, err
	}
	cpu := cost(samples)
	var rows []result.Row
	for _, kind := range test.Metrics {
		values := each(samples, func(s *sample) float64 { return s.metrics[kind.Name] })
		row := result.Row{
			Contender: c.Contender, Path: c.Path, Test: t.Test, Params: t.Params, Metric: kind.Name, Unit: kind.Unit,
			Samples: values, InnerMTU: c.InnerMTU, CPU: cpu,
		}
		row.Median, row.Low, row.High = result.Summary(values)
		rows = append(rows, row)
	}
	return rows, nil
}

// cost is the processor time of a test, medians over its samples.
func cost(samples []*sample) result.CPU {
	middle := func(f func(*sample) float64) float64 { return result.Median(each(samples, f)) }
	c := result.CPU{
		User:       middle(func(s *sample) float64 { return s.busy.User }),
		System:     middle(func(s *sample) float64 { return s.busy.System }),
		SoftIRQ:    middle(func(s *sample) float64 { return s.busy.SoftIRQ }),
		Background: middle(func(s *sample) float64 { return s.background }),
		Processes:  map[string]float64{},
	}
	for _, name := range sortedKeys(samples[0].processes) {
		c.Processes[name] = middle(func(s *sample) float64 { return s.processes[name] })
	}
	if carriesStream(samples[0].result) {
		c.CostSamples = each(samples, func(s *sample) float64 { return per(s, float64(s.result.Bytes)/1e9) })
		c.SecondsPerGigabyte = known(result.Median(c.CostSamples))
	} else {
		c.CostSamples = each(samples, func(s *sample) float64 { return per(s, packets(s.result)) * 1e9 })
		c.NanosecondsPerPacket = known(result.Median(c.CostSamples))
	}
	return c
}

// carriesStream says whether a test is about bytes: its cost is then by the gigabyte, else by packet.
func carriesStream(r probe.Result) bool {
	_, ok := r.Metric("throughput")
	return ok
}

// packets is what a test delivered. A TCP round trip is two packets, request and response, each
// carrying the acknowledgement of the other; a connect test's transaction is counted as the two
// that carry data.
func packets(r probe.Result) float64 {
	if r.Delivered > 0 {
		return float64(r.Delivered)
	}
	return 2 * float64(r.Transactions)
}

// known is v, and 0, which JSON leaves out, where there is none.
func known(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}

// per is the whole machine's processor time in seconds by amount; NaN of nothing.
func per(s *sample, amount float64) float64 {
	if amount == 0 {
		return math.NaN()
	}
	return s.busy.Total() * s.seconds / amount
}

func each(samples []*sample, f func(*sample) float64) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = f(s)
	}
	return values
}
