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

// BenchmarkIdle measures what a daemon costs that carries nothing: memory of its own, resident memory with the pages of the binary
// that happen to be there, and its share of a core over a second, or half a minute with WEFT_TEST_LONG. With AF_XDP the frames of its
// rings (2048 each) are in it.
func BenchmarkIdle(b *testing.B) {
	nettest.RequireRoot(b)
	nettest.RequireTool(b, "ping")
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
			b.Run(name, func(b *testing.B) {
				c := prepare(b, m.Name, 4, nettest.ClusterOptions{})
				if seal {
					c.ownKeys("aes-256-gcm")
				}
				c.launch()
				pid := c.daemons["node-a"].PID()
				before := cpuTime(b, pid)
				<-time.After(window) // what is measured is that nothing happens
				spent := cpuTime(b, pid) - before
				m := memory(b, pid)
				b.ReportMetric(m.anon/1e6, "MB-anon")
				b.ReportMetric(m.resident/1e6, "MB-resident")
				b.ReportMetric(m.peak/1e6, "MB-peak")
				b.ReportMetric(100*spent.Seconds()/window.Seconds(), "%-core")
				b.ReportMetric(0, "ns/op") // means nothing here
			})
		}
	}
}

// footprint is what memory a process has, bytes (proc(5)).
type footprint struct {
	anon     float64 // its own (RssAnon)
	resident float64 // and pages of files, which it shares and the kernel may take away (VmRSS)
	peak     float64 // the most that has been resident (VmHWM)
}

func memory(t testing.TB, pid int) (m footprint) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		for name, to := range map[string]*float64{"RssAnon:": &m.anon, "VmRSS:": &m.resident, "VmHWM:": &m.peak} {
			if rest, is := strings.CutPrefix(line, name); is {
				var kb float64
				if _, err := fmt.Sscanf(rest, "%f kB", &kb); err != nil {
					t.Fatal(err)
				}
				*to = kb * 1024
			}
		}
	}
	return m
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
