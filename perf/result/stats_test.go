package result

import (
	"math"
	"testing"
)

// The ranks of the 95 % interval of a median, as statistical tables print them (for example
// Conover, Practical Nonparametric Statistics, and R's wilcox-free `qbinom(0.025, n, 0.5)`).
func TestRank(t *testing.T) {
	for n, want := range map[int]int{
		1: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 2, 10: 2, 11: 2, 12: 3, 13: 3, 14: 3, 15: 4, 16: 4, 17: 5,
		18: 5, 19: 5, 20: 6, 25: 8, 30: 10, 40: 14, 50: 18, 100: 40, 1000: 469,
	} {
		if got := rank(n); got != want {
			t.Errorf("rank(%d) = %d, want %d", n, got, want)
		}
	}
}

var none = math.NaN()

// equal is ==, and true of two that are none.
func equal(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

func TestMedianAndInterval(t *testing.T) {
	for _, c := range []struct {
		samples           []float64
		median, low, high float64
	}{
		{nil, none, none, none},
		{[]float64{none, none}, none, none, none},
		{[]float64{none, 7, none}, 7, 7, 7},
		{[]float64{3, none, 1, 2}, 2, 1, 3},
		{[]float64{9, 8, 7, 6, none, 5, 4, 3, 2, 1, none}, 5, 2, 8},
		{[]float64{7}, 7, 7, 7},
		{[]float64{3, 1, 2}, 2, 1, 3},
		{[]float64{4, 1, 3, 2}, 2.5, 1, 4},
		{[]float64{5, 1, 2, 3, 4}, 3, 1, 5},
		{[]float64{6, 5, 4, 3, 2, 1}, 3.5, 1, 6},
		{[]float64{9, 8, 7, 6, 5, 4, 3, 2, 1}, 5, 2, 8},
		{[]float64{1, 1, 1, 1, 1, 1, 1, 1, 100}, 1, 1, 1},
	} {
		before := append([]float64(nil), c.samples...)
		low, high := Interval(c.samples)
		if m := Median(c.samples); !equal(m, c.median) || !equal(low, c.low) || !equal(high, c.high) {
			t.Errorf("%v: median %v in [%v, %v], want %v in [%v, %v]", c.samples, m, low, high, c.median, c.low, c.high)
		}
		for i := range before {
			if !equal(c.samples[i], before[i]) {
				t.Fatalf("the samples were reordered: %v, were %v", c.samples, before)
			}
		}
	}
}
