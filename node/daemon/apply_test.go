package daemon

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"weft/backend"
	"weft/control"
	"weft/internal/config"
)

// troubled is a backend whose every Apply makes news of its own, as one does that makes a device and takes it away again.
type troubled struct {
	look func(error)

	mu     sync.Mutex
	wrong  error  // what Apply returns
	device bool   // what a failed Apply leaves for the moment
	around uint64 // what others change
	tries  []time.Time
}

func (b *troubled) Self() control.Node { return control.Node{} }
func (b *troubled) Apply(control.State) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries = append(b.tries, time.Now())
	if b.wrong != nil {
		b.device = true
		time.AfterFunc(time.Millisecond, func() { b.change(func() { b.device = false }) }) // the kernel takes its time
	}
	return b.wrong
}
func (b *troubled) surroundings() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.device {
		return b.around + 1<<32
	}
	return b.around
}
func (b *troubled) InnerMTU() int                      { return 1450 }
func (*troubled) Choice(string) (backend.Choice, bool) { return backend.Choice{}, false }
func (b *troubled) Lanes() backend.Lanes               { return nil }
func (b *troubled) Status() backend.Status             { return backend.Status{} }
func (b *troubled) Close() error                       { return nil }

// Run asks for a look a hundred times a second, as hostnet's Watch would at most.
func (b *troubled) Run(ctx context.Context, look func(error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			look(nil)
		}
	}
}

// change is what somebody else does.
func (b *troubled) change(what func()) {
	b.mu.Lock()
	what()
	b.mu.Unlock()
	b.look(nil)
}

// attempts are those from a moment on.
func (b *troubled) attempts(from time.Time) (list []time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, at := range b.tries {
		if !at.Before(from) {
			list = append(list, at)
		}
	}
	return list
}

// troubledDaemon runs applyAll, and a State for it, in a bubble of virtual time.
func troubledDaemon(t *testing.T, test func(*Daemon, *troubled, chan<- os.Signal, *observer.ObservedLogs)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		b := &troubled{wrong: errors.New("read-only file system")}
		cfg := &config.Config{}
		d := &Daemon{cfg: cfg, shown: cfg.Show(), backend: b, log: zap.New(core), wake: make(chan struct{}, 1), looks: make(chan struct{}, 1)}
		b.look, d.around = d.lookAt, b.surroundings
		reload := make(chan os.Signal)
		parts := Parts{Reload: reload, Reread: func() (*config.Config, error) { return cfg, nil }}
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() { d.applyAll(ctx, parts) })
		group.Go(func() { b.Run(ctx, d.lookAt) })
		time.Sleep(time.Second)
		if n := len(b.attempts(time.Time{})); n != 0 {
			t.Errorf("%d attempts without a State", n)
		}
		d.update(control.State{Revision: 1, Self: control.Node{Name: "a"}})
		test(d, b, reload, logs)
		cancel()
		group.Wait()
	})
}

// pauses are what the log said, by the time it said so.
func pauses(t *testing.T, logs *observer.ObservedLogs) (said map[time.Time]time.Duration) {
	t.Helper()
	said = map[time.Time]time.Duration{}
	for _, e := range logs.FilterMessage("the cluster's state is not in force, trying again").All() {
		said[e.Time] = e.ContextMap()["in"].(time.Duration)
	}
	return said
}

// TestPauseIsKept: an attempt's own news does not begin the next one, and the log says when that is.
func TestPauseIsKept(t *testing.T) {
	troubledDaemon(t, func(d *Daemon, b *troubled, _ chan<- os.Signal, logs *observer.ObservedLogs) {
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		said := pauses(t, logs)
		tries := b.attempts(time.Time{})
		if len(tries) < 10*60/13 || len(said) != len(tries) {
			t.Fatalf("%d attempts in ten minutes, %d told", len(tries), len(said))
		}
		for i, at := range tries[:len(tries)-1] {
			if in, next := said[at], tries[i+1].Sub(at); in != next {
				t.Errorf("attempt %d: the log says %v, the next one came after %v", i+1, in, next)
			}
			if i >= 8 && said[at] < retryMost*3/4 {
				t.Errorf("attempt %d: a pause of %v", i+1, said[at])
			}
		}
	})
}

