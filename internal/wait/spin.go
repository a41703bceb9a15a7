package wait

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxSpin bounds how long a queue tries again before it blocks: about what a sleep and a wake-up
	// cost on a virtual machine, where both are exits to the hypervisor. Spinning longer than that
	// can not pay.
	maxSpin = 50 * time.Microsecond

	// minSpin is where a growing budget begins and a shrinking one ends: below it, a retry or two,
	// nothing is gained.
	minSpin = 3 * time.Microsecond

	// yieldEvery is after how many tries the processor is offered to others.
	yieldEvery = 4
)

// spinner decides how long to try again before blocking. It learns from the blocks themselves: one
// that was shorter than maxSpin would have been cheaper spun away, so the budget grows; a longer one
// means an idle queue, and the budget shrinks to nothing. So an idle daemon does not spin at all. On
// one processor it is off: whoever spins there keeps from running what it waits for.
type spinner struct {
	off    bool
	budget time.Duration
	start  time.Duration // of this Recv's spinning; 0 = it has not begun
	last   time.Duration
	tries  int
}

func newSpinner(processors int) spinner { return spinner{off: processors < 2} }

// begin forgets the previous Recv.
func (s *spinner) begin() { s.start, s.tries = 0, 0 }

// again says whether to try once more without blocking.
func (s *spinner) again(waited *time.Duration) bool {
	if s.off || s.budget == 0 {
		return false
	}
	t := now()
	if s.start == 0 {
		s.start, s.last = t, t
	}
	*waited += t - s.last
	s.last = t
	if t-s.start >= s.budget {
		return false
	}
	if s.tries++; s.tries%yieldEvery == 0 {
		unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return true
}

// blocked learns from a block of this length.
func (s *spinner) blocked(d time.Duration) {
	switch {
	case s.off:
	case d < maxSpin:
		s.budget = min(maxSpin, max(minSpin, 2*s.budget))
	case s.budget < 2*minSpin:
		s.budget = 0
	default:
		s.budget /= 2
	}
}

var epoch = time.Now()

// now reads the monotonic clock alone; never 0.
func now() time.Duration { return time.Since(epoch) + 1 }
