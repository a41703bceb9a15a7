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
