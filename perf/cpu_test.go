package perf

import (
	"math"
	"testing"
	"time"

	"weft/perf/testbed"
)

func TestBusy(t *testing.T) {
	//                user nice system idle iowait irq softirq steal guest guest_nice
	before, err := parseBusy("cpu  100 20 300 4000 50 6 70 8 0 0\ncpu0 1 2 3\n")
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseBusy("cpu  200 40 500 4000 50 16 110 8 0 0\n")
	if err != nil {
		t.Fatal(err)
	}
	before.at = time.Now()
	after.at = before.at.Add(2 * time.Second)
	got, seconds := after.since(before)
	if seconds != 2 || !near(got.user, 0.6) || !near(got.system, 1) || !near(got.softIRQ, 0.25) || !near(got.total(), 1.85) {
		t.Errorf("busy %+v over %v s", got, seconds)
	}
	above := got.above(busy{user: 0.1, system: 2})
	if !near(above.user, 0.5) || above.system != 0 || !near(above.softIRQ, 0.25) {
		t.Errorf("above idle %+v", above)
	}
	own := map[string]testbed.CPUTime{"a": {User: time.Second, System: time.Second}, "b": {User: time.Second}}
	if least := above.atLeast(own, 2); !near(least.user, 1) || !near(least.system, 0.25) || !near(least.softIRQ, 0.25) {
		t.Errorf("no less than what processes were charged with is %+v", least)
	}
	if more := (busy{user: 3, system: 3}).atLeast(own, 2); more.user != 3 || more.system != 3 {
		t.Errorf("figures above what processes were charged with became %+v", more)
	}
	for _, text := range []string{"", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2\n", "cpu a b c d e f g h\n"} {
		if _, err := parseBusy(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }
