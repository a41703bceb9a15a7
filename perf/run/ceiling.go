package run

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"weft/perf/probe"
	"weft/perf/result"
)

const (
	// ceilingRounds and ceilingMost bound what measuring the generators themselves takes.
	ceilingRounds = 3
	ceilingMost   = time.Second

	// generatorName is whose failure it is where that does not work.
	generatorName = "the generators by themselves"
)

// ceilings measures the generators where the site has a place for that.
func (r *run) ceilings(ctx context.Context) error {
	alone, err := r.site.Alone(ctx)
	if err != nil || alone == nil {
		return err
	}
	defer alone.Close()
	samples := make([]result.Samples, len(r.plan.Tests))
	for range min(ceilingRounds, r.plan.Repeat) {
		for k, t := range r.plan.Tests {
			if t.Params["rate"] > 0 {
				continue // what is offered is given
			}
			r.event(fmt.Sprintf("%s, %s", t, generatorName))
			found, err := alone.Generate(ctx, t, min(r.plan.Duration, ceilingMost))
			if ctx.Err() != nil {
				return errors.Join(ctx.Err(), err)
			}
			if err != nil {
				r.result.Failed = append(r.result.Failed, result.Failure{Contender: generatorName, Test: t.String(), Reason: err.Error()})
				return nil
			}
			r.result.AddIntegrity(generatorName, "", t, found.Integrity)
			samples[k] = append(samples[k], firstFigure(found))
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
		c := result.Ceiling{Test: t.Test, Params: t.Params, Metric: test.Metrics[0].Name, Unit: test.Metrics[0].Unit, Samples: samples[k]}
		c.Median, c.Low, c.High = result.Summary(samples[k])
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
