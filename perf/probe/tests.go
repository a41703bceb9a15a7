package probe

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Test is one entry of the list of tests: what it is called, what may be set, what it measures, and how.
type Test struct {
	Name    string       `json:"name"`
	About   string       `json:"about"` // one line for people
	Params  []Param      `json:"params"`
	Metrics []MetricKind `json:"metrics"` // the first is the one a table shows

	run func(context.Context, Spec, *Result) error // the generator; it reports values by the names of Metrics
}

// Param is one key of a test, as in `udp-rate:size=1024`.
type Param struct {
	Name    string  `json:"name"`
	About   string  `json:"about"`
	Default float64 `json:"default"`
	Min     float64 `json:"min"`
	Max     float64 `json:"max"`
	Whole   bool    `json:"whole"` // integers only
}

// MetricKind names a figure and its unit.
type MetricKind struct {
	Name  string `json:"name"`
	Unit  string `json:"unit"`
	ByLab bool   `json:"by_lab,omitempty"` // measured around the probe, by the lab, not by the probe
}

// Params are the settings of one test by name. A missing name means its default.
type Params map[string]float64

// Selection is one test a person asked for.
type Selection struct {
	Test   string `json:"test"`
	Params Params `json:"params"` // only what was given: Test.Fill adds the defaults
}

var (
	family  = Param{"family", "IP version, 4 or 6", 4, 4, 6, true}
	size    = Param{"size", "length of the inner IP packet in bytes", 64, 41, 65535, true}
	gso     = Param{"gso", "1 = the sender gives the kernel super-packets (UDP_SEGMENT)", 0, 0, 1, true}
	imix    = Param{"imix", "1 = IMIX: packets of 40, 576 and 1500 bytes as 7:4:1, cut to what the path carries, and not of size", 0, 0, 1, true}
	second  = Param{"second", "length of every second packet in bytes; 0 = all have size", 0, 0, 65535, true}
	verify  = Param{"verify", "0 = payloads are neither filled nor compared, to see what that costs; headers still are", 1, 0, 1, true}
	gro     = Param{"gro", "1 = the receiver takes super-packets whole (UDP_GRO)", 0, 0, 1, true}
	both    = Param{"family", "IP version, 4 or 6; 0 = both at once", 0, 0, 6, true}
	latency = []MetricKind{
		{Name: "rate", Unit: "1/s"},
		{Name: "p50", Unit: "us"}, {Name: "p90", Unit: "us"}, {Name: "p99", Unit: "us"}, {Name: "p999", Unit: "us"},
	}
)

// mixedRate bounds test mixed, so that many setups can run at once.
var mixedRate = Param{"rate", "payload bit/s that each end offers, all shapes together", 1e8, 1e6, 1e10, false}

// Tests is the list of tests, in the order of docs/reference.md. Nobody edits it at run time.
var Tests = []Test{
	{
		"tcp-stream", "bulk TCP, payload bits as the receiver counts them",
		[]Param{{"flows", "parallel connections", 1, 1, maxFlows, true}, family, verify},
		[]MetricKind{{Name: "throughput", Unit: "bit/s"}},
		runTCPStream,
	},
	{
		"udp-rate", "the highest rate with loss of at most 0.1 %",
		[]Param{size, second, imix, gso, gro, family, verify},
		[]MetricKind{{Name: "rate", Unit: "packet/s"}, {Name: "loss", Unit: "ratio"}},
		runTrials(measureRate),
	},
	{
		"udp-overload", "what is delivered when more than the loss-free rate is offered",
		[]Param{size, {"factor", "offered rate as a multiple of the loss-free rate", 2, 1, 100, false}, gso, gro, family, verify},
		[]MetricKind{{Name: "rate", Unit: "packet/s"}},
		runTrials(measureOverload),
	},
	{
		"udp-stream", "a paced stream of datagrams, payload bits as the receiver counts them",
		[]Param{
			{"size", "length of the inner IP packet in bytes", 1360, 41, 65535, true},
			{"rate", "payload bit/s to offer; 0 = as fast as the sender can", 0, 0, 1e12, false},
			gso, gro, family, verify,
		},
		[]MetricKind{{Name: "throughput", Unit: "bit/s"}, {Name: "loss", Unit: "ratio"}},
		runTrials(measureStream),
	},
	{"tcp-rr", "round trips on one TCP connection, one at a time", []Param{size, family, verify}, latency, runTCPRoundTrips},
	{"udp-rr", "round trips of UDP datagrams, one at a time", []Param{size, family, verify}, latency, runUDPRoundTrips},
	{
		"udp-open-rr", "round trips of UDP datagrams on a schedule, replies or not, each timed from when it was due",
		[]Param{size, {"rate", "requests a second", 10000, 1, 1e6, false}, family, verify},
		append(slices.Clone(latency), MetricKind{Name: "loss", Unit: "ratio"}),
		runUDPOpenRoundTrips,
	},
	{
		"loaded-rr", "round trips of UDP datagrams, one at a time, beside bulk TCP that fills the path to the far end",
		[]Param{size, {"flows", "parallel connections", 1, 1, maxFlows, true}, family, verify},
		append(slices.Clone(latency), MetricKind{Name: "loss", Unit: "ratio"}, MetricKind{Name: "throughput", Unit: "bit/s"}),
		runLoadedRoundTrips,
	},
	{
		"tcp-crr", "connect, one-byte request, one-byte response, close; one at a time",
		[]Param{family},
		[]MetricKind{{Name: "rate", Unit: "1/s"}},
		runTCPConnects,
	},
	{
		"cpu-fixed", "processor time at a fixed TCP rate",
		[]Param{{"rate", "payload bit/s to offer", 1e9, 1e3, 1e12, false}, family, verify},
		[]MetricKind{{Name: "cpu", Unit: "core", ByLab: true}, {Name: "throughput", Unit: "bit/s"}},
		runTCPStream,
	},
	{
		"mixed", "super-packets, small packets, fragments, round trips and bulk TCP of several segment sizes at once, both ways, in random spells; payload bits verified",
		[]Param{mixedRate, both},
		[]MetricKind{{Name: "throughput", Unit: "bit/s"}, {Name: "loss", Unit: "ratio"}},
		runMixed,
	},
}

