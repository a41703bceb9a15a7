package backoff_test

import (
	"context"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"weft/internal/backoff"
)

// about says whether a pause is the named one, give or take a quarter.
func about(got, want time.Duration) bool { return got >= want*3/4 && got <= want*5/4 }

func TestPausesDouble(t *testing.T) {
	b := backoff.Backoff{First: 100 * time.Millisecond, Most: time.Second}
	for row := range 2 {
		for i, ms := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			if got := b.Next(); !about(got, ms*time.Millisecond) {
				t.Errorf("row %d: pause %d is %v, want about %d ms", row, i+1, got, ms)
			}
		}
		b.Reset()
	}
}

// However long the row, and whatever the bounds, a pause is positive and none is beyond the longest.
func TestPauseIsBounded(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 30, 62, 63, 64, 65, 1000, math.MaxInt} {
		if got := backoff.Pause(n, time.Microsecond, 8*time.Second); got <= 0 || got > 10*time.Second || n > 30 && !about(got, 8*time.Second) {
			t.Errorf("after %d failures: %v", n, got)
		}
	}
	if got := backoff.Pause(1, 10*time.Second, time.Second); !about(got, time.Second) {
		t.Errorf("first above most: %v", got)
	}
}

// What failed together does not come back together.
func TestPausesDiffer(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[backoff.Pause(3, time.Second, time.Minute)] = true
	}
	if len(seen) < 2 {
		t.Errorf("20 pauses are all alike: %v", seen)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if !backoff.Sleep(t.Context(), time.Hour) || time.Since(began) != time.Hour {
			t.Errorf("slept %v, want an hour", time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began = time.Now()
		if backoff.Sleep(ctx, time.Hour) || time.Since(began) != time.Minute {
			t.Errorf("cut short: slept %v, want a minute", time.Since(began))
		}
	})
}
