package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"weft/catalog/mode"
	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/result"
	perfrun "weft/perf/run"
)

// TestEveryModeIsAContender: the lab can measure all that the daemon can do.
func TestEveryModeIsAContender(t *testing.T) {
	for _, m := range mode.All() {
		if _, err := contender.Parse(m.Name); err != nil {
			t.Errorf("mode %s: %v: add its line to the table of contenders", m.Name, err)
		}
	}
}

func TestCompleteTests(t *testing.T) {
	for in, want := range map[string]string{
		"tcp-stream":                     "tcp-stream:family=6",
		"tcp-stream:family=4,udp-rr":     "tcp-stream:family=4,udp-rr:family=6",
		"udp-rate:size=all,tcp-rr":       "udp-rate:size=64:family=6,udp-rate:size=256:family=6,udp-rate:size=512:family=6,udp-rate:size=1024:family=6,udp-rate:size=1360:family=6,tcp-rr:family=6",
		"udp-overload:size=all:factor=3": "udp-overload:size=64:factor=3:family=6,udp-overload:size=256:factor=3:family=6,udp-overload:size=512:factor=3:family=6,udp-overload:size=1024:factor=3:family=6,udp-overload:size=1360:factor=3:family=6",
	} {
		got := completeTests(in, 6)
		if got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
		if _, err := probe.ParseList(got); err != nil {
			t.Error(err)
		}
	}
}

// TestSelectTests: a test has all its parameters, however much of them was typed.
func TestSelectTests(t *testing.T) {
	tests, err := selectTests("udp-rate,tcp-stream:flows=8,udp-stream:gso=1:family=6,cpu-fixed:rate=5e8,mixed,mixed:family=6", 4)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range tests {
		got = append(got, s.String())
	}
	want := []string{"udp-rate:family=4:size=64", "tcp-stream:family=4:flows=8", "udp-stream:family=6:gso=1:rate=0:size=1360", "cpu-fixed:family=4:rate=5e+08",
		"mixed:family=0:rate=1e+08", "mixed:family=6:rate=1e+08"}
	if !slices.Equal(got, want) {
		t.Errorf("selected %q, want %q", got, want)
	}
	if _, err := selectTests("udp-rate:gso=2", 4); err == nil {
		t.Error("half a super-packet")
	}
}

