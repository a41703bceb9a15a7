package daemon

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/config"
	"weft/node/systemd"
)

// statusEvery is how often the service manager hears how the daemon is, where it has no wish of its own.
const statusEvery = 10 * time.Second

// service tells the service manager what becomes of the States. It belongs to the goroutine of applyAll.
type service struct {
	manager   systemd.Manager
	log       *zap.Logger
	summary   func() string
	ready     bool // it was told that the service has started
	reloading bool // and that it reloads, which has an end
	reason    string
}

// reloads says that the service begins to reload.
func (s *service) reloads() {
	if s.ready {
		s.reloading = true
		s.told(s.manager.Reloading())
	}
}

// hear says that the service has started with the first State in force, that a reload is over, and whatever else is new.
func (s *service) hear(f control.InForce) {
	other := f.Reason != s.reason
	s.reason = f.Reason
	switch {
	case s.reloading, !s.ready && f.Reason == "":
		s.ready, s.reloading = true, false
		s.told(s.manager.Ready(s.summary()))
	case other && s.manager.Asked():
		s.told(s.manager.Status(s.summary()))
	}
}

// told logs what could not be told.
func (s *service) told(err error) {
	if err != nil {
		s.log.Warn("the service manager does not hear", zap.Error(err))
	}
}

// report tells the service manager how the daemon is until ctx ends, and then that it ends. A daemon
// that hangs cannot say how it is, and so the watchdog bites.
func (d *Daemon) report(ctx context.Context) {
	if !d.service.manager.Asked() {
		return
	}
	every := statusEvery
	if w := d.service.manager.Watchdog(); w > 0 {
		every = min(every, w/2)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		d.service.told(d.service.manager.Alive(d.summary()))
		select {
		case <-ctx.Done():
			d.service.told(d.service.manager.Stopping())
			return
		case <-tick.C:
		}
	}
}

// summary is the status in a line.
func (d *Daemon) summary() string {
	s := d.status()
	if !s.Ready {
		return "not ready: " + s.Reason
	}
	if stopped := d.probe.Verdict().Stopped(); stopped != "" {
		return "not ready: " + stopped
	}
	text := fmt.Sprintf("ready: mode %s, %d nodes, inner MTU %d", s.Mode, s.Control.Nodes, s.InnerMTU)
	if n := len(s.Problems); n > 0 {
		text += fmt.Sprintf(", %d problems", n)
	}
	return text
}

// reread says what of the configuration has changed since the daemon began. It only looks: what is
// in force stays until a restart.
func (d *Daemon) reread(read func() (*config.Config, error)) {
	fresh, err := read()
	if err != nil {
		d.log.Error("the configuration has mistakes, the one read at the start stays in force", zap.Error(err))
		return
	}
	var changed []string
	for i, now := range fresh.Show() {
		if before := d.shown[i]; fmt.Sprint(before.Value) != fmt.Sprint(now.Value) {
			changed = append(changed, now.Key)
		}
	}
	if len(changed) > 0 {
		d.log.Warn("the configuration has changed: restart the daemon to use it", zap.Strings("keys", changed))
	}
}
