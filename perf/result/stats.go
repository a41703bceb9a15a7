package result

import (
	"math"
	"slices"
)

// Fewest is the smallest number of samples that has a 95 % rank interval of the median.
const Fewest = 6

// Median is the middle of the answered samples, the mean of the two middle ones for an even number; NaN of
// none.
func Median(samples []float64) float64 {
	s := Samples(samples).Answered()
	n := len(s)
	if n == 0 {
		return math.NaN()
	}
	slices.Sort(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Interval is the 95 % rank interval of the median: two of the answered samples that have the median of
// whatever the samples were drawn from between them in at least 95 % of all runs, with no
// assumption about its distribution. Below six samples no such interval exists; then it is the
// smallest and the largest sample; NaN of none.
func Interval(samples []float64) (low, high float64) {
	s := Samples(samples).Answered()
	n := len(s)
	if n == 0 {
		return math.NaN(), math.NaN()
	}
	slices.Sort(s)
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
