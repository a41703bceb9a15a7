package wait

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/packet/packettest"
)

// The models: what a waiter has learnt is what the whole history says, read again from its beginning.

func TestPaceModel(t *testing.T)    { packettest.Sequences(t, 1_000_000, playPace) }
func TestPolicyModel(t *testing.T)  { packettest.Sequences(t, 1_000_000, playPolicy) }
func TestSpinnerModel(t *testing.T) { packettest.Sequences(t, 1_000_000, playSpinner) }
func TestWaiterModel(t *testing.T)  { packettest.Sequences(t, 50_000, playWaiter) }

func FuzzPaceModel(f *testing.F)    { packettest.FuzzSequences(f, playPace) }
func FuzzPolicyModel(f *testing.F)  { packettest.FuzzSequences(f, playPolicy) }
func FuzzSpinnerModel(f *testing.F) { packettest.FuzzSequences(f, playSpinner) }
func FuzzWaiterModel(f *testing.F)  { packettest.FuzzSequences(f, playWaiter) }

// event is a poll that lasted so long, or the end of a Recv with so many packets.
type event struct {
	poll    time.Duration
	packets int
	recv    bool
}

// lone says whether events end with sparseAfter Recvs that slept for one packet each, none of which found anything
// without sleeping, not even that there was nothing.
func lone(events []event) bool {
	recvs, slept := 0, false
	for i := len(events) - 1; i >= 0 && recvs <= sparseAfter; i-- {
		switch e := events[i]; {
		case e.recv:
			if recvs > 0 && !slept {
				return false
			}
			if recvs++; recvs > sparseAfter {
				return true
			}
			if slept = false; e.packets != 1 {
				return false
			}
		case e.poll < briefly:
			return recvs == sparseAfter && slept
		default:
			slept = true
		}
	}
	return recvs >= sparseAfter && slept
}

// playPace: any polls, any Recvs.
func playPace(t *packettest.Tape) error {
	var p pace
	var events []event
	for t.More() {
		poll := packettest.Pick(t, 0, briefly-1, briefly, time.Millisecond, time.Millisecond, time.Millisecond)
		packets := packettest.Pick(t, 1, 1, 1, 1, 1, 0, 2, 128)
		polls := packettest.Pick(t, 1, 1, 1, 1, 0, 2)
		for range t.Run() {
			t.Step(1)
			for range polls {
				p.blocked(poll)
				events = append(events, event{poll: poll})
				if want := lone(events); p.sparse() != want {
					return fmt.Errorf("after a poll of %v: sparse %v, want %v: %v", poll, p.sparse(), want, last(events))
				}
			}
			p.found(packets)
			events = append(events, event{packets: packets, recv: true})
			if want := lone(events); p.sparse() != want {
				return fmt.Errorf("sparse %v, want %v: %v", p.sparse(), want, last(events))
			}
		}
	}
	return nil
}

func last(events []event) []event { return events[max(0, len(events)-12):] }

// wake is one sleep: when it ended, how long it was, and the packets found since the one before.
type wake struct {
	at, slept time.Duration
	packets   int
}

// batched says how the thread should be scheduled after these sleeps: by the rate of every whole window of them since
// the last idle one.
func batched(wakes []wake) (batch bool) {
	from, since, packets := 0, time.Duration(0), 0
	for i, w := range wakes {
		packets += w.packets
		switch {
		case w.slept >= idle:
			batch = false
		case i-from+1 < window:
			continue
		default:
			switch rate := float64(packets) / (w.at - since).Seconds(); {
			case rate >= dense:
				batch = true
			case rate <= sparse:
				batch = false
			}
		}
		from, since, packets = i+1, w.at, 0
	}
	return batch
}

// playPolicy: any sleeps, any packets.
func playPolicy(t *packettest.Tape) error {
	var p policy
	var wakes []wake
	now := time.Duration(0)
	for t.More() {
		slept := packettest.Pick(t, 10*time.Microsecond, 20*time.Microsecond, 100*time.Microsecond, time.Millisecond, idle-1, idle)
		packets := packettest.Pick(t, 1, 1, 2, 5, 0, 128)
		if slept >= idle-1 && !t.Chance(4) { // seldom for a whole run
			slept = time.Duration(1+t.N(100)) * time.Microsecond
		}
		for range t.Run() {
			t.Step(1)
			now += slept + time.Microsecond
			p.packets += packets
			wakes = append(wakes, wake{now, slept, packets})
			p.batch = p.slept(now, slept)
		}
		if want := batched(wakes); p.batch != want {
			return fmt.Errorf("after %d sleeps: batch %v, want %v", len(wakes), p.batch, want)
		}
	}
	return nil
}

