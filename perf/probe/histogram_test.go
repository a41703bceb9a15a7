package probe

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Every value is in a bucket whose middle is within 1/128 of it, and buckets are in order.
func TestHistogramBuckets(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	values := []uint64{0, 1, 127, 128, 129, 255, 256, 257, 1<<histogramTop - 1}
	for range 10000 {
		values = append(values, rng.Uint64()>>(64-rng.UintN(histogramTop+1)))
	}
	slices.Sort(values)
	last := 0
	for _, v := range values {
		i := bucketOf(v)
		if i < last || i >= len(histogram{}.counts) {
			t.Fatalf("%d is in bucket %d, a smaller value in %d", v, i, last)
		}
		last = i
		if m := bucketMiddle(i); math.Abs(float64(m)-float64(v)) > float64(v)/128+1 {
			t.Fatalf("%d is in bucket %d whose middle is %d", v, i, m)
		}
	}
}

func TestHistogramQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	h := new(histogram)
	var all []time.Duration
	for range 20000 {
		d := time.Duration(rng.ExpFloat64() * 50e3)
		h.record(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{.5, .9, .99, .999} {
		want := all[int(q*float64(len(all))+.5)-1] // the slow way
		if got := h.quantile(q); math.Abs(float64(got-want)) > float64(want)/64+1 {
			t.Errorf("quantile %v: got %v, want %v", q, got, want)
		}
	}
	if got := new(histogram).quantile(.5); got != 0 {
		t.Errorf("an empty histogram says %v", got)
	}
	h.record(-time.Second)
	h.record(time.Hour)
	if h.total != 20002 {
		t.Error("values out of range are not counted")
	}
}

func TestHistogramAllocatesNothing(t *testing.T) {
	h := new(histogram)
	if n := testing.AllocsPerRun(1000, func() { h.record(12345) }); n != 0 {
		t.Errorf("record allocates %v times", n)
	}
}

// TestDistribution: a curve rises, ends at the largest value, and has no tail that too few values make.
func TestDistribution(t *testing.T) {
	h := new(histogram)
	for i := range 1000 {
		h.record(time.Duration(i+1) * time.Microsecond)
	}
	points := h.distribution()
	if !slices.IsSortedFunc(points, func(a, b Quantile) int { return cmp.Compare(a.Us, b.Us) }) {
		t.Errorf("the curve falls: %v", points)
	}
	last, before := points[len(points)-1], points[len(points)-2]
	if last.Quantile != 1 || math.Abs(last.Us-1000) > 1000./128 {
		t.Errorf("the curve ends at %v", last)
	}
	if before.Quantile > .99 {
		t.Errorf("of 1000 values the curve has the quantile %v", before.Quantile)
	}
}
