package tun

import (
	"golang.org/x/sys/unix"

	"weft/packet"
)

const (
	// maxVectors is the kernel's bound on one readv or writev (UIO_MAXIOV).
	maxVectors = 1024

	// forgetAfter is how many plain packets in a row end the expectation of super-packets: a
	// long list of iovecs costs more than a 64-byte packet. The price of being wrong is one copy
	// of one super-packet.
	forgetAfter = 64
)

// scatter receives packets of any size straight into a batch's slots. The iovecs of one readv are
// laid out as if the next packet were a super-packet like the last one:
//
//	iovec 0  virtio header
//	      1  slot 0   [ headers (h) ][ payload (size) ]
//	      2  slot 1   [   room (h)  ][ payload (size) ]      room: put() writes the headers there
//	      …
//	      m  slot m-1 [   room (h)  ][ payload (size) ]
//	    m+1  spill, for what the slots do not take
//
// When the guess was right no payload moves in user space. When it was wrong the packet is put
// together in spill and copied out. Segments that find no slot stay in spill until the next call.
type scatter struct {
	limit int // the largest IP packet a TCP segment may become
	iovs  [maxVectors]unix.Iovec
	head  [vnetHeader]byte
	spill []byte // maxPacket bytes, and one more to tell what is larger

	// What the next readv is laid out for. What came of a read says nothing about it.
	learnt shape
	plain  int // packets without segments since the last super-packet

	cut  super
	rest []byte // what of the super-packet in cut is still in spill
}

// shape is how long the headers and the payload of a super-packet's segments are, in bytes. size 0 = a
// packet without segments.
type shape struct{ h, size int }

// layout is what the iovecs of one readv are. The packet that it has read can be found by the same layout
// alone, whatever has been learnt from it since.
type layout struct {
	shape
	slots  int // m
	front  int // bytes iovec 1 takes
	before int // bytes the slots take: spill starts with byte number before
}

func newScatter(limit int) *scatter {
	return &scatter{limit: limit, spill: make([]byte, maxPacket+1)}
}

// holds says whether packets are left that fill has read and found no slots for.
func (s *scatter) holds() bool { return len(s.rest) > 0 }

// fill puts packets into b's slots until the device has no more, the next one may not fit, or it has
// read that many, and returns how many packets there are; 0 comes with the error number, which may be
// EAGAIN.
func (s *scatter) fill(b *packet.Batch, reads int, dev vectors) (int, unix.Errno) {
	slots := b.Slots()
	n := 0
	if len(s.rest) > 0 {
		n = s.drain(slots)
	}
	for ; len(s.rest) == 0 && n < len(slots) && reads > 0; reads-- {
		free := slots[n:]
		// What does not fit goes through spill, which costs a copy: rather return what is here.
		if n > 0 && s.expected() > len(free) {
			break
		}
		l, vecs := s.layout(free)
		got, errno := dev.readv(s.iovs[:vecs])
		if errno != 0 {
			return n, errno
		}
		n += s.place(free, l, got-vnetHeader)
	}
	return n, 0
}

// expected is how many slots the largest packet that looks like the last one takes.
func (s *scatter) expected() int {
	if s.learnt.size == 0 {
		return 1
	}
	return min((maxPacket-s.learnt.h+s.learnt.size-1)/s.learnt.size, maxVectors-2)
}

// layout points the iovecs at the slots and returns what they are and how many.
func (s *scatter) layout(slots []packet.Packet) (layout, int) {
	setIovec(&s.iovs[0], s.head[:])
	l := layout{slots: 1, front: slots[0].Room()}
	if s.learnt.size > 0 && s.learnt.h+s.learnt.size <= l.front {
		l.shape, l.front = s.learnt, s.learnt.h+s.learnt.size
	}
	setIovec(&s.iovs[1], slots[0].Memory()[packet.Headroom:][:l.front])
	l.before = l.front
	if l.size > 0 {
		for i, m := 1, min(s.expected(), len(slots)); i < m && slots[i].Room() >= l.front; i++ {
			v := &s.iovs[i+1]
			v.Base = &slots[i].Memory()[packet.Headroom+l.h]
			v.SetLen(l.size)
			l.slots++
			l.before += l.size
		}
	}
	if l.before >= len(s.spill) {
		return l, l.slots + 1
	}
	setIovec(&s.iovs[l.slots+1], s.spill[l.before:])
	return l, l.slots + 2
}

