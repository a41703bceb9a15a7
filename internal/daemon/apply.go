package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"weft/control"
)

// A State that cannot be put in force is tried again at these intervals.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
)

// applyAll puts the newest State in force, again and again until it is, until ctx ends. A source that wants to know
// is told.
func (d *Daemon) applyAll(ctx context.Context, parts Parts, source control.Source) {
	pause, told := retryFirst, false
	var retry <-chan time.Time
	for {
		reloading := false
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
			pause = retryFirst // a new State deserves a fresh try
		case <-parts.Reload:
			d.log.Info("reloading")
			d.reread(parts.Reread)
			if !told { // that State, when it comes, is applied anyway
				continue
			}
			pause, reloading = retryFirst, true
			d.told(d.manager.Reloading())
		case <-retry:
		}
		retry = nil
		self, err := d.applyOnce(pause)
		if reloading {
			d.told(d.manager.Ready(d.summary()))
		}
		if err != nil {
			d.log.Error("the cluster's state is not in force, trying again", zap.Error(err), zap.Duration("in", pause))
			retry = time.After(pause)
			pause = min(2*pause, retryMost)
			continue
		}
		pause = retryFirst
		if file := d.cfg.Control.SubnetEnv; file != "" {
			if err := writeSubnetEnv(file, subnetEnv(d.cfg.Network.Prefixes, self, d.backend.Status().InnerMTU)); err != nil {
				d.log.Error("the hand-over to Flannel's CNI plugin is not written", zap.Error(err))
			}
		}
		if w, ok := source.(control.Witness); ok && len(self.Prefixes) > 0 {
			w.Forwarding()
		}
		if !told {
			d.tell()
			d.told(d.manager.Ready(d.summary()))
			told = true
		}
	}
}

// applyOnce applies the newest State, records how that went, and returns what the State makes of this node.
func (d *Daemon) applyOnce(pause time.Duration) (self control.Node, err error) {
	d.mu.Lock()
	state := *d.state
	d.mu.Unlock()
	err = d.backend.Apply(state)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.apply.Attempts++
	if err != nil {
		d.apply.Failures++
		d.apply.Error, d.apply.Retry = err.Error(), time.Now().Add(pause)
		return state.Self, err
	}
	d.apply.Failures, d.apply.Error, d.apply.Retry, d.apply.Applied = 0, "", time.Time{}, time.Now()
	return state.Self, nil
}

// tell logs the effective facts, once.
func (d *Daemon) tell() {
	s := d.Status()
	d.log.Info("carrying traffic",
		zap.String("version", s.Version), zap.String("node", s.Node), zap.String("mode", s.Mode),
		zap.Stringers("network", s.Network), zap.Uint32("vni", s.VNI), zap.Uint16("port", s.Port),
		zap.Stringers("endpoints", s.Endpoints), zap.Stringers("prefixes", s.Prefixes),
		zap.Int("underlay_mtu", s.UnderlayMTU), zap.Int("inner_mtu", s.InnerMTU), zap.Int("peers", s.Control.Nodes-1),
		zap.Strings("devices", s.Devices), zap.Any("features", s.Features), zap.String("socket", d.cfg.API.Socket))
}
