package model

import (
	"math"
	"math/rand/v2"
	"testing"

	"weft/perf/probe"
	"weft/perf/result"
)

// TestRuns holds the chain against packets drawn at random.
func TestRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for name, mix := range map[string]Mix{"imix": imix(), "two": {{64, 1}, {1360, 1}}, "rare": {{64, 99}, {1360, 1}}, "four": {{100, 3}, {50, 2}, {200, 1}, {1500, 4}}} {
		var bag []int
		for _, s := range mix {
			for range int(s.Weight) {
				bag = append(bag, s.Size)
			}
		}
		const packets = 1_000_000
		begun, run := 0, 0 // run is the open run's size; 0 = closed
		for range packets {
			switch size := bag[r.IntN(len(bag))]; {
			case run == size:
			case run > size:
				run = 0
			default:
				run = size
				begun++
			}
		}
		if got, want := mix.runs(), float64(begun)/packets; math.Abs(got-want) > .005 {
			t.Errorf("%s: %v runs a packet, counted %v", name, got, want)
		}
	}
	if got := (Mix{{64, 1}, {64, 3}}).runs(); got != 0 {
		t.Errorf("packets of one size: %v", got)
	}
}

// TestBreaks: what two sizes in turn take beyond the line is charged to runs, and a mix is predicted with it, and held against its own row.
func TestBreaks(t *testing.T) {
	const fixed, perByte, run = 5000, 2, 3000
	row := func(nanos float64, params probe.Params) result.Row {
		params["family"] = 4
		return result.Row{Contender: "tun-gso", Test: sweep, Params: params, Metric: "rate", Unit: "packet/s", Samples: []float64{1e9 / nanos}, InnerMTU: 1450,
			CPU: result.CPU{NanosecondsPerPacket: 2 * nanos, CostSamples: []float64{2 * nanos}}}
	}
	res := &result.Result{Schema: result.Schema}
	for _, size := range []float64{64, 256, 512, 1360} {
		res.Results = append(res.Results, row(fixed+perByte*size, probe.Params{"size": size}))
	}
	mixed := fixed + perByte*imix().mean(1450) + run*imix().runs()
	res.Results = append(res.Results, row(fixed+perByte*(64+1360)/2+run/2, probe.Params{"size": 64, "second": 1360}), row(1.1*mixed, probe.Params{"size": 64, "imix": 1}))
	all, _, err := Fit(res)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	p, err := all[0].Predict(imix(), 100_000)
	if err != nil {
		t.Fatal(err)
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got/want-1) > 1e-6 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	near("a run", p.Run.Value, run)
	near("the mix", p.Nanos.Value, mixed)
	near("its cores", p.Cores.Value, 2*mixed*100_000/1e9)
	near("what was measured", *p.Measured, 1.1*mixed)
	near("the error", *p.Error, 1/1.1-1)
	if p, err = all[0].Predict(Mix{{512, 1}}, 0); err != nil || p.Measured == nil || math.Abs(*p.Error) > 1e-9 || p.Runs != 0 {
		t.Errorf("of 512 bytes: %+v, %v", p, err)
	}
	if p, err = all[0].Predict(Mix{{500, 1}}, 0); err != nil || p.Measured != nil {
		t.Errorf("of a size that was not measured: %+v, %v", p, err)
	}
}
