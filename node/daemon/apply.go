package daemon

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/backoff"
)

// A State that cannot be put in force is tried again after about these pauses.
const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
)

// attempts is how it stands with putting the newest State in force. An attempt that fails makes devices and takes them
// away again, and the backend's news of that must not begin the next one: what cuts a pause short is a new State, a person
// who reloads, or surroundings that no longer are what the last attempt met or left.
type attempts struct {
	again     backoff.Backoff
	since     time.Time        // when it came into force; zero while it is not
	due       <-chan time.Time // when it is tried again; nil where there is no need
	met, left uint64           // the surroundings before and after the last attempt, which failed
}

// fail takes note of a failure; tell tells the pause before it begins.
func (a *attempts) fail(met, left uint64, tell func(pause time.Duration)) {
	if !a.since.IsZero() && time.Since(a.since) > a.again.Most { // what held for long is not to be blamed for earlier failures
		a.again.Reset()
	}
	pause := a.again.Next()
	tell(pause)
	a.since, a.due, a.met, a.left = time.Time{}, time.After(pause), met, left
}

// succeed takes note of a success.
func (a *attempts) succeed() {
	a.due = nil
	if a.since.IsZero() {
		a.since = time.Now()
	}
}

// lookAt is told by the backend that Apply should be called again, and if so what has broken.
func (d *Daemon) lookAt(broken error) {
	d.mu.Lock()
	if broken != nil {
		d.broken = broken
	}
	d.mu.Unlock()
	select {
	case d.looks <- struct{}{}:
	default:
	}
}

// applyAll puts the newest State in force and keeps it so until ctx ends. All attempts on the path are made here, and whoever wants
// to know is told of each.
func (d *Daemon) applyAll(ctx context.Context, parts Parts) {
	a := attempts{again: backoff.Backoff{First: retryFirst, Most: retryMost}}
	var last control.Node
	for {
		fresh := true
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-a.due:
			d.announceAgain()
		case <-parts.Reload:
			d.log.Info("reloading")
			d.reread(parts.Reread)
			d.announceAgain()
			if a.since.IsZero() && a.due == nil { // the first State, when it comes, is applied anyway
				continue
			}
			a.again.Reset()
			d.service.reloads()
		case <-d.looks:
			d.announceAgain()
			if !d.worthwhile(&a) {
				continue
			}
			fresh = a.due != nil
		}
		var met uint64
		if a.due != nil {
			met = d.around()
		}
		self, err := d.applyOnce(fresh)
		if !self.Equal(last) { // a State that differs in the peers fails as the one before
			a.again.Reset()
			last = self
		}
		if err != nil {
			a.fail(met, d.around(), d.failed(err))
			continue
		}
		a.succeed()
		d.say("")
		d.announceAgain()
	}
}

// worthwhile says whether an Apply that the backend asks for is to be made now.
func (d *Daemon) worthwhile(a *attempts) bool {
	d.mu.Lock()
	broken := d.broken
	d.broken = nil
	d.mu.Unlock()
	switch {
	case !a.since.IsZero() && broken == nil:
		return true
	case a.since.IsZero() && a.due == nil: // there is no State yet
		return false
	}
	now := d.around()
	switch {
	case !a.since.IsZero():
		a.fail(now, now, d.failed(broken))
		return false
	case now == a.met || now == a.left:
		return false
	}
	a.again.Reset()
	return true
}

// applyOnce applies the newest State, and returns what the State makes of this node. counted says that it is an attempt,
// and no look at what is in force.
func (d *Daemon) applyOnce(counted bool) (self control.Node, err error) {
	d.mu.Lock()
	newest := d.state
	d.mu.Unlock()
	state := d.spare(newest)
	d.mu.Lock()
	d.tried, d.lost = state, state.Problems[len(newest.Problems):]
	d.mu.Unlock()
	err = d.backend.Apply(*state)
	d.mu.Lock()
	defer d.mu.Unlock()
	if counted || err != nil {
		d.apply.Attempts++
	}
	if counted && err == nil {
		d.apply.Failures, d.apply.Error, d.apply.Retry, d.apply.Applied = 0, "", time.Time{}, time.Now()
	}
	return state.Self, err
}

// say tells whoever wants to know what has become of the State that Apply saw last.
func (d *Daemon) say(reason string) {
	d.mu.Lock()
	f := control.InForce{State: *d.tried, Reason: reason, InnerMTU: d.backend.InnerMTU()}
	d.mu.Unlock()
	for _, hear := range d.hearing {
		hear(f)
	}
}

// failed is what records, logs and tells why the newest State is not in force, and when it is tried again.
func (d *Daemon) failed(err error) func(pause time.Duration) {
	return func(pause time.Duration) {
		d.mu.Lock()
		d.apply.Failures++
		d.apply.Error, d.apply.Retry = sentence(err.Error()), time.Now().Add(pause)
		d.mu.Unlock()
		d.log.Error("the cluster's state is not in force, trying again", zap.Error(err), zap.Duration("in", pause))
		d.say(sentence(err.Error()))
	}
}

// sentence is an error's text in one line: several that are joined are in a line each.
func sentence(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// tell logs the effective facts, once.
func (d *Daemon) tell(f control.InForce) {
	if f.Reason != "" || d.carried {
		return
	}
	d.carried = true
	s := d.status()
	d.log.Info("carrying traffic",
		zap.String("version", s.Version), zap.String("node", s.Node), zap.String("mode", s.Mode),
		zap.Stringers("network", s.Network), zap.Uint32("vni", s.VNI), zap.Uint16("port", s.Port),
		zap.Stringers("endpoints", s.Endpoints), zap.Stringers("prefixes", s.Prefixes),
		zap.Int("underlay_mtu", s.UnderlayMTU), zap.Int("inner_mtu", s.InnerMTU), zap.Int("peers", s.Control.Nodes-1),
		zap.Strings("devices", s.Devices), zap.Any("features", s.Features), zap.String("socket", d.cfg.API.Socket))
}
