// Package watch measures again and again by a schedule, keeps what was found in a history, and tells machines and people of it:
//
//	GET /metrics   the text format of Prometheus, or OpenMetrics where the client prefers it
//	GET /          the newest run and the history as the report's page
//	GET /healthz   200 while runs come as they should, else 503 and why
package watch

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/perf/history"
	"weft/perf/result"
)

// Config says what to do and when.
type Config struct {
	Every   time.Duration // from the begin of a run to that of the next
	Share   float64       // of one core: what runs may take of all hosts together, on average; 0 = no bound
	History *history.File
	Version string // of weft
	Log     *zap.Logger

	Run  func(context.Context) (*result.Result, error)
	Keep func(*result.Result, []history.Entry) error // of what was found; nil = nothing besides the history
}

// Watch is a schedule of runs, and what is known of them. Loop has one goroutine; the rest may be asked by any.
type Watch struct {
	cfg     Config
	metrics collector

	mu     sync.Mutex
	begun  time.Time      // of Loop; zero = not yet
	last   *result.Result // that there was
	newest *history.Entry // of this process's runs
	seen   map[series]bool
	counts counts
	next   time.Time
	past   []history.Entry
	size   int64 // of the history's file
}

// series is what there may be a figure of.
type series struct{ From, To, Contender, Test string }

// counts are sums since the process began.
type counts struct {
	complete, incomplete, failed uint64 // runs
	verified, corrupt            uint64 // bytes
	spent                        float64
}

// New is a watch that has not run yet. What the history knows is on the page from the beginning, and in no metric: it is not of now.
func New(cfg Config) *Watch {
	w := &Watch{cfg: cfg, seen: map[series]bool{}, past: cfg.History.Entries(), size: cfg.History.Size()}
	w.metrics = newCollector(w)
	return w
}

// Loop runs until ctx ends, which is no error.
func (w *Watch) Loop(ctx context.Context) {
	w.mu.Lock()
	w.begun = time.Now()
	w.mu.Unlock()
	for {
		begin := time.Now()
		r, err := w.cfg.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		e := history.Of(begin, time.Since(begin), r, err)
		w.keep(e, r)
		next := w.after(begin, time.Now(), e.Spent)
		w.mu.Lock()
		w.next = next
		w.mu.Unlock()
		select {
		case <-time.After(time.Until(next)):
		case <-ctx.Done():
			return
		}
	}
}

// after is when the run follows that one which began then, has ended now and took so much of a core: at a multiple of the period that is
// still to come, and not before the share allows it.
func (w *Watch) after(begin, now time.Time, spent float64) time.Time {
	earliest := now
	if w.cfg.Share > 0 {
		if at := begin.Add(time.Duration(spent / w.cfg.Share * float64(time.Second))); at.After(earliest) {
			earliest = at
		}
	}
	periods := (earliest.Sub(begin) + w.cfg.Every - 1) / w.cfg.Every
	return begin.Add(max(periods, 1) * w.cfg.Every)
}

// keep takes a run into account.
func (w *Watch) keep(e history.Entry, r *result.Result) {
	log := w.cfg.Log
	w.mu.Lock()
	if err := w.cfg.History.Add(e); err != nil {
		log.Warn("a run is not in the history", zap.Error(err))
	}
	w.past, w.size, w.newest = w.cfg.History.Entries(), w.cfg.History.Size(), &e
	w.note(e)
	w.counts.spent += e.Spent
	switch {
	case e.Error != "":
		w.counts.failed++
	case len(e.Failed) > 0:
		w.counts.incomplete++
	default:
		w.counts.complete++
	}
	if r != nil {
		w.last = r
		sum := r.Verified()
		w.counts.verified += sum.Verified
		w.counts.corrupt += sum.Corrupt
	}
	list := w.past
	w.mu.Unlock()
	switch {
	case e.Error != "":
		log.Warn("a run found nothing", zap.String("err", e.Error))
	case len(e.Failed) > 0:
		log.Warn(fmt.Sprintf("a run is incomplete: %d failed, the first of them", len(e.Failed)), zap.String("err", e.Failed[0].Reason))
	default:
		log.Info(fmt.Sprintf("measured: %d figures in %s", len(e.Figures), seconds(e.Seconds).Round(time.Millisecond)))
	}
	if r != nil && w.cfg.Keep != nil {
		if err := w.cfg.Keep(r, list); err != nil {
			log.Warn("a run is not in the folder of results", zap.Error(err))
		}
	}
}

// note remembers what a run was about, so that what later runs lack is known to be missing.
func (w *Watch) note(e history.Entry) {
	for _, f := range e.Figures {
		w.seen[seriesOf(f.Path, f.Contender, f.Selection())] = true
	}
	for _, f := range e.Failed {
		if f.Test != "" {
			w.seen[seriesOf(f.Path, f.Contender, f.Test)] = true
		}
	}
}

func seriesOf(path, contender, test string) series {
	from, to := result.Ends(path)
	return series{from, to, contender, test}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// state is what is known at a moment.
type state struct {
	begun  time.Time
	newest *history.Entry // nil = no run has ended
	seen   []series
	counts
	next time.Time
	size int64
}

func (w *Watch) state() state {
	w.mu.Lock()
	defer w.mu.Unlock()
	return state{w.begun, w.newest, slices.Collect(maps.Keys(w.seen)), w.counts, w.next, w.size}
}

// firstGrace is what the first run may take beside two periods: of later ones it is known how long they take.
const firstGrace = time.Minute

// late says why runs do not come as they should; nil = they do.
func (w *Watch) late(now time.Time) error {
	s := w.state()
	switch {
	case s.newest == nil: // the first one is being made, or hangs
		if late := s.begun.Add(2*w.cfg.Every + firstGrace); !s.begun.IsZero() && now.After(late) {
			return fmt.Errorf("the first run began at %s and has not ended: an agent hangs, or a run takes more than twice the period", s.begun.UTC().Format(time.RFC3339))
		}
		return nil
	case s.newest.Error != "":
		return fmt.Errorf("the last run found nothing: %s", s.newest.Error)
	case !s.next.IsZero() && now.After(s.next.Add(w.cfg.Every+seconds(2*s.newest.Seconds))):
		return fmt.Errorf("a run was due at %s", s.next.UTC().Format(time.RFC3339))
	}
	return nil
}