// TestChangeCutsPauseShort: what somebody else does and a State begin an attempt at once; what an attempt left and the kernel takes
// away late does not.
func TestChangeCutsPauseShort(t *testing.T) {
	troubledDaemon(t, func(d *Daemon, b *troubled, _ chan<- os.Signal, logs *observer.ObservedLogs) {
		attempts := func(what string, want int, do func()) (pause time.Duration) {
			t.Helper()
			time.Sleep(2 * time.Minute)
			for began := time.Now(); len(b.attempts(began)) == 0; { // to the begin of a long pause
				time.Sleep(50 * time.Millisecond)
			}
			time.Sleep(50 * time.Millisecond)
			began := time.Now()
			do()
			time.Sleep(20 * time.Millisecond)
			now := b.attempts(began)
			if len(now) != want {
				t.Errorf("%s: %d attempts at once, want %d", what, len(now), want)
			}
			if len(now) == 0 {
				return 0
			}
			return pauses(t, logs)[now[len(now)-1]]
		}
		attempts("what the last attempt left", 0, func() { b.change(func() { b.device = true }); b.change(func() { b.device = false }) })
		if in := attempts("surroundings", 1, func() { b.change(func() { b.around++ }) }); in > 2*retryFirst {
			t.Errorf("after a change of surroundings the next pause is %v", in)
		}
		peers := control.State{Revision: 2, Self: control.Node{Name: "a"}, Nodes: []control.Node{{Name: "b"}}}
		if in := attempts("peers", 1, func() { d.update(peers) }); in < retryMost*3/4 {
			t.Errorf("after a change of the peers alone the next pause is %v", in)
		}
		self := control.State{Revision: 3, Self: control.Node{Name: "a", PublicKey: "another"}}
		if in := attempts("this node", 1, func() { d.update(self) }); in > 2*retryFirst {
			t.Errorf("after a change of this node the next pause is %v", in)
		}
	})
}

// TestLooksWhileInForce: what is in force is looked at whenever the backend asks, and a person who reloads has it applied.
func TestLooksWhileInForce(t *testing.T) {
	troubledDaemon(t, func(d *Daemon, b *troubled, reload chan<- os.Signal, _ *observer.ObservedLogs) {
		b.change(func() { b.wrong = nil })
		time.Sleep(time.Minute)
		began := time.Now()
		time.Sleep(time.Second)
		if n := len(b.attempts(began)); n < 99 {
			t.Errorf("%d looks in a second of 100 wishes", n)
		}
		_, apply := d.look()
		if apply.Failures != 0 || apply.Error != "" || apply.Attempts > 10 { // looks are none
			t.Errorf("status %+v", apply)
		}
		reload <- os.Interrupt
		time.Sleep(time.Millisecond)
		if _, after := d.look(); after.Attempts != apply.Attempts+1 {
			t.Errorf("a reload: %d attempts, %d before", after.Attempts, apply.Attempts)
		}
		b.change(func() { b.wrong = errors.New("no room") })
		reload <- os.Interrupt
		began = time.Now()
		time.Sleep(30 * time.Second)
		reload <- os.Interrupt // which begins anew
		time.Sleep(time.Second)
		if n := len(b.attempts(began.Add(30 * time.Second))); n < 3 {
			t.Errorf("%d attempts in the second after a reload", n)
		}
	})
}

// TestPathThatBreaksAtOnce: a path that can be opened and then breaks is one that failed; one that held is opened again soon.
func TestPathThatBreaksAtOnce(t *testing.T) {
	troubledDaemon(t, func(d *Daemon, b *troubled, _ chan<- os.Signal, logs *observer.ObservedLogs) {
		b.change(func() { b.wrong = nil })
		time.Sleep(time.Minute) // in force
		broken := errors.New("a lane died")
		breaks := func(within time.Duration) {
			for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(5 * time.Millisecond) { // before the first look
				if _, apply := d.look(); apply.Failures == 0 {
					d.lookAt(broken)
				}
			}
		}
		opened := func() (n int) {
			_, apply := d.look()
			return int(apply.Attempts)
		}
		before := opened()
		breaks(10 * time.Minute)
		if n := opened() - before; n < 10*60/13 || n > 10*60/7+20 {
			t.Errorf("opened %d times in ten minutes", n)
		}
		time.Sleep(time.Minute) // it holds
		began := time.Now()
		d.lookAt(broken)
		time.Sleep(time.Millisecond)
		if in := pauses(t, logs)[began]; in <= 0 || in > 2*retryFirst {
			t.Errorf("what held for a minute is opened again in %v", in)
		}
		if _, apply := d.look(); apply.Error != broken.Error() || apply.Retry.Sub(began) > 2*retryFirst {
			t.Errorf("status %+v", apply)
		}
	})
}
