package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"weft/internal/nettest"
)

// asInit makes a systemd process 1 of namespaces of its own: with mounts that nobody else sees, a control group below a hierarchy of
// the machine's, and nothing to start. $1 is a directory whose units it knows, $2 the file whose copy is /run/bin/weft.
const asInit = `
top=$(mktemp -d)
if [ "$(stat -fc %T /sys/fs/cgroup 2>/dev/null)" = cgroup2fs ]; then kind="-t cgroup2"; at=/sys/fs/cgroup
else kind="-t cgroup -o none,name=systemd"; at=/sys/fs/cgroup/systemd; fi
mount $kind none "$top"
group=$top/weft-test-$$
mkdir "$group" && echo $$ >"$group/cgroup.procs"
trap 'echo $$ >"$top/cgroup.procs"; for try in 1 2 3 4 5 6 7 8 9; do
	if find "$group" -depth -type d -exec rmdir {} + 2>/dev/null; then break; fi; sleep .1; done; umount "$top"; rmdir "$top"' EXIT
unshare --kill-child -C -m -p -f -u -i --mount-proc sh -ec '
	umount -R /sys/fs/cgroup 2>/dev/null || true
	mkdir -p /sys/fs/cgroup
	[ "$4" = /sys/fs/cgroup ] || mount -t tmpfs none /sys/fs/cgroup
	mkdir -p "$4" && mount $3 none "$4"
	mount -t tmpfs none /var/lib
	cp "$2" /var/lib/weft.new
	mount -t tmpfs -o exec none /run
	mkdir -p /run/systemd /run/bin && mv /var/lib/weft.new /run/bin/weft && cp -r "$1" /run/systemd/system
	exec env -i PATH="$PATH" container=lxc SYSTEMD_UNIT_PATH=/run/systemd/system /lib/systemd/systemd --system --unit=empty.target --show-status=no' sh "$1" "$2" "$kind" "$at"
`

// supervised is a daemon that a real systemd runs by the unit as it is shipped.
type supervised struct {
	c    *cluster
	init int // the systemd's process
}

// superviseA has systemd run the daemon of the cluster's first node, with some more lines in the unit.
func superviseA(c *cluster, more string) *supervised {
	t := c.t
	t.Helper()
	a := c.Nodes[0]
	units := filepath.Join(c.dir, "units")
	text, err := os.ReadFile(unitFile)
	if err == nil {
		err = os.MkdirAll(filepath.Join(units, "weft.service.d"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Neither the configuration nor what it names is where a distribution has it; there is no journal.
	for name, text := range map[string]string{
		"weft.service": string(text), "empty.target": "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n",
		"weft.service.d/test.conf": fmt.Sprintf("[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=\nExecStart=/run/bin/weft daemon --config %s\nPrivateTmp=no\nReadWritePaths=%s\nStandardError=append:%s\n%s\n",
			c.path(a, "weft.yaml"), c.dir, c.path(a, "log"), more),
	} {
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.writeNodes()
	c.writeConfig(a)
	p := a.NS.MustStart(t, "sh", "-ec", asInit, "sh", units, weft)
	s := &supervised{c: c}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(c.path(a, "log"))
			t.Logf("systemd: %s\nthe daemon: %s", p.Output(), log)
		}
		if s.init > 0 {
			_ = syscall.Kill(s.init, syscall.SIGKILL) // and with it all of its namespace; the shell cleans up
			_ = p.Wait()
		}
		p.Kill()
	})
	c.eventually("systemd runs", func() error {
		if s.init = processOne(p.PID()); s.init == 0 {
			return fmt.Errorf("no process is 1 in its namespace: %s", p.Output())
		}
		_, err := s.ctl("is-active", "empty.target")
		return err
	})
	return s
}

// processOne finds the descendant of a process that is process 1 of a namespace and has become systemd.
func processOne(pid int) int {
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for child := range strings.FieldsSeq(string(children)) {
		n, err := strconv.Atoi(child)
		if err != nil {
			continue
		}
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n)); strings.TrimSpace(string(name)) == "systemd" {
			return n
		}
		if found := processOne(n); found > 0 {
			return found
		}
	}
	return 0
}

// ctl asks the systemd.
func (s *supervised) ctl(args ...string) (string, error) {
	return s.c.Nodes[0].NS.Run("nsenter", append([]string{"-t", strconv.Itoa(s.init), "-m", "-p", "systemctl"}, args...)...)
}

// show returns a property of the unit.
func (s *supervised) show(property string) string {
	s.c.t.Helper()
	var out string
	s.c.eventually("systemd answers", func() (err error) { // on a busy machine its own time may be over first
		out, err = s.ctl("show", "weft.service", "--value", "-p", property)
		return err
	})
	return strings.TrimSpace(out)
}

// restarts waits until the daemon has been restarted so many times, and serves.
func (s *supervised) restarts(n int, why string) {
	s.c.t.Helper()
	s.c.eventually(why, func() error {
		if got := s.show("NRestarts"); got != strconv.Itoa(n) {
			return fmt.Errorf("%s restarts, want %d: %s, %s", got, n, s.show("ActiveState"), s.show("Result"))
		}
		if state := s.show("ActiveState"); state != "active" {
			return fmt.Errorf("it is %s", state)
		}
		return nil
	})
	s.c.allReach()
}

// TestSupervisor: a real systemd with the unit as it is shipped starts a daemon again that crashed, hung or was killed, and one whose
// configuration is wrong it does not.
func TestSupervisor(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "unshare", "nsenter", "systemctl")
	c := prepare(t, "tun", 4, nettest.ClusterOptions{})
	s := superviseA(c, "WatchdogSec=1\nTimeoutAbortSec=1")
	if _, err := s.ctl("start", "weft.service"); err != nil {
		t.Fatal(err)
	}
	c.start(c.Nodes[1])
	t.Cleanup(func() { c.daemons[c.Nodes[1].Name].Kill() })
	c.ready(c.Nodes[1])
	c.allReach()
	// What a watchdog sends, a bug, want of memory, a hang; more often than systemd's own patience would be.
	for i, signal := range []string{"ABRT", "SEGV", "KILL", "STOP", "ABRT", "ABRT"} {
		if _, err := s.ctl("kill", "--kill-whom=main", "--signal="+signal, "weft.service"); err != nil {
			t.Fatal(err)
		}
		s.restarts(i+1, "it is started again after "+signal)
	}
	if result := s.show("RestartPreventExitStatus"); result != "2 3" {
		t.Errorf("RestartPreventExitStatus is %q", result)
	}
	good, err := os.ReadFile(c.path(c.Nodes[0], "weft.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.writeFile(c.path(c.Nodes[0], "weft.yaml"), "nod: x\n")
	if out, err := s.ctl("restart", "weft.service"); err == nil {
		t.Errorf("a wrong configuration is started: %s", out)
	}
	if state, status := s.show("ActiveState"), s.show("ExecMainStatus"); state != "failed" || status != "2" {
		t.Errorf("a wrong configuration: it is %s, exit code %s", state, status)
	}
	c.writeFile(c.path(c.Nodes[0], "weft.yaml"), string(good))
	if _, err := s.ctl("start", "weft.service"); err != nil {
		t.Fatal(err)
	}
	c.allReach()
}
