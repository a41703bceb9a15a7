package compare_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"weft/perf/compare"
	"weft/perf/probe"
	"weft/perf/result"
)

func resultOf(rows ...result.Row) *result.Result {
	return &result.Result{
		Schema: result.Schema, Results: rows,
		Hosts:    []result.Host{{Kernel: "6.18", CPU: "x", Cores: 2, Go: "go1.26", Weft: "v1", TCPCongestion: "cubic"}},
		Settings: result.Settings{Duration: 1, Repeat: 5, MTU: 1500, Nodes: 2, Layout: "split"},
	}
}

func stream(contender string, samples ...float64) result.Row {
	return result.Row{Contender: contender, Test: "tcp-stream", Params: probe.Params{"flows": 1, "family": 4}, Metric: "throughput", Unit: "bit/s", Samples: samples}
}

func ping(contender string, samples ...float64) result.Row {
	return result.Row{Contender: contender, Test: "tcp-rr", Params: probe.Params{"size": 64}, Metric: "p50", Unit: "us", Samples: samples}
}

func TestVerdicts(t *testing.T) {
	flat, up, down := []float64{100, 101, 102, 103, 104}, []float64{110, 111, 112, 113, 114}, []float64{90, 91, 92, 93, 94}
	for name, c := range map[string]struct {
		a, b    result.Row
		want    compare.Verdict
		p       float64
		control string
	}{
		"faster":     {stream("tun", flat...), stream("tun", up...), compare.Better, 2.0 / 252, ""},
		"slower":     {stream("tun", flat...), stream("tun", down...), compare.Worse, 2.0 / 252, ""},
		"later":      {ping("tun", flat...), ping("tun", up...), compare.Worse, 2.0 / 252, ""},
		"sooner":     {ping("tun", flat...), ping("tun", down...), compare.Better, 2.0 / 252, ""},
		"the same":   {ping("tun", flat...), ping("tun", flat...), compare.Same, 1, ""},
		"overlap":    {ping("tun", flat...), ping("tun", 101.5, 102.5, 103.5, 104.5, 105.5), compare.Same, 0.2222, ""},
		"four":       {ping("tun", flat[:4]...), ping("tun", up[:4]...), compare.TooFew, 2.0 / 70, ""},
		"no control": {ping("tun", flat...), ping("tun", up...), compare.Worse, 2.0 / 252, "bare"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := compare.Results(resultOf(c.a), resultOf(c.b), compare.Options{Control: c.control})
			if err != nil {
				t.Fatal(err)
			}
			r := got.Rows[0]
			if r.Verdict != c.want || math.Abs(r.P-c.p) > 1e-3 {
				t.Errorf("%s with p %v, want %s with %v", r.Verdict, r.P, c.want, c.p)
			}
			if *r.Low > *r.Ratio || *r.Ratio > *r.High {
				t.Errorf("ratio %v is not in %v to %v", *r.Ratio, *r.Low, *r.High)
			}
		})
	}
}

// TestControl: what the whole machine gives is no merit of a contender, nor does a control that moved invent one.
func TestControl(t *testing.T) {
	flat, more := []float64{100, 101, 102, 103, 104}, []float64{120, 121.5, 122, 123.5, 125}
	a := resultOf(stream("bare", flat...), stream("tun", flat...), stream("vxlan", flat...), stream("xdp", flat...))
	b := resultOf(stream("bare", more...), stream("tun", more...), stream("vxlan", flat...), stream("xdp", 150, 151, 152, 153, 154))
	got, err := compare.Results(a, b, compare.Options{Control: "bare"})
	if err != nil {
		t.Fatal(err)
	}
	want := []compare.Verdict{compare.Better, compare.Same, compare.Same, compare.Better}
	for i, r := range got.Rows {
		if r.Verdict != want[i] {
			t.Errorf("%s: %s, want %s", r.Name(), r.Verdict, want[i])
		}
	}
	if !strings.Contains(got.Method, "bare") {
		t.Errorf("the method does not name the control: %s", got.Method)
	}
}

