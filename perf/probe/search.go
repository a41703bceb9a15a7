package probe

import (
	"fmt"
	"math"
	"time"
)

const (
	// maxLoss is the loss that still counts as none, as in CONTRACT: 0.1 %.
	maxLoss = 0.001
	// searchStep is the resolution of the search: neighbouring rates differ by 1 %.
	searchStep = 1.01
	// descent is how fast short trials go down while no rate has passed yet.
	descent = .7
	// nearEnough is how far apart the bounds are when short trials have done their part: they cannot tell more.
	nearEnough = 1.1
	// firstStride and longestStride are how far long trials go up or down at once.
	firstStride, longestStride = 1.08, 1.3
	// trialMargin is what counting, and a queue that empties, cost a trial beyond its length.
	trialMargin = 3 * settleQuiet
)

// found is what a search found.
type found struct {
	best     Trial // the fastest long trial that passed
	answered bool  // there is one
	trials   []Trial
}

// lacking says why there is no answer; "" = there is one.
func (f found) lacking() string {
	if f.answered {
		return ""
	}
	least, long := Trial{Loss: math.Inf(1)}, 0
	for _, t := range f.trials {
		if t.Loss < least.Loss {
			least = t
		}
		if t.Confirmed {
			long++
		}
	}
	return fmt.Sprintf("none of %d long trials passed: the least loss of all trials was %.3g %%, at %.0f packet/s", long, least.Loss*100, least.Offered)
}

// search finds the highest rate with a loss of at most maxLoss, in at most total.
//
//  1. One trial flat out: nothing faster can be offered, and what it delivers is a first guess.
//  2. For a quarter of the time at most, short trials go down until one passes, then bisect. They only say where to begin: a
//     queue on the way holds what a short trial has too much, and a hiccup is all that it sees.
//  3. Long trials, a tenth of the total each, decide, and only they: after one that passes a faster one is tried, after one that
//     fails a slower one, in strides that double while the direction stays and halve when it turns. So a path that
//     is slower than it looked, or that only now is slow, is met before the time is over.
//
// run runs a trial; now is the time since the search began.
func search(run func(rate float64, length time.Duration) (Trial, error), now func() time.Duration, total time.Duration) (found, error) {
	s := searcher{run: run, now: now, total: total}
	short := min(max(total/40, 10*time.Millisecond), time.Second)
	rate, err := s.narrow(short)
	if err == nil {
		err = s.decide(rate, max(total/10, short))
	}
	return s.found, err
}

type searcher struct {
	run   func(float64, time.Duration) (Trial, error)
	now   func() time.Duration
	total time.Duration
	found
}

// passed says whether the path carries the rate. Corrupt packets are not lost, but a trial with no other has shown no rate.
func (t Trial) passed() bool { return t.Loss <= maxLoss && t.Rate > 0 }

func (s *searcher) trial(rate float64, length time.Duration) (Trial, error) {
	t, err := s.run(rate, length)
	if err == nil {
		s.trials = append(s.trials, t)
	}
	return t, err
}

// narrow does steps 1 and 2 and returns the rate to begin step 3 with.
func (s *searcher) narrow(short time.Duration) (rate float64, err error) {
	t, err := s.trial(0, short)
	if err != nil || t.passed() {
		return t.Offered, err
	}
	low, high := 0.0, t.Offered
	if rate = t.Rate / searchStep; rate == 0 { // overload may deliver nothing
		rate = high * descent * descent
	}
	for low*nearEnough < high && s.now()+short+trialMargin < s.total/4 {
		if t, err = s.trial(rate, short); err != nil {
			return 0, err
		}
		if t.passed() {
			low = max(low, t.Rate) // what was offered beyond that still queued when the sender had ended
		} else {
			high = min(high, rate)
		}
		if rate = high * descent; low > 0 {
			rate = math.Sqrt(low * high)
		}
	}
	if low > 0 {
		rate = low
	}
	return rate, nil
}

// decide does step 3.
func (s *searcher) decide(rate float64, long time.Duration) error {
	stride, rising := firstStride, true
	var passed, failed float64 // the last rates that did
	for first := true; s.now()+long+trialMargin <= s.total; first = false {
		t, err := s.trial(rate, long)
		if err != nil {
			return err
		}
		t.Confirmed = true
		s.trials[len(s.trials)-1] = t
		switch {
		case first:
		case t.passed() == rising:
			stride = min(stride*stride, longestStride)
		default:
			stride = max(math.Sqrt(stride), searchStep)
		}
		if rising = t.passed(); rising {
			if !s.answered || t.Rate > s.best.Rate {
				s.best, s.answered = t, true
			}
			passed, rate = t.Rate, t.Rate*stride
			if middle := math.Sqrt(passed * failed); middle > passed*searchStep {
				rate = min(rate, middle)
			}
			continue
		}
		failed = rate
		// What came through is a hint of what the path carries, but no more than one.
		rate = min(rate/stride, max(t.Rate/searchStep, rate*.9))
		if middle := math.Sqrt(passed * failed); middle < failed/searchStep {
			rate = max(rate, middle)
		}
	}
	return nil
}
