package netns_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"weft/internal/nettest"
)

// TestSearchesAnswer runs searches on this machine over contenders of every kind, 20 times, and counts: no sample is 0, 99 % have an answer, and
// every contender has a median in every run. It takes 25 minutes and is for a machine that does nothing else, by hand or from scripts/test-long:
//
//	WEFT_TEST_LONG=1 go test -count=1 -v -timeout 1h -run TestSearchesAnswer ./perf/site/netns        # WEFT_TEST_RUNS=2 for fewer runs
func TestSearchesAnswer(t *testing.T) {
	nettest.RequireLong(t, "it takes 25 minutes of a quiet machine")
	nettest.RequireRoot(t)
	runs := 20
	if n, err := strconv.Atoi(os.Getenv("WEFT_TEST_RUNS")); err == nil {
		runs = n
	}
	samples, zeros, unanswered, silent := 0, 0, 0, 0
	for run := range runs {
		file := filepath.Join(t.TempDir(), strconv.Itoa(run)+".json")
		if out, err := exec.Command(weft, "lab", "run", "--contenders", "bare,vxlan,tun,tun-gso,xdp", "--tests", "udp-rate:size=64", "--duration", "2s", "--repeat", "3",
			"--json", file).CombinedOutput(); err != nil {
			t.Errorf("run %d: %v\n%s", run, err, out)
		}
		r := read(t, file)
		contenders := 0
		for _, row := range r.Results {
			if row.Metric != "rate" {
				continue
			}
			contenders++
			samples += len(row.Samples)
			unanswered += row.Samples.Unanswered()
			for _, v := range row.Samples {
				if v == 0 {
					zeros++
				}
			}
			if !row.Median.Known() {
				silent++
			}
			t.Logf("run %d: %-8s %.0f, median %.0f", run, row.Contender, row.Samples, float64(row.Median))
		}
		if contenders != 5 {
			t.Errorf("run %d: %d contenders, failed %+v, unsupported %+v", run, contenders, r.Failed, r.Unsupported)
		}
	}
	t.Logf("runs %d, samples %d, zeros %d, unanswered %d, contenders without median %d", runs, samples, zeros, unanswered, silent)
	if zeros > 0 || silent > 0 || 100*unanswered > samples {
		t.Error("want no zero, 99 % answered, and a median for every contender")
	}
}
