package wait

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// patience bounds a wait for something that must happen; it measures nothing.
const patience = nettest.Patience

func pair(t *testing.T) (near, far int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Close(fds[0])
		unix.Close(fds[1])
	})
	return fds[0], fds[1]
}

func newStop(t *testing.T) *Stop {
	t.Helper()
	s, err := NewStop()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// recv is how every queue uses a Waiter.
func recv(w *Waiter, fds []int, buf []byte, waited *time.Duration) (int, error) {
	if err := w.Enter(); err != nil {
		return 0, err
	}
	defer w.Leave()
	for {
		for _, fd := range fds {
			if n, err := unix.Read(fd, buf); err == nil {
				return n, nil
			} else if err != unix.EAGAIN {
				return 0, err
			}
		}
		if err := w.Wait(waited); err != nil {
			return 0, err
		}
	}
}

func TestWaitReturnsWhenAnyDescriptorIsReady(t *testing.T) {
	a, farA := pair(t)
	b, farB := pair(t)
	s := newStop(t)
	w := s.Waiter(Readable, a, b)
	for i, far := range []int{farA, farB} {
		got := make(chan error, 1)
		var waited time.Duration
		go func() {
			_, err := recv(w, []int{a, b}, make([]byte, 8), &waited)
			got <- err
		}()
		if _, err := unix.Write(far, []byte("x")); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-got:
			if err != nil {
				t.Fatalf("descriptor %d: %v", i, err)
			}
		case <-time.After(patience):
			t.Fatalf("descriptor %d is readable and nobody woke", i)
		}
	}
}

func TestWaitCountsTheTimeBlocked(t *testing.T) {
	near, far := pair(t)
	w := newStop(t).Waiter(Readable, near)
	var waited time.Duration
	if _, err := unix.Write(far, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.Enter(); err != nil {
		t.Fatal(err)
	}
	defer w.Leave()
	if err := w.Wait(&waited); err != nil {
		t.Fatal(err)
	}
	if waited <= 0 {
		t.Errorf("waited %v", waited)
	}
	if !w.Ready(0) {
		t.Error("the readable descriptor is not Ready")
	}
}

func TestCloseWakesEveryLane(t *testing.T) {
	for range 100 {
		near, _ := pair(t)
		s, err := NewStop()
		if err != nil {
			t.Fatal(err)
		}
		var lanes sync.WaitGroup
		entered := make(chan struct{}, 4)
		for range 4 {
			w := s.Waiter(Readable, near)
			lanes.Go(func() {
				entered <- struct{}{}
				var waited time.Duration
				if _, err := recv(w, []int{near}, make([]byte, 8), &waited); !errors.Is(err, net.ErrClosed) {
					t.Errorf("recv: %v, want net.ErrClosed", err)
				}
			})
		}
		for range 4 {
			<-entered
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		lanes.Wait()
	}
}

func TestCloseIsIdempotentAndConcurrent(t *testing.T) {
	s := newStop(t)
	g := s.Gate()
	var closers sync.WaitGroup
	for range 8 {
		closers.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if err := g.Enter(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Enter after Close: %v", err)
			}
		})
	}
	closers.Wait()
	if !s.Stopped() {
		t.Error("not Stopped after Close")
	}
}

// Close must not return while a lane is inside: its system call still uses the descriptor.
func TestCloseWaitsForALaneInASystemCall(t *testing.T) {
	s := newStop(t)
	g := s.Gate()
	if err := g.Enter(); err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	for !s.Stopped() { // Close has begun
		time.Sleep(time.Millisecond)
	}
	select {
	case <-closed:
		t.Fatal("Close returned with a lane inside")
	default:
	}
	g.Leave()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close did not return after the lane had left")
	}
}

func TestWaitDoesNotAllocate(t *testing.T) {
	near, far := pair(t)
	w := newStop(t).Waiter(Readable, near)
	buf := make([]byte, 8)
	var waited time.Duration
	if n := testing.AllocsPerRun(100, func() {
		if _, err := unix.Write(far, buf[:1]); err != nil {
			t.Fatal(err)
		}
		if err := w.Enter(); err != nil {
			t.Fatal(err)
		}
		if err := w.Wait(&waited); err != nil {
			t.Fatal(err)
		}
		w.Leave()
		if _, err := unix.Read(near, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per Wait", n)
	}
}
