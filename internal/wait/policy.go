package wait

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dense is how many packets a second make a queue dense, sparse how few end that.
	dense  = 40_000
	sparse = 20_000

	// window is over how many sleeps the rate is taken.
	window = 64

	// idle is a sleep that ends it at once.
	idle = 20 * time.Millisecond
)

// policy is how the kernel schedules a lane's thread: SCHED_OTHER, or SCHED_BATCH while packets are dense
// (sched(7)). A thread of SCHED_OTHER that wakes up takes its core from whoever runs there at once: right
// for a packet that somebody waits for. In a dense stream from the same core, the one it interrupts is who
// makes the packets, and the lane finds two or three, again and again; each time costs two thread switches
// and an interrupt to the next core along the path. A thread of SCHED_BATCH waits until the core is free,
// or for its share of it, and finds a batch.
//
// Neither needs a privilege, and the thread's share of a busy core is the same.
type policy struct {
	batch   bool
	since   time.Duration // of the window
	sleeps  int
	packets int
}

// slept learns that the thread woke up at now after a sleep of d, and says whether it should be scheduled
// as SCHED_BATCH.
func (p *policy) slept(now, d time.Duration) (batch bool) {
	if d >= idle {
		p.since, p.sleeps, p.packets = now, 0, 0
		return false
	}
	if p.sleeps++; p.sleeps < window {
		return p.batch
	}
	rate := float64(p.packets) / (now - p.since).Seconds()
	p.since, p.sleeps, p.packets = now, 0, 0
	return rate >= dense || rate > sparse && p.batch
}

// set schedules the calling thread. A kernel that refuses leaves it as it is: only speed depends on it.
func (p *policy) set(batch bool) {
	if p.batch == batch {
		return
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if batch {
		attr.Policy = unix.SCHED_BATCH
	}
	_ = unix.SchedSetAttr(0, &attr, 0)
	p.batch = batch
}
