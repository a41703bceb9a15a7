package backend

import (
	"errors"
	"fmt"
	"runtime"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/hostnet"
)

// Outside is another network namespace than that of pods and routes, by which packets to peers leave. So an overlay can be beside
// whatever the host has and runs, and touches none of it: all that it makes is in a namespace of its own.
type Outside struct {
	Host  *hostnet.Host // of that namespace; it is asked for ways and devices, and nothing is ever applied
	calls chan func()
}

// OpenOutside opens the namespace of a file, /proc/<pid>/ns/net say. It stays open.
func OpenOutside(file string, log *zap.Logger) (*Outside, error) {
	o := &Outside{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread must not serve other goroutines
		ready <- enter(file)
		for call := range o.calls {
			call()
		}
	}()
	err := <-ready
	if err == nil {
		err = o.Do(func() (err error) { o.Host, err = hostnet.New(log); return err })
	}
	if err != nil {
		close(o.calls)
		return nil, fmt.Errorf("the network namespace of the underlay, %s: %w", file, err)
	}
	return o, nil
}

func enter(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
}

// Do runs f in the namespace: sockets that it opens stay there. A nil Outside is the namespace of the caller.
func (o *Outside) Do(f func() error) error {
	if o == nil {
		return f()
	}
	done := make(chan error)
	o.calls <- func() { done <- f() }
	return <-done
}
