// Package sockmem reads what the kernel tells of a socket's memory (SO_MEMINFO, since Linux 4.12): how many datagrams it dropped there,
// and how much is still waiting to be sent.
package sockmem

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func read(fd int) (info [unix.SK_MEMINFO_VARS]uint32, ok bool) {
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info, errno == 0
}

// Drops counts the datagrams that found a socket's buffer full, or had a wrong checksum, since it was opened. The zero Drops is
// that of a new socket.
type Drops struct {
	total uint64 // datagrams
	last  uint32 // the kernel's counter, which wraps
}

// Sample reads the kernel's counter of the socket fd: the one that SO_RXQ_OVFL reports (socket(7)), but without waiting for
// the next datagram to carry it. It returns the datagrams dropped so far. Where the kernel does not say, the count stays.
func (d *Drops) Sample(fd int) uint64 {
	if info, ok := read(fd); ok {
		d.total += uint64(info[unix.SK_MEMINFO_DROPS] - d.last)
		d.last = info[unix.SK_MEMINFO_DROPS]
	}
	return d.total
}

// Total returns the datagrams dropped as of the last Sample.
func (d *Drops) Total() uint64 { return d.total }

// Unsent is how much memory the datagrams take that were handed to the socket fd and have not left the machine, and how much they
// may take; bytes of the kernel's own accounting, zero where it does not say.
func Unsent(fd int) (bytes, limit int) {
	info, _ := read(fd)
	return int(info[unix.SK_MEMINFO_WMEM_ALLOC]), int(info[unix.SK_MEMINFO_SNDBUF])
}
