package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"weft/backend"
	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// complete turns the flags into a plan.
func (f *labFlags) complete() (err error) {
	p := &f.plan
	if f.family != 4 && f.family != 6 {
		return fmt.Errorf("family %d: give 4 or 6", f.family)
	}
	if p.Contenders, err = contender.Parse(f.contenders); err != nil {
		return err
	}
	if p.Tests, err = selectTests(f.tests, f.family); err != nil {
		return err
	}
	if p.Layout, err = testbed.ParseLayout(f.layout); err != nil {
		return err
	}
	if p.Fault != "" {
		if _, err := backend.ParseFault(p.Fault); err != nil {
			return err
		}
	}
	if err := p.Check(); err != nil {
		return err
	}
	if f.out == "" && f.json == "" {
		f.out = time.Now().Format("weft-lab-20060102-150405")
	}
	if err := f.checkTargets(); err != nil { // now, not after ten minutes of measuring
		return err
	}
	p.Congestion, p.Version = "cubic", version().String()
	p.Weft, err = os.Executable()
	return err
}

// selectTests reads a list of tests and gives each all its parameters, so that results can be told apart, or joined, by
// them. The latest ones, gso, gro, imix, second and verify, are as if they did not exist unless they are set, so
// that older results compare.
func selectTests(list string, family int) ([]probe.Selection, error) {
	tests, err := probe.ParseList(completeTests(list, family))
	if err != nil {
		return nil, err
	}
	for i, t := range tests {
		test, err := probe.Lookup(t.Test)
		if err != nil {
			return nil, err
		}
		if tests[i].Params, err = test.Fill(t.Params); err != nil {
			return nil, err
		}
		for late, normal := range map[string]float64{"gso": 0, "gro": 0, "imix": 0, "second": 0, "verify": 1} {
			if tests[i].Params[late] == normal {
				delete(tests[i].Params, late)
			}
		}
	}
	return tests, nil
}

// allSizes are the lengths of inner IP packets that size=all stands for.
func allSizes() []string { return []string{"64", "256", "512", "1024", "1360"} }

func sizeList() string { return strings.Join(allSizes(), ", ") }

// takesBoth says whether a test is of both families unless it is told otherwise.
func takesBoth(text string) bool {
	name, _, _ := strings.Cut(strings.TrimSpace(text), ":")
	t, err := probe.Lookup(name)
	return err == nil && t.BothFamilies()
}

// completeTests spells out size=all, and the family of tests that do not say theirs, but for those of both at once.
func completeTests(list string, family int) string {
	var tests []string
	for t := range strings.SplitSeq(list, ",") {
		if !strings.Contains(t, ":family=") && !takesBoth(t) {
			t += fmt.Sprintf(":family=%d", family)
		}
		if !strings.Contains(t+":", ":size=all:") {
			tests = append(tests, t)
			continue
		}
		for _, size := range allSizes() {
			tests = append(tests, strings.Replace(t, ":size=all", ":size="+size, 1))
		}
	}
	return strings.Join(tests, ",")
}