// Lookup finds a test by name.
func Lookup(name string) (Test, error) {
	for _, t := range Tests {
		if t.Name == name {
			return t, nil
		}
	}
	names := make([]string, len(Tests))
	for i, t := range Tests {
		names[i] = t.Name
	}
	return Test{}, fmt.Errorf("unknown test %q: the tests are %s", name, strings.Join(names, ", "))
}

// ParseList reads `test[:key=value]…[,test…]`.
func ParseList(text string) ([]Selection, error) {
	var list []Selection
	for one := range strings.SplitSeq(text, ",") {
		s, err := Parse(one)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// Parse reads `test[:key=value]…` and checks it.
func Parse(text string) (Selection, error) {
	name, rest, more := strings.Cut(strings.TrimSpace(text), ":")
	test, err := Lookup(name)
	if err != nil {
		return Selection{}, err
	}
	given := Params{}
	for more {
		var pair string
		pair, rest, more = strings.Cut(rest, ":")
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return Selection{}, fmt.Errorf("test %s: %q is not key=value", name, pair)
		}
		if _, twice := given[key]; twice {
			return Selection{}, fmt.Errorf("test %s: %s is given twice", name, key)
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return Selection{}, fmt.Errorf("test %s: %s: %q is not a number", name, key, value)
		}
		given[key] = v
	}
	if _, err := test.Fill(given); err != nil {
		return Selection{}, err
	}
	return Selection{name, given}, nil
}

// Fill checks given and returns it with the defaults of what it leaves out. given is not changed.
func (t Test) Fill(given Params) (Params, error) {
	full := Params{}
	for _, p := range t.Params {
		v, ok := given[p.Name]
		if !ok {
			v = p.Default
		}
		if err := p.check(v); err != nil {
			return nil, fmt.Errorf("test %s: %w", t.Name, err)
		}
		full[p.Name] = v
	}
	for key := range given {
		if _, known := full[key]; !known {
			return nil, fmt.Errorf("test %s: unknown parameter %q: it takes %s", t.Name, key, t.keys())
		}
	}
	return full, nil
}

// BothFamilies says whether a test is of both families unless told otherwise.
func (t Test) BothFamilies() bool {
	return slices.ContainsFunc(t.Params, func(p Param) bool { return p.Name == family.Name && p.Min == 0 })
}

func (t Test) keys() string {
	names := make([]string, len(t.Params))
	for i, p := range t.Params {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}

func (p Param) check(v float64) error {
	switch {
	case p.Name == family.Name && v != 4 && v != 6 && (v != 0 || p.Min != 0):
		return fmt.Errorf("family %v: must be 4 or 6", v)
	case p.Whole && v != float64(int64(v)):
		return fmt.Errorf("%s %v: must be a whole number", p.Name, v)
	case !(v >= p.Min && v <= p.Max): // written so that NaN fails
		return fmt.Errorf("%s %v: must be between %v and %v", p.Name, v, p.Min, p.Max)
	}
	return nil
}

// String is the selection as a person would type it; Parse reads it back.
func (s Selection) String() string {
	parts := []string{s.Test}
	for _, key := range slices.Sorted(maps.Keys(s.Params)) {
		parts = append(parts, key+"="+strconv.FormatFloat(s.Params[key], 'g', -1, 64))
	}
	return strings.Join(parts, ":")
}
