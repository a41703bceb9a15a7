package report

import (
	"slices"

	"weft/perf/result"
)

// Bimodal says whether samples fall into two heaps, and where: there is a gap between neighbours of at least two thirds
// of the whole range and a tenth of the median, with at least two samples on either side. Five samples that are spread
// evenly look like that once in 14 times, ten once in 1000. Below four samples nothing can be said.
func Bimodal(samples []float64) (lower, upper float64, is bool) {
	s := result.Samples(samples).Answered()
	slices.Sort(s)
	n := len(s)
	for i := 2; i <= n-2; i++ {
		gap := s[i] - s[i-1]
		if gap > 0 && gap >= (s[n-1]-s[0])*2/3 && gap >= result.Median(s)/10 {
			return result.Median(s[:i]), result.Median(s[i:]), true
		}
	}
	return 0, 0, false
}

// ratio is a comparison with the baseline round by round: the samples of one round were taken next to each other, so
// what drifted on the machine is in both. A round in which either has no answer is left out.
type ratio struct{ median, low, high float64 }

func ratioOf(samples, base []float64) (ratio, bool) {
	if len(samples) == 0 || len(samples) != len(base) {
		return ratio{}, false
	}
	list := make(result.Samples, len(samples))
	for i := range list {
		if base[i] == 0 {
			return ratio{}, false
		}
		list[i] = samples[i] / base[i]
	}
	low, high := result.Interval(list)
	return ratio{result.Median(list), low, high}, len(list.Answered()) > 0
}

// same says that the interval does not tell the two apart.
func (r ratio) same() bool { return r.low <= 1 && r.high >= 1 }
