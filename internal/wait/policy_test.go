package wait

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPolicy: a dense queue becomes SCHED_BATCH, stays so between the two rates, and is SCHED_OTHER again when packets
// are few, or none for a while.
func TestPolicy(t *testing.T) {
	var p policy
	now := time.Second
	// at lets a window pass at a rate, each wake finding n packets.
	at := func(rate, n int) bool {
		for range window {
			p.packets += n
			step := time.Duration(n) * time.Second / time.Duration(rate)
			now += step
			p.batch = p.slept(now, step)
		}
		return p.batch
	}
	p.slept(now, idle) // begins the first window
	for _, c := range []struct {
		rate, n int
		want    bool
	}{
		{9_000, 1, false}, {30_000, 1, false}, {60_000, 2, true}, {30_000, 1, true}, {10_000, 1, false}, {500_000, 100, true},
	} {
		if got := at(c.rate, c.n); got != c.want {
			t.Errorf("%d packets/s, %d at a time: batch %v", c.rate, c.n, got)
		}
	}
	if p.slept(now+idle, idle) {
		t.Error("still batch after an idle sleep")
	}
}

// TestPolicyIsTheThreads: the kernel schedules the thread as told, and as before at the end.
func TestPolicyIsTheThreads(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var p policy
	for _, batch := range []bool{false, true, true, false} {
		p.set(batch)
		attr, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got := attr.Policy == unix.SCHED_BATCH; got != batch {
			t.Errorf("policy %d, batch should be %v", attr.Policy, batch)
		}
	}
}

// TestClosedWaiterLeavesTheThreadAsItWas.
func TestClosedWaiterLeavesTheThreadAsItWas(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := newStop(t)
	w := s.Waiter(Readable)
	w.policy.set(true)
	s.Close()
	if err := w.Enter(); err == nil {
		t.Fatal("entered a closed port")
	}
	if attr, err := unix.SchedGetAttr(0, 0); err != nil || attr.Policy != unix.SCHED_NORMAL {
		t.Errorf("policy %+v, %v", attr, err)
	}
}
