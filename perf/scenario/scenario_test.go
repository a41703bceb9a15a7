package scenario_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/config/strict"
	"weft/perf/scenario"
)

func TestAll(t *testing.T) {
	all, err := scenario.All()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
		if s.About == "" || len(s.Contenders) == 0 || len(s.Tests) == 0 || s.Duration == 0 || s.Repeat == nil {
			t.Errorf("%s leaves something to chance: %+v", s.Name, s)
		}
	}
	want := []string{"encryption", "flows", "full", "load", "many-nodes", "mixed", "mtu-sweep", "quick", "small-packets"}
	if !slices.Equal(names, want) {
		t.Errorf("there are %v, want %v", names, want)
	}
}

func TestLoad(t *testing.T) {
	if s, err := scenario.Load("mtu-sweep"); err != nil || !slices.Equal(s.MTU, []int{1280, 1500, 9000}) || s.Duration != 2*time.Second {
		t.Errorf("%+v, %v", s, err)
	}
	file := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(file, []byte("contenders: [bare]\nmtu: 1400\nlayout: free\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := scenario.Load(file); err != nil || s.Name != "mine" || !slices.Equal(s.MTU, []int{1400}) || s.Layout != "free" || s.Repeat != nil {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := scenario.Load("quickly"); err == nil || !strings.Contains(err.Error(), "mtu-sweep, quick") {
		t.Errorf("an unknown name: %v", err)
	}
	if _, err := scenario.Load("missing.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestMistakes: all at once, each with its line and a remedy.
func TestMistakes(t *testing.T) {
	const text = `contender: [bare]
contenders: [bare, vxlna, bare]
tests: [tcp-stream:flow=2, "udp-rate:size=all"]
mtu: [1500, 100]
duration: 3
repeat: 0
nodes: two
layout: loose
family: 5
`
	_, err := scenario.Parse("x.yaml", []byte(text))
	var all strict.Errors
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"x.yaml:1: contender: unknown key", "x.yaml:2: contenders[1]: unknown contender", "x.yaml:2: contenders[2]: \"bare\" is named twice",
		"x.yaml:3: tests[0]: test tcp-stream: unknown parameter", "x.yaml:4: mtu[1]: 100 is out of range: write 1280 to 9000", "x.yaml:5: duration: ",
		"x.yaml:6: repeat: 0 is out of range", "x.yaml:7: nodes: ", "x.yaml:8: layout: ", "x.yaml:9: family: must be 4 or 6",
	} {
		if !slices.ContainsFunc(all, func(e strict.Error) bool { return strings.HasPrefix(e.Error(), want) }) {
			t.Errorf("no mistake %q in:\n%v", want, err)
		}
	}
	if len(all) != 10 {
		t.Errorf("%d mistakes, want 10:\n%v", len(all), err)
	}
	for _, empty := range []string{"", "# nothing\n", "tests: []\n"} {
		if _, err := scenario.Parse("x.yaml", []byte(empty)); err == nil {
			t.Errorf("%q was taken", empty)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("about: x\ncontenders: [bare]\ntests: [\"udp-rate:size=all\"]\nmtu: [1280]\nduration: 1s\n"))
	f.Add([]byte("mtu: 1500\nfamily: 6\nlayout: split\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := scenario.Parse("x.yaml", data)
		if err != nil {
			return
		}
		for _, mtu := range s.MTU {
			if mtu < 1280 || mtu > 9000 {
				t.Errorf("MTU %d", mtu)
			}
		}
	})
}
