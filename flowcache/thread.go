package flowcache

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// thread is one that stays in a network namespace: devices are named by number, and which namespace's is the calling thread's.
type thread struct{ calls chan func() }

// newThread starts one in the network namespace of the calling thread.
func newThread() (*thread, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	t := &thread{make(chan func())}
	entered := make(chan error)
	go func() {
		defer ns.Close()
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		here, err := netns.Get()
		if err == nil {
			if !here.Equal(ns) { // to enter takes CAP_SYS_ADMIN, even the one where one is
				err = netns.Set(ns)
			}
			here.Close()
		}
		entered <- err
		if err != nil {
			return
		}
		for call := range t.calls {
			call()
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter the network namespace: %w", err)
	}
	return t, nil
}

// do runs f there.
func (t *thread) do(f func()) {
	done := make(chan struct{})
	t.calls <- func() { defer close(done); f() }
	<-done
}

func (t *thread) close() { close(t.calls) }
