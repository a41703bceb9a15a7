package run

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/perf/probe"
	"weft/perf/result"
)

// Plan says what to measure and how often.
type Plan struct {
	Contenders []string          // by the names that the site and the result know them by
	Tests      []probe.Selection // with all their parameters
	Duration   time.Duration     // of one sample, a search included
	Repeat     int               // measured rounds
	Warmup     int               // rounds before them, dropped
}

// Check says everything that is wrong with the plan, whatever the site.
func (p *Plan) Check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(p.Contenders) == 0 {
		wrong("no contenders: name at least one")
	}
	if len(p.Tests) == 0 {
		wrong("no tests: name at least one")
	}
	for i, t := range p.Tests {
		if slices.ContainsFunc(p.Tests[:i], func(o probe.Selection) bool { return o.String() == t.String() }) {
			wrong("test %s is named twice", t)
		}
	}
	if p.Duration < 100*time.Millisecond || p.Duration > 10*time.Minute {
		wrong("duration %s: give 100ms to 10m", p.Duration)
	}
	if p.Repeat < 1 || p.Repeat > result.MaxRepeat {
		wrong("repeat %d: give 1 to %d", p.Repeat, result.MaxRepeat)
	}
	if p.Warmup < 0 || p.Warmup > result.MaxRepeat {
		wrong("warmup %d: give 0 to %d", p.Warmup, result.MaxRepeat)
	}
	return errors.Join(errs...)
}

// rounds is how often each test is run over each setup.
func (p *Plan) rounds() int { return p.Warmup + p.Repeat }
