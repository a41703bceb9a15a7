package probe

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// background runs f in a goroutine. The returned function waits for it.
func background(f func()) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return func() { <-done }
}

// clock is the time since a goroutine began its work of system calls, and keeps Go's scheduler out of it.
//
// A goroutine that does nothing but system calls is never rescheduled; after 10 ms Go's monitor
// thread (sysmon) takes its processor away every 20 µs, and each return from the kernel has to win one
// back and to wake the monitor: 10 µs of a 50 µs round trip, measured. A yield every few
// milliseconds tells the monitor that all is well. The goroutine is not locked to its thread, since then a yield
// would be two thread switches, and on a busy core a long wait; in practice it stays where it is.
type clock struct {
	begin time.Time
	yield time.Duration // when to yield next
}

// yieldEvery is less than the 10 ms between two looks of the monitor.
const yieldEvery = 8 * time.Millisecond

func startClock() clock {
	exactSleep()
	return clock{time.Now(), yieldEvery}
}

// now yields if it is time to, and returns the time after that.
func (c *clock) now() time.Duration {
	now := time.Since(c.begin)
	if now >= c.yield {
		runtime.Gosched()
		exactSleep() // the thread may be another
		now = time.Since(c.begin)
		c.yield = now + yieldEvery
	}
	return now
}

// exactSleep makes the thread's sleeps end when asked, not up to 50 µs later.
func exactSleep() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }

// nap sleeps, to the precision of the thread's timer slack; it may end early.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
}
