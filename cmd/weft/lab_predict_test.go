package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"weft/perf/model"
	"weft/perf/probe"
	"weft/perf/result"
)

func TestLabPredict(t *testing.T) {
	r := result.Result{Schema: result.Schema}
	for _, size := range []float64{64, 512, 1024, 1360} {
		r.Results = append(r.Results, result.Row{Contender: "tun", Test: "udp-rate", Params: probe.Params{"size": size, "family": 4}, Metric: "rate",
			Samples: []float64{1e9 / (5000 + 2*size)}, InnerMTU: 1450, CPU: result.CPU{NanosecondsPerPacket: 10000}})
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := runRoot(t, "lab", "predict", file, "--mix", "500", "--rate", "100000", "-o", "json")
	var got []model.Prediction
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitDone || len(got) != 1 || int(got[0].Nanos.Value+0.5) != 6000 || !*got[0].Carries {
		t.Errorf("exit code %d, %v: %s%s", code, err, out, errs)
	}
	for i := range r.Results {
		r.Results[i].Samples = append(r.Results[i].Samples, math.NaN())
	}
	gaps := filepath.Join(t.TempDir(), "gaps.json")
	if data, err = json.Marshal(r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gaps, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{file, "--rate", "200000"}, exitDone, "no"},
		{[]string{gaps}, exitDone, "tun, family 4: 4 samples have no answer and are left out"},
		{[]string{file, "--mix", "nosuch.yaml"}, exitUsage, "give imix"},
		{[]string{file, "--rate", "-1"}, exitUsage, "rate"},
		{[]string{writeResult(t, "split", 1)}, exitUsage, "small-packets"},
	} {
		out, errs, code := runRoot(t, append([]string{"lab", "predict"}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("%v: exit code %d, want %d: %q %q", c.args, code, c.code, out, errs)
		}
	}
}
