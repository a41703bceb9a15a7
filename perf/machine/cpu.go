// Package machine is what one machine says of itself: its fingerprint, and what its processors did.
package machine

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Busy is processor time of one or several machines since they started, an element each.
type Busy []Reading

// Reading is one machine's processor time by kind, in seconds.
type Reading struct {
	At      time.Duration `json:"at_ns"` // when it was read, by that machine's own clock, since any moment
	User    float64       `json:"user"`
	System  float64       `json:"system"`
	SoftIRQ float64       `json:"softirq"`
}

// began is what Reading.At counts from: the monotonic clock, which nobody sets.
var began = time.Now()

// Read reads the first line of /proc/stat (proc_stat(5)): the whole machine since it started.
func Read() (Reading, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Reading{}, fmt.Errorf("read processor time: %w", err)
	}
	r, err := parse(string(data))
	r.At = time.Since(began)
	return r, err
}

// userHZ is the unit of /proc/stat: 100 on every Linux architecture Go runs on.
const userHZ = 100

// parse reads "cpu  user nice system idle iowait irq softirq steal guest guest_nice"; guest
// time is part of user already, stolen time is not ours, interrupts count with softirq.
func parse(text string) (Reading, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return Reading{}, fmt.Errorf("/proc/stat begins with %q: not as proc(5) describes it", line)
	}
	var v [7]float64
	for i := range v {
		n, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil {
			return Reading{}, fmt.Errorf("/proc/stat: %w", err)
		}
		v[i] = float64(n) / userHZ
	}
	return Reading{User: v[0] + v[1], System: v[2], SoftIRQ: v[5] + v[6]}, nil
}

// Cores are cores busy, by kind, all machines together.
type Cores struct{ User, System, SoftIRQ float64 }

// Since returns the cores busy since an earlier reading of the same machines, and the seconds between the two.
func (b Busy) Since(before Busy) (c Cores, seconds float64) {
	for i, now := range b {
		was := before[i]
		s := (now.At - was.At).Seconds()
		c.User += (now.User - was.User) / s
		c.System += (now.System - was.System) / s
		c.SoftIRQ += (now.SoftIRQ - was.SoftIRQ) / s
		seconds += s / float64(len(b))
	}
	return c, seconds
}

// Above subtracts what the machines do without the sample.
func (c Cores) Above(idle Cores) Cores {
	return Cores{
		User:    max(c.User-idle.User, 0),
		System:  max(c.System-idle.System, 0),
		SoftIRQ: max(c.SoftIRQ-idle.SoftIRQ, 0),
	}
}

// AtLeast raises the figures to what the processes were charged with: where strangers do less during a sample
// than they did before it, too much was taken off, but the lab's own work is known. A process is charged with the
// softirq work that interrupts it, too, as system time.
func (c Cores) AtLeast(times map[string]CPUTime, seconds float64) Cores {
	var own CPUTime
	for _, t := range times {
		own = own.Plus(t)
	}
	c.User = max(c.User, own.User.Seconds()/seconds)
	c.System = max(c.System, own.System.Seconds()/seconds-c.SoftIRQ)
	return c
}

// Total is of all kinds.
func (c Cores) Total() float64 { return c.User + c.System + c.SoftIRQ }

// CPUTime is processor time of a process by kind.
type CPUTime struct {
	User   time.Duration `json:"user_ns"`
	System time.Duration `json:"system_ns"`
}

// Total is the time of both kinds.
func (t CPUTime) Total() time.Duration { return t.User + t.System }

// Plus adds two times.
func (t CPUTime) Plus(o CPUTime) CPUTime { return CPUTime{t.User + o.User, t.System + o.System} }

// Since is the time used since an earlier reading.
func (t CPUTime) Since(before CPUTime) CPUTime {
	return CPUTime{t.User - before.User, t.System - before.System}
}
