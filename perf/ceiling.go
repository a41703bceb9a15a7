package perf

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
)

const (
	// ceilingRounds and ceilingMost bound what measuring the generators themselves takes.
	ceilingRounds = 3
	ceilingMost   = time.Second

	// generatorName is whose failure it is where that does not work.
	generatorName = "the generators by themselves"
)

// Ceiling is what the generators do by themselves in a test: from node to node over the bare wire, in the nodes' own namespaces, without
// pods, routing or overlay. A contender that comes near it may be better than shown.
type Ceiling struct {
	Test    string       `json:"test"`
	Params  probe.Params `json:"params"`
	Metric  string       `json:"metric"` // the test's main one
	Unit    string       `json:"unit"`
	Samples Samples      `json:"samples"` // null = unanswered, as in Row
	Median  Figure       `json:"median"`
	Low     Figure       `json:"low"`
	High    Figure       `json:"high"`
}

// ceilings measures the generators in the testbed of the contender without overlay, whose wire nobody else touches; without one it does not.
func (r *run) ceilings(ctx context.Context) error {
	i := slices.IndexFunc(r.stands, func(s *stand) bool { return s.Name == contender.Bare })
	if i < 0 {
		return nil
	}
	s := r.stands[i]
	near, far := s.ends()
	server, err := s.startServer(ctx, far.Host)
	if err != nil {
		return err
	}
	defer server.Stop(context.WithoutCancel(ctx))
	samples := make([]Samples, len(r.plan.Tests))
	for range min(ceilingRounds, r.plan.Repeat) {
		for k, t := range r.plan.Tests {
			if t.Params["rate"] > 0 {
				continue // what is offered is given
			}
			r.event(fmt.Sprintf("%s, %s", t, generatorName))
			target := netip.AddrPortFrom(far.Endpoints[familyIndex(t)], probe.DefaultPort)
			result, _, err := s.generate(ctx, near.Host, target, t, min(r.plan.Duration, ceilingMost))
			if ctx.Err() != nil {
				return errors.Join(ctx.Err(), err)
			}
			if err != nil {
				r.result.Failed = append(r.result.Failed, Failure{generatorName, t.String(), err.Error()})
				return nil
			}
			r.result.verified(generatorName, t, result.Integrity)
			samples[k] = append(samples[k], firstFigure(result))
		}
	}
	for k, t := range r.plan.Tests {
		if len(samples[k]) == 0 {
			continue
		}
		test, err := probe.Lookup(t.Test)
		if err != nil {
			return err
		}
		c := Ceiling{Test: t.Test, Params: t.Params, Metric: test.Metrics[0].Name, Unit: test.Metrics[0].Unit, Samples: samples[k]}
		c.Median, c.Low, c.High = summary(samples[k])
		r.result.Generator = append(r.result.Generator, c)
	}
	return nil
}

// firstFigure is a result's first figure; NaN where the test had no answer.
func firstFigure(r probe.Result) float64 {
	if len(r.Metrics) == 0 {
		return math.NaN()
	}
	return r.Metrics[0].Value
}

// familyIndex is the place of a test's address family in a node's addresses.
func familyIndex(t probe.Selection) int {
	if t.Params["family"] == 6 {
		return 1
	}
	return 0
}
