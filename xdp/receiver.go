package xdp

import (
	"errors"
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// receiver is the receiving half of a queue: an RX ring and the fill ring that feeds it. As many frames circulate as
// the RX ring has entries, so it never overflows: when the lane is slow the fill ring runs empty, and the kernel drops
// and counts.
type receiver struct {
	gate
	socket socket
	umem   *umem
	rx     ring[unix.XDPDesc]
	fill   ring[uint64]
	spin   time.Duration // how long to look at the ring before sleeping
	fds    []unix.PollFd // RX socket, end of the port, further sockets
}

// openReceiver opens the first socket of a (device, queue): the one that has its fill and completion rings.
func openReceiver(u *umem, life *lifetime, ifindex, queue int, o Config) (r *receiver, err error) {
	r = &receiver{gate: gate{life: life}, umem: u, spin: o.Spin}
	if r.socket, err = newSocket(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	first := u.fd < 0
	if first {
		if err = r.socket.register(u); err != nil {
			return r, err
		}
	}
	n := o.ring()
	if err = r.socket.size(n, unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_RX_RING); err != nil {
		return r, err
	}
	if r.rx, err = mapRing[unix.XDPDesc](r.socket.fd, unix.XDP_PGOFF_RX_RING, r.socket.offsets.Rx, n); err != nil {
		return r, err
	}
	if r.fill, err = mapRing[uint64](r.socket.fd, unix.XDP_UMEM_PGOFF_FILL_RING, r.socket.offsets.Fr, n); err != nil {
		return r, err
	}
	for _, f := range u.draw(int(n)) {
		r.fill.put(f)
	}
	r.fill.submit()
	if err = r.socket.bind(ifindex, queue, u.fd); err != nil {
		return r, err
	}
	if first {
		u.fd = r.socket.fd
	}
	r.fds = []unix.PollFd{{Fd: int32(r.socket.fd), Events: unix.POLLIN}, {Fd: int32(life.wake), Events: unix.POLLIN}}
	return r, nil
}

// receive waits for frames and puts them into b, each as a window on the whole frame; slots give their free frames for
// them. With further sockets in fds it may return an empty batch: then one of those is readable.
func (r *receiver) receive(b *packet.Batch) error {
	b.SetLen(0)
	slots := b.Slots()
	n := r.rx.ready(uint32(len(slots)))
	if n == 0 {
		start := time.Now()
		err := r.wait(start)
		b.Waited += time.Since(start)
		if err != nil {
			return err
		}
		n = r.rx.ready(uint32(len(slots)))
	}
	for i := range slots[:n] {
		if err := r.into(&slots[i], r.rx.take()); err != nil {
			return err
		}
	}
	r.rx.release()
	r.fill.submit()
	if r.fill.needWakeup() {
		r.wakeup()
	}
	b.SetLen(int(n))
	return nil
}

// into gives a slot a received frame and the fill ring a free one.
func (r *receiver) into(p *packet.Packet, d unix.XDPDesc) error {
	frame, offset, ok := r.umem.split(d.Addr, d.Len)
	if !ok {
		return fmt.Errorf("xdp: the kernel returned a descriptor outside its frame: address %#x, length %d", d.Addr, d.Len)
	}
	room := p.Reset()
	mem := r.umem.frame(frame)
	if own, ok := r.umem.owner(p.Memory()); ok {
		p.Exchange(mem, offset, offset+int(d.Len))
		r.fill.put(own)
		return nil
	}
	// The slot is ordinary memory, or another port's: copy, and let the frame receive again.
	n := copy(room, mem[offset:offset+int(d.Len)])
	p.Resize(n)
	if n < int(d.Len) {
		p.Drop = packet.Truncated
	}
	r.fill.put(frame)
	return nil
}

// wait returns when there is something in the RX ring, when another socket of fds is readable, or with an error.
func (r *receiver) wait(start time.Time) error {
	for r.spin > 0 {
		for range 64 {
			if r.rx.ready(1) > 0 {
				return nil
			}
		}
		if r.life.closed.Load() {
			return net.ErrClosed
		}
		if time.Since(start) > r.spin {
			break
		}
	}
	for {
		switch errno := poll(r.fds, -1); errno {
		case 0:
		case unix.EINTR, unix.EAGAIN, unix.ENOMEM: // no memory for the wait queue: it comes back
			continue
		default:
			return fmt.Errorf("xdp: poll: %w", errno)
		}
		if r.fds[1].Revents != 0 {
			return net.ErrClosed
		}
		if r.rx.ready(1) > 0 {
			return nil
		}
		if r.fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
			return fmt.Errorf("xdp: the device is gone: %w", cmpErr(r.socket.err(), unix.ENODEV))
		}
		for _, f := range r.fds[2:] {
			if f.Revents != 0 {
				return nil
			}
		}
	}
}

// wakeup tells a driver that asked for it (zero-copy) that the fill ring has entries. An error means that there is
// nothing to wake: a link that is down looks again when it comes up.
func (r *receiver) wakeup() {
	_, _, _ = unix.Syscall6(unix.SYS_RECVFROM, uintptr(r.socket.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}

func (r *receiver) close() error {
	return errors.Join(r.rx.unmap(), r.fill.unmap(), r.socket.close())
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// poll is poll(2) without unix.Poll's conversions. timeout in milliseconds, -1 = for ever.
func poll(fds []unix.PollFd, timeout int) unix.Errno {
	var ts *unix.Timespec
	var t unix.Timespec
	if timeout >= 0 {
		t = unix.NsecToTimespec(int64(timeout) * int64(time.Millisecond))
		ts = &t
	}
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)),
		uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	return errno
}
