package wait

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// TimerSlack is how late a timer of this process may be, so that it can be served together with others
// (Documentation/filesystems/proc.rst, timerslack_ns).
const TimerSlack = 4 * time.Millisecond

// SlackTimers gives every thread there is that much slack; those to come inherit it. Go's monitor thread
// sleeps 20 µs at a time for as long as threads block in system calls, which is all that lanes do at a low
// rate. Each of those sleeps arms a timer, an exit to the hypervisor on a virtual machine, and takes the
// processor from whom a packet has just woken: a fifth of a round trip's time. What it costs is that
// goroutines off the lanes may wait this long for a processor that a blocked lane still holds.
//
// It needs CAP_SYS_NICE; without it nothing is wrong but the time, and the error says so. Under systemd the
// unit's TimerSlackNSec= does the same.
func SlackTimers() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("wait: list threads: %w", err)
	}
	slack := []byte(strconv.FormatInt(TimerSlack.Nanoseconds(), 10))
	var errs []error
	for _, t := range tasks {
		// By the thread's own number: the file is not below task/.
		err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", slack, 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it has ended
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("wait: let timers be late (needs CAP_SYS_NICE, or TimerSlackNSec= in the systemd unit): %w", errs[0])
	}
	return nil
}
