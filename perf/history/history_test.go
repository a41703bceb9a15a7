package history

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/perf/probe"
	"weft/perf/result"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// found is a result with an answer, a sample without one, a failure and a contender that cannot run.
func found() *result.Result {
	r := result.New(nil, result.Settings{Duration: 2, Repeat: 3, Warmup: 1})
	row := result.Row{Contender: "bare", Path: "a → b", Test: "tcp-rr", Params: probe.Params{"size": 64}, Metric: "p50", Unit: "us", InnerMTU: 1500,
		Samples: result.Samples{math.NaN(), 40}, CPU: result.CPU{User: .5, System: .25, SoftIRQ: .25}}
	row.Median, row.Low, row.High = result.Summary(row.Samples)
	other := row
	other.Metric, other.Median = "p99", result.Figure(math.NaN())
	r.Results = []result.Row{row, other}
	r.Failed = []result.Failure{{Contender: "tun", Path: "a → b", Reason: "no"}}
	r.Unsupported = []result.Unsupported{{Contender: "xdp", Reason: "not here"}}
	return r
}

// TestAddAndOpen: what was added is read again, also behind a line that a crash cut short.
func TestAddAndOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.jsonl")
	f, err := Open(path, Least)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []Entry{Of(began, 9*time.Second, found(), nil), Of(began.Add(time.Hour), time.Second, nil, errors.New("nobody there"))} {
		if err := f.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	torn, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := torn.WriteString(`{"schema":"weft.bench-hi`); err != nil {
		t.Fatal(err)
	}
	torn.Close()
	if f, err = Open(path, Least); err != nil {
		t.Fatal(err)
	}
	if err := f.Add(Of(began.Add(2*time.Hour), time.Second, found(), nil)); err != nil {
		t.Fatal(err)
	}
	list, err := Read(path)
	if err != nil || len(list) != 3 || len(f.Entries()) != 3 {
		t.Fatalf("%d entries, %d in memory, %v", len(list), len(f.Entries()), err)
	}
	e := list[0]
	if !e.At.Equal(began) || e.Seconds != 9 || e.Spent != 8 || len(e.Figures) != 2 || len(e.Failed) != 2 || e.Failed[1].Reason != "not here" {
		t.Errorf("%+v", e)
	}
	if p := e.Figures[0]; p.Median != 40 || p.Selection() != "tcp-rr:size=64" || p.InnerMTU != 1500 || e.Figures[1].Median.Known() {
		t.Errorf("%+v", e.Figures)
	}
	if list[1].Error != "nobody there" || len(list[1].Figures) != 0 {
		t.Errorf("%+v", list[1])
	}
	if info, err := os.Stat(path); err != nil || info.Size() != f.Size() {
		t.Errorf("size %d, the file %v, %v", f.Size(), info, err)
	}
}

// TestBound: the file never grows beyond its bound, and what is left are the newest.
func TestBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.jsonl")
	f, err := Open(path, Least)
	if err != nil {
		t.Fatal(err)
	}
	const runs = 1000
	for i := range runs {
		if err := f.Add(Of(began.Add(time.Duration(i)*time.Minute), time.Second, found(), nil)); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() > Least {
			t.Fatalf("run %d: %v, %v", i, info.Size(), err)
		}
	}
	list, err := Read(path)
	if err != nil || len(list) < 10 || !list[len(list)-1].At.Equal(began.Add((runs-1)*time.Minute)) {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	for i := range list[1:] {
		if list[i+1].At.Sub(list[i].At) != time.Minute {
			t.Errorf("a gap at %d", i)
		}
	}
	if f, err = Open(path, Least); err != nil || len(f.Entries()) != len(list) {
		t.Errorf("%d entries opened again, want %d: %v", len(f.Entries()), len(list), err)
	}
	big := Of(began, time.Second, nil, errors.New(strings.Repeat("x", Least)))
	if err := f.Add(big); err == nil || !strings.Contains(err.Error(), "give it more room") {
		t.Errorf("an entry without room: %v", err)
	}
}

// TestOpenErrors: a file that is something else stays as it is.
func TestOpenErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(path, []byte("my diary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Least); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("%v", err)
	}
	if _, err := Open(path, 10); err == nil {
		t.Error("a bound without room for a run")
	}
	if _, err := Read(path); err == nil {
		t.Error("a diary is read")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "my diary\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// FuzzRead: whatever a file holds, what is read of it is written and read again alike.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"schema":"weft.bench-history/1","at":"2026-01-02T03:04:05Z","figures":[{"metric":"p50","median":null}]}` + "\n"))
	f.Add([]byte("\n{}\n[]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, lines, _ := read(data)
		var again []byte
		for _, l := range lines {
			again = append(again, l...)
		}
		second, _, whole := read(again)
		if len(entries) != len(lines) || len(second) != len(entries) || !whole {
			t.Errorf("%d entries of %d lines, then %d, whole %v", len(entries), len(lines), len(second), whole)
		}
	})
}