// playSpinner: a budget is none, or worth having; short blocks give one, and long ones take any.
func playSpinner(t *packettest.Tape) error {
	s := newSpinner(packettest.Pick(t, 1, 2, 64))
	short, long := 0, 0 // in a row
	for t.More() {
		d := packettest.Pick(t, 0, time.Microsecond, maxSpin-1, maxSpin, time.Second)
		for range t.Run() {
			t.Step(1)
			if s.blocked(d); d < maxSpin {
				short, long = short+1, 0
			} else {
				short, long = 0, long+1
			}
			switch {
			case s.off && s.budget != 0, s.budget != 0 && s.budget < minSpin, s.budget > maxSpin,
				!s.off && short > 0 && s.budget == 0, !s.off && short > 5 && s.budget != maxSpin, long > 5 && s.budget != 0:
				return fmt.Errorf("off %v, budget %v after %d short and %d long blocks", s.off, s.budget, short, long)
			}
		}
	}
	return nil
}

// playWaiter: a queue with some descriptors, on which bytes stand for packets. Whatever comes in whatever order, a
// Recv returns what there is, says of which descriptors, and takes no more than it should ask for.
func playWaiter(t *packettest.Tape) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop, err := NewStop()
	if err != nil {
		return err
	}
	var near, far, level [maxDescriptors]int
	n := 1 + t.N(maxDescriptors)
	for i := range n {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
			return os.NewSyscallError("pipe", err)
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
		near[i], far[i] = fds[0], fds[1]
	}
	var arriving sync.WaitGroup
	defer arriving.Wait() // before its descriptor is closed, and the number somebody else's
	w := stop.Waiter(Readable, near[:n]...)
	timer := time.AfterFunc(patience, func() { stop.Close() })
	defer timer.Stop()
	total := 0
	for t.More() {
		for range t.N(3) {
			i, k := t.N(n), t.Run()
			if k, err = unix.Write(far[i], make([]byte, k)); err != nil && err != unix.EAGAIN {
				return os.NewSyscallError("write", err)
			}
			level[i], total = level[i]+max(k, 0), total+max(k, 0)
		}
		late := total == 0 && t.Chance(12)
		if late {
			arriving.Go(func() { // while the queue sleeps
				time.Sleep(100 * time.Microsecond)
				_, _ = unix.Write(far[0], make([]byte, 1))
			})
			level[0], total = 1, 1
		}
		for total > 0 && t.More() {
			t.Step(1)
			if err := recvBytes(w, near[:n], level[:n], &total, late, t.Chance(2)); err != nil {
				return err
			}
			late = false
		}
	}
	if err := stop.Close(); err != nil {
		return err
	}
	if err := w.Enter(); !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("enter a closed port: %w", err)
	}
	if attr, err := unix.SchedGetAttr(0, 0); err != nil || attr.Policy != unix.SCHED_NORMAL {
		return fmt.Errorf("the thread is left with policy %+v: %w", attr, err)
	}
	return nil
}

// recvBytes is a Recv as Waiter's comment has it, or one that always waits first. late = what level says may still be on
// its way.
func recvBytes(w *Waiter, fds, level []int, total *int, late, first bool) error {
	if err := w.Enter(); err != nil {
		return err
	}
	defer w.Leave()
	var waited time.Duration
	buf := make([]byte, 64)
	for wait := w.Sparse() || first; ; wait = true {
		if wait {
			if err := w.Wait(&waited); err != nil {
				return fmt.Errorf("with %v on the descriptors: %w", level, err)
			}
			for i := range fds {
				if is := level[i] > 0; w.Ready(i) && !is || is && w.saw && !late && !w.Ready(i) {
					return fmt.Errorf("descriptor %d with %d bytes: ready %v, polled %v", i, level[i], w.Ready(i), w.saw)
				}
			}
		}
		most, got := w.Most(len(buf)), 0
		if most != len(buf) && !w.Sparse() || most > len(buf) || most < 1 {
			return fmt.Errorf("%d of %d at most", most, len(buf))
		}
		for i, fd := range fds {
			if got == most {
				break
			}
			n, err := unix.Read(fd, buf[:most-got])
			if err != nil && err != unix.EAGAIN {
				return os.NewSyscallError("read", err)
			}
			got += max(n, 0)
			level[i] -= max(n, 0)
		}
		if got > 0 {
			*total -= got
			w.Found(got)
			return nil
		}
	}
}
