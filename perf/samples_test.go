package perf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"weft/perf/probe"
)

// TestUnanswered: a sample without an answer is in no figure, null in JSON, and no zero anywhere.
func TestUnanswered(t *testing.T) {
	udp := probe.Selection{Test: "udp-rate", Params: probe.Params{"size": 64}}
	take := func(r probe.Result) *sample {
		r.Test = udp.Test
		m, err := metrics(udp, r, busy{})
		if err != nil {
			t.Fatal(err)
		}
		return &sample{metrics: m, result: r, seconds: 1, busy: busy{user: 1}}
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
		list, err := rows("tun", udp, 1450, c.samples)
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
		r := Result{Results: list}
		if got := r.WithoutMedian(); !slices.Equal(got, c.lacks) {
			t.Errorf("without a median are %q, want %q", got, c.lacks)
		}
		var again Row
		if err := json.Unmarshal([]byte(text(t, row)), &again); err != nil || text(t, again) != text(t, row) {
			t.Errorf("%s reads back as %s, %v", text(t, row), text(t, again), err)
		}
	}
	d, _ := detail("tun", udp, []*sample{silent(), silent(), answered(1)})
	if !slices.Equal(d.Notes, []string{"unanswered: none of 7 long trials passed"}) {
		t.Errorf("notes %q", d.Notes)
	}
	if v := firstFigure(probe.Result{}); equal(v, 0) {
		t.Error("the generators' own ceiling of a search without an answer is 0")
	}
}

// TestReadZeros: in results of before, a rate of 0 is a search without an answer. Other zeros are figures.
func TestReadZeros(t *testing.T) {
	old := `{"schema": "weft.lab/1", "results": [
		{"contender": "tun", "test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [0, 66090, 0], "median": 0, "low": 0, "high": 66090},
		{"contender": "tun", "test": "udp-rate", "params": {"size": 64}, "metric": "loss", "unit": "ratio", "samples": [0.01, 0, 0.02], "median": 0.01, "low": 0, "high": 0.02},
		{"contender": "xdp", "test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [1, 2, 3], "median": 2, "low": 1, "high": 3},
		{"contender": "xdp", "test": "udp-rate", "params": {"size": 64}, "metric": "loss", "unit": "ratio", "samples": [0, 0, 0], "median": 0, "low": 0, "high": 0}],
		"generator": [{"test": "udp-rate", "params": {"size": 64}, "metric": "rate", "unit": "packet/s", "samples": [0, 5], "median": 2.5, "low": 0, "high": 5}]}`
	file := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.Schema != Schema {
		t.Errorf("schema %s", r.Schema)
	}
	for i, want := range []string{"[null,66090,null] 66090 66090", "[null,0,null] 0 0", "[1,2,3] 2 1", "[0,0,0] 0 0"} {
		row := r.Results[i]
		if got := text(t, row.Samples) + " " + text(t, row.Median) + " " + text(t, row.Low); got != want {
			t.Errorf("row %d is %s, want %s", i, got, want)
		}
	}
	if g := r.Generator[0]; text(t, g.Samples) != "[null,5]" || g.Median != 5 || g.Low != 5 {
		t.Errorf("the generators' ceiling is %s", text(t, g))
	}
}
