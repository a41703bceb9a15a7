package run

import (
	"math"
	"slices"

	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// detail collects what the samples of one test over one contender have besides figures; false: nothing.
func detail(c site.About, t probe.Selection, samples []*sample) (result.Detail, bool) {
	d := result.Detail{Contender: c.Contender, Path: c.Path, Test: t.Test, Params: t.Params, Latency: latencies(samples), Stages: stages(samples)}
	for _, s := range samples {
		d.Trials = append(d.Trials, s.result.Trials...)
		d.Shapes = probe.AddShapes(d.Shapes, s.result.Shapes)
		notes := s.result.Notes
		if s.result.Unanswered != "" {
			notes = append([]string{"unanswered: " + s.result.Unanswered}, notes...)
		}
		for _, note := range notes {
			if !slices.Contains(d.Notes, note) {
				d.Notes = append(d.Notes, note)
			}
		}
	}
	return d, len(d.Latency)+len(d.Trials)+len(d.Stages)+len(d.Shapes)+len(d.Notes) > 0
}

// latencies joins the samples' distributions, at the quantiles that all of them have.
func latencies(samples []*sample) []result.Quantile {
	var points []result.Quantile
	for _, q := range samples[0].result.Latency {
		values := each(samples, func(s *sample) float64 {
			i := slices.IndexFunc(s.result.Latency, func(o probe.Quantile) bool { return o.Quantile == q.Quantile })
			if i < 0 {
				return math.NaN()
			}
			return s.result.Latency[i].Us
		})
		if slices.ContainsFunc(values, math.IsNaN) {
			continue
		}
		p := result.Quantile{Quantile: q.Quantile, Us: result.Median(values)}
		p.Low, p.High = result.Interval(values)
		points = append(points, p)
	}
	return points
}

// stages adds up what each stage of each lane took.
func stages(samples []*sample) []result.Stage {
	type total struct{ timed, nanos uint64 }
	var rows []result.Stage
	var totals []total
	for _, s := range samples {
		for _, l := range s.moved.Lanes {
			for _, stage := range l.Stages {
				i := slices.IndexFunc(rows, func(o result.Stage) bool { return o.Node == l.Node && o.Lane == l.Name && o.Stage == stage.Name })
				if i < 0 {
					i = len(rows)
					rows = append(rows, result.Stage{Node: l.Node, Lane: l.Name, Stage: stage.Name})
					totals = append(totals, total{})
				}
				rows[i].Packets += stage.Packets
				totals[i].timed += stage.Timed
				totals[i].nanos += stage.Nanos
				if stage.Timed > 0 {
					rows[i].Samples = append(rows[i].Samples, float64(stage.Nanos)/float64(stage.Timed))
				}
			}
		}
	}
	for i, t := range totals {
		if t.timed > 0 {
			rows[i].NanosecondsPerPacket = float64(t.nanos) / float64(t.timed)
		}
	}
	return rows
}
