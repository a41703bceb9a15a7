package wait

import (
	"testing"
	"time"
)

// TestSpinnerLearns: short blocks make it spin, an idle queue makes it stop.
func TestSpinnerLearns(t *testing.T) {
	s := newSpinner(2)
	var waited time.Duration
	if s.begin(); s.again(&waited) {
		t.Fatal("spins before it learnt that it pays")
	}
	for range 10 {
		s.blocked(10 * time.Microsecond)
	}
	if s.budget != maxSpin {
		t.Fatalf("budget %v after short blocks", s.budget)
	}
	if s.begin(); !s.again(&waited) {
		t.Fatal("does not spin after short blocks")
	}
	for range 10 {
		s.blocked(time.Millisecond)
	}
	if s.begin(); s.again(&waited) || s.budget != 0 {
		t.Fatalf("still spins on an idle queue, budget %v", s.budget)
	}
}

// TestSpinnerEnds: within one Recv it stops, and says how long it took.
func TestSpinnerEnds(t *testing.T) {
	s := newSpinner(2)
	for range 10 {
		s.blocked(0)
	}
	var waited time.Duration
	tries := 0
	for s.begin(); s.again(&waited); tries++ {
	}
	if tries == 0 || waited < maxSpin {
		t.Fatalf("%d tries in %v", tries, waited)
	}
}

func TestSpinnerIsOffOnOneProcessor(t *testing.T) {
	s := newSpinner(1)
	var waited time.Duration
	for range 10 {
		s.blocked(0)
		if s.begin(); s.again(&waited) {
			t.Fatal("spins")
		}
	}
}
