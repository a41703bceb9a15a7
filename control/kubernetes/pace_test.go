package kubernetes

import (
	"errors"
	"testing"
	"time"

	"weft/internal/backoff"
)

// TestPace: failures and races wait longer and longer; what works after failures is none of them.
func TestPace(t *testing.T) {
	const first, short = 200 * time.Millisecond, 250 * time.Millisecond // give or take a quarter
	failure := errors.New("forbidden")
	p := pace{Backoff: backoff.Backoff{First: first, Most: 30 * time.Second}}
	for i := range 8 {
		p.begin()
		if pause := p.after(nil); (pause > short) != (i > 0) {
			t.Errorf("a race, write %d: a pause of %v", i, pause)
		}
	}
	for range 8 {
		if pause := p.after(failure); pause < 20*time.Second {
			t.Errorf("a failure in that row: a pause of %v", pause)
		}
	}
	if pause := p.after(nil); pause > short {
		t.Errorf("it works again, and the next wish waits for %v", pause)
	}
	p.begin()
	if pause := p.after(nil); pause < short {
		t.Errorf("and then it is a race: a pause of %v", pause)
	}
	p.last = p.last.Add(-time.Minute)
	p.begin()
	if pause := p.after(nil); pause > short {
		t.Errorf("after a minute of rest: a pause of %v", pause)
	}
}
