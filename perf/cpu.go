package perf

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"weft/perf/testbed"
)

// busy is processor time by kind, in seconds: a reading of the whole machine, or a difference.
type busy struct {
	at                    time.Time
	user, system, softIRQ float64
}

// readBusy reads the first line of /proc/stat (proc_stat(5)): the whole machine since it started.
func readBusy() (busy, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return busy{}, fmt.Errorf("perf: read processor time: %w", err)
	}
	b, err := parseBusy(string(data))
	b.at = time.Now()
	return b, err
}

// userHZ is the unit of /proc/stat: 100 on every Linux architecture Go runs on.
const userHZ = 100

// parseBusy reads "cpu  user nice system idle iowait irq softirq steal guest guest_nice"; guest
// time is part of user already, stolen time is not ours, interrupts count with softirq.
func parseBusy(text string) (busy, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return busy{}, fmt.Errorf("perf: /proc/stat begins with %q: not as proc(5) describes it", line)
	}
	var v [7]float64
	for i := range v {
		n, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil {
			return busy{}, fmt.Errorf("perf: /proc/stat: %w", err)
		}
		v[i] = float64(n) / userHZ
	}
	return busy{user: v[0] + v[1], system: v[2], softIRQ: v[5] + v[6]}, nil
}

// since returns cores busy, by kind, since an earlier reading, and the seconds between the two.
func (b busy) since(before busy) (cores busy, seconds float64) {
	seconds = b.at.Sub(before.at).Seconds()
	return busy{
		user:    (b.user - before.user) / seconds,
		system:  (b.system - before.system) / seconds,
		softIRQ: (b.softIRQ - before.softIRQ) / seconds,
	}, seconds
}

// above subtracts what the machine does without the sample.
func (b busy) above(idle busy) busy {
	return busy{
		user:    max(b.user-idle.user, 0),
		system:  max(b.system-idle.system, 0),
		softIRQ: max(b.softIRQ-idle.softIRQ, 0),
	}
}

// atLeast raises the figures to what the processes were charged with: where strangers do less during a sample
// than they did before it, too much was taken off, but the lab's own work is known. A process is charged with the
// softirq work that interrupts it, too, as system time.
func (b busy) atLeast(times map[string]testbed.CPUTime, seconds float64) busy {
	var own testbed.CPUTime
	for _, t := range times {
		own = own.Plus(t)
	}
	b.user = max(b.user, own.User.Seconds()/seconds)
	b.system = max(b.system, own.System.Seconds()/seconds-b.softIRQ)
	return b
}

func (b busy) total() float64 { return b.user + b.system + b.softIRQ }

// measureIdle watches the machine for d while the lab does nothing: what others do is the background of the samples
// that follow.
func measureIdle(ctx context.Context, d time.Duration) (busy, error) {
	before, err := readBusy()
	if err != nil {
		return busy{}, err
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return busy{}, ctx.Err()
	}
	after, err := readBusy()
	if err != nil {
		return busy{}, err
	}
	cores, _ := after.since(before)
	return cores, nil
}
