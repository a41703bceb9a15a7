package report

import (
	"fmt"
	"math"
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

// digits writes a figure with three significant digits.
func digits(v float64) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return fmt.Sprintf("%.0f", v)
	}
	places := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(max(places, 0), 4), v)
}

// between writes an interval.
func between(low, high float64) string { return digits(low) + "–" + digits(high) }
