package compare

import (
	"slices"
	"sort"

	"github.com/aclements/go-moremath/stats"

	"weft/perf/result"
)

// ratioInterval is the 95 % interval of B/A that belongs to the Mann-Whitney test (Hodges and Lehmann; Conover, Practical
// Nonparametric Statistics, §5.4): of all ratios of a sample of b to one of a the c-th smallest and the c-th largest, c being the largest number
// with P(U < c) ≤ 2.5 %. With fewer rounds than have such an interval it is the smallest and the largest ratio. It needs positive samples.
func ratioInterval(a, b []float64) (low, high float64, ok bool) {
	var ratios []float64
	for _, x := range a {
		for _, y := range b {
			if x <= 0 || y <= 0 {
				return 0, 0, false
			}
			ratios = append(ratios, y/x)
		}
	}
	if len(ratios) == 0 {
		return 0, 0, false
	}
	slices.Sort(ratios)
	c := critical(len(a), len(b))
	return ratios[c-1], ratios[len(ratios)-c], true
}

// shiftInterval is how much more b's samples are than a's: the median of all differences (Hodges and Lehmann) and its 95 % interval, as in
// ratioInterval.
func shiftInterval(a, b []float64) (middle, low, high float64) {
	var shifts []float64
	for _, x := range a {
		for _, y := range b {
			shifts = append(shifts, y-x)
		}
	}
	slices.Sort(shifts)
	c := critical(len(a), len(b))
	return result.Median(shifts), shifts[c-1], shifts[len(shifts)-c]
}

// critical is the largest c with P(U < c) ≤ 2.5 %, at least 1.
func critical(n, m int) int {
	if n > exact || m > exact {
		n, m = min(n, exact), min(m, exact) // wider than need be
	}
	u := stats.UDist{N1: n, N2: m}
	return max(sort.Search(n*m/2, func(c int) bool { return u.CDF(float64(c)) > 0.025 }), 1)
}

// exact bounds the samples whose distribution of U is computed.
const exact = 50
