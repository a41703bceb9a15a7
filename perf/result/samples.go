package result

import (
	"encoding/json"
	"math"
	"slices"

	"weft/perf/probe"
)

// Samples are figures in the order of the rounds. A sample without an answer, of a search that found no rate, is NaN here and null in
// JSON; it is never 0, and no statistic counts it.
type Samples []float64

// Answered are the samples that are figures.
func (s Samples) Answered() []float64 {
	var list []float64
	for _, v := range s {
		if !math.IsNaN(v) {
			list = append(list, v)
		}
	}
	return list
}

// Unanswered is how many samples have no answer.
func (s Samples) Unanswered() int { return len(s) - len(s.Answered()) }

// MarshalJSON implements json.Marshaler.
func (s Samples) MarshalJSON() ([]byte, error) {
	list := make([]Figure, len(s))
	for i, v := range s {
		list[i] = Figure(v)
	}
	return json.Marshal(list)
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Samples) UnmarshalJSON(data []byte) error {
	var list []Figure
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	*s = nil
	for _, v := range list {
		*s = append(*s, float64(v))
	}
	return nil
}

// Figure is a median or an end of its interval: NaN here and null in JSON where no sample was answered.
type Figure float64

// Known says that there is a figure.
func (f Figure) Known() bool { return !math.IsNaN(float64(f)) }

// In is the figure in a multiple of its unit.
func (f Figure) In(multiple float64) float64 { return float64(f) / multiple }

// MarshalJSON implements json.Marshaler.
func (f Figure) MarshalJSON() ([]byte, error) {
	if !f.Known() {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// UnmarshalJSON implements json.Unmarshaler.
func (f *Figure) UnmarshalJSON(data []byte) error {
	v := math.NaN()
	if string(data) != "null" {
		if err := json.Unmarshal(data, &v); err != nil {
			return err
		}
	}
	*f = Figure(v)
	return nil
}

// Summary is the median of the answered samples and its interval.
func Summary(s Samples) (median, low, high Figure) {
	l, h := Interval(s)
	return Figure(Median(s)), Figure(l), Figure(h)
}

// WithoutMedian names the contenders and tests that ran and have no figure, for none of their samples has an answer.
func (r *Result) WithoutMedian() []string {
	var names []string
	for _, row := range r.Results {
		name := On(row.Contender, row.Path) + " in " + probe.Selection{Test: row.Test, Params: row.Params}.String()
		if row.Samples.Unanswered() > 0 && !row.Median.Known() && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
