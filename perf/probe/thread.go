package probe

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// onThread runs f on a thread of its own, which ends with f. The returned function waits for it.
func onThread(f func()) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread's timer slack is ours
		// Sleeps end when asked, not up to 50 µs later.
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
		f()
	}()
	return func() { <-done }
}

// clock is the time since a thread began its work, and keeps Go's monitor thread from disturbing it.
//
// A goroutine that does nothing but system calls is never rescheduled; after 10 ms the monitor
// (sysmon) takes its processor away every 20 µs, and each return from the kernel then has to win one back and to wake
// the monitor: 10 µs of a 50 µs round trip, measured. A yield every few milliseconds tells it that
// all is well.
type clock struct {
	begin time.Time
	yield time.Duration // when to yield next
}

// yieldEvery is less than the 10 ms between two looks of the monitor.
const yieldEvery = 8 * time.Millisecond

func startClock() clock { return clock{time.Now(), yieldEvery} }

// now yields if it is time to, and returns the time after that.
func (c *clock) now() time.Duration {
	now := time.Since(c.begin)
	if now >= c.yield {
		runtime.Gosched()
		now = time.Since(c.begin)
		c.yield = now + yieldEvery
	}
	return now
}

// nap sleeps on the thread, to the precision of its timer slack; it may end early.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
}
