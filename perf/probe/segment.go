package probe

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxSegments is how many datagrams a sender puts into one super-packet at most. The kernel takes
// 64 since UDP_SEGMENT exists (udp(7)), 128 since Linux 6.9.
const MaxSegments = udpBatch

// groBatch is how many joined messages one system call takes at most.
const groBatch = 16

// ancillary is the room for one ancillary item, the size of the datagrams that UDP_GRO has joined, or UDP_SEGMENT is to cut (16 bits of it):
//
//	| length 8 | level 4 | type 4 | size 4 | padding 4 |
type ancillary struct {
	unix.Cmsghdr
	size int32
	_    int32
}

// bytes is the item as the kernel takes it.
func (a *ancillary) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(a)), ancillarySize) }

// data is where the size is.
func (a *ancillary) data() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(&a.size)), 4) }

const ancillarySize = int(unsafe.Sizeof(ancillary{}))

// joined has the socket hand over super-packets whole (parameter gro) and returns memory to receive them.
func (s socket) joined() (*burst, error) {
	if err := unix.SetsockoptInt(int(s), unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
		return nil, fmt.Errorf("gro=1: set UDP_GRO: %w: it needs Linux 5.0", err)
	}
	b := newBurst(groBatch, maxPayload)
	b.controls = make([]ancillary, groBatch)
	for i := range b.msgs {
		b.msgs[i].hdr.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
	}
	return b, nil
}

// segment is how long each datagram of message i is, the last one perhaps shorter.
func (b *burst) segment(i int) int {
	if b.controls != nil && b.msgs[i].hdr.Controllen >= unix.SizeofCmsghdr+4 {
		c := &b.controls[i]
		if c.Level == unix.IPPROTO_UDP && c.Type == unix.UDP_GRO && c.size > 0 {
			return int(c.size)
		}
	}
	return max(int(b.msgs[i].len), 1)
}

// segment has the sender hand over super-packets (parameter gso): the datagrams of a batch lie behind one another in
// its memory, and the kernel cuts them apart again as late as it can.
func (s *sender) segment(payload int) error {
	if err := unix.SetsockoptInt(int(s.conn), unix.IPPROTO_UDP, unix.UDP_SEGMENT, payload); err != nil {
		return fmt.Errorf("gso=1: set UDP_SEGMENT: %w: it needs Linux 4.18", err)
	}
	s.segments = min(MaxSegments, maxPayload/payload)
	return nil
}

// give hands datagrams [from, to) of the batch to the kernel, or the first of them; n were taken. A super-packet is taken
// whole or not at all.
func (s *sender) give(from, to int) (n int, err syscall.Errno) {
	if s.segments == 0 {
		return s.conn.send(s.batch, from, to)
	}
	to = min(to, from+s.segments)
	data := s.batch.arena[from*s.batch.room : to*s.batch.room]
	_, _, err = unix.Syscall(unix.SYS_WRITE, uintptr(s.conn), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
	if err != 0 {
		return 0, err
	}
	return to - from, 0
}
