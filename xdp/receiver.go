package xdp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// receiver is the receiving half of a queue: an RX ring and the fill ring that feeds it. As many frames circulate as
// the RX ring has entries, so it never overflows: when the lane is slow the fill ring runs empty, and the kernel drops
// and counts.
type receiver struct {
	wait   *wait.Waiter
	stop   *wait.Stop
	socket socket
	umem   *umem
	rx     ring[unix.XDPDesc]
	fill   ring[uint64]
}

// openReceiver opens the first socket of a (device, queue): the one that has its fill and completion rings.
func openReceiver(u *umem, q Request) (r *receiver, err error) {
	r = &receiver{stop: q.Stop, umem: u}
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
	n := uint32(q.Size)
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
	if err = r.socket.bind(q.Ifindex, q.Queue, u.fd); err != nil {
		return r, err
	}
	if first {
		u.fd, u.zeroCopy = r.socket.fd, r.socket.zeroCopy()
	}
	r.wait = q.Stop.Waiter(wait.Readable, append([]int{r.socket.fd}, q.Watch...)...)
	return r, nil
}

// receive puts received frames into b; slots give their free frames for them.
func (r *receiver) receive(b *packet.Batch) error {
	b.SetLen(0)
	slots := b.Slots()
	n := r.rx.ready(uint32(len(slots)))
	if n == 0 {
		if err := r.wait.Wait(&b.Waited); err != nil {
			return err
		}
		if n = r.rx.ready(uint32(len(slots))); n == 0 {
			return nil
		}
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

// wakeup tells a driver that asked for it (zero-copy) that the fill ring has entries. An error means that there is
// nothing to wake: a link that is down looks again when it comes up.
func (r *receiver) wakeup() {
	_, _, _ = unix.Syscall6(unix.SYS_RECVFROM, uintptr(r.socket.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}

func (r *receiver) close() error {
	return errors.Join(r.rx.unmap(), r.fill.unmap(), r.socket.close())
}
