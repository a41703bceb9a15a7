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
	spill []byte // maxPacket bytes

	// What the layout expects. size 0 = a packet without segments.
	h, size int
	plain   int // packets without segments since the last super-packet

	// What the iovecs of the readv under way are.
	segmented bool
	slots     int // m
	front     int // bytes iovec 1 takes
	before    int // bytes the slots take: spill starts with byte number before

	cut  super
	rest []byte // what of the super-packet in cut is still in spill
}

func newScatter(limit int) *scatter {
	return &scatter{limit: limit, spill: make([]byte, maxPacket)}
}

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
		vecs := s.layout(free)
		got, errno := dev.readv(s.iovs[:vecs])
		if errno != 0 {
			return n, errno
		}
		n += s.place(free, got-vnetHeader)
	}
	return n, 0
}

// expected is how many slots the largest packet that looks like the last one takes.
func (s *scatter) expected() int {
	if s.size == 0 {
		return 1
	}
	return min((maxPacket-s.h+s.size-1)/s.size, maxVectors-2)
}

// layout points the iovecs at the slots and returns how many there are.
func (s *scatter) layout(slots []packet.Packet) int {
	setIovec(&s.iovs[0], s.head[:])
	s.front = slots[0].Room()
	s.segmented = s.size > 0 && s.h+s.size <= s.front
	if s.segmented {
		s.front = s.h + s.size
	}
	setIovec(&s.iovs[1], slots[0].Memory()[packet.Headroom:][:s.front])
	s.slots, s.before = 1, s.front
	if s.segmented {
		for i, m := 1, min(s.expected(), len(slots)); i < m && slots[i].Room() >= s.front; i++ {
			v := &s.iovs[i+1]
			v.Base = &slots[i].Memory()[packet.Headroom+s.h]
			v.SetLen(s.size)
			s.slots++
			s.before += s.size
		}
	}
	if s.before >= len(s.spill) {
		return s.slots + 1
	}
	setIovec(&s.iovs[s.slots+1], s.spill[s.before:])
	return s.slots + 2
}

// place turns the total bytes just read into packets and returns how many slots it used.
func (s *scatter) place(slots []packet.Packet, total int) int {
	p := &slots[0]
	if total <= 0 {
		p.Reset()
		p.Drop = packet.TooShort
		return 1
	}
	v := parseVnet(&s.head)
	if v.gso == unix.VIRTIO_NET_HDR_GSO_NONE {
		s.whole(slots, &v, total)
		return 1
	}
	s.plain = 0
	limit := min(s.limit, p.Room())
	first := p.Memory()[packet.Headroom:][:min(s.front, total)]
	gathered := false
	if !s.cut.open(first, total, &v, limit) {
		// The headers may lie across slots; only a packet in one piece is judged.
		s.gather(slots, total)
		gathered = true
		if !s.cut.open(s.spill[:total], total, &v, limit) {
			p.Reset()
			p.Drop = packet.BadHeader
			return 1
		}
	}
	if !gathered && s.segmented && s.cut.h == s.h && s.cut.size == s.size {
		return s.keep(slots, total)
	}
	if !gathered {
		s.gather(slots, total)
	}
	s.rest = s.spill[s.cut.h:total]
	// A datagram's size may be one that no slot takes; the layout cannot be for that.
	if s.h, s.size = s.cut.h, s.cut.size; s.h+s.size > p.Room() {
		s.h, s.size = 0, 0
	}
	return s.drain(slots)
}

// keep finishes the segments that were guessed right, where they are.
func (s *scatter) keep(slots []packet.Packet, total int) int {
	n := min(s.cut.segments(), s.slots)
	for i := range slots[:n] {
		p := &slots[i]
		s.finish(p, p.Reset(), s.cut.next())
	}
	if total <= s.before {
		return n
	}
	s.rest = s.spill[s.before:total]
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
func (s *scatter) whole(slots []packet.Packet, v *vnet, total int) {
	p := &slots[0]
	if s.plain++; s.plain >= forgetAfter {
		s.h, s.size = 0, 0
	}
	if total <= s.front {
		p.Reset()
		p.Resize(total)
	} else {
		s.gather(slots, total)
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

// gather puts the packet just read together at the front of spill. What went to spill directly is
// in its place already.
func (s *scatter) gather(slots []packet.Packet, total int) {
	n := copy(s.spill[:total], slots[0].Memory()[packet.Headroom:][:s.front])
	for i := 1; n < total && i < s.slots; i++ {
		n += copy(s.spill[n:total], slots[i].Memory()[packet.Headroom+s.h:][:s.size])
	}
}
