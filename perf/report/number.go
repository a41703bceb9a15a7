package report

import (
	"fmt"
	"math"

	"weft/perf/result"
)

// scale is how a unit is shown: figures divided by by, under the name.
type scale struct {
	by   float64
	name string
}

// scaleOf picks the multiple of a unit that gives the largest figure one to three digits before
// the point.
func scaleOf(unit string, largest float64) scale {
	var steps []scale // largest first
	switch unit {
	case "bit/s":
		steps = []scale{{1e9, "Gbit/s"}, {1e6, "Mbit/s"}, {1e3, "kbit/s"}}
	case "packet/s":
		steps = []scale{{1e6, "Mpacket/s"}, {1e3, "kpacket/s"}}
	case "1/s":
		steps = []scale{{1e6, "M/s"}, {1e3, "k/s"}}
	case "ratio":
		steps = []scale{{0.01, "%"}}
		largest = 1
	case "us":
		unit = "µs"
	}
	for _, s := range steps {
		if largest >= s.by {
			return s
		}
	}
	return scale{1, unit}
}

// digits writes a figure with three significant digits; – where there is none.
func digits(v float64) string {
	if math.IsNaN(v) {
		return "–"
	}
	if v == 0 || math.IsInf(v, 0) {
		return fmt.Sprintf("%.0f", v)
	}
	places := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(max(places, 0), 4), v)
}

// between writes an interval; – where there is none.
func between(low, high float64) string {
	if math.IsNaN(low) || math.IsNaN(high) {
		return "–"
	}
	return digits(low) + "–" + digits(high)
}

// unanswered is what stands for a figure where no sample has an answer.
const unanswered = "unanswered"

// median writes a row's median in a multiple of its unit.
func median(r result.Row, by float64) string {
	if r.Samples.Unanswered() > 0 && !r.Median.Known() {
		return unanswered
	}
	return digits(r.Median.In(by))
}

// lacking says how many of a row's samples have no answer; "" = all have.
func lacking(r result.Row) string {
	n, all := r.Samples.Unanswered(), len(r.Samples)
	switch {
	case n == 0:
		return ""
	case n == all:
		return fmt.Sprintf("none of %d samples has an answer: there is no median", all)
	case all >= result.Fewest && all-n < result.Fewest:
		return fmt.Sprintf("%d of %d samples have no answer and are in no figure; of the others there is no 95 %% interval, it is the smallest to the largest", n, all)
	}
	return fmt.Sprintf("%d of %d samples have no answer and are in no figure", n, all)
}
