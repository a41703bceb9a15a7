package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"weft/perf/scenario"
)

// TestAdopt: a scenario sets what no flag was given for.
func TestAdopt(t *testing.T) {
	var f labFlags
	cmd := newLabRunCommandFor(&f)
	if err := cmd.ParseFlags([]string{"--scenario", "mtu-sweep", "--repeat", "9"}); err != nil {
		t.Fatal(err)
	}
	mtus, err := f.adopt(cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(mtus, []int{1280, 1500, 9000}) || f.tests != "tcp-stream" || f.plan.Repeat != 9 || f.plan.Duration != 2*time.Second || f.plan.Nodes != 2 {
		t.Errorf("MTUs %v, tests %s, %+v", mtus, f.tests, f.plan)
	}
	if err := cmd.ParseFlags([]string{"--mtu", "1400"}); err != nil {
		t.Fatal(err)
	}
	if mtus, err = f.adopt(cmd.Flags()); err != nil || !slices.Equal(mtus, []int{1400}) {
		t.Errorf("with --mtu 1400: %v, %v", mtus, err)
	}
}

// TestEveryScenarioRuns: all of them become plans that can be carried out.
func TestEveryScenarioRuns(t *testing.T) {
	all, err := scenario.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		var f labFlags
		cmd := newLabRunCommandFor(&f)
		if err := cmd.ParseFlags([]string{"--scenario", s.Name, "--out", t.TempDir()}); err != nil {
			t.Fatal(err)
		}
		mtus, err := f.adopt(cmd.Flags())
		for _, mtu := range mtus {
			f.plan.MTU = mtu
			if err == nil {
				err = f.complete()
			}
		}
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	for _, args := range [][]string{{"--scenario", "nosuch"}, {"--scenario", "mtu-sweep", "--json", "x"}, {"--scenario", "mtu-sweep", "-o", "json"}} {
		if _, errs, code := runRoot(t, append([]string{"lab", "run"}, args...)...); code != exitUsage || !strings.Contains(errs, "scenario") {
			t.Errorf("%v: exit code %d, %q", args, code, errs)
		}
	}
}

func TestReferenceScenarios(t *testing.T) {
	if got := column(table(t, "## Scenarios"), 0); !slices.Equal(got, scenario.Keys()) {
		t.Errorf("the table has %q, want %q", got, scenario.Keys())
	}
}
