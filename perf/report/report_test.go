package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"weft/perf/probe"
	"weft/perf/result"
)

func TestDigits(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1.00", 0.5: "0.500", 12.345: "12.3", 123.45: "123", 12345: "12345", 0.01234: "0.0123", 0.000012: "0.0000", -2.5: "-2.50",
	} {
		if got := digits(v); got != want {
			t.Errorf("digits(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestScale(t *testing.T) {
	for _, c := range []struct {
		unit    string
		largest float64
		name    string
		by      float64
	}{
		{"bit/s", 26e9, "Gbit/s", 1e9}, {"bit/s", 999e6, "Mbit/s", 1e6}, {"bit/s", 12, "bit/s", 1},
		{"packet/s", 235e3, "kpacket/s", 1e3}, {"packet/s", 2e6, "Mpacket/s", 1e6}, {"1/s", 12e3, "k/s", 1e3},
		{"us", 40, "µs", 1}, {"ratio", 0.0001, "%", 0.01}, {"core", 1.5, "core", 1},
	} {
		if s := scaleOf(c.unit, c.largest); s.name != c.name || s.by != c.by {
			t.Errorf("%v %s: shown in %s (/ %v), want %s (/ %v)", c.largest, c.unit, s.name, s.by, c.name, c.by)
		}
	}
}

func row(contender, metric, unit string, samples ...float64) result.Row {
	r := result.Row{
		Contender: contender, Test: "tcp-rr", Params: probe.Params{"family": 4, "size": 64}, Metric: metric, Unit: unit,
		Samples: samples, Median: result.Figure(result.Median(samples)), InnerMTU: 1450,
		CPU: result.CPU{User: 0.1, System: 1.25, SoftIRQ: 0.4, NanosecondsPerPacket: 6100},
	}
	low, high := result.Interval(samples)
	r.Low, r.High = result.Figure(low), result.Figure(high)
	return r
}

func example() *result.Result {
	return &result.Result{
		Hosts:    []result.Host{{Kernel: "6.18.44", CPU: "Some CPU", Cores: 2, Mitigations: "none needed", Go: "go1.26", Weft: "v1 (abc)", TCPCongestion: "cubic"}},
		Settings: result.Settings{Duration: 3, Repeat: 3, Warmup: 1, MTU: 1500, Nodes: 2, Layout: "split"},
		Results: []result.Row{
			row("bare", "rate", "1/s", 20e3, 10e3, 30e3), row("bare", "p50", "us", 40, 41, 42),
			row("tun", "rate", "1/s", 10e3, 6e3, 12e3), row("tun", "p50", "us", 57, 60, 62),
		},
		Conservation: []result.Balance{
			{Contender: "tun", Test: "udp-rr", LaneBalance: &result.LaneBalance{Node: "a", Lane: "out/0", Received: 5, Sent: 4}},
			{Contender: "bare", Test: "udp-rr", PathBalance: &result.PathBalance{Generated: 10, Delivered: 7, Unaccounted: 3}},
			{Contender: "vxlan", Test: "udp-rr", PathBalance: &result.PathBalance{Generated: 10, Delivered: 10}, OK: true},
		},
		Integrity: []result.Integrity{
			{Contender: "bare", Test: "tcp-rr", Params: probe.Params{"family": 4, "size": 64}, Integrity: probe.Integrity{Verified: 1e6}, OK: true},
			{Contender: "tun", Test: "tcp-rr", Params: probe.Params{"family": 4, "size": 64}, Integrity: probe.Integrity{Verified: 5e5}, OK: true},
		},
		Unsupported: []result.Unsupported{{Contender: "wireguard", Reason: "this kernel has no wireguard module"}},
		Failed:      []result.Failure{{Contender: "xdp", Test: "tcp-stream", Reason: "weft-a ended with code 1"}},
	}
}

// TestTable compares with the golden file; `go test ./perf/report -update` is not offered: the
// table is read by people, so a person should look at every change of it.
func TestTable(t *testing.T) {
	var got bytes.Buffer
	if err := Table(&got, example()); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/table.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the table is\n%s\nwant\n%s", got.String(), want)
	}
}

func TestRatioWithoutBaseline(t *testing.T) {
	r := example()
	r.Results = r.Results[2:]
	var got bytes.Buffer
	if err := Table(&got, r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got.String(), "tun") || strings.Contains(got.String(), "NaN") {
		t.Errorf("without bare the table is\n%s", got.String())
	}
}

// TestCorrupt: wrong bytes are a finding of their own in table, page and CSV; that there are none is said, too, and not of results that cannot know.
func TestCorrupt(t *testing.T) {
	shown := func(r *result.Result) (table, page, values string) {
		var a, b, c bytes.Buffer
		if err := errors.Join(Table(&a, r), HTML(&b, r), CSV(&c, r)); err != nil {
			t.Fatal(err)
		}
		return a.String(), b.String(), c.String()
	}
	table, page, values := shown(example())
	if !strings.Contains(table, "verified: 1500000 bytes, 0 corrupt") || !strings.Contains(page, "verified: 1500000 bytes, 0 corrupt") || strings.Contains(page, `id="corrupt"`) {
		t.Errorf("without a corrupt byte the table is\n%s", table)
	}
	if !strings.Contains(values, ",500000,0\n") {
		t.Errorf("without a corrupt byte the CSV is\n%s", values)
	}
	r := example()
	r.Integrity[1].Integrity, r.Integrity[1].OK = probe.Integrity{Verified: 5e5, Corrupt: 911, Damage: []string{"to the server: flow 0"}}, false
	table, page, values = shown(r)
	for _, text := range []string{table, page} {
		for _, part := range []string{"corrupt: tun, tcp-rr, family 4, size 64: 911 of 500000 bytes arrived other than they were sent", "corrupt: to the server: flow 0"} {
			if !strings.Contains(text, part) {
				t.Errorf("%q is not in\n%s", part, text)
			}
		}
	}
	if !strings.Contains(page, `id="corrupt"`) || !strings.Contains(values, ",500000,911\n") || !strings.Contains(values, ",1000000,0\n") {
		t.Errorf("the page lacks the heading, or CSV is\n%s", values)
	}
	r.Integrity = nil
	if table, _, _ = shown(r); !strings.Contains(table, "verified: nothing") {
		t.Errorf("of an old result the table is\n%s", table)
	}
}

func TestBusyMachine(t *testing.T) {
	for background, want := range map[float64]bool{0.02: false, 0.7: true} {
		r := example()
		r.Results[1].CPU.Background = background
		var got bytes.Buffer
		if err := Table(&got, r); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(got.String(), "busy: before rounds the machine was doing 0.7 cores") != want {
			t.Errorf("%v cores besides: the table is\n%s", background, got.String())
		}
	}
}

// TestExample shows the published example.
func TestExample(t *testing.T) {
	data, err := os.ReadFile("../result/testdata/result.json")
	if err != nil {
		t.Fatal(err)
	}
	var r result.Result
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	var table, text bytes.Buffer
	if err := Table(&table, &r); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"tun-gso+aes-256-gcm", "5.44", "5.38–5.52", "301", "wireguard: this kernel has no WireGuard module"} {
		if !strings.Contains(table.String(), part) {
			t.Errorf("%q is not in\n%s", part, table.String())
		}
	}
	if err := CSV(&text, &r); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(&text).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) != 1+len(r.Results) || lines[1][4] != "5.44e+09" || lines[1][7] != "5.41e+09 5.52e+09 5.38e+09 5.47e+09 5.44e+09" {
		t.Errorf("CSV %q", lines)
	}
}

