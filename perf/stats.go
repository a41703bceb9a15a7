package perf

import (
	"math"
	"slices"
)

// Fewest is the smallest number of samples that has a 95 % rank interval of the median.
const Fewest = 6

// Median is the middle of the samples, the mean of the two middle ones for an even number; 0 of
// none.
func Median(samples []float64) float64 {
	n := len(samples)
	if n == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Interval is the 95 % rank interval of the median: two of the samples that have the median of
// whatever the samples were drawn from between them in at least 95 % of all runs, with no
// assumption about its distribution. Below six samples no such interval exists; then it is the
// smallest and the largest sample.
func Interval(samples []float64) (low, high float64) {
	n := len(samples)
	if n == 0 {
		return 0, 0
	}
	s := slices.Sorted(slices.Values(samples))
	k := rank(n)
	return s[k-1], s[n-k]
}

// rank is the largest k for which P(B < k) ≤ 2.5 %, B being binomial(n, 1/2): how many of n samples
// fall below the median. The interval is the k-th smallest to the k-th largest sample. Reference:
// Conover, Practical Nonparametric Statistics, §3.2. n is at most MaxRepeat, so 2^-n is a float.
func rank(n int) int {
	if n < Fewest {
		return 1
	}
	k, term, below := 0, math.Ldexp(1, -n), 0.0 // term = P(B = k), below = P(B < k)
	for below+term <= 0.025 {
		below += term
		k++
		term *= float64(n-k+1) / float64(k)
	}
	return k
}