// TestUnanswered: samples without an answer are left out and counted; a figure that one result does not have is neither better nor worse.
func TestUnanswered(t *testing.T) {
	none := math.NaN()
	rate := func(contender string, samples ...float64) result.Row {
		return result.Row{Contender: contender, Test: "udp-rate", Metric: "rate", Unit: "packet/s", Samples: samples}
	}
	a := resultOf(rate("bare", 200, 201, 202, 203, 204, 205), rate("tun", 100, none, 102, 103, 104, 105), rate("xdp", 100, 101, 102, 103, 104, 105), rate("udp", 1, 2, 3, 4, none, none),
		rate("tap", none, none, none, none, none, none))
	b := resultOf(rate("bare", 200, 201, 202, 203, 204, 205), rate("tun", 110, 111, 112, none, 114, 115), rate("xdp", none, none, none, none, none, none), rate("udp", 11, 12, 13, 14, 15, 16),
		rate("tap", 1, 2, 3, 4, 5, 6))
	got, err := compare.Results(a, b, compare.Options{Control: "bare"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		verdict  compare.Verdict
		nA, nB   int
		ratio    bool
		relative bool
	}{
		{compare.Same, 6, 6, true, false}, {compare.Better, 5, 5, true, true}, {compare.Unanswered, 6, 0, false, false},
		{compare.Better, 4, 6, true, true}, {compare.Unanswered, 0, 6, false, false},
	} {
		r := got.Rows[i]
		if r.Verdict != want.verdict || r.A.N != want.nA || r.B.N != want.nB || (r.Ratio != nil) != want.ratio || (r.Low != nil) != want.ratio || (r.PControl != nil) != want.relative {
			t.Errorf("%s: %+v, want %+v", r.Name(), r, want)
		}
	}
	if a, b := got.Unanswered(); a != 1+2+6 || b != 1+6 {
		t.Errorf("left out are %d and %d", a, b)
	}
	if data, err := json.Marshal(got); err != nil || !strings.Contains(string(data), `"b":{"median":null,"n":0,"unanswered":6}`) {
		t.Errorf("%v: %s", err, data)
	}
}

func TestIncomparable(t *testing.T) {
	a := resultOf(stream("tun", 1, 2))
	for name, change := range map[string]func(*result.Result){
		"layout": func(r *result.Result) { r.Settings.Layout = "free" }, "mtu": func(r *result.Result) { r.Settings.MTU = 9000 },
		"nodes": func(r *result.Result) { r.Settings.Nodes = 3 }, "queues": func(r *result.Result) { r.Settings.Queues = 2 },
		"duration_s": func(r *result.Result) { r.Settings.Duration = 3 }, "tcp_congestion": func(r *result.Result) { r.Hosts[0].TCPCongestion = "bbr" },
	} {
		b := resultOf(stream("tun", 1, 2))
		change(b)
		_, err := compare.Results(a, b, compare.Options{})
		var incomparable *compare.IncomparableError
		if !errors.As(err, &incomparable) || incomparable.Differences[0].Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := resultOf(stream("tun", 1, 2), stream("new", 1))
	b.Hosts[0].Kernel, b.Hosts[0].Weft = "6.19", "v2"
	c, err := compare.Results(a, b, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(c.Fingerprint) != "[{kernel 6.18 6.19} {weft v1 v2}]" || len(c.OnlyB) != 1 || len(c.OnlyA) != 0 {
		t.Errorf("differs in %v, only in b %v, only in a %v", c.Fingerprint, c.OnlyB, c.OnlyA)
	}
	for _, bad := range []*result.Result{resultOf(stream("tun")), resultOf(stream("tun", 1), stream("tun", 2))} {
		if _, err := compare.Results(a, bad, compare.Options{}); err == nil {
			t.Errorf("compared %v", bad.Results)
		}
	}
}

// machine invents results like those of a shared machine: every sample has noise of its own, of a shape that has outliers, every round
// weather that all contenders share, and every run a level.
type machine struct{ *rand.Rand }

func (m machine) run(level float64, rounds int, effect map[string]float64) *result.Result {
	var rows []result.Row
	for _, kind := range []func(string, ...float64) result.Row{stream, ping} {
		weather := make([]float64, rounds)
		for i := range weather {
			weather[i] = level * math.Exp(0.1*m.NormFloat64())
		}
		for _, c := range []string{"bare", "vxlan", "tun", "tun-gso", "xdp", "udp", "tap", "host-gw", "wireguard-go", "cached"} {
			samples := make([]float64, rounds)
			for i := range samples {
				own := 0.05 * m.NormFloat64()
				if m.IntN(20) == 0 {
					own -= 0.5 * m.ExpFloat64()
				}
				samples[i] = 1e9 * weather[i] * math.Exp(own)
				if e, ok := effect[c]; ok {
					samples[i] *= e
				}
			}
			rows = append(rows, kind(c, samples...))
		}
	}
	return resultOf(rows...)
}

// TestSameTwice: the same scenario run twice says "no difference" in at least 95 % of its rows, also where the machine's level has
// moved in between, as far as the control can tell.
func TestSameTwice(t *testing.T) {
	pairs, lengths := 40, []int{5, 8}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		pairs, lengths = 200, []int{5, 8, 12}
	}
	m := machine{rand.New(rand.NewPCG(1, 2))}
	for _, rounds := range lengths {
		different, rows, bad := 0, 0, 0
		for range pairs {
			c, err := compare.Results(m.run(1, rounds, nil), m.run(1, rounds, nil), compare.Options{Control: "bare"})
			if err != nil {
				t.Fatal(err)
			}
			off := len(c.Rows) - c.Count(compare.Same)
			different, rows = different+off, rows+len(c.Rows)
			if float64(off) > 0.05*float64(len(c.Rows)) {
				bad++
			}
		}
		t.Logf("%d rounds: %d of %d rows different, %d of %d pairs below 95 %%", rounds, different, rows, bad, pairs)
		if rate := float64(different) / float64(rows); rate > 0.01 {
			t.Errorf("%d rounds: %.2f %% of the rows differ", rounds, 100*rate)
		}
		if float64(bad) > 0.05*float64(pairs) {
			t.Errorf("%d rounds: %d of %d pairs have more than 5 %% of rows that differ", rounds, bad, pairs)
		}
	}
	// A machine that gives 30 % more the second time: only the control itself may say so.
	off := 0
	for range 30 {
		c, err := compare.Results(m.run(1, 8, nil), m.run(1.3, 8, nil), compare.Options{Control: "bare"})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.Rows {
			if r.Contender != "bare" && r.Verdict != compare.Same {
				off++
			}
		}
	}
	if rate := float64(off) / (30 * 18); rate > 0.02 {
		t.Errorf("%.1f %% of the rows differ after the machine's level moved", 100*rate)
	}
}

// TestFinds: what did change is found, and said to be what it is.
func TestFinds(t *testing.T) {
	m := machine{rand.New(rand.NewPCG(3, 4))}
	found := 0
	const runs = 20
	for range runs {
		c, err := compare.Results(m.run(1, 10, nil), m.run(1, 10, map[string]float64{"tun": 0.6}), compare.Options{Control: "bare"})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(c.Rows, func(r compare.Row) bool { return r.Contender == "tun" && r.Test == "tcp-stream" })
		if c.Rows[i].Verdict == compare.Worse {
			found++
		}
	}
	if found < runs*9/10 {
		t.Errorf("a loss of 40 %% was found in %d of %d runs", found, runs)
	}
}

// Figures of what delivers wrong bytes are not compared, and nobody else's suffer.
func TestCorruptIsNotCompared(t *testing.T) {
	flat, up := []float64{100, 101, 102, 103, 104}, []float64{110, 111, 112, 113, 114}
	a, b := resultOf(stream("tun", flat...), stream("xdp", flat...)), resultOf(stream("tun", up...), stream("xdp", up...))
	account := func(contender string, corrupt uint64) result.Integrity {
		return result.Integrity{Contender: contender, Test: "tcp-stream", Params: probe.Params{"flows": 1, "family": 4},
			Integrity: probe.Integrity{Verified: 1e6, Corrupt: corrupt}, OK: corrupt == 0}
	}
	a.Integrity = []result.Integrity{account("tun", 0), account("xdp", 0)}
	b.Integrity = []result.Integrity{account("tun", 911), account("xdp", 0)}
	for _, swapped := range []bool{false, true} {
		if swapped {
			a, b = b, a
		}
		c, err := compare.Results(a, b, compare.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Corrupt) != 1 || c.Corrupt[0].A.Corrupt+c.Corrupt[0].B.Corrupt != 911 || c.Corrupt[0].A.Verified != 1e6 || c.Corrupt[0].Name() != "tun tcp-stream:family=4:flows=1" {
			t.Errorf("corrupt: %+v", c.Corrupt)
		}
		if c.Count(compare.Corrupt) != 1 || c.Rows[0].Verdict != compare.Corrupt || c.Rows[1].Verdict == compare.Corrupt {
			t.Errorf("rows: %+v", c.Rows)
		}
	}
}
