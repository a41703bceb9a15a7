package report

import (
	"strings"
	"testing"

	"weft/perf/probe"
	"weft/perf/result"
)

// TestLoads: latency under load has a section of its own, a row for each load and contender in the order of the loads; what the generators can do
// is there, and a contender that comes near it is named.
func TestLoads(t *testing.T) {
	r := rich()
	open := func(c string, rate, p50 float64) {
		for metric, v := range map[string]float64{"rate": rate, "p50": p50, "p90": 2 * p50, "p99": 3 * p50, "p999": 4 * p50, "loss": .01} {
			r.Results = append(r.Results, result.Row{Contender: c, Test: openLoop, Params: probe.Params{"family": 4, "size": 64, "rate": rate}, Metric: metric,
				Unit: "us", Samples: []float64{v, v, v * 3, v * 3}, Median: result.Figure(v), Low: result.Figure(v), High: result.Figure(v * 3)})
		}
	}
	open("tun", 5000, 90)
	open("bare", 5000, 50)
	open("tun", 1000, 80)
	first := r.Results[0]
	r.Generator = []result.Ceiling{{Test: first.Test, Params: first.Params, Metric: first.Metric, Unit: first.Unit, Samples: []float64{1}, Median: first.Median * 1.05}}
	text, doc := render(t, r)
	for _, want := range []string{"Latency under load", "no coordinated omission", "What the generators can do", "it may be better than shown", "at 1000/s is bimodal"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	var rows []string
	for _, table := range all(doc, "table") {
		if strings.Contains(textOf(table), "offered, 1/s") {
			for _, row := range all(table, "tr")[1:] {
				rows = append(rows, textOf(row))
			}
		}
	}
	if len(rows) != 3 || !strings.HasPrefix(rows[0], "1000tun10001.00 %80.0") || !strings.HasPrefix(rows[1], "5000tun") || !strings.HasPrefix(rows[2], "5000bare50001.00 %50.0") {
		t.Errorf("rows %q", rows)
	}
}
