package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/internal/nettest"
)

// attempt is a line of the daemon's log about a State that is not in force.
type attempt struct {
	Time  time.Time
	Error string
	In    string // the pause that follows
}

func attempts(t *testing.T, log string) (list []attempt) {
	t.Helper()
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "trying again") {
			continue
		}
		var a attempt
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		list = append(list, a)
	}
	return list
}

// TestPauseBetweenAttempts: a daemon whose path broke and cannot be opened again tries when its log says so and no sooner, whatever an
// attempt itself does to the kernel; and at once when a person has mended it and says so.
func TestPauseBetweenAttempts(t *testing.T) {
	nettest.RequireTool(t, "unshare", "nsenter", "prlimit", "mount")
	for name, trouble := range map[string]struct {
		modes      []string
		make, mend func(pid string, open int) []string
		says       string
	}{
		"read-only sysctls": {
			[]string{"xdp", "tun-gso", "vxlan"},
			func(pid string, _ int) []string {
				return []string{"nsenter", "-t", pid, "-m", "mount", "-o", "remount,bind,ro", "/proc/sys"}
			},
			func(pid string, _ int) []string {
				return []string{"nsenter", "-t", pid, "-m", "mount", "-o", "remount,bind,rw", "/proc/sys"}
			},
			"read-only file system",
		},
		"few descriptors": {
			[]string{"xdp", "tun-gso"}, // others need none for their path
			func(pid string, open int) []string {
				return []string{"prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d:", open-6)}
			},
			func(pid string, open int) []string {
				return []string{"prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d:", open+100)}
			},
			"too many open files",
		},
	} {
		for _, mode := range trouble.modes {
			t.Run(mode+"/"+name, func(t *testing.T) {
				t.Parallel()
				c := prepare(t, mode, 4, nettest.ClusterOptions{})
				c.extra = "queues: 4" // each needs descriptors
				c.prefix = func(*nettest.ClusterNode) []string {
					return []string{"unshare", "-m", "sh", "-ec", `mount --bind /proc/sys /proc/sys; exec "$@"`, "sh"}
				}
				c.launch()
				a := c.Nodes[0]
				daemon := c.daemons[a.Name]
				pid := strconv.Itoa(daemon.PID())
				open, err := os.ReadDir("/proc/" + pid + "/fd")
				if err != nil {
					t.Fatal(err)
				}
				s, err := c.status(a)
				if err != nil {
					t.Fatal(err)
				}
				run := func(cmd []string) { a.NS.MustRun(t, cmd[0], cmd[1:]...) }
				run(trouble.make(pid, len(open)))
				a.NS.MustRun(t, "sysctl", "-qw", "net.ipv4.ip_forward=0")
				for _, device := range s.Devices {
					a.NS.MustRun(t, "ip", "link", "del", device)
				}
				made := time.Now() // each step of the trouble is a change that may cut a pause short
				var list []attempt
				c.eventually("some attempts", func() error {
					list = attempts(t, daemon.Output())
					for len(list) > 0 && (list[0].Time.Before(made) || !strings.Contains(list[0].Error, trouble.says)) { // that the path broke
						list = list[1:]
					}
					if len(list) < 4 { // 200, 400, … ms
						return fmt.Errorf("%d attempts", len(list))
					}
					return nil
				})
				for i, now := range list {
					in, err := time.ParseDuration(now.In)
					if err != nil || !strings.Contains(now.Error, trouble.says) {
						t.Fatalf("attempt %d: %+v: %v", i+1, now, err)
					}
					// The log is written before the pause begins.
					if i+1 < len(list) && list[i+1].Time.Sub(now.Time) < in {
						t.Errorf("attempt %d: the log says %v, the next one came after %v", i+1, in, list[i+1].Time.Sub(now.Time))
					}
				}
				run(trouble.mend(pid, len(open)))
				daemon.Signal(syscall.SIGHUP)
				c.ready(a)
				c.allReach()
			})
		}
	}
}
