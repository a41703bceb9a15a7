package probe

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// path is a simulated path: what it delivers of an offered rate. Its clock is what the trials take.
type path struct {
	most    float64 // packet/s the sender can offer
	carry   func(trial int, offered float64) (delivered float64)
	elapsed time.Duration
	trial   int
}

func (p *path) now() time.Duration { return p.elapsed }

func (p *path) run(rate float64, length time.Duration) (Trial, error) {
	p.trial++
	p.elapsed += length + settleQuiet
	offered := p.most
	if rate > 0 {
		offered = min(rate, p.most)
	}
	delivered := p.carry(p.trial, offered)
	return Trial{
		Target: rate, Offered: offered, Rate: delivered, Loss: 1 - delivered/offered,
		Sent: uint64(offered * length.Seconds()), Seconds: length.Seconds(),
	}, nil
}

// capped delivers up to a rate, and of what is beyond loses the excess.
func capped(rate float64) func(int, float64) float64 {
	return func(_ int, offered float64) float64 { return min(offered, rate) }
}

func TestSearchConverges(t *testing.T) {
	for name, c := range map[string]struct {
		path      path
		want, tol float64 // packet/s, ratio
	}{
		"cap far below the sender": {path{most: 1e6, carry: capped(20e3)}, 20e3, .03},
		"cap near the sender":      {path{most: 300e3, carry: capped(290e3)}, 290e3, .03},
		"the sender is the limit":  {path{most: 200e3, carry: capped(1e9)}, 200e3, .001},
		"livelock: overload delivers a tenth": {path{most: 500e3, carry: func(_ int, o float64) float64 {
			if o > 150e3 {
				return 15e3
			}
			return o
		}}, 150e3, .06},
		"loss that grows with the rate": {path{most: 400e3, carry: func(_ int, o float64) float64 {
			return o * (1 - max(0, o-100e3)/10e6) // 0.1 % is at 110,000
		}}, 110e3, .03},
		"every fourth trial is disturbed": {path{most: 400e3, carry: func(trial int, o float64) float64 {
			if trial%4 == 3 {
				return min(o, 100e3) * .95
			}
			return min(o, 100e3)
		}}, 100e3, .1},
		"a quarter of the capacity is lost in two trials at once": {path{most: 400e3, carry: func(trial int, o float64) float64 {
			if trial == 3 || trial == 4 {
				return min(o, 100e3) * .75
			}
			return min(o, 100e3)
		}}, 100e3, .08},
	} {
		t.Run(name, func(t *testing.T) {
			for _, total := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 10 * time.Second} {
				p := c.path
				found, err := search(p.run, p.now, total)
				if err != nil {
					t.Fatal(err)
				}
				if p.elapsed > total {
					t.Errorf("%s: the search took %s", total, p.elapsed)
				}
				if found.best.Loss > maxLoss || !found.best.Confirmed || !found.answered || found.lacking() != "" {
					t.Errorf("%s: the result %+v is not a confirmed one without loss", total, found.best)
				}
				if math.Abs(found.best.Rate/c.want-1) > c.tol {
					t.Errorf("%s: found %.0f, want %.0f ± %v; trials:\n%s", total, found.best.Rate, c.want, c.tol, list(found.trials))
				}
			}
		})
	}
}

func list(trials []Trial) string {
	var b strings.Builder
	for _, t := range trials {
		fmt.Fprintf(&b, "\t%.0f: offered %.0f, delivered %.0f\n", t.Target, t.Offered, t.Rate)
	}
	return b.String()
}

// TestSearchWithoutALossFreeRate: where nothing passes there is no answer, and no number that looks like one. Short trials that pass
// decide nothing.
func TestSearchWithoutALossFreeRate(t *testing.T) {
	for name, loss := range map[string]func(length time.Duration) float64{
		"1 % of any rate":                 func(time.Duration) float64 { return .01 },
		"all of any rate":                 func(time.Duration) float64 { return 1 },
		"1 % of any rate, in long trials": func(length time.Duration) float64 { return .01 * min(1, math.Floor(length.Seconds()/.1)) },
	} {
		p := &path{most: 100e3, carry: func(_ int, o float64) float64 { return o }}
		found, err := search(func(rate float64, length time.Duration) (Trial, error) {
			trial, err := p.run(rate, length)
			trial.Loss = loss(length)
			trial.Rate *= 1 - trial.Loss
			return trial, err
		}, p.now, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if found.answered || found.best != (Trial{}) || !strings.Contains(found.lacking(), "long trials passed: the least loss") {
			t.Errorf("%s: got %+v, %q", name, found.best, found.lacking())
		}
	}
}

// Corrupt packets are not lost: where all are, no trial loses any, and none shows a rate.
func TestSearchAmongCorruptPacketsHasNoAnswer(t *testing.T) {
	var elapsed time.Duration
	run := func(rate float64, length time.Duration) (Trial, error) {
		elapsed += length
		return Trial{Target: rate, Offered: 1e5, Sent: 1e5, Corrupt: 1e5}, nil
	}
	found, err := search(run, func() time.Duration { return elapsed }, 10*time.Second)
	if err != nil || found.answered || found.lacking() == "" {
		t.Errorf("answered %v by %+v, %q, %v", found.answered, found.best, found.lacking(), err)
	}
}

func TestSearchEndsWithTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	for at := 1; at < 8; at++ {
		p := &path{most: 1e6, carry: capped(20e3)}
		_, err := search(func(rate float64, length time.Duration) (Trial, error) {
			trial, _ := p.run(rate, length)
			if p.trial == at {
				return Trial{}, broken
			}
			if p.trial > at {
				t.Errorf("trial %d after the error in trial %d", p.trial, at)
			}
			return trial, nil
		}, p.now, 2*time.Second)
		if !errors.Is(err, broken) {
			t.Errorf("error in trial %d: got %v", at, err)
		}
	}
}
