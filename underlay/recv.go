package underlay

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

const (
	// maxDatagram is the largest UDP payload: IPv6's (65535 less the UDP header); IPv4's is 65507.
	maxDatagram = 65535 - packet.UDPHeader

	// overflowSize is one overflow buffer: a whole datagram between headroom and tailroom.
	overflowSize = packet.Headroom + maxDatagram + packet.Tailroom

	// firstChunk is how many slots the first recvmmsg of a Recv offers. Slots have to be prepared
	// for it, and most calls find only a few packets; each further call offers twice as many.
	firstChunk = 16
)

// receiver is the receiving half of a queue: its sockets and the memory of recvmmsg.
type receiver struct {
	waiter *wait.Waiter
	socks  []int // one per local address
	first  int   // which of them Recv asks first: in turn, so that neither starves
	chunk  int   // firstChunk, or 1: a packet a system call

	msgs  [packet.BatchSize]mmsghdr
	iovs  [packet.BatchSize][2]unix.Iovec // the slot, then its overflow
	names [packet.BatchSize]name

	// overflow holds an area of overflowSize per message. Pages that no datagram has spilled into
	// are never touched and cost nothing.
	overflow []byte
}

func newReceiver(batch bool) *receiver {
	r := &receiver{chunk: 1, overflow: make([]byte, packet.BatchSize*overflowSize)}
	if batch {
		r.chunk = firstChunk
	}
	for i := range r.msgs {
		m := &r.msgs[i]
		m.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		m.Iov = &r.iovs[i][0]
		m.SetIovlen(2)
	}
	return r
}

// batch is Recv.
func (r *receiver) batch(b *packet.Batch) error {
	if err := r.waiter.Enter(); err != nil {
		return err
	}
	defer r.waiter.Leave()
	b.SetLen(0)
	slots := b.Slots()
	slots = slots[:min(len(slots), packet.BatchSize)]
	for {
		n, err := 0, error(nil)
		for k := range r.socks {
			if n, err = r.drain(r.socks[(r.first+k)%len(r.socks)], slots, n); err != nil {
				break
			}
		}
		r.first++
		if n > 0 { // an error that stays comes again
			b.SetLen(n)
			return nil
		}
		if err == nil {
			err = r.waiter.Wait(&b.Waited)
		}
		if err != nil {
			return err
		}
	}
}

// drain receives from fd into slots from n on, until the socket is empty, the slots are full, or,
// without batches, one packet is there. It returns how many slots hold packets.
func (r *receiver) drain(fd int, slots []packet.Packet, n int) (int, error) {
	var last unix.Errno
	for chunk := r.chunk; n < len(slots) && (n == 0 || r.chunk > 1); {
		end := min(n+chunk, len(slots))
		for i := n; i < end; i++ {
			r.offer(i, &slots[i])
		}
		got, errno := recvmmsg(fd, r.msgs[n:end])
		switch errno {
		case 0:
			for i := n; i < n+got; i++ {
				r.accept(i, &slots[i])
			}
			if n += got; n < end {
				return n, nil
			}
			chunk *= 2
		case unix.EAGAIN:
			return n, nil
		case unix.EINTR:
		case last:
			return n, fmt.Errorf("underlay: receive: %w", errno)
		default: // perhaps what an ICMP message left on the socket; that is gone once it was read
			last = errno
		}
	}
	return n, nil
}

// offer makes message i receive into p and then into the overflow behind where p's bytes would be.
func (r *receiver) offer(i int, p *packet.Packet) {
	room := p.Reset()
	own := min(len(room), maxDatagram)
	r.iovs[i][0].Base = unsafe.SliceData(room)
	r.iovs[i][0].SetLen(own)
	r.iovs[i][1].Base = &r.overflow[i*overflowSize+packet.Headroom+own]
	r.iovs[i][1].SetLen(maxDatagram - own)
	r.msgs[i].Namelen = uint32(unsafe.Sizeof(name{}))
}

// accept makes p the datagram that message i received.
func (r *receiver) accept(i int, p *packet.Packet) {
	m, n, own := &r.msgs[i], int(r.msgs[i].moved), int(r.iovs[i][0].Len)
	p.From = nameOf(&r.names[i])
	if n <= own {
		p.Resize(n)
	} else {
		area := r.overflow[i*overflowSize : (i+1)*overflowSize : (i+1)*overflowSize]
		p.Resize(own)
		copy(area[packet.Headroom:], p.Bytes())
		p.Borrow(area, packet.Headroom, packet.Headroom+n)
	}
	if m.Flags&unix.MSG_TRUNC != 0 {
		p.Drop = packet.Truncated
	}
}
