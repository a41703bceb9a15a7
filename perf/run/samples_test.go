package run

import (
	"encoding/json"
	"slices"
	"testing"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// TestUnanswered: a sample without an answer is in no figure, null in JSON, and no zero anywhere.
func TestUnanswered(t *testing.T) {
	udp := probe.Selection{Test: "udp-rate", Params: probe.Params{"size": 64}}
	take := func(r probe.Result) *sample {
		r.Test = udp.Test
		m, err := metrics(udp, r, machine.Cores{})
		if err != nil {
			t.Fatal(err)
		}
		return &sample{metrics: m, result: r, seconds: 1, busy: machine.Cores{User: 1}}
	}
	answered := func(rate float64) *sample {
		return take(probe.Result{Delivered: 1000, Metrics: []probe.Metric{{Name: "rate", Value: rate}, {Name: "loss", Value: 0}}})
	}
	silent := func() *sample {
		return take(probe.Result{Unanswered: "none of 7 long trials passed", Metrics: []probe.Metric{}})
	}
	for _, c := range []struct {
		samples             []*sample
		text, median        string
		ceiling, unanswered int
		lacks               []string
	}{
		{[]*sample{answered(3), silent(), answered(5)}, "[3,null,5]", "4", 5, 1, nil},
		{[]*sample{silent(), silent()}, "[null,null]", "null", 0, 2, []string{"tun in udp-rate:size=64"}},
		{[]*sample{answered(3)}, "[3]", "3", 3, 0, nil},
	} {
		list, err := rows(site.About{Contender: "tun", InnerMTU: 1450}, udp, c.samples)
		if err != nil || len(list) != 2 {
			t.Fatalf("%d rows, %v", len(list), err)
		}
		row := list[0]
		if text(t, row.Samples) != c.text || text(t, row.Median) != c.median || row.Samples.Unanswered() != c.unanswered {
			t.Errorf("samples %s, median %s, %d unanswered, want %+v", text(t, row.Samples), text(t, row.Median), row.Samples.Unanswered(), c)
		}
		if loss := list[1]; loss.Samples.Unanswered() != c.unanswered || loss.Median.Known() != (c.median != "null") {
			t.Errorf("losses %s, median %s", text(t, loss.Samples), text(t, loss.Median))
		}
		if row.CPU.CostSamples.Unanswered() != c.unanswered || (row.CPU.NanosecondsPerPacket > 0) != (c.median != "null") {
			t.Errorf("costs %s, %v ns a packet", text(t, row.CPU.CostSamples), row.CPU.NanosecondsPerPacket)
		}
		r := result.Result{Results: list}
		if got := r.WithoutMedian(); !slices.Equal(got, c.lacks) {
			t.Errorf("without a median are %q, want %q", got, c.lacks)
		}
		var again result.Row
		if err := json.Unmarshal([]byte(text(t, row)), &again); err != nil || text(t, again) != text(t, row) {
			t.Errorf("%s reads back as %s, %v", text(t, row), text(t, again), err)
		}
	}
	d, _ := detail(site.About{Contender: "tun"}, udp, []*sample{silent(), silent(), answered(1)})
	if !slices.Equal(d.Notes, []string{"unanswered: none of 7 long trials passed"}) {
		t.Errorf("notes %q", d.Notes)
	}
	if v := firstFigure(probe.Result{}); v == 0 {
		t.Error("the generators' own ceiling of a search without an answer is 0")
	}
}