// TestMixed: each shape of each contender has a line in the table and a row on the page.
func TestMixed(t *testing.T) {
	r := example()
	r.Details = []result.Detail{{Contender: "tun", Test: "mixed", Params: probe.Params{"family": 0, "rate": 1e8}, Shapes: []probe.Shape{
		{Name: "fragments", Family: 6, Unit: "datagram", Sent: 1234, Received: 1230, Lost: 4, Integrity: probe.Integrity{Verified: 987654}},
		{Name: "bulk", Family: 4, Unit: "byte", Sent: 55555, Received: 55555, Integrity: probe.Integrity{Verified: 55555, Corrupt: 17}},
	}}}
	var table, page bytes.Buffer
	if err := errors.Join(Table(&table, r), HTML(&page, r)); err != nil {
		t.Fatal(err)
	}
	for _, line := range [][]string{{"fragments", "6", "987654", "1234", "4", "datagram", "0"}, {"bulk", "4", "55555", "55555", "0", "byte", "17"}} {
		if !strings.Contains(strings.Join(strings.Fields(table.String()), " "), strings.Join(line, " ")) {
			t.Errorf("%q is not in\n%s", line, table.String())
		}
		if !strings.Contains(page.String(), "<td>"+strings.Join(line, "</td><td>")+"</td>") {
			t.Errorf("%q is not on the page", line)
		}
	}
}
