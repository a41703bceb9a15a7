// Package backoff says how long whatever failed waits before it is tried again: twice as long after each failure, up to a
// bound, give or take a quarter, so that what failed together does not come back together.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is one row of failures. Its user resets it when what is tried has worked, or has really changed. Not safe for
// concurrent use.
type Backoff struct {
	First, Most time.Duration // about the first pause, and about the longest

	failures int
}

// Next counts a failure and returns the pause after it.
func (b *Backoff) Next() time.Duration {
	b.failures++
	return Pause(b.failures, b.First, b.Most)
}

// Reset begins a new row.
func (b *Backoff) Reset() { b.failures = 0 }

// Pause is the pause after so many failures in a row (1 = the first), in whole milliseconds, for who counts them himself.
func Pause(failures int, first, most time.Duration) time.Duration {
	pause := most
	if n := failures - 1; n < 63 && first <= most>>max(n, 0) {
		pause = first << max(n, 0)
	}
	pause = pause*3/4 + rand.N(pause/2+1)
	return max(pause.Round(time.Millisecond), time.Millisecond)
}

// Sleep waits for d; false when ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
