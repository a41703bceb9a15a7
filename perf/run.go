// Package perf is the lab: it runs contenders on the same work, in interleaved rounds, and says what
// each costs. Its rooms: testbed (the networks), contender (what is compared), probe (the load
// generators), report (how results are shown). The lab only moves processes and reads counters;
// what it measures are processes.
package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
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
	show   func(Event)
	result *Result
	stands []*stand
	done   int
}

// Run carries out a plan. show is called with every step, from this goroutine. Contenders that are
// unsupported or that fail are in the result; the error is for what stopped the whole run: a *UsageError, or a
// *contender.UnsupportedError where the machine cannot take any sample. Whatever
// happens, namespaces, processes and files are gone when Run returns.
func Run(ctx context.Context, p *Plan, show func(Event)) (_ *Result, err error) {
	if err := p.Check(); err != nil {
		return nil, &UsageError{err}
	}
	if err := p.supported(); err != nil {
		return nil, err
	}
	r := &run{plan: p, show: show, result: newResult(p)}
	dir, err := testbed.Dir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil { // TMPDIR may be relative
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()

	for i, c := range p.Contenders {
		r.event("bringing up " + c.Name)
		if err := r.open(ctx, c, p.labels()[i], dir); err != nil {
			return nil, err
		}
	}
	if err := r.checkSizes(); err != nil {
		return nil, &UsageError{err}
	}
	if err := r.ceilings(ctx); err != nil {
		return nil, err
	}
	for _, t := range p.Tests {
		if err := r.test(ctx, t); err != nil {
			return nil, err
		}
	}
	r.event("taking the testbeds down")
	return r.result, nil
}

// newResult is a result before anything was measured; its lists are empty, not absent.
func newResult(p *Plan) *Result {
	return &Result{
		Schema: Schema, Host: fingerprint(p.Version, p.Congestion), Settings: p.settings(),
		Results: []Row{}, Conservation: []Balance{}, Integrity: []Integrity{}, Unsupported: []Unsupported{}, Failed: []Failure{},
	}
}

func (r *run) event(text string) {
	r.show(Event{Text: text, Done: r.done, Total: r.plan.samples()})
}

func (r *run) close() error {
	var errs []error
	for _, s := range r.stands {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// open brings one contender up, or says in the result why not.
func (r *run) open(ctx context.Context, c contender.Contender, label, dir string) error {
	s, err := openStand(ctx, r.plan, c, label, dir)
	if ctx.Err() != nil {
		if s != nil {
			err = s.close()
		}
		return errors.Join(ctx.Err(), err)
	}
	var unsupported *contender.UnsupportedError
	switch {
	case errors.As(err, &unsupported):
		r.result.Unsupported = append(r.result.Unsupported, Unsupported{c.Name, unsupported.Reason})
	case err != nil:
		r.result.Failed = append(r.result.Failed, Failure{Contender: c.Name, Reason: err.Error()})
	default:
		r.stands = append(r.stands, s)
	}
	return nil
}

// checkSizes refuses packets that do not fit into every contender's tunnel.
func (r *run) checkSizes() error {
	for _, s := range r.stands {
		for _, t := range r.plan.Tests {
			if size := int(max(t.Params["size"], t.Params["second"])); size > s.overlay.InnerMTU() {
				return fmt.Errorf("test %s: packets of %d bytes do not fit the inner MTU of %s, %d", t, size, s.Name, s.overlay.InnerMTU())
			}
		}
	}
	return nil
}

// test measures one test over all contenders in interleaved rounds: A B C A B C …, so that what
// drifts on the machine drifts for all of them.
func (r *run) test(ctx context.Context, t probe.Selection) error {
	samples := map[*stand][]*sample{}
	failed := map[*stand]error{}
	for round := -r.plan.Warmup; round < r.plan.Repeat; round++ {
		r.event(fmt.Sprintf("%s, %s, watching the idle machine", t, roundName(round, r.plan.Repeat)))
		idle, err := measureIdle(ctx, min(idleMost, r.plan.Duration))
		if err != nil {
			return err
		}
		for _, s := range r.stands {
			r.event(fmt.Sprintf("%s, %s, %s", t, roundName(round, r.plan.Repeat), s.Name))
			r.done++
			if s.dead != nil {
				failed[s] = s.dead
			}
			if failed[s] != nil {
				continue
			}
			m, err := s.measure(ctx, t, idle)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if m != nil {
				r.result.verified(s.Name, t, m.result.Integrity)
			}
			if err != nil {
				failed[s] = err
			} else if round >= 0 {
				samples[s] = append(samples[s], m)
			}
		}
	}
	for _, s := range r.stands {
		if err := failed[s]; err != nil {
			r.result.Failed = append(r.result.Failed, Failure{s.Name, t.String(), err.Error()})
			continue
		}
		rows, err := rows(s.Name, t, s.overlay.InnerMTU(), samples[s])
		if err != nil {
			return err
		}
		r.result.Results = append(r.result.Results, rows...)
		r.result.Conservation = append(r.result.Conservation, balances(s.Contender, t, samples[s])...)
		if d, any := detail(s.Name, t, samples[s]); any {
			r.result.Details = append(r.result.Details, d)
		}
	}
	return nil
}

func roundName(round, repeat int) string {
	if round < 0 {
		return "warm-up"
	}
	return fmt.Sprintf("round %d of %d", round+1, repeat)
}
