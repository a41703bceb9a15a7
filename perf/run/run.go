// Package run measures: it carries out a plan at a site, in interleaved rounds, and puts together what was found. It only asks for
// generators to be run and reads counters; where that happens is the site's affair.
package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// Event is a step of a run, for a progress display.
type Event struct {
	Text        string // what happens now
	Done, Total int    // samples
}

// UsageError is a plan that cannot be carried out as asked.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// idleMost is how long the machine is watched before each round, while nothing moves; no longer than a sample.
const idleMost = 500 * time.Millisecond

// run is a run in progress.
type run struct {
	plan   *Plan
	site   site.Site
	show   func(Event)
	result *result.Result
	setups []site.Setup // those of one path beside each other
	done   int
}

// Run carries out a plan. show is called with every step, from this goroutine. Contenders that are
// unsupported or that fail are in the result; the error is for what stopped the whole run: a *UsageError, or a
// *site.UnsupportedError where the machine cannot take any sample. The site is closed when Run returns, whatever happens.
func Run(ctx context.Context, s site.Site, p *Plan, show func(Event)) (_ *result.Result, err error) {
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := p.Check(); err != nil {
		return nil, &UsageError{err}
	}
	settings := s.Settings()
	settings.Duration, settings.Repeat, settings.Warmup = p.Duration.Seconds(), p.Repeat, p.Warmup
	r := &run{plan: p, site: s, show: show, result: result.New(s.Hosts(), settings)}
	for _, c := range p.Contenders {
		r.event("bringing up " + c)
		if err := r.open(ctx, c); err != nil {
			return nil, err
		}
	}
	if err := r.checkSizes(); err != nil {
		return nil, &UsageError{err}
	}
	if err := r.ceilings(ctx); err != nil {
		return nil, err
	}
	r.neighbours()
	for _, t := range p.Tests {
		if err := r.test(ctx, t); err != nil {
			return nil, err
		}
	}
	r.event("taking everything down")
	return r.result, nil
}

func (r *run) event(text string) {
	r.show(Event{Text: text, Done: r.done, Total: max(len(r.setups), len(r.plan.Contenders)) * len(r.plan.Tests) * r.plan.rounds()})
}

// open brings one contender up, or says in the result why not.
func (r *run) open(ctx context.Context, name string) error {
	setups, err := r.site.Open(ctx, name)
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	var unsupported *site.UnsupportedError
	switch {
	case errors.As(err, &unsupported):
		r.result.Unsupported = append(r.result.Unsupported, result.Unsupported{Contender: name, Reason: unsupported.Reason})
	case err != nil:
		r.result.Failed = append(r.result.Failed, result.Failure{Contender: name, Reason: err.Error()})
	}
	r.setups = append(r.setups, setups...) // of those paths that work
	return nil
}

// neighbours puts the contenders of a path beside each other, so that they are measured one right after the other.
func (r *run) neighbours() {
	var paths []string
	for _, s := range r.setups {
		if p := s.About().Path; !slices.Contains(paths, p) {
			paths = append(paths, p)
		}
	}
	slices.SortStableFunc(r.setups, func(a, b site.Setup) int {
		return slices.Index(paths, a.About().Path) - slices.Index(paths, b.About().Path)
	})
}

// checkSizes refuses packets that do not fit into every contender's tunnel.
func (r *run) checkSizes() error {
	for _, s := range r.setups {
		for _, t := range r.plan.Tests {
			if size := int(max(t.Params["size"], t.Params["second"])); size > s.About().InnerMTU {
				return fmt.Errorf("test %s: packets of %d bytes do not fit the inner MTU of %s, %d", t, size, s.About().Contender, s.About().InnerMTU)
			}
		}
	}
	return nil
}

// test measures one test over all contenders in interleaved rounds: A B C A B C …, so that what
// drifts on the machine drifts for all of them.
func (r *run) test(ctx context.Context, t probe.Selection) error {
	samples := map[site.Setup][]*sample{}
	failed := map[site.Setup]error{}
	for round := -r.plan.Warmup; round < r.plan.Repeat; round++ {
		r.event(fmt.Sprintf("%s, %s, watching the idle machine", t, roundName(round, r.plan.Repeat)))
		idle, err := r.idle(ctx, failed)
		if err != nil {
			return err
		}
		for _, s := range r.setups {
			about := s.About()
			name := about.Contender
			if about.Path != "" {
				name += ", " + about.Path
			}
			r.event(fmt.Sprintf("%s, %s, %s", t, roundName(round, r.plan.Repeat), name))
			r.done++
			if err := s.Dead(); err != nil {
				failed[s] = err
			}
			if failed[s] != nil {
				continue
			}
			m, err := take(ctx, s, t, r.plan.Duration, idle[s])
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if m != nil {
				r.result.AddIntegrity(about.Contender, about.Path, t, m.result.Integrity)
			}
			if err != nil {
				failed[s] = err
			} else if round >= 0 {
				samples[s] = append(samples[s], m)
			}
		}
	}
	for _, s := range r.setups {
		about := s.About()
		if err := failed[s]; err != nil {
			r.result.Failed = append(r.result.Failed, result.Failure{Contender: about.Contender, Path: about.Path, Test: t.String(), Reason: err.Error()})
			continue
		}
		rows, err := rows(about, t, samples[s])
		if err != nil {
			return err
		}
		r.result.Results = append(r.result.Results, rows...)
		r.result.Conservation = append(r.result.Conservation, balances(about, t, samples[s])...)
		if d, any := detail(about, t, samples[s]); any {
			r.result.Details = append(r.result.Details, d)
		}
	}
	return nil
}

// idle watches the machines while nothing is measured: what others do is the background of the samples that follow. A setup whose machines
// do not say is noted in failed.
func (r *run) idle(ctx context.Context, failed map[site.Setup]error) (map[site.Setup]machine.Cores, error) {
	before, cores := map[site.Setup]machine.Busy{}, map[site.Setup]machine.Cores{}
	look := func(each func(s site.Setup, b machine.Busy)) {
		for _, s := range r.setups {
			if failed[s] != nil || s.Dead() != nil {
				continue
			}
			b, err := s.Busy(ctx)
			if err != nil {
				failed[s] = err
				continue
			}
			each(s, b)
		}
	}
	look(func(s site.Setup, b machine.Busy) { before[s] = b })
	select {
	case <-time.After(min(idleMost, r.plan.Duration)):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	look(func(s site.Setup, b machine.Busy) { cores[s], _ = b.Since(before[s]) })
	return cores, ctx.Err()
}

func roundName(round, repeat int) string {
	if round < 0 {
		return "warm-up"
	}
	return fmt.Sprintf("round %d of %d", round+1, repeat)
}
