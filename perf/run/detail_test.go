package run

import (
	"slices"
	"testing"

	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// TestDetail joins two samples: quantiles both have, trials one behind the other, stages weighed by what was timed.
func TestDetail(t *testing.T) {
	one := func(timed, nanos uint64, quantiles ...probe.Quantile) *sample {
		return &sample{
			result: probe.Result{Latency: quantiles, Trials: []probe.Trial{{Offered: float64(timed)}}, Notes: []string{"slow"}},
			moved: site.Moved{Lanes: []site.Lane{{Node: "a", Name: "out/0", Stages: []site.Stage{
				{Name: "route", Packets: 10, Timed: timed, Nanos: nanos}, {Name: "idle"},
			}}}},
		}
	}
	d, any := detail(site.About{Contender: "tun", Path: "a → b"}, probe.Selection{Test: "udp-rr"}, []*sample{
		one(1, 100, probe.Quantile{Quantile: .5, Us: 40}, probe.Quantile{Quantile: .99, Us: 60}),
		one(3, 100, probe.Quantile{Quantile: .5, Us: 42}),
	})
	if !any || d.Contender != "tun" || d.Path != "a → b" || d.Test != "udp-rr" {
		t.Fatalf("%v, %+v", any, d)
	}
	if !slices.Equal(d.Latency, []result.Quantile{{Quantile: .5, Us: 41, Low: 40, High: 42}}) {
		t.Errorf("latency %v", d.Latency)
	}
	if len(d.Trials) != 2 || d.Trials[1].Offered != 3 || !slices.Equal(d.Notes, []string{"slow"}) {
		t.Errorf("trials %v, notes %q", d.Trials, d.Notes)
	}
	if s := d.Stages[0]; len(d.Stages) != 2 || s.Packets != 20 || s.NanosecondsPerPacket != 50 || !slices.Equal(s.Samples, []float64{100, 100. / 3}) {
		t.Errorf("stages %+v", d.Stages)
	}
	if s := d.Stages[1]; s.NanosecondsPerPacket != 0 || len(s.Samples) != 0 {
		t.Errorf("a stage that timed nothing took %+v", s)
	}
	if _, any := detail(site.About{Contender: "bare"}, probe.Selection{}, []*sample{{}}); any {
		t.Error("nothing is a detail")
	}
}

// TestStagesSince: a stage's time is that of between the two readings.
func TestStagesSince(t *testing.T) {
	at := func(packets, timed, nanos uint64) []site.Lane {
		return []site.Lane{{Node: "a", Name: "out/0", Received: packets, Sent: packets,
			Stages: []site.Stage{{Name: "route", Packets: packets, Timed: timed, Nanos: nanos}}}}
	}
	diff, err := site.LanesSince(at(30, 20, 900), at(10, 10, 400))
	if err != nil {
		t.Fatal(err)
	}
	if s := diff[0].Stages[0]; s != (site.Stage{Name: "route", Packets: 20, Timed: 10, Nanos: 500}) {
		t.Errorf("difference %+v", s)
	}
}