// TestWriteResult puts a result everywhere it can go.
func TestWriteResult(t *testing.T) {
	dir := t.TempDir()
	var f labFlags
	cmd := newLabRunCommand()
	var out, notes bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&notes)
	f.format = formatFlag(&cobra.Command{})
	f.json, f.out = filepath.Join(dir, "r.json"), dir
	r := &result.Result{Schema: result.Schema, Failed: []result.Failure{{Contender: "tun", Reason: "it fell over"}}}
	if err := f.write(cmd, r); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "it fell over") || !strings.Contains(notes.String(), dir) {
		t.Errorf("printed %q and noted %q", out.String(), notes.String())
	}
	for _, name := range []string{"r.json", "result.json", "result.csv", "table.txt", "report.html"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(data) == 0 {
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		}
	}

	// Files are written also where nobody reads standard output.
	if err := os.Remove(filepath.Join(dir, "result.json")); err != nil {
		t.Fatal(err)
	}
	reader, writer := io.Pipe()
	reader.Close()
	cmd.SetOut(writer)
	if err := f.write(cmd, r); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a closed pipe as standard output: %v", err)
	}
	cmd.SetOut(&out)

	// Where one file cannot be written, none is, and the result is kept elsewhere.
	before, err := os.ReadFile(filepath.Join(dir, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	r.Failed = nil
	f.json = filepath.Join(dir, "missing", "r.json")
	err = f.write(cmd, r)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "the result is in "+os.TempDir()) {
		t.Errorf("a folder that does not exist: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "result.json")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("an older result was replaced by one of a set that is not whole: %v", err)
	}
	kept, err := filepath.Glob(filepath.Join(os.TempDir(), "weft-lab-*.json"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %q, %v", kept, err)
	}
	if again, err := result.Read(kept[0]); err != nil || len(again.Failed) != 0 {
		t.Errorf("kept %+v, %v", again, err)
	}
}

// TestTargets: what cannot be written to is found before anything is measured, and said in the words of the command line.
func TestTargets(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("a result"), 0o600); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(dir, "out", "report.html")
	if err := os.MkdirAll(page, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ json, out, says string }{
		{file, "", ""},
		{filepath.Join(dir, "new", "r.json"), "", ""},
		{os.DevNull, filepath.Join(dir, "results"), ""},
		{filepath.Join(dir, "results", "result.json"), filepath.Join(dir, "results"), ""},
		{dir, "", "--json " + dir + ": this is a folder: name a file, " + dir + "/result.json say"},
		{filepath.Join(file, "r.json"), "", "--json " + file + "/r.json: mkdir " + file + ": not a directory"},
		{"/proc/r.json", "", "--json /proc/r.json: "},
		{"", file, "--out " + file + ": mkdir " + file + ": not a directory: name a folder"},
		{"", "/proc/out", "--out /proc/out: mkdir /proc/out"},
		{"", filepath.Dir(page), "--out " + page + ": this is a folder"},
		{filepath.Join(dir, "results", "report.html"), filepath.Join(dir, "results"), "--json and --out both write"},
	} {
		f := resultFlags{json: c.json, out: c.out}
		if err := f.checkTargets(); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("--json %q --out %q: %v, want %q", c.json, c.out, err, c.says)
		}
	}
	f := resultFlags{out: filepath.Join(dir, "a", "b"), json: filepath.Join(dir, "a", "c", "r.json")}
	if err := f.checkTargets(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.out); err != nil {
		t.Error(err)
	}
	f.unmake()
	if _, err := os.Stat(filepath.Join(dir, "a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folders for results that never came stay: %v", err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "a result" {
		t.Errorf("a file that was only tried holds %q, %v", text, err)
	}
}

// TestProgressInAPipe: what is not a terminal gets no progress.
func TestProgressInAPipe(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.event(perfrun.Event{Text: "x", Done: 1, Total: 2})
	p.end()
	if b.Len() > 0 {
		t.Errorf("wrote %q", b.String())
	}
	p.on = true
	p.event(perfrun.Event{Text: "warm-up", Done: 1, Total: 2})
	p.end()
	if s := b.String(); !slices.Equal(strings.Split(s, "\r\x1b[K"), []string{"", "[1/2] warm-up, about 0s left", ""}) {
		t.Errorf("on a terminal wrote %q", s)
	}
}

// TestLabReport makes the page of the published example, and refuses what is no result.
func TestLabReport(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "page.html")
	report := func(args ...string) (string, error) {
		cmd := newLabReportCommand()
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(args)
		err := cmd.Execute()
		return out.String(), err
	}
	const example = "../../perf/result/testdata/result.json"
	if out, err := report(example, "-o", page); err != nil || !strings.Contains(out, page) {
		t.Fatalf("%q, %v", out, err)
	}
	written, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := report(example, "-o", "-"); err != nil || out != string(written) || !strings.Contains(out, "<svg") {
		t.Errorf("printed %d bytes and wrote %d: %v", len(out), len(written), err)
	}
	if out, err := report(example, "-o", "json"); err != nil || !strings.Contains(out, `"weft.lab/3"`) {
		t.Errorf("as JSON %q, %v", out, err)
	}
	for name, text := range map[string]string{"no.json": "{", "old.json": `{"schema": "weft.lab/0"}`} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var usage usageError
		if _, err := report(file, "-o", page); !errors.As(err, &usage) {
			t.Errorf("%s: %v", text, err)
		}
	}
	input := filepath.Join(dir, "input.json")
	if data, err := os.ReadFile(example); err != nil {
		t.Fatal(err)
	} else if err := os.WriteFile(input, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for out, says := range map[string]string{dir: "this is a folder", input: "this is the result itself", filepath.Join(dir, "none", "x"): "name a file"} {
		var usage usageError
		if _, err := report(input, "-o", out); !errors.As(err, &usage) || !strings.Contains(err.Error(), says) {
			t.Errorf("-o %s: %v, want %q", out, err, says)
		}
	}
}

// TestReproduce: the command is what was typed, without where results go.
func TestReproduce(t *testing.T) {
	cmd := newLabRunCommand()
	if err := cmd.ParseFlags([]string{"--json", "x", "--out", "y", "-o", "json", "--repeat=7", "--contenders", "bare,tun"}); err != nil {
		t.Fatal(err)
	}
	if got := reproduce(cmd.Flags()); !slices.Equal(got, []string{"weft", "lab", "run", "--contenders", "bare,tun", "--repeat", "7"}) {
		t.Errorf("reproduce with %q", got)
	}
}

// TestOutcome: what a run exits with once its result is written.
func TestOutcome(t *testing.T) {
	searched := func(samples ...float64) *result.Result {
		median, silent := result.Median(samples), &result.Result{}
		silent.Results = []result.Row{{Contender: "tun", Test: "udp-rate", Params: probe.Params{"size": 64}, Metric: "rate", Samples: samples, Median: result.Figure(median)}}
		return silent
	}
	for _, c := range []struct {
		result *result.Result
		code   int
		says   string
	}{
		{searched(1, math.NaN()), exitDone, ""},
		{searched(math.NaN(), math.NaN()), exitFailed, "no sample of tun in udp-rate:size=64 has an answer"},
		{&result.Result{Failed: []result.Failure{{Contender: "tun"}}}, exitFailed, "1 failed"},
		{&result.Result{Unsupported: []result.Unsupported{{Contender: "tun"}}}, exitUnsupported, "not every contender"},
	} {
		err := outcome(c.result)
		if exitCode(err, false) != c.code || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, exit code %d, want %d and %q", err, exitCode(err, false), c.code, c.says)
		}
	}
}
