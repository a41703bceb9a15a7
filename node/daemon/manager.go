package daemon

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"weft/internal/config"
)

// statusEvery is how often the service manager hears how the daemon is, where it has no wish of its own.
const statusEvery = 10 * time.Second

// report tells the service manager how the daemon is until ctx ends, and then that it ends. A daemon
// that hangs cannot say how it is, and so the watchdog bites.
func (d *Daemon) report(ctx context.Context) {
	if !d.manager.Asked() {
		return
	}
	every := statusEvery
	if w := d.manager.Watchdog(); w > 0 {
		every = min(every, w/2)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		d.told(d.manager.Alive(d.summary()))
		select {
		case <-ctx.Done():
			d.told(d.manager.Stopping())
			return
		case <-tick.C:
		}
	}
}

// told logs what could not be told.
func (d *Daemon) told(err error) {
	if err != nil {
		d.log.Warn("the service manager does not hear", zap.Error(err))
	}
}

// summary is the status in a line.
func (d *Daemon) summary() string {
	s := d.status()
	if !s.Ready {
		return "not ready: " + s.Reason
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
