package tun

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// plainQueue is one queue of a plain port. Recv and Send share nothing.
type plainQueue struct {
	name string
	fd   int
	mtu  int // of IP packets
	link int // bytes of the link header in front of them: 0, a TAP's 14

	in *wait.Waiter

	out     *wait.Gate
	cutter  packet.Cutter
	segment []byte // a piece of a super-packet behind its link header
}

// Recv reads packets until the device has no more or b is full.
func (q *plainQueue) Recv(b *packet.Batch) error {
	b.SetLen(0)
	if err := q.in.Enter(); err != nil {
		return err
	}
	defer q.in.Leave()
	for sleep := q.in.Sparse(); ; sleep = true {
		if sleep {
			if err := q.in.Wait(&b.Waited); err != nil {
				return err
			}
		}
		slots := b.Slots()
		n, errno := q.drain(slots[:q.in.Most(len(slots))])
		if n > 0 { // an error that stays comes again
			q.in.Found(n)
			b.SetLen(n)
			return nil
		}
		if errno != unix.EAGAIN {
			return fmt.Errorf("tun: read from %s: %w: was the device removed?", q.name, errno)
		}
	}
}

// drain reads into slots and returns how many hold packets, and why not all do.
func (q *plainQueue) drain(slots []packet.Packet) (n int, _ unix.Errno) {
	for n < len(slots) {
		p := &slots[n]
		room := p.Reset()
		// One byte more than fits: the kernel cuts off silently what the buffer does not take.
		got, errno := read(q.fd, room[:len(room)+1])
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return n, errno
		case got > len(room):
			p.Resize(len(room))
			p.Drop = packet.Truncated
		default:
			p.Resize(got)
		}
		n++
	}
	return n, 0
}

// Send writes the packets one by one.
func (q *plainQueue) Send(b *packet.Batch) error {
	if err := q.out.Enter(); err != nil {
		return err
	}
	defer q.out.Leave()
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		if p.Drop != packet.Alive {
			continue
		}
		switch errno := q.send(p); errno {
		case 0:
		case unix.EBADFD, unix.EBADF:
			return fmt.Errorf("tun: write to %s: %w: was the device removed?", q.name, errno)
		default:
			p.Drop = reason(errno)
		}
	}
	return nil
}

// send writes one packet. A TCP packet above the MTU is one that a far kernel left to its hardware
// to cut; there is none on this side of the tunnel, so it is cut here. Other oversize packets are
// for the kernel: it knows whether to cut them into fragments or to answer their sender.
func (q *plainQueue) send(p *packet.Packet) unix.Errno {
	if p.Len()-q.link > q.mtu && q.cutter.Start(p.Bytes()[q.link:], q.mtu, p.Checksum() == packet.ChecksumPartial) {
		copy(q.segment[:q.link], p.Bytes())
		for more := true; more; {
			var n int
			n, more = q.cutter.Next(q.segment[q.link:])
			if errno := write(q.fd, q.segment[:q.link+n]); errno != 0 {
				return errno
			}
		}
		return 0
	}
	if packet.FinishPartial(p, q.link); p.Drop != packet.Alive {
		return 0
	}
	return write(q.fd, p.Bytes())
}

// reason names why the device did not take a packet.
func reason(errno unix.Errno) packet.Drop {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return packet.QueueFull
	case unix.EINVAL: // neither IPv4 nor IPv6, or shorter than a header
		return packet.BadHeader
	case unix.EMSGSIZE:
		return packet.TooBig
	}
	return packet.Refused // EIO: the device is down
}

// read and write are raw system calls. The descriptor does not block, so each lasts as long as one
// packet takes through the kernel; telling the scheduler about it costs a third of the call again.

func read(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

func write(fd int, b []byte) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return errno
		}
	}
}
