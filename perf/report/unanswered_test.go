package report

import (
	"bytes"
	"encoding/csv"
	"math"
	"strings"
	"testing"

	"weft/perf/probe"
	"weft/perf/result"
)

// gaps is a result of searches some of which have no answer: one sample of bare, all of tun.
func gaps() *result.Result {
	r := example()
	r.Results, r.Conservation, r.Failed, r.Unsupported = nil, nil, nil, nil
	none := math.NaN()
	for c, samples := range map[string][]float64{"bare": {200e3, none, 210e3}, "vxlan": {100e3, 90e3, 105e3}, "tun": {none, none, none}} {
		x := row(c, "rate", "packet/s", samples...)
		x.Test = "udp-rate"
		x.CPU.CostSamples = []float64{1, 2, 3}
		r.Results = append(r.Results, x)
		x = row(c, "loss", "ratio", samples...)
		x.Test = "udp-rate"
		r.Results = append(r.Results, x)
	}
	params := probe.Params{"family": 4, "size": 64}
	r.Generator = []result.Ceiling{{Test: "udp-rate", Params: params, Metric: "rate", Unit: "packet/s", Samples: []float64{none, none},
		Median: result.Figure(none), Low: result.Figure(none), High: result.Figure(none)}}
	r.Details = []result.Detail{{Contender: "tun", Test: "udp-rate", Params: params, Notes: []string{"unanswered: none of 7 long trials passed"},
		Trials: []probe.Trial{{Offered: 2e5, Rate: 1e5, Loss: .5}}}}
	return r
}

const (
	saysOne = "1 of 3 samples have no answer and are in no figure"
	saysAll = "none of 3 samples has an answer: there is no median"
)

func TestUnansweredInTheTable(t *testing.T) {
	var b bytes.Buffer
	if err := Table(&b, gaps()); err != nil {
		t.Fatal(err)
	}
	lines := map[string]string{}
	for line := range strings.Lines(b.String()) {
		lines[strings.SplitN(line, " ", 2)[0]] = strings.Join(strings.Fields(line), " ")
	}
	for contender, want := range map[string]string{"bare": "bare 205 200–210 1.00 1.00–1.00", "vxlan": "vxlan 100 90.0–105 0.500 0.500–0.500", "tun": "tun unanswered –"} {
		if !strings.HasPrefix(lines[contender], want) {
			t.Errorf("the table says %q, want %q", lines[contender], want)
		}
	}
	for _, want := range []string{"unanswered: bare, udp-rate, family 4, size 64: " + saysOne + "\n", "unanswered: tun, udp-rate, family 4, size 64: " + saysAll + "\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "unanswered: vxlan") {
		t.Errorf("the table is\n%s", b.String())
	}
}

func TestUnansweredInCSV(t *testing.T) {
	var b bytes.Buffer
	if err := CSV(&b, gaps()); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines[1:] {
		got := strings.Join([]string{l[4], l[5], l[6], l[7], l[15]}, ",")
		want := map[string]string{"bare": "205000,200000,210000,200000 unanswered 210000,1", "vxlan": "100000,90000,105000,100000 90000 105000,0",
			"tun": ",,,unanswered unanswered unanswered,3"}[l[0]]
		if got != want {
			t.Errorf("%s: %s, want %s", l[0], got, want)
		}
	}
}

func TestUnansweredOnThePage(t *testing.T) {
	text, doc := render(t, gaps())
	for _, want := range []string{"bare: " + saysOne, "tun: " + saysAll, "200 unanswered 210", "unanswered unanswered unanswered",
		"tun: unanswered: none of 7 long trials passed", "2 of 2 samples have no answer"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error("the page has figures that are none")
	}
	for _, table := range all(doc, "table") {
		if !strings.Contains(textOf(all(table, "caption")[0]), "What each contender costs") {
			continue
		}
		for _, r := range all(table, "tr")[1:] {
			if name, cells := textOf(all(r, "th")[0]), all(r, "td"); (textOf(cells[0]) == unanswered) != (name == "tun") {
				t.Errorf("the verdict on %s begins with %q", name, textOf(cells[0]))
			}
		}
	}
}
