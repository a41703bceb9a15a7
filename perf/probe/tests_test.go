package probe

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Selection{
		"tcp-stream":                  {"tcp-stream", Params{}},
		"tcp-stream:flows=4":          {"tcp-stream", Params{"flows": 4}},
		" udp-rate:size=256:family=6": {"udp-rate", Params{"size": 256, "family": 6}},
		"udp-overload:factor=1.5":     {"udp-overload", Params{"factor": 1.5}},
		"cpu-fixed:rate=1e9":          {"cpu-fixed", Params{"rate": 1e9}},
	} {
		got, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got.Test != want.Test || !maps.Equal(got.Params, want.Params) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
		again, err := Parse(got.String())
		if err != nil || again.Test != got.Test || !maps.Equal(again.Params, got.Params) {
			t.Errorf("%q: String() %q reads back as %v, %v", text, got.String(), again, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "unknown test",
		"tcp":                        "the tests are tcp-stream",
		"tcp-stream:":                "not key=value",
		"tcp-stream:flows":           "not key=value",
		"tcp-stream:flows=":          "not a number",
		"tcp-stream:flows=x":         "not a number",
		"tcp-stream:flows=0":         "between 1 and",
		"tcp-stream:flows=1.5":       "whole number",
		"tcp-stream:flows=NaN":       "whole number",
		"tcp-stream:flows=1e300":     "flows 1e+300",
		"tcp-stream:flows=2:flows=2": "given twice",
		"tcp-stream:size=64":         "it takes flows, family",
		"udp-rate:family=5":          "must be 4 or 6",
		"udp-overload:factor=NaN":    "between 1 and 100",
		"udp-rate:size=1":            "between 41 and",
		"tcp-rr:size=70000":          "between 41 and 65535",
	} {
		if s, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v; want an error with %q", text, s, err, want)
		}
	}
}

func TestParseList(t *testing.T) {
	list, err := ParseList("tcp-stream:flows=2,udp-rate")
	if err != nil || len(list) != 2 || list[0].Params["flows"] != 2 || list[1].Test != "udp-rate" {
		t.Errorf("got %v, %v", list, err)
	}
	if list, err := ParseList("tcp-stream,,udp-rate"); err == nil {
		t.Errorf("an empty entry gave %v", list)
	}
}

// The contract's table: names, defaults, metrics and units; and besides gso, gro, second, imix, udp-open-rr, loaded-rr, verify and mixed.
func TestListMatchesContract(t *testing.T) {
	want := `tcp-stream flows=1 family=4 verify=1 | throughput:bit/s
udp-rate size=64 second=0 imix=0 gso=0 gro=0 family=4 verify=1 | rate:packet/s loss:ratio
udp-overload size=64 factor=2 gso=0 gro=0 family=4 verify=1 | rate:packet/s
udp-stream size=1360 rate=0 gso=0 gro=0 family=4 verify=1 | throughput:bit/s loss:ratio
tcp-rr size=64 family=4 verify=1 | rate:1/s p50:us p90:us p99:us p999:us
udp-rr size=64 family=4 verify=1 | rate:1/s p50:us p90:us p99:us p999:us
udp-open-rr size=64 rate=10000 family=4 verify=1 | rate:1/s p50:us p90:us p99:us p999:us loss:ratio
loaded-rr size=64 flows=1 family=4 verify=1 | rate:1/s p50:us p90:us p99:us p999:us loss:ratio throughput:bit/s
tcp-crr family=4 | rate:1/s
cpu-fixed rate=1e+09 family=4 verify=1 | cpu:core throughput:bit/s
mixed rate=1e+08 family=0 | throughput:bit/s loss:ratio
`
	var got strings.Builder
	for _, test := range Tests {
		got.WriteString(Selection{test.Name, nil}.String())
		for _, p := range test.Params {
			v, _ := json.Marshal(p.Default)
			s := string(v)
			if p.Default >= 1e6 {
				s = fmt.Sprintf("%.0e", p.Default)
			}
			got.WriteString(" " + p.Name + "=" + s)
		}
		got.WriteString(" |")
		for _, m := range test.Metrics {
			got.WriteString(" " + m.Name + ":" + m.Unit)
		}
		got.WriteString("\n")
	}
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestFillKeepsGiven(t *testing.T) {
	test, err := Lookup("udp-rate")
	if err != nil {
		t.Fatal(err)
	}
	given := Params{"size": 128}
	full, err := test.Fill(given)
	if err != nil || len(given) != 1 || full["size"] != 128 || full["family"] != 4 {
		t.Errorf("given %v, full %v, %v", given, full, err)
	}
	if _, err := test.Fill(Params{"size": math.Inf(1)}); err == nil {
		t.Error("an infinite size passed")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"tcp-stream:flows=2", "udp-rate:size=64:family=6", "x:y=z", "tcp-rr::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.Test != s.Test || !maps.Equal(again.Params, s.Params) {
			t.Errorf("%q: %v reads back as %v, %v", text, s, again, err)
		}
	})
}
