package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// diary is a site whose setups write down what is done to them. One of them is up for its own samples only.
type diary struct {
	lines  []string
	upFail int // which Up of the one fails, from 1; 0 = none
	ups    int
}

func (d *diary) Hosts() []result.Host                      { return nil }
func (d *diary) Settings() result.Settings                 { return result.Settings{} }
func (d *diary) Alone(context.Context) (site.Alone, error) { return nil, nil }
func (d *diary) Close() error                              { return nil }
func (d *diary) Open(_ context.Context, name string) ([]site.Setup, error) {
	return []site.Setup{&noted{d, name}}, nil
}

type noted struct {
	*diary
	name string
}

func (n *noted) write(what string) { n.lines = append(n.lines, n.name+" "+what) }

func (n *noted) About() site.About { return site.About{Contender: n.name, InnerMTU: 1500} }
func (n *noted) Generate(_ context.Context, t probe.Selection, _ time.Duration) (probe.Result, machine.CPUTime, error) {
	n.write("measured")
	return probe.Result{Test: t.Test, Seconds: 1, Metrics: []probe.Metric{{Name: "rate", Value: 1}, {Name: "loss", Value: 0}}}, machine.CPUTime{}, nil
}
func (n *noted) Count(context.Context) (site.Reading, error) { return still{}, nil }
func (n *noted) Times(context.Context) (map[string]machine.CPUTime, error) {
	return map[string]machine.CPUTime{}, nil
}
func (n *noted) Busy(context.Context) (machine.Busy, error) { return nil, nil }
func (n *noted) Dead() error                                { return nil }
func (n *noted) Up(context.Context) (bool, error) {
	if n.name != "xdp" {
		return false, nil
	}
	n.write("up")
	if n.ups++; n.ups == n.upFail {
		return false, errors.New("it does not come up")
	}
	return true, nil
}
func (n *noted) Down(context.Context) error {
	if n.name == "xdp" {
		n.write("down")
	}
	return nil
}

type still struct{}

func (still) Same(site.Reading) bool                 { return true }
func (still) Since(site.Reading) (site.Moved, error) { return site.Moved{Open: true}, nil }

// TestUpForItsSamplesOnly: what changes the machine for others while it is up is up, and warm, when it is measured, and never when they are.
func TestUpForItsSamplesOnly(t *testing.T) {
	udp := probe.Selection{Test: "udp-rate", Params: probe.Params{"size": 64}}
	round := []string{"bare measured", "xdp up", "xdp measured", "xdp measured", "xdp down", "tun measured"}
	for fail, want := range [][]string{
		append(slices.Clone(round), round...),
		{"bare measured", "xdp up", "tun measured", "bare measured", "tun measured"},
	} {
		t.Run(fmt.Sprint(fail, " fails"), func(t *testing.T) {
			d := &diary{upFail: fail}
			r, err := Run(t.Context(), d, &Plan{Contenders: []string{"bare", "xdp", "tun"}, Tests: []probe.Selection{udp}, Duration: 100 * time.Millisecond, Repeat: 2}, func(Event) {})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(d.lines, want) {
				t.Errorf("got  %q\nwant %q", d.lines, want)
			}
			if len(r.Failed) != fail {
				t.Errorf("failed: %+v", r.Failed)
			}
		})
	}
}
