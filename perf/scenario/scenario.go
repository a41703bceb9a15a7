// Package scenario is what to measure, written down: one YAML file a scenario, those that come with weft beside this
// file. A file is read strictly: every mistake is reported at once, with its line and what to write instead.
package scenario

import (
	"embed"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"weft/internal/config/strict"
	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

//go:embed *.yaml
var files embed.FS

// Scenario is one file. What it leaves out is nil or zero: the defaults of `weft lab run` hold.
type Scenario struct {
	Name       string         `json:"name"`
	About      string         `json:"about"`
	Contenders []string       `json:"contenders,omitempty"`
	Tests      []string       `json:"tests,omitempty"`
	MTU        []int          `json:"mtu,omitempty"` // of the underlay, bytes; one run for each
	Duration   time.Duration  `json:"duration_ns,omitempty"`
	Repeat     *int           `json:"repeat,omitempty"`
	Warmup     *int           `json:"warmup,omitempty"`
	Nodes      *int           `json:"nodes,omitempty"`
	Layout     testbed.Layout `json:"layout,omitempty"`
	Family     *int           `json:"family,omitempty"`
	Queues     *int           `json:"queues,omitempty"`
}

// keys are those of a file, in the order of docs/reference.md.
var keys = []string{"about", "contenders", "tests", "mtu", "duration", "repeat", "warmup", "nodes", "layout", "family", "queues"}

// Keys lists the keys that a file may have.
func Keys() []string { return slices.Clone(keys) }

// All are the scenarios that come with weft, by name.
func All() ([]Scenario, error) {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("scenario: %w", err)
	}
	var all []Scenario
	for _, e := range entries {
		data, err := files.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("scenario: %w", err)
		}
		s, err := Parse(e.Name(), data)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// Load finds a scenario by name, or reads the file, if what is asked for has a dot or a slash.
func Load(name string) (Scenario, error) {
	if strings.ContainsAny(name, "./") {
		data, err := os.ReadFile(name)
		if err != nil {
			return Scenario{}, fmt.Errorf("read a scenario: %w", err)
		}
		return Parse(name, data)
	}
	all, err := All()
	if err != nil {
		return Scenario{}, err
	}
	var names []string
	for _, s := range all {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Scenario{}, fmt.Errorf("unknown scenario %q: there are %s; a file of your own is named with its .yaml", name, strings.Join(names, ", "))
}

// Parse reads a file; the scenario is called as the file is, without folder and suffix. The error is a strict.Errors.
func Parse(file string, data []byte) (Scenario, error) {
	s := Scenario{Name: strings.TrimSuffix(path.Base(file), path.Ext(file))}
	doc := strict.Parse(file, data)
	f := doc.Root().Fields(keys...)
	s.About, _ = f["about"].String()
	s.Contenders = words(f["contenders"], func(name string) error { _, err := contender.Parse(name); return err })
	s.Tests = words(f["tests"], checkTest)
	s.MTU = mtus(f["mtu"])
	s.Duration = duration(f["duration"])
	s.Repeat = number(f["repeat"], 1, 1000)
	s.Warmup = number(f["warmup"], 0, 1000)
	s.Nodes = number(f["nodes"], 2, 26)
	s.Queues = number(f["queues"], 0, 64)
	if s.Family = number(f["family"], 4, 6); s.Family != nil && *s.Family == 5 {
		f["family"].Fail("must be 4 or 6")
	}
	if text, ok := f["layout"].String(); ok {
		layout, err := testbed.ParseLayout(text)
		if err != nil {
			f["layout"].Fail("%v", err)
		}
		s.Layout = layout
	}
	if doc.Empty() {
		doc.Fail("holds nothing: write at least contenders: and tests:")
	}
	if err := doc.Err(); err != nil {
		return Scenario{}, err
	}
	return s, nil
}

// checkTest checks a test as `weft lab run --tests` takes it, size=all included.
func checkTest(test string) error {
	_, err := probe.Parse(strings.TrimSuffix(strings.Replace(test+":", ":size=all:", ":", 1), ":"))
	return err
}

// words reads a list of texts, each checked; an empty list is a mistake.
func words(v strict.Value, check func(string) error) []string {
	var all []string
	for _, e := range v.List() {
		text, ok := e.String()
		if !ok {
			continue
		}
		if err := check(text); err != nil {
			e.Fail("%v", err)
		}
		if slices.Contains(all, text) {
			e.Fail("%q is named twice: keep one", text)
		}
		all = append(all, text)
	}
	if v.Present() && len(v.List()) == 0 {
		v.Fail("names nothing: write at least one, or remove the key")
	}
	return all
}

// mtus reads one number or a list of them.
func mtus(v strict.Value) []int {
	const least, most = 1280, 9000
	if !v.Present() {
		return nil
	}
	if !v.IsList() {
		if n, ok := v.Int(least, most); ok {
			return []int{int(n)}
		}
		return nil
	}
	var all []int
	for _, e := range v.List() {
		n, ok := e.Int(least, most)
		if ok && slices.Contains(all, int(n)) {
			e.Fail("%d is named twice: keep one", n)
		}
		if ok {
			all = append(all, int(n))
		}
	}
	if len(v.List()) == 0 {
		v.Fail("names nothing: write at least one, or remove the key")
	}
	return all
}

func number(v strict.Value, least, most int64) *int {
	n, ok := v.Int(least, most)
	if !ok {
		return nil
	}
	i := int(n)
	return &i
}

// duration reads 2s, 500ms, …; 0 where there is none.
func duration(v strict.Value) time.Duration {
	text, ok := v.String()
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		v.Fail("%q is not a length of time: write 2s or 500ms", text)
		return 0
	}
	return d
}
