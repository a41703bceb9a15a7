package xdp

import (
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lifetime ends a port: rings may be unmapped only when nobody is inside Recv or Send. It costs two locked
// instructions a batch.
type lifetime struct {
	closed atomic.Bool
	wake   int // eventfd, readable once closed; in every poll set
}

func newLifetime() (*lifetime, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &lifetime{wake: fd}, nil
}

// gate is one direction of one queue; it has one user at a time.
type gate struct {
	life *lifetime
	busy atomic.Bool
}

// enter reports whether the port is open; then leave must follow.
func (g *gate) enter() bool {
	// Go's atomics are sequentially consistent: either end sees busy, or we see closed.
	g.busy.Store(true)
	if g.life.closed.Load() {
		g.busy.Store(false)
		return false
	}
	return true
}

func (g *gate) leave() { g.busy.Store(false) }

// end closes the lifetime and waits until the gates are empty. False if it had been closed before.
func (l *lifetime) end(gates []*gate) bool {
	if l.closed.Swap(true) {
		return false
	}
	signal(l.wake)
	for _, g := range gates {
		for g.busy.Load() {
			time.Sleep(50 * time.Microsecond)
		}
	}
	return true
}

// signal makes an eventfd readable.
func signal(fd int) {
	one := [8]byte{1} // any number but 0, in either byte order
	_, _ = unix.Write(fd, one[:])
}
