package perf

import (
	"math"
	"slices"

	"weft/perf/probe"
)

// Detail is what a test over a contender showed beside its figures: what curves are drawn from.
type Detail struct {
	Contender string        `json:"contender"`
	Test      string        `json:"test"`
	Params    probe.Params  `json:"params"`
	Latency   []Quantile    `json:"latency,omitempty"` // ascending; of round trips
	Trials    []probe.Trial `json:"trials,omitempty"`  // of all samples, in the order of the rounds
	Stages    []Stage       `json:"stages,omitempty"`  // of userspace contenders, in the order of a packet's way
	Shapes    []probe.Shape `json:"shapes,omitempty"`  // of test mixed, all samples together
	Notes     []string      `json:"notes,omitempty"`   // what the generator said about its samples, each once
}

// Quantile is a point of the latencies' distribution: the median over the samples and its interval, as in Row.
type Quantile struct {
	Quantile float64 `json:"quantile"` // 0 to 1
	Us       float64 `json:"us"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
}

// Stage is where a packet's time goes in one lane: what one step of it took, all samples together.
// Only what a lane does itself is in it, the system calls of its ports included; waiting is not.
type Stage struct {
	Node                 string    `json:"node"`
	Lane                 string    `json:"lane"`
	Stage                string    `json:"stage"`
	Packets              uint64    `json:"packets"`                // that it was given
	NanosecondsPerPacket float64   `json:"nanoseconds_per_packet"` // of the packets that were timed
	Samples              []float64 `json:"samples,omitempty"`      // the same by sample; those that timed none are left out
}

// detail collects what the samples of one test over one contender have besides figures; false: nothing.
func detail(name string, t probe.Selection, samples []*sample) (Detail, bool) {
	d := Detail{Contender: name, Test: t.Test, Params: t.Params, Latency: latencies(samples), Stages: stages(samples)}
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
func latencies(samples []*sample) []Quantile {
	var points []Quantile
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
		p := Quantile{Quantile: q.Quantile, Us: Median(values)}
		p.Low, p.High = Interval(values)
		points = append(points, p)
	}
	return points
}

// stages adds up what each stage of each lane took.
func stages(samples []*sample) []Stage {
	type total struct{ timed, nanos uint64 }
	var rows []Stage
	var totals []total
	for _, s := range samples {
		for _, l := range s.moved.lanes {
			for _, stage := range l.Stages {
				i := slices.IndexFunc(rows, func(o Stage) bool { return o.Node == l.Node && o.Lane == l.Name && o.Stage == stage.Name })
				if i < 0 {
					i = len(rows)
					rows = append(rows, Stage{Node: l.Node, Lane: l.Name, Stage: stage.Name})
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
