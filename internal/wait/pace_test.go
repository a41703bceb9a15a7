package wait

import (
	"testing"
	"time"
)

// TestPace: single packets between sleeps make a queue sparse; two at once, one that was there already,
// or one without a sleep end it.
func TestPace(t *testing.T) {
	const sleep = time.Millisecond
	for name, end := range map[string]func(*pace){
		"two at once":        func(p *pace) { p.blocked(sleep); p.found(2) },
		"there already":      func(p *pace) { p.blocked(0) },
		"found by spinning":  func(p *pace) { p.found(1) },
		"nothing but a wake": func(p *pace) { p.blocked(sleep); p.found(0) },
	} {
		var p pace
		for i := range sparseAfter {
			if p.sparse() {
				t.Fatalf("%s: sparse after %d packets", name, i)
			}
			p.blocked(sleep)
			p.found(1)
		}
		if !p.sparse() {
			t.Fatalf("%s: not sparse after %d single packets", name, sparseAfter)
		}
		p.blocked(sleep)
		p.found(1)
		if !p.sparse() {
			t.Fatalf("%s: forgets after one more", name)
		}
		if end(&p); p.sparse() {
			t.Errorf("%s: still sparse", name)
		}
	}
}

// TestSparseWaiter: what a sparse queue asks for, and that it gets all that comes.
func TestSparseWaiter(t *testing.T) {
	w := newStop(t).Waiter(Readable)
	if w.Sparse() || w.Most(9) != 9 {
		t.Fatal("a new waiter is sparse")
	}
	for range sparseAfter {
		w.pace.blocked(time.Second)
		w.Found(1)
	}
	if !w.Sparse() || w.Most(9) != 1 || w.Most(0) != 0 {
		t.Fatalf("sparse %v, most %d of 9, %d of 0", w.Sparse(), w.Most(9), w.Most(0))
	}
}
