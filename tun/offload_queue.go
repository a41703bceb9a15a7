package tun

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// offloadQueue is one queue of an offload port. Recv and Send share nothing.
type offloadQueue struct {
	name string
	dev  device

	in      *wait.Waiter
	scatter *scatter

	out    *wait.Gate
	gather *gather
}

// Recv fills b with as many packets as the device has and b surely takes; it blocks until there is
// one.
func (q *offloadQueue) Recv(b *packet.Batch) error {
	b.SetLen(0)
	if err := q.in.Enter(); err != nil {
		return err
	}
	defer q.in.Leave()
	// What is left of a super-packet is no event to wait for.
	for sleep := q.in.Sparse() && !q.scatter.holds(); ; sleep = true {
		if sleep {
			if err := q.in.Wait(&b.Waited); err != nil {
				return err
			}
		}
		n, errno := q.scatter.fill(b, q.in.Most(packet.BatchSize), q.dev)
		if n > 0 {
			q.in.Found(n)
			b.SetLen(n) // an error waits for the next Recv
			return nil
		}
		if errno != unix.EAGAIN && errno != unix.EINTR {
			return fmt.Errorf("tun: read %s: %w: was the device removed?", q.name, errno)
		}
	}
}

// Send writes b's packets, runs of one flow as one.
func (q *offloadQueue) Send(b *packet.Batch) error {
	if err := q.out.Enter(); err != nil {
		return err
	}
	defer q.out.Leave()
	if errno := q.gather.send(b); errno != 0 {
		return fmt.Errorf("tun: write %s: %w: was the device removed?", q.name, errno)
	}
	return nil
}

// device is a descriptor of /dev/net/tun in non-blocking mode. Its system calls are raw ones, as
// those of a plain queue are: none waits for anything, so the scheduler need not know.
type device int

func (d device) readv(iovs []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(d), uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
	return int(n), errno
}

func (d device) writev(iovs []unix.Iovec) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(d), uintptr(unsafe.Pointer(unsafe.SliceData(iovs))), uintptr(len(iovs)))
		if errno != unix.EINTR {
			return errno
		}
	}
}
