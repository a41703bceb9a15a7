// Package systemd tells the service manager how a service is (sd_notify(3)). Without one, or where
// it did not ask, nothing is said and nothing is wrong.
package systemd

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Manager is the service manager that started this process. The zero value is none.
type Manager struct {
	asked    bool
	watchdog time.Duration
}

// New finds the manager by NOTIFY_SOCKET, and how often it wants to hear from the service by
// WATCHDOG_USEC and WATCHDOG_PID.
func New() (Manager, error) {
	m := Manager{asked: os.Getenv("NOTIFY_SOCKET") != ""}
	var err error
	if m.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		return m, fmt.Errorf("systemd: WATCHDOG_USEC: %w: set WatchdogSec= in the unit", err)
	}
	return m, nil
}

// Asked says whether anybody listens.
func (m Manager) Asked() bool { return m.asked }

// Watchdog is the longest time that the service may be silent before it is taken for dead; 0 = any.
func (m Manager) Watchdog() time.Duration { return m.watchdog }

// Ready says that the service has started, or has finished to reload, and how it is.
func (m Manager) Ready(status string) error {
	return m.tell(daemon.SdNotifyReady, "STATUS="+line(status))
}

// Status says how the service is.
func (m Manager) Status(status string) error { return m.tell("STATUS=" + line(status)) }

// Reloading says that the service reloads; Ready has to follow.
func (m Manager) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("systemd: monotonic clock: %w", err)
	}
	// What Type=notify-reload asks for besides.
	return m.tell(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Alive feeds the watchdog, where there is one, and says how the service is.
func (m Manager) Alive(status string) error {
	state := []string{"STATUS=" + line(status)}
	if m.watchdog > 0 {
		state = append(state, daemon.SdNotifyWatchdog)
	}
	return m.tell(state...)
}

// Stopping says that the service ends.
func (m Manager) Stopping() error { return m.tell(daemon.SdNotifyStopping, "STATUS=stopping") }

// line makes one line of a text: a second one would be read as another assignment.
func line(text string) string { return strings.ReplaceAll(text, "\n", " ") }

func (m Manager) tell(state ...string) error {
	if !m.asked {
		return nil
	}
	if _, err := daemon.SdNotify(false, strings.Join(state, "\n")); err != nil {
		return fmt.Errorf("systemd: notify: %w", err)
	}
	return nil
}
