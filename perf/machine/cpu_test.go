package machine

import (
	"math"
	"testing"
	"time"
)

func TestBusy(t *testing.T) {
	//                user nice system idle iowait irq softirq steal guest guest_nice
	before, err := parse("cpu  100 20 300 4000 50 6 70 8 0 0\ncpu0 1 2 3\n")
	if err != nil {
		t.Fatal(err)
	}
	after, err := parse("cpu  200 40 500 4000 50 16 110 8 0 0\n")
	if err != nil {
		t.Fatal(err)
	}
	before.At, after.At = time.Hour, time.Hour+2*time.Second
	got, seconds := Busy{after}.Since(Busy{before})
	if seconds != 2 || !near(got.User, 0.6) || !near(got.System, 1) || !near(got.SoftIRQ, 0.25) || !near(got.Total(), 1.85) {
		t.Errorf("busy %+v over %v s", got, seconds)
	}
	// A machine whose clock counts from elsewhere, and at which the same happened, is as much again.
	other, later := before, after
	other.At, later.At = 5*time.Second, 7*time.Second
	if both, seconds := (Busy{after, later}).Since(Busy{before, other}); seconds != 2 || !near(both.Total(), 3.7) {
		t.Errorf("two machines are busy %+v over %v s", both, seconds)
	}
	above := got.Above(Cores{User: 0.1, System: 2})
	if !near(above.User, 0.5) || above.System != 0 || !near(above.SoftIRQ, 0.25) {
		t.Errorf("above idle %+v", above)
	}
	own := map[string]CPUTime{"a": {User: time.Second, System: time.Second}, "b": {User: time.Second}}
	if least := above.AtLeast(own, 2); !near(least.User, 1) || !near(least.System, 0.25) || !near(least.SoftIRQ, 0.25) {
		t.Errorf("no less than what processes were charged with is %+v", least)
	}
	if more := (Cores{User: 3, System: 3}).AtLeast(own, 2); more.User != 3 || more.System != 3 {
		t.Errorf("figures above what processes were charged with became %+v", more)
	}
	for _, text := range []string{"", "cpu0 1 2 3 4 5 6 7 8\n", "cpu 1 2\n", "cpu a b c d e f g h\n"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }
