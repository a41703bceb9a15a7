package probe

import (
	"math/bits"
	"time"
)

// histogram counts durations in buckets of growing width, as HdrHistogram does: values below 2^7 ns
// have a bucket each, every power of two above is divided into 2^7, so that a bucket is never wider than 1/128
// of its value. Recording neither allocates nor branches on the data.
//
//	index = exponent ‖ 7 bits of mantissa
type histogram struct {
	counts [(histogramTop - histogramBits + 1) << histogramBits]uint64
	total  uint64
}

const (
	histogramBits = 7
	histogramTop  = 40 // 2^40 ns = 18 minutes; longer is counted as that
)

func (h *histogram) record(d time.Duration) {
	v := min(uint64(max(d, 0)), 1<<histogramTop-1)
	h.counts[bucketOf(v)]++
	h.total++
}

func bucketOf(v uint64) int {
	shift := max(bits.Len64(v)-histogramBits-1, 0)
	return shift<<histogramBits + int(v>>shift)
}

// bucketMiddle is the inverse of bucketOf: the middle of the values a bucket holds.
func bucketMiddle(i int) uint64 {
	shift := max(i>>histogramBits-1, 0)
	low := uint64(i-shift<<histogramBits) << shift
	return low + 1<<shift/2
}

// quantile is the value that a share q of all recorded values does not exceed; 0 when empty.
func (h *histogram) quantile(q float64) time.Duration {
	rank := max(uint64(q*float64(h.total)+0.5), 1)
	var seen uint64
	for i, n := range h.counts {
		if seen += n; seen >= rank {
			return time.Duration(bucketMiddle(i))
		}
	}
	return 0
}
