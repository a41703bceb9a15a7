// Package wait is the one way a queue of a port blocks, and the one way a port closes under its
// lanes.
//
// A lane's thread blocks in poll(2) itself. Go's netpoller would wake another thread first, which
// then wakes the lane: on a virtual machine each wake-up is an inter-processor interrupt.
//
// Descriptors and lanes end in this order, so that no lane ever uses a number that the kernel has
// given to somebody else: a port's Close calls Stop.Close, which wakes every poll and returns once
// the last lane has left its Waiter; only then are the descriptors closed.
package wait

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Readable and Writable are what a Waiter can wait for.
const (
	Readable = unix.POLLIN
	Writable = unix.POLLOUT
)

// maxDescriptors is how many descriptors one Waiter watches. A queue over AF_XDP has most: its ring,
// link events, and a UDP socket per address family and port. A negative one is watched for nothing.
const maxDescriptors = 6

// Stop ends the waiting of one port. Its Waiters and Gates are made while the port opens, before
// any lane runs.
type Stop struct {
	fd      int // eventfd; readable from Close on, never read
	stopped atomic.Bool
	once    sync.Once
	gates   []*Gate
	err     error // of closing
}

// NewStop makes a Stop. Close must be called.
func NewStop() (*Stop, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("wait: eventfd: %w", err)
	}
	return &Stop{fd: fd}, nil
}

// Stopped says whether Close has been called.
func (s *Stop) Stopped() bool { return s.stopped.Load() }

// Close wakes everything that waits and returns when nobody is inside a Gate any more; from then on
// every Enter returns net.ErrClosed and the port's descriptors may be closed. Idempotent; every call
// returns only after the first has finished.
func (s *Stop) Close() error {
	s.once.Do(func() {
		s.stopped.Store(true)
		one := binary.NativeEndian.AppendUint64(nil, 1)
		_, err := unix.Write(s.fd, one)
		if err != nil { // an eventfd that was never written takes 1; this is a descriptor closed by a stranger
			s.err = fmt.Errorf("wait: signal: %w", err)
			return // and waiting for lanes that nobody has woken could last for ever
		}
		for _, g := range s.gates {
			g.drain()
		}
		if err := unix.Close(s.fd); err != nil {
			s.err = fmt.Errorf("wait: close: %w", err)
		}
	})
	return s.err
}

// Gate guards descriptors against being closed while they are in use. A lane is inside during
// Recv or Send and nowhere else; only one goroutine is inside at a time.
type Gate struct {
	stop   *Stop
	inside sync.Mutex // uncontended: one lane receives, one sends
	_      [48]byte   // gates of different lanes on cache lines of their own
}

// Gate makes a gate.
func (s *Stop) Gate() *Gate {
	g := &Gate{stop: s}
	s.gates = append(s.gates, g)
	return g
}

// Enter returns nil, and then Leave must be called, or net.ErrClosed.
func (g *Gate) Enter() error {
	g.inside.Lock()
	if g.stop.stopped.Load() {
		g.inside.Unlock()
		return net.ErrClosed
	}
	return nil
}

// drain returns once nobody is inside. Enter asks stopped under the lock, so nobody passes after it.
func (g *Gate) drain() {
	g.inside.Lock()
	defer g.inside.Unlock()
}

// Leave ends what Enter began.
func (g *Gate) Leave() { g.inside.Unlock() }

// Waiter blocks one queue in one direction until one of its descriptors is ready.
//
//	if err := w.Enter(); err != nil { return err }
//	defer w.Leave()
//	for wait := w.Sparse(); ; wait = true {
//		if wait {
//			if err := w.Wait(&b.Waited); err != nil { return err }
//		}
//		n := try without blocking, w.Most(len(slots)) packets at most
//		if n > 0 { w.Found(n); return nil }
//	}
//
// Wait returns whenever trying again makes sense, which need not mean that anything is ready: there
// a policy that spins before it blocks has its place, and callers need not know of it.
type Waiter struct {
	*Gate
	fds  [maxDescriptors + 1]unix.PollFd // the port's, then the stop's
	n    int
	saw  bool // the last Wait polled, and Ready has something to say
	spin spinner
	pace pace

	policy policy
}

// Waiter makes a waiter for events on up to 6 descriptors, which stay the port's.
func (s *Stop) Waiter(events int16, fds ...int) *Waiter {
	w := &Waiter{Gate: s.Gate(), n: len(fds) + 1, spin: newSpinner(runtime.NumCPU()), policy: policy{since: now()}}
	for i, fd := range fds {
		w.fds[i] = unix.PollFd{Fd: int32(fd), Events: events}
	}
	w.fds[len(fds)] = unix.PollFd{Fd: int32(s.fd), Events: unix.POLLIN}
	return w
}

// Enter is Gate.Enter, and the beginning of a Recv to the spinner.
func (w *Waiter) Enter() error {
	w.spin.begin()
	err := w.Gate.Enter()
	if err != nil {
		w.policy.set(false) // the thread is somebody else's from here on
	}
	return err
}

// Wait blocks, or spins for a little, and adds the time that took to waited. It returns nil when the
// caller should try again, net.ErrClosed once the port closes. Only between Enter and Leave.
func (w *Waiter) Wait(waited *time.Duration) error {
	if w.saw = false; w.spin.again(waited) {
		if w.stop.stopped.Load() {
			w.policy.set(false)
			return net.ErrClosed
		}
		return nil
	}
	start := now()
	_, err := unix.Poll(w.fds[:w.n], -1)
	w.saw = err == nil
	end := now()
	blocked := end - start
	w.spin.blocked(blocked)
	w.pace.blocked(blocked)
	*waited += blocked
	if w.stop.stopped.Load() {
		w.policy.set(false)
		return net.ErrClosed
	}
	w.policy.set(w.policy.slept(end, blocked))
	if err != nil && err != unix.EINTR { // an interrupted poll is a reason to try again
		return fmt.Errorf("wait: poll: %w", err)
	}
	return nil
}

// Sparse says that packets come one at a time: wait first, and take one.
func (w *Waiter) Sparse() bool { return w.pace.sparse() }

// Most is how many of n packets to ask for.
func (w *Waiter) Most(n int) int {
	if w.pace.sparse() {
		return min(n, 1)
	}
	return n
}

// Found ends a Recv that returns n packets.
func (w *Waiter) Found(n int) {
	w.pace.found(n)
	w.policy.packets += n
}

// Ready says whether the last Wait saw something on descriptor i, an error included. One that spun saw
// nothing.
func (w *Waiter) Ready(i int) bool { return w.saw && w.fds[i].Revents != 0 }
