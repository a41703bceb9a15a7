package underlay

import (
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

const (
	// maxDatagram is the largest UDP payload: IPv6's (65535 less the UDP header); IPv4's is 65507.
	maxDatagram = 65535 - packet.UDPHeader

	// overflowSize is one overflow area: a whole datagram between headroom and tailroom.
	overflowSize = packet.Headroom + maxDatagram + packet.Tailroom

	// firstChunk is how many slots the first recvmmsg of a Recv offers. Slots have to be prepared
	// for it, and most calls find only a few packets; each further call offers twice as many.
	firstChunk = 16

	// minStride is the smallest segment worth expecting: bursts of smaller ones are copied.
	minStride = 64

	// loneMessages is how many messages in a row that are no bursts end the expectation of bursts.
	loneMessages = 4
)

// receiver is the receiving half of a queue: its sockets and the memory of recvmmsg.
//
// Messages are received in one of two ways, chosen per socket by what came last.
//
//   - Singly: many messages a call, one slot each.
//   - As bursts: one message a call, laid over many slots, each taking as many bytes as a datagram
//     of the last burst had. If the kernel has joined datagrams of that size (UDP_GRO), each is in
//     its own slot and nothing is copied.
//
// What does not fit the layout spills into the message's overflow area, behind the place for what
// lies in the slots, and is sorted out by copying.
type receiver struct {
	waiter *wait.Waiter
	inlets []inlet
	first  int                     // which of them Recv asks first: in turn, so that neither starves
	chunk  int                     // firstChunk, or 1: a packet a system call
	length func(b []byte) int      // Config.Length
	areas  []byte                  // overflow, overflowSize a message; untouched pages cost nothing
	rest   [packet.BatchSize]burst // received but not yet in slots
	restAt int                     // the first of them
	restN  int                     // how many

	// Message i starts in slot i and has area i: a packet may borrow the area until the next Recv.
	msgs     [packet.BatchSize]mmsghdr
	iovs     [2 * packet.BatchSize]unix.Iovec
	names    [packet.BatchSize]name
	controls [packet.BatchSize]control
}

// inlet is a receiving socket and what to expect of it.
type inlet struct {
	fd     int
	stride int // the segment size of the last burst; 0 = no bursts expected
	lone   int // messages since then that were none
}

// burst is the bytes of a message, gathered in its area: datagrams of segment bytes, the last one
// perhaps shorter.
type burst struct {
	area     int // whose; [off, end) of it are left
	off, end int
	segment  int
	inner    int // for packet.SetSegment
	from     netip.AddrPort
	drop     packet.Drop
}

func newReceiver(cfg Config) *receiver {
	r := &receiver{chunk: 1, length: cfg.Length, areas: make([]byte, packet.BatchSize*overflowSize)}
	if cfg.Batch {
		r.chunk = firstChunk
	}
	for i := range r.msgs {
		r.msgs[i].Name = (*byte)(unsafe.Pointer(&r.names[i]))
		r.msgs[i].Control = &r.controls[i].bytes()[0]
	}
	return r
}

// batch is Recv.
func (r *receiver) batch(b *packet.Batch) error {
	if err := r.waiter.Enter(); err != nil {
		return err
	}
	defer r.waiter.Leave()
	slots := b.Slots()
	slots = slots[:min(len(slots), packet.BatchSize)]
	if r.restN > 0 { // nothing else: a message received now could need an area that a packet borrows
		b.SetLen(r.emit(slots, 0))
		return nil
	}
	b.SetLen(0)
	for sleep := r.waiter.Sparse(); ; sleep = true {
		if sleep {
			if err := r.waiter.Wait(&b.Waited); err != nil {
				return err
			}
		}
		most := r.waiter.Most(r.chunk)
		n, err := 0, error(nil)
		for k := range r.inlets {
			if n, err = r.drain(&r.inlets[(r.first+k)%len(r.inlets)], slots, n, most); err != nil {
				break
			}
		}
		r.first++
		if n > 0 { // an error that stays comes again
			r.waiter.Found(n)
			b.SetLen(n)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// drain receives from in into slots from n on, until the socket is empty or the slots are full; chunk
// messages in the first system call, and if that is 1, nothing more once a message is there. It returns
// how many slots hold packets.
func (r *receiver) drain(in *inlet, slots []packet.Packet, n, chunk int) (int, error) {
	var last unix.Errno
	for one := chunk == 1; n < len(slots) && r.restN == 0 && (n == 0 || !one); {
		parts, messages := 1, 1
		if in.stride > 0 {
			if parts = r.offerBurst(in.stride, slots, n); n > 0 && n+parts == len(slots) {
				return n, nil // the burst might not fit: it does better in the next batch
			}
		} else {
			messages = min(chunk, len(slots)-n)
			for i := n; i < n+messages; i++ {
				r.offer(i, &slots[i])
			}
		}
		got, errno := recvmmsg(in.fd, r.msgs[n:n+messages])
		switch errno {
		case 0:
			if in.stride > 0 {
				n = r.acceptBurst(in, slots, n, parts)
				continue
			}
			if n = r.accept(in, slots, n, got); got < messages {
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

// offer makes message i receive into slot i and then into its area.
func (r *receiver) offer(i int, p *packet.Packet) {
	room := p.Reset()
	own := min(len(room), maxDatagram)
	iovs := r.iovs[2*i : 2*i+2]
	setIov(&iovs[0], room[:own])
	r.finishOffer(i, iovs, own)
}

// offerBurst makes message n receive stride bytes into each slot from n on, as many as the largest
// message needs, and then into its area. It returns the number of slots.
func (r *receiver) offerBurst(stride int, slots []packet.Packet, n int) (parts int) {
	part := min(stride, slots[n].Room())
	for most := min(len(slots)-n, (maxDatagram+part-1)/part); parts < most; parts++ {
		room := slots[n+parts].Reset()
		if len(room) < part {
			break
		}
		setIov(&r.iovs[parts], room[:part])
	}
	r.finishOffer(n, r.iovs[:parts+1], min(parts*part, maxDatagram))
	return parts
}

// finishOffer ends the layout of message i: behind own bytes in slots the rest goes into the area,
// where it leaves room in front for those.
func (r *receiver) finishOffer(i int, iovs []unix.Iovec, own int) {
	area := r.area(i)
	setIov(&iovs[len(iovs)-1], area[packet.Headroom+own:packet.Headroom+maxDatagram])
	m := &r.msgs[i]
	m.Iov = &iovs[0]
	m.SetIovlen(len(iovs))
	m.Namelen = uint32(unsafe.Sizeof(name{}))
	m.SetControllen(controlSize)
}

func (r *receiver) area(i int) []byte {
	return r.areas[i*overflowSize : (i+1)*overflowSize : (i+1)*overflowSize]
}

// accept puts got messages, received singly from slot n on, into slots and returns how many hold
// packets.
func (r *receiver) accept(in *inlet, slots []packet.Packet, n, got int) int {
	stride := 0
	for i := n; i < n+got; i++ {
		if segment, _ := r.shape(i, int(r.iovs[2*i].Len)); segment < int(r.msgs[i].moved) {
			stride = segment
		}
	}
	if stride == 0 {
		for i := n; i < n+got; i++ {
			r.single(i, slots, 1, int(r.iovs[2*i].Len))
		}
		return n + got
	}
	// The first burst: its datagrams need the slots of the messages behind it. All move to the areas
	// first. It happens once in a while; from now on bursts are expected.
	for i := n; i < n+got; i++ {
		own := int(r.iovs[2*i].Len)
		segment, inner := r.shape(i, own)
		r.gather(i, slots, 1, own)
		r.push(i, 0, segment, inner)
	}
	in.expect(stride)
	return r.emit(slots, n)
}

// acceptBurst puts message n, laid over parts slots, into slots and returns how many hold packets.
func (r *receiver) acceptBurst(in *inlet, slots []packet.Packet, n, parts int) int {
	part, total := int(r.iovs[0].Len), int(r.msgs[n].moved)
	segment, inner := r.shape(n, part)
	if segment == total {
		if in.lone++; in.lone == loneMessages {
			in.stride = 0
		}
		r.single(n, slots, parts, part)
		return n + 1
	}
	in.expect(segment)
	if segment != part {
		r.gather(n, slots, parts, part)
		r.push(n, 0, segment, inner)
		return r.emit(slots, n)
	}
	from := nameOf(&r.names[n])
	filled := min(parts, (total+segment-1)/segment)
	for i := range filled {
		p := &slots[n+i]
		p.Resize(min(segment, total-i*segment))
		p.From = from
	}
	if done := filled * segment; done < total {
		r.push(n, done, segment, inner)
	}
	return n + filled
}

// expect makes the next message be received as a burst of datagrams of that size.
func (in *inlet) expect(segment int) {
	in.stride, in.lone = 0, 0
	if segment >= minStride {
		in.stride = segment
	}
}

// shape says what message i is, whose first own bytes or less lie in its first slot: datagrams of
// segment bytes each, or one (segment is then the message's length), with inner for
// packet.SetSegment.
func (r *receiver) shape(i, own int) (segment, inner int) {
	m := &r.msgs[i]
	total := int(m.moved)
	segment = r.controls[i].segment(int(m.Controllen))
	if segment <= 0 || segment >= total || m.Flags&unix.MSG_TRUNC != 0 {
		return total, 0
	}
	if r.length != nil {
		head := unsafe.Slice(m.Iov.Base, min(own, total))
		if r.length(head) == total {
			return total, segment
		}
	}
	return segment, 0
}

// single makes slot i the one datagram that message i is. It lies in parts slots, part bytes each,
// and beyond that in the area.
func (r *receiver) single(i int, slots []packet.Packet, parts, part int) {
	p, total := &slots[i], int(r.msgs[i].moved)
	_, inner := r.shape(i, part)
	switch room := p.Room(); {
	case total <= part:
		p.Resize(total)
	case total <= room && total <= parts*part:
		p.Resize(total)
		for k, at := 1, part; at < total; k, at = k+1, at+part {
			copy(p.Bytes()[at:], slots[i+k].Tail()[:part])
		}
	default:
		r.gather(i, slots, parts, part)
		p.Borrow(r.area(i), packet.Headroom, packet.Headroom+total)
	}
	p.From = nameOf(&r.names[i])
	p.SetSegment(inner)
	p.Drop = r.dropOf(i)
}

// dropOf says whether message i is dead: cut off by the kernel. No datagram is larger than what is
// offered, so this is for kernels that know better.
func (r *receiver) dropOf(i int) packet.Drop {
	if r.msgs[i].Flags&unix.MSG_TRUNC != 0 {
		return packet.Truncated
	}
	return packet.Alive
}

// gather copies what message i has put into slots, parts of them with part bytes each, to its place
// in the area, in front of what has spilled there.
func (r *receiver) gather(i int, slots []packet.Packet, parts, part int) {
	area, total := r.area(i)[packet.Headroom:], int(r.msgs[i].moved)
	for k, at := 0, 0; k < parts && at < total; k, at = k+1, at+part {
		p := &slots[i+k]
		p.Resize(min(part, total-at))
		copy(area[at:], p.Bytes())
	}
}

// push remembers what message i has in its area from byte at on.
func (r *receiver) push(i, at, segment, inner int) {
	r.rest[r.restAt+r.restN] = burst{
		area: i, off: packet.Headroom + at, end: packet.Headroom + int(r.msgs[i].moved),
		segment: segment, inner: inner, from: nameOf(&r.names[i]), drop: r.dropOf(i),
	}
	r.restN++
}

// emit copies what is left of gathered messages into slots from n on, until nothing is left or the
// slots are full, and returns how many hold packets. A datagram too large for its slot borrows the
// area if it is alone there; in a burst it is dropped, since datagrams above the underlay's MTU,
// which slots take, are not joined.
func (r *receiver) emit(slots []packet.Packet, n int) int {
	for r.restN > 0 && n < len(slots) {
		u, p := &r.rest[r.restAt], &slots[n]
		size := min(u.segment, u.end-u.off)
		data := r.area(u.area)[u.off : u.off+size]
		room := p.Reset()
		p.From, p.Drop = u.from, u.drop
		switch {
		case size <= len(room):
			p.Resize(copy(room, data))
		case size == u.end-packet.Headroom:
			p.Borrow(r.area(u.area), u.off, u.end)
		default:
			p.Resize(copy(room, data))
			p.Drop = packet.Truncated
		}
		p.SetSegment(u.inner)
		n++
		if u.off += size; u.off == u.end {
			r.restAt++
			r.restN--
		}
	}
	if r.restN == 0 {
		r.restAt = 0
	}
	return n
}

func setIov(v *unix.Iovec, b []byte) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
}
