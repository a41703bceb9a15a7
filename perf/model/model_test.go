package model_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"weft/internal/config/strict"
	"weft/perf/model"
	"weft/perf/probe"
	"weft/perf/result"
)

// sweep is a result with packets that cost fixed ns and perByte ns a byte, with relative noise.
func sweep(r *rand.Rand, fixed, perByte, noise float64, sizes ...float64) *result.Result {
	res := &result.Result{Schema: result.Schema}
	for _, size := range sizes {
		nanos := (fixed + perByte*size) * (1 + noise*r.NormFloat64())
		res.Results = append(res.Results, result.Row{
			Contender: "tun", Test: "udp-rate", Params: probe.Params{"size": size, "family": 4}, Metric: "rate", Unit: "packet/s",
			Samples: []float64{1e9 / nanos}, InnerMTU: 1450, CPU: result.CPU{NanosecondsPerPacket: 2 * nanos},
		})
	}
	return res
}

var sizes = []float64{64, 256, 512, 1024, 1360}

func TestExact(t *testing.T) {
	all, _, err := model.Fit(sweep(rand.New(rand.NewPCG(1, 1)), 5000, 2, 0, sizes...))
	if err != nil {
		t.Fatal(err)
	}
	m := all[0]
	if math.Abs(m.Time.Packet.Value-5000) > 1e-6 || math.Abs(m.Time.Byte.Value-2) > 1e-9 || m.Time.Worst() > 1e-9 || len(m.Time.HeldOut) != 5 {
		t.Errorf("%+v", m.Time)
	}
	mix, err := model.LoadMix("imix")
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Predict(mix, 100_000)
	if err != nil {
		t.Fatal(err)
	}
	size := (7*40 + 4*576 + 1450.0) / 12 // the largest is cut to the inner MTU
	if nanos := 5000 + 2*size; math.Abs(p.Nanos.Value-nanos) > 1e-6 || math.Abs(p.Highest.Value-1e9/nanos) > 1e-6 ||
		math.Abs(p.Cores.Value-2*nanos*1e5/1e9) > 1e-9 || !*p.Carries {
		t.Errorf("%+v", p)
	}
	if p, err := m.Predict(mix, 1e6); err != nil || *p.Carries {
		t.Errorf("a million a second: %+v, %v", p, err)
	}
}

// TestCoverage: with noise, 95 % of the intervals hold what is true.
func TestCoverage(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const runs = 2000
	packet, perByte, at := 0, 0, 0
	holds := func(e model.Estimate, v float64) int {
		if e.Low <= v && v <= e.High {
			return 1
		}
		return 0
	}
	for range runs {
		all, _, err := model.Fit(sweep(r, 5000, 2, 0.03, sizes...))
		if err != nil {
			t.Fatal(err)
		}
		l := all[0].Time
		packet, perByte, at = packet+holds(l.Packet, 5000), perByte+holds(l.Byte, 2), at+holds(l.At(512), 6024)
	}
	for what, n := range map[string]int{"ns per packet": packet, "ns per byte": perByte, "at 512 bytes": at} {
		if share := float64(n) / runs; share < 0.93 || share > 0.97 {
			t.Errorf("%s: %.1f %% of the intervals hold the truth, want 95", what, 100*share)
		}
	}
}

// TestUnanswered: samples without an answer are in no model, and one that has too few sizes left says why it is not there.
func TestUnanswered(t *testing.T) {
	res := sweep(rand.New(rand.NewPCG(1, 1)), 5000, 2, 0, sizes...)
	for i := range res.Results {
		res.Results[i].Samples = append(res.Results[i].Samples, math.NaN())
		other := res.Results[i]
		other.Contender = "udp"
		if i > 1 {
			other.Samples = []float64{math.NaN(), math.NaN()}
		}
		res.Results = append(res.Results, other)
	}
	all, leftOut, err := model.Fit(res)
	if err != nil || len(all) != 1 || math.Abs(all[0].Time.Packet.Value-5000) > 1e-6 || all[0].Unanswered != len(sizes) {
		t.Errorf("%+v, %v", all, err)
	}
	if len(leftOut) != 1 || leftOut[0] != "udp, family 4: samples without an answer: 8; of the 3 sizes that are needed 2 have one" {
		t.Errorf("left out: %q", leftOut)
	}
}

// TestMisfit: what is no line shows in the sizes held out.
func TestMisfit(t *testing.T) {
	res := sweep(rand.New(rand.NewPCG(1, 1)), 5000, 2, 0, sizes...)
	res.Results[2].Samples[0] /= 3
	all, _, err := model.Fit(res)
	if err != nil || !(all[0].Time.Worst() > 0.5) {
		t.Errorf("%+v, %v", all, err)
	}
	if _, _, err := model.Fit(sweep(rand.New(rand.NewPCG(1, 1)), 1, 1, 0, 64, 128)); err == nil || !strings.Contains(err.Error(), "small-packets") {
		t.Errorf("two sizes: %v", err)
	}
}

func TestMix(t *testing.T) {
	if m, err := model.ParseMix("x.yaml", []byte("packets: [{size: 64, weight: 3}, {size: 1400, weight: 1}]")); err != nil || len(m) != 2 {
		t.Errorf("%v, %v", m, err)
	}
	for text, want := range map[string]string{
		"packets: [{size: 64}]": "x.yaml:1: packets[0]: write {size", "packet: []": "unknown key", "": "holds no packets",
		"packets: [{size: 1, weight: 1}]": "out of range",
	} {
		_, err := model.ParseMix("x.yaml", []byte(text))
		var all strict.Errors
		if !errors.As(err, &all) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for _, name := range []string{"7", "nosuchfile"} {
		if _, err := model.LoadMix(name); err == nil {
			t.Errorf("mix %q was taken", name)
		}
	}
}

func FuzzParseMix(f *testing.F) {
	f.Add([]byte("packets: [{size: 64, weight: 3}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := model.ParseMix("x.yaml", data); err == nil && len(m) == 0 {
			t.Error("an empty mix without an error")
		}
	})
}
