package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"weft/perf/history"
	"weft/perf/result"
	"weft/perf/watch"
)

// historyName is the file of past runs in a folder of results.
const historyName = "history.jsonl"

// watchFlags say how `weft bench run` goes on.
type watchFlags struct {
	every   time.Duration
	share   float64
	metrics string
	size    int64
}

func (f *watchFlags) add(flags *pflag.FlagSet) {
	flags.DurationVar(&f.every, "every", 0, "measure again and again, from the begin of a run to that of the next; 0 = once")
	flags.Float64Var(&f.share, "max-share", 0, "with --every: of one core, what runs may take of all hosts together, on average: the pause is as long as that needs (0 = no limit)")
	flags.StringVar(&f.metrics, "metrics", "127.0.0.1:9471", "with --every: address for Prometheus, and for the page; \"\" = none")
	flags.Int64Var(&f.size, "history-size", 8<<20, "with --every: bytes that the history may take; the oldest runs go")
}

func (f *watchFlags) check() error {
	switch {
	case f.every < 0 || f.every > 0 && f.every < time.Second:
		return fmt.Errorf("--every %s: give at least 1s, or 0 for once", f.every)
	case f.share < 0:
		return errors.New("--max-share: a limit must not be negative; 0 is none")
	case f.share > 0 && f.every == 0:
		return errors.New("--max-share is for runs that come again: give --every")
	case f.size < history.Least:
		return fmt.Errorf("--history-size %d: give at least %d", f.size, history.Least)
	}
	return nil
}

// continuously measures by the schedule until ctx ends.
func (f *benchFlags) continuously(ctx context.Context, cmd *cobra.Command, args []string) error {
	file, err := history.Open(filepath.Join(f.out, historyName), f.watch.size)
	if err != nil {
		f.unmake()
		return usageError{err}
	}
	f.plan.Partial = true
	log := newLog(cmd.ErrOrStderr())
	w := watch.New(watch.Config{Every: f.watch.every, Share: f.watch.share, History: file, Version: version().String(), Log: log,
		Run: func(ctx context.Context) (*result.Result, error) { return f.once(ctx, cmd, args) },
		Keep: func(r *result.Result, past []history.Entry) error {
			f.past = past
			return f.writeFiles(r)
		}})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	if f.watch.metrics == "" {
		close(served)
	} else {
		l, err := watch.Listen(f.watch.metrics)
		if err != nil {
			return usageError{err}
		}
		log.Info("metrics and the page", zap.Stringer("port", l.Addr()))
		go func() {
			defer cancel()
			served <- w.Serve(ctx, l)
		}()
	}
	w.Loop(ctx)
	cancel()
	return <-served
}
