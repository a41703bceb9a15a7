package probe

import (
	"fmt"
	"math"
	"time"
)

const (
	// maxLoss is the loss that still counts as none, as in CONTRACT: 0.1 %.
	maxLoss = 0.001
	// searchStep is the resolution of the search: neighbouring rates differ by 2 %.
	searchStep = 1.02
	// descent is how fast the search goes down while no rate has passed yet.
	descent = .7
	// trialMargin is what counting costs a trial beyond its length.
	trialMargin = 2 * settleQuiet
)

// found is what a search found.
type found struct {
	best   Trial // the fastest confirmed trial
	trials []Trial
	notes  []string
}

// search finds the highest rate with a loss of at most maxLoss, in at most total.
//
//  1. One trial flat out: nothing faster can be offered, and what it delivers is a first guess.
//  2. Half of the time: short trials go down until one passes, then bisect. There, a trial that fails is repeated,
//     so that a single hiccup of the machine decides nothing.
//  3. The other half: trials a sixth of the total long confirm. Only they make a result: after one that passes a
//     faster one is tried, after one that fails a slower one, in steps that double while the direction stays.
//
// run runs a trial; now is the time since the search began.
func search(run func(rate float64, length time.Duration) (Trial, error), now func() time.Duration, total time.Duration) (found, error) {
	s := searcher{run: run, now: now, total: total}
	short := min(max(total/40, 10*time.Millisecond), time.Second)
	if err := s.narrow(short); err != nil {
		return s.found, err
	}
	err := s.confirm(max(total/6, short))
	return s.found, err
}

type searcher struct {
	run   func(float64, time.Duration) (Trial, error)
	now   func() time.Duration
	total time.Duration
	found

	low, high float64 // the highest rate that passed and the lowest that did not
	guess     float64
}

func (t Trial) passed() bool { return t.Loss <= maxLoss }

func (s *searcher) trial(rate float64, length time.Duration) (Trial, error) {
	t, err := s.run(rate, length)
	if err == nil {
		s.trials = append(s.trials, t)
	}
	return t, err
}

// narrow does steps 1 and 2.
func (s *searcher) narrow(short time.Duration) error {
	t, err := s.trial(0, short)
	if err != nil {
		return err
	}
	s.high = t.Offered
	if s.guess = t.Rate / searchStep; t.passed() {
		s.low, s.guess = t.Offered, t.Offered
	}
	for repeated := false; s.low*searchStep < s.high && s.now()+short+trialMargin < s.total/2; {
		if t, err = s.trial(s.guess, short); err != nil {
			return err
		}
		if !t.passed() && s.low > 0 && !repeated {
			repeated = true
			continue
		}
		repeated = false
		s.learn(t)
	}
	return nil
}

// learn moves the bounds by a trial and chooses the next rate to try.
func (s *searcher) learn(t Trial) {
	switch {
	case !t.passed():
		s.high = min(s.high, t.Target)
	default: // a sender held up has shown no more than what it offered
		s.low = max(s.low, min(t.Offered, t.Target))
	}
	if s.low > 0 {
		s.guess = math.Sqrt(s.low * s.high)
	} else {
		s.guess = s.high * descent
	}
}

// confirm does step 3.
func (s *searcher) confirm(long time.Duration) error {
	rate, step, rising := s.low, searchStep, true
	if rate == 0 {
		rate, step = s.guess, 1/descent
	}
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
			step *= step
		default:
			step = searchStep
		}
		if rising = t.passed(); !rising {
			s.high = min(s.high, rate)
			// What came through is a hint of what the path carries, but no more than one.
			slower := min(rate/step, max(t.Rate/searchStep, rate*.9))
			rate = max(slower, math.Sqrt(rate*s.best.Rate))
			continue
		}
		if t.Rate > s.best.Rate {
			s.best = t
		}
		rate *= step
	}
	if s.best.Rate == 0 {
		s.unconfirmed()
	}
	return nil
}

// unconfirmed falls back to the fastest short trial that passed below the rates that did not, and says so.
func (s *searcher) unconfirmed() {
	least := Trial{Loss: 1}
	for _, t := range s.trials {
		if t.passed() && t.Rate > s.best.Rate && t.Rate < s.high {
			s.best = t
		}
		if t.Loss < least.Loss {
			least = t
		}
	}
	if s.best.Rate > 0 {
		s.notes = append(s.notes, "no long trial passed: this is the fastest short one below them")
		return
	}
	s.best = Trial{Loss: least.Loss}
	s.notes = append(s.notes, fmt.Sprintf("no rate passed: the least loss was %.3g %%, at %.0f packet/s", least.Loss*100, least.Offered))
}
