package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/perf/compare"
	"weft/perf/probe"
	"weft/perf/result"
)

// writeResult writes a result with one row for `weft lab compare`.
func writeResult(t *testing.T, layout string, samples ...float64) string {
	t.Helper()
	r := result.Result{Schema: result.Schema, Settings: result.Settings{Layout: layout}, Results: []result.Row{
		{Contender: "tun", Test: "tcp-stream", Metric: "throughput", Unit: "bit/s", Samples: samples},
	}}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "result.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeCorrupt writes a result again, with wrong bytes in it.
func writeCorrupt(t *testing.T, path string) string {
	t.Helper()
	r, err := result.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	r.Integrity = []result.Integrity{{Contender: "tun", Test: "tcp-stream", Integrity: probe.Integrity{Verified: 1000, Corrupt: 911}}}
	corrupt := filepath.Join(t.TempDir(), "corrupt.json")
	if err := writeFile(corrupt, func(w io.Writer) error { return writeJSON(w, r) }); err != nil {
		t.Fatal(err)
	}
	return corrupt
}

// runRoot runs a command line as main does.
func runRoot(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	root := newRoot()
	var stdout, stderr bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	root.SetArgs(args)
	err := execute(t.Context(), root, &stderr)
	return stdout.String(), stderr.String(), exitCode(err, false)
}

// TestLabCompareUnanswered: samples without an answer are counted, and a row that has none is named.
func TestLabCompareUnanswered(t *testing.T) {
	none := math.NaN()
	some, all := writeResult(t, "split", 1e9, none, 1.02e9, 1.03e9, 1.04e9, 1.05e9), writeResult(t, "split", none, none)
	for _, c := range []struct{ a, b, says string }{
		{some, some, "samples without an answer, left out: 1 in A, 1 in B"},
		{some, all, "1 unanswered"},
		{all, some, "tun tcp-stream throughput  unanswered"},
	} {
		if out, errs, code := runRoot(t, "lab", "compare", c.a, c.b); code != exitDone || !strings.Contains(out, c.says) || strings.Contains(out, "NaN") {
			t.Errorf("exit code %d: %s%s, want %q", code, out, errs, c.says)
		}
	}
}

func TestLabCompare(t *testing.T) {
	fast, slow := writeResult(t, "split", 1e9, 1.01e9, 1.02e9, 1.03e9, 1.04e9), writeResult(t, "split", 5e8, 5.1e8, 5.2e8, 5.3e8, 5.4e8)
	free := writeResult(t, "free", 1e9)
	corrupt := writeCorrupt(t, fast)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{fast, slow}, exitDone, "1 worse"},
		{[]string{fast, slow, "--fail-if-worse"}, exitFailed, "1 worse"},
		{[]string{slow, fast, "--fail-if-worse"}, exitDone, "1 better"},
		{[]string{slow, corrupt}, exitDone, "corrupt: tun tcp-stream: 0 of 0 bytes in A, 911 of 1000 in B"},
		{[]string{slow, corrupt, "--fail-if-worse"}, exitFailed, "is corrupt: see above"},
		{[]string{corrupt, slow, "--fail-if-worse"}, exitDone, "1 corrupt"},
		{[]string{fast, fast, "--all"}, exitDone, "no difference"},
		{[]string{fast, free}, exitUsage, "layout split and free"},
		{[]string{fast, text}, exitUsage, "schema"},
		{[]string{fast, filepath.Join(text, "missing")}, exitUsage, "read a result"},
		{[]string{fast}, exitUsage, "2 arg"},
		{[]string{fast, filepath.Dir(slow)}, exitUsage, "is a folder: give the file in it, " + slow},
		{[]string{fast, slow, "--control", "bear"}, exitUsage, "has no such contender, it has tun"},
		{[]string{fast, slow, "--control", "tun"}, exitDone, "1 worse"},
		{[]string{fast, slow, "--control", "none"}, exitDone, "1 worse"},
		{[]string{fast, slow, "--alpha", "2"}, exitUsage, "alpha"},
	} {
		out, errs, code := runRoot(t, append([]string{"lab", "compare"}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("%v: exit code %d, want %d; printed %q and %q, want %q", c.args, code, c.code, out, errs, c.says)
		}
	}
	out, _, _ := runRoot(t, "lab", "compare", fast, slow, "-o", "json")
	var got compare.Comparison
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Rows) != 1 || got.Rows[0].Verdict != compare.Worse || got.A.File != fast {
		t.Errorf("%v: %s", err, out)
	}
}
