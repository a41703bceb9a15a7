package systemd_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/node/systemd"
)

// listen is a service manager's end of the socket.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestMessages(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@weft-systemd-test-%d", os.Getpid())} {
		c := listen(t, name)
		t.Setenv("NOTIFY_SOCKET", name)
		t.Setenv("WATCHDOG_USEC", "4000000")
		t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
		m, err := systemd.New()
		if err != nil || !m.Asked() || m.Watchdog() != 4*time.Second {
			t.Fatalf("%+v, %v", m, err)
		}
		for _, step := range []struct {
			say  func() error
			want string
		}{
			{func() error { return m.Ready("fine\nREADY=0") }, "READY=1\nSTATUS=fine READY=0"},
			{func() error { return m.Alive("fine") }, "STATUS=fine\nWATCHDOG=1"},
			{m.Stopping, "STOPPING=1\nSTATUS=stopping"},
		} {
			if err := step.say(); err != nil {
				t.Fatal(err)
			}
			if got := heard(t, c); got != step.want {
				t.Errorf("heard %q, want %q", got, step.want)
			}
		}
		if err := m.Reloading(); err != nil {
			t.Fatal(err)
		}
		var stamp int64
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			t.Fatal(err)
		}
		got := heard(t, c)
		if _, err := fmt.Sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%d", &stamp); err != nil || stamp <= 0 || stamp > now.Nano()/1000 {
			t.Errorf("heard %q: %v", got, err)
		}
	}
}

func TestWithout(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	m, err := systemd.New()
	if err != nil || m.Asked() || m.Watchdog() != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := m.Ready("x"); err != nil {
		t.Error(err)
	}
	// Another process's watchdog is not ours.
	c := listen(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("NOTIFY_SOCKET", c.LocalAddr().String())
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1")
	if m, err = systemd.New(); err != nil || m.Watchdog() != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := m.Alive("fine"); err != nil || heard(t, c) != "STATUS=fine" {
		t.Errorf("without a watchdog: %v", err)
	}
}

func TestErrors(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	m, err := systemd.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Ready("x"); err == nil || !strings.Contains(err.Error(), "systemd: notify: ") {
		t.Errorf("nobody listens: %v", err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	if _, err := systemd.New(); err == nil || !strings.Contains(err.Error(), "WATCHDOG_USEC") {
		t.Errorf("a bad watchdog: %v", err)
	}
}