// place turns the total bytes just read by l into packets and returns how many slots it used.
func (s *scatter) place(slots []packet.Packet, l layout, total int) int {
	p := &slots[0]
	if total <= 0 || total > maxPacket {
		p.Reset()
		if p.Drop = packet.TooShort; total > 0 {
			p.Drop = packet.Truncated // by the kernel, which does not say so
		}
		return 1
	}
	v := parseVnet(&s.head)
	if v.gso == unix.VIRTIO_NET_HDR_GSO_NONE {
		s.whole(slots, l, &v, total)
		return 1
	}
	limit := min(s.limit, p.Room())
	first := p.Memory()[packet.Headroom:][:min(l.front, total)]
	gathered := false
	if !s.cut.open(first, total, &v, limit) {
		// The headers may lie across slots; only a packet in one piece is judged.
		l.gather(s.spill, slots, total)
		gathered = true
		if !s.cut.open(s.spill[:total], total, &v, limit) {
			p.Reset()
			p.Drop = packet.BadHeader
			return 1
		}
	}
	is := shape{s.cut.h, s.cut.size}
	s.learn(is, p.Room())
	if !gathered && l.shape == is {
		return s.keep(slots, l, total)
	}
	if !gathered {
		l.gather(s.spill, slots, total)
	}
	s.rest = s.spill[s.cut.h:total]
	return s.drain(slots)
}

// learn expects packets like the one just read, into slots with that much room. A datagram's size may be
// one that no slot takes; a layout cannot be for that.
func (s *scatter) learn(is shape, room int) {
	switch {
	case is.size == 0:
		if s.plain++; s.plain >= forgetAfter {
			s.learnt = shape{}
		}
	case is.h+is.size > room:
		s.learnt, s.plain = shape{}, 0
	default:
		s.learnt, s.plain = is, 0
	}
}

// keep finishes the segments that were guessed right, where they are.
func (s *scatter) keep(slots []packet.Packet, l layout, total int) int {
	n := min(s.cut.segments(), l.slots)
	for i := range slots[:n] {
		p := &slots[i]
		s.finish(p, p.Reset(), s.cut.next())
	}
	if total <= l.before {
		return n
	}
	s.rest = s.spill[l.before:total]
	if n < len(slots) {
		n += s.drain(slots[n:])
	}
	return n
}

// drain copies segments out of spill into slots and returns how many.
func (s *scatter) drain(slots []packet.Packet) int {
	n := 0
	for ; n < len(slots) && len(s.rest) > 0; n++ {
		p := &slots[n]
		b, size := p.Reset(), s.cut.next()
		if s.cut.h+size > len(b) {
			p.Drop = packet.Truncated
			s.cut.skip()
		} else {
			copy(b[s.cut.h:], s.rest[:size])
			s.finish(p, b, size)
		}
		s.rest = s.rest[size:]
	}
	return n
}

// finish makes p the next segment, whose n bytes of payload are in b behind room for the headers.
func (s *scatter) finish(p *packet.Packet, b []byte, n int) {
	s.cut.put(b)
	p.Resize(s.cut.h + n)
	p.SetPartial(s.cut.l4, s.cut.checksumOffset())
}

// whole makes the first slot the packet just read, which has no segments.
func (s *scatter) whole(slots []packet.Packet, l layout, v *vnet, total int) {
	p := &slots[0]
	s.learn(shape{}, p.Room())
	if total <= l.front {
		p.Reset()
		p.Resize(total)
	} else {
		l.gather(s.spill, slots, total)
		p.Resize(copy(p.Reset(), s.spill[:total]))
	}
	switch {
	case p.Len() < total:
		p.Drop = packet.Truncated
	case v.partial() && v.start+v.offset+2 > p.Len():
		p.Drop = packet.BadHeader
	case v.partial():
		p.SetPartial(v.start, v.offset)
	case v.flags&unix.VIRTIO_NET_HDR_F_DATA_VALID != 0:
		p.SetChecksum(packet.ChecksumVerified)
	}
}

// gather puts the packet just read by l together at the front of spill. What went to spill directly is
// in its place already.
func (l layout) gather(spill []byte, slots []packet.Packet, total int) {
	n := copy(spill[:total], slots[0].Memory()[packet.Headroom:][:l.front])
	for i := 1; n < total && i < l.slots; i++ {
		n += copy(spill[n:total], slots[i].Memory()[packet.Headroom+l.h:][:l.size])
	}
}
