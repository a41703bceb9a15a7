package compare_test

import (
	"math/rand/v2"
	"testing"

	"weft/perf"
	"weft/perf/compare"
)

// ledger is the times of a lane's stages in ten rounds, with noise.
func ledger(r *rand.Rand, stages ...perf.Stage) *perf.Result {
	for i := range stages {
		stages[i].Node, stages[i].Lane = "a", "out/0"
		for range 10 {
			stages[i].Samples = append(stages[i].Samples, stages[i].NanosecondsPerPacket*(1+0.05*r.NormFloat64()))
		}
	}
	res := result()
	res.Details = []perf.Detail{{Contender: "tun", Test: "udp-rate", Stages: stages}}
	return res
}

// TestStages: a stage that takes 100 ns more is named, and so is one that was not there before; the others are not.
func TestStages(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	stage := func(name string, nanos float64) perf.Stage {
		return perf.Stage{Stage: name, NanosecondsPerPacket: nanos}
	}
	a := ledger(r, stage("receive", 900), stage("route", 60), stage("vxlan", 40), stage("old", 10))
	b := ledger(r, stage("receive", 900), stage("route", 160), stage("vxlan", 40), stage("fault", 100))
	c, err := compare.Results(a, b, compare.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]compare.Verdict{"receive": compare.Same, "route": compare.Worse, "vxlan": compare.Same, "fault": compare.New, "old": compare.Gone}
	if len(c.Stages) != len(want) {
		t.Fatalf("%d stages: %+v", len(c.Stages), c.Stages)
	}
	for _, s := range c.Stages {
		if s.Verdict != want[s.Stage] {
			t.Errorf("%s: %s, want %s", s.Name(), s.Verdict, want[s.Stage])
		}
	}
	if c, err = compare.Results(result(), b, compare.Options{}); err != nil || len(c.Stages) != 0 {
		t.Errorf("against a result without a ledger: %+v, %v", c.Stages, err)
	}
}
