package probe

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// jittery is a simulated path that carries 100,000 packets a second, more or less. Its clock is what the trials take.
type jittery struct {
	*rand.Rand
	trial, slice float64 // how far the pace is off at most: from trial to trial, and every 5 ms
	all          bool    // while more is offered than is carried, nothing comes through; else the excess is dropped
	queue        float64 // packets that wait before any is dropped
	stops        float64 // how often in a second nothing moves for 5 ms
	elapsed      time.Duration
}

const (
	pace      = 100e3 // packet/s
	jitterMax = 400e3 // packet/s that the sender can offer
)

func (j *jittery) now() time.Duration { return j.elapsed }

func (j *jittery) about(jitter float64) float64 { return 1 + jitter*(2*j.Float64()-1) }

func (j *jittery) run(rate float64, length time.Duration) (Trial, error) {
	if rate == 0 || rate > jitterMax {
		rate = jitterMax
	}
	const slice = 5 * time.Millisecond
	capacity := pace * j.about(j.trial)
	queued, sent, received := 0.0, 0.0, 0.0
	for range length / slice {
		room := capacity * j.about(j.slice)
		if j.Float64() < j.stops*slice.Seconds() {
			room = 0
		}
		carried := min(queued+rate*slice.Seconds(), room*slice.Seconds())
		if j.all && rate > room {
			carried = 0
		}
		sent += rate * slice.Seconds()
		received += carried
		queued = min(queued+rate*slice.Seconds()-carried, j.queue)
	}
	span := length + time.Duration(queued/capacity*1e9)
	received += queued
	t := Trial{Target: rate, Offered: rate, Rate: received / span.Seconds(), Sent: uint64(sent), Received: uint64(received), Seconds: length.Seconds()}
	if t.Loss = 1 - received/sent; t.Loss < 1e-9 { // of rounding
		t.Loss = 0
	}
	j.elapsed += span + time.Millisecond
	if t.Loss > 0 {
		j.elapsed += settleQuiet
	}
	return t, nil
}

// typical is what half of the trials of a length carry: what the search looks for.
func (j jittery) typical(length time.Duration) (rate float64) {
	for low, high := pace/4, 2*pace; high/low > 1.005; {
		offered, carried := math.Sqrt(low*high), []float64{}
		for range 1000 {
			if t, _ := j.run(offered, length); t.passed() {
				carried = append(carried, t.Rate)
			}
		}
		if len(carried) < 500 {
			high = offered
			continue
		}
		slices.Sort(carried)
		low, rate = offered, carried[len(carried)/2]
	}
	return rate
}

// TestSearchOnAJitteryPath is the table of docs/perf-method.md: 200 searches of each length over paths whose pace jitters by 30 %. All are
// answered, in time, and near to what the path carries. -v prints the table.
func TestSearchOnAJitteryPath(t *testing.T) {
	const searches = 200
	var table strings.Builder
	for _, c := range []struct {
		name       string
		path       jittery
		unanswered int     // at most
		bias       float64 // of the median
		spread     float64 // of nine in ten
	}{
		{"excess dropped, from trial to trial", jittery{trial: .3}, 0, .05, .25},
		{"excess dropped, every 5 ms", jittery{slice: .3}, 0, .05, .15},
		{"excess dropped, both", jittery{trial: .3, slice: .3}, 0, .05, .3},
		{"all dropped, from trial to trial", jittery{trial: .3, all: true}, 0, .05, .25},
		{"all dropped, every 5 ms", jittery{slice: .3, all: true}, 0, .05, .15},
		{"all dropped, both", jittery{trial: .3, slice: .3, all: true}, 0, .05, .3},
		{"both, behind a queue of 2000", jittery{trial: .3, slice: .3, queue: 2000}, 0, .1, .25},
		{"both, queue of 200, one stop a second", jittery{trial: .3, slice: .3, queue: 200, stops: 1}, 2, .15, .45},
	} {
		for _, total := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
			truth := c.path
			truth.Rand = rand.New(rand.NewPCG(1, 2))
			want := truth.typical(total / 10)
			var off []float64
			for seed := range uint64(searches) {
				p := c.path
				p.Rand = rand.New(rand.NewPCG(seed, 7))
				found, err := search(p.run, p.now, total)
				if err != nil {
					t.Fatal(err)
				}
				if p.elapsed > total {
					t.Errorf("%s, %s, seed %d: took %s", c.name, total, seed, p.elapsed)
				}
				if found.answered != (found.best.Confirmed && found.best.passed() && found.best.Rate > 0) || found.answered != (found.lacking() == "") {
					t.Errorf("%s, %s, seed %d: answered %v by %+v, %q", c.name, total, seed, found.answered, found.best, found.lacking())
				}
				if found.answered {
					off = append(off, found.best.Rate/want-1)
				}
			}
			if unanswered := searches - len(off); unanswered > c.unanswered {
				t.Errorf("%s, %s: %d of %d searches have no answer", c.name, total, unanswered, searches)
			}
			slices.Sort(off)
			at := func(q float64) float64 { return off[int(q*float64(len(off)-1)+.5)] }
			if math.Abs(at(.5)) > c.bias || at(.05) < -c.spread || at(.95) > c.spread {
				t.Errorf("%s, %s: off by %.3f, nine in ten from %.3f to %.3f", c.name, total, at(.5), at(.05), at(.95))
			}
			fmt.Fprintf(&table, "| %s | %s | %.0f | %d of %d | %+.0f %% | %+.0f to %+.0f %% |\n", c.name, total, want/1e3, len(off), searches,
				100*at(.5), 100*at(.05), 100*at(.95))
		}
	}
	t.Logf("\n%s", table.String())
}
