package compare_test

import (
	"math/rand/v2"
	"testing"

	"weft/perf/compare"
	"weft/perf/result"
)

// ledger is the times of a lane's stages in ten rounds, with noise.
func ledger(r *rand.Rand, stages ...result.Stage) *result.Result {
	for i := range stages {
		stages[i].Node, stages[i].Lane = "a", "out/0"
		for range 10 {
			stages[i].Samples = append(stages[i].Samples, stages[i].NanosecondsPerPacket*(1+0.05*r.NormFloat64()))
		}
	}
	res := resultOf()
	res.Details = []result.Detail{{Contender: "tun", Test: "udp-rate", Stages: stages}}
	return res
}

// TestStages: a stage that takes 100 ns more is named, and so is one that was not there before; the others are not.
func TestStages(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	stage := func(name string, nanos float64) result.Stage {
		return result.Stage{Stage: name, NanosecondsPerPacket: nanos}
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
	if got := c.StageSums[0]; got.Stage != "route" || got.Lanes != 1 || got.Longer != 1 || got.Shorter != 0 || got.Shift < 90 || got.Shift > 110 {
		t.Errorf("by stage: %+v, want route first, longer in 1 of 1 by 100 ns", got)
	}
	for _, s := range c.Stages {
		if s.Stage == "route" && !(*s.Low > 80 && *s.Low < *s.Shift && *s.Shift < *s.High && *s.High < 120) {
			t.Errorf("route: shift %v, %v to %v", *s.Shift, *s.Low, *s.High)
		}
	}
	if c, err = compare.Results(resultOf(), b, compare.Options{}); err != nil || len(c.Stages) != 0 {
		t.Errorf("against a result without a ledger: %+v, %v", c.Stages, err)
	}
}

// TestStagesOfASlowMachine: what the control has, too, is the machine's; a stage that nothing passed in some rounds tells nothing.
func TestStagesOfASlowMachine(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	run := func(pace, vxlan float64) *result.Result {
		res := ledger(r, result.Stage{Stage: "route", NanosecondsPerPacket: 60 * pace}, result.Stage{Stage: "vxlan", NanosecondsPerPacket: vxlan * pace})
		idle := result.Stage{Node: "b", Lane: "in/0", Stage: "route", Samples: res.Details[0].Stages[0].Samples[:9]}
		res.Details[0].Stages = append(res.Details[0].Stages, idle)
		bare := result.Row{Contender: "bare", Test: "udp-rate", Metric: "rate", Unit: "packet/s"}
		for range 10 {
			bare.Samples = append(bare.Samples, 1)
			bare.CPU.CostSamples = append(bare.CPU.CostSamples, 3000*pace*(1+0.05*r.NormFloat64()))
		}
		res.Results = []result.Row{bare}
		return res
	}
	for _, c := range []struct {
		pace, fault float64
		control     string
		want        []compare.Verdict // of route, vxlan and the idle route
	}{
		{1.3, 0, "bare", []compare.Verdict{compare.Same, compare.Same, compare.TooFew}},
		{1.3, 100, "bare", []compare.Verdict{compare.Same, compare.Worse, compare.TooFew}},
		{1.3, 0, "", []compare.Verdict{compare.Worse, compare.Worse, compare.Worse}},
	} {
		got, err := compare.Results(run(1, 40), run(c.pace, 40+c.fault), compare.Options{Control: c.control})
		if err != nil || len(got.Stages) != len(c.want) {
			t.Fatalf("%+v, %v", got, err)
		}
		for i, s := range got.Stages {
			if s.Verdict != c.want[i] || (s.PControl != nil) != (c.control != "" && c.want[i] != compare.TooFew) {
				t.Errorf("pace %v, fault %v, control %q: %s: %s, want %s; %+v", c.pace, c.fault, c.control, s.Name(), s.Verdict, c.want[i], s)
			}
		}
	}
}
