package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"weft/catalog"
	"weft/internal/nettest"
)

// TestIdle: a daemon that carries nothing has 40 MB at most; with AF_XDP the frames of its rings (2048 each) come besides, which are
// resident from the start. What it takes of a core is reported, not asserted: over a second here, over half a minute with
// WEFT_TEST_LONG.
func TestIdle(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	window := time.Second
	if os.Getenv("WEFT_TEST_LONG") != "" {
		window = 30 * time.Second
	}
	for _, m := range catalog.Modes {
		for _, seal := range []bool{false, true} {
			name := m.Name
			if seal {
				if name += "+aes-256-gcm"; kernelForwards(m.Name) {
					continue
				}
			}
			t.Run(name, func(t *testing.T) {
				if window == time.Second {
					t.Parallel()
				}
				c := prepare(t, m.Name, 4, nettest.ClusterOptions{})
				if seal {
					c.ownKeys("aes-256-gcm")
				}
				c.launch()
				pid := c.daemons["node-a"].PID()
				before := cpuTime(t, pid)
				<-time.After(window) // what is measured is that nothing happens
				spent := cpuTime(t, pid) - before
				size, peak := memory(t, pid)
				t.Logf("%.2f %% of a core, %.1f MB resident, %.1f MB at most since it began", 100*spent.Seconds()/window.Seconds(), size/1e6, peak/1e6)
				most := 40e6
				if strings.Contains(m.Name, "xdp") {
					most += 20e6
				}
				if size > most && !raceEnabled {
					t.Errorf("%.1f MB resident, %.0f at most", size/1e6, most/1e6)
				}
			})
		}
	}
}

// memory is what a process has resident and the most it has had, bytes (proc(5): VmRSS, VmHWM).
func memory(t testing.TB, pid int) (now, peak float64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		for name, to := range map[string]*float64{"VmRSS:": &now, "VmHWM:": &peak} {
			if rest, is := strings.CutPrefix(line, name); is {
				var kb float64
				if _, err := fmt.Sscanf(rest, "%f kB", &kb); err != nil {
					t.Fatal(err)
				}
				*to = kb * 1024
			}
		}
	}
	return now, peak
}

// cpuTime is what a process has spent on cores (proc(5): schedstat of its threads, nanoseconds).
func cpuTime(t testing.TB, pid int) (sum time.Duration) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var ns time.Duration
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			t.Fatal(err)
		}
		sum += ns
	}
	return sum
}
