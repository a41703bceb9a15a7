package sock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory reads what the kernel tells of a socket's memory (SO_MEMINFO, since Linux 4.12).
func memory(fd int) (info [unix.SK_MEMINFO_VARS]uint32, ok bool) {
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return info, errno == 0
}

// drops counts the datagrams that found a socket's buffer full, or had a wrong checksum, since it was opened. The zero drops is
// that of a new socket.
type drops struct {
	total uint64 // datagrams
	last  uint32 // the kernel's counter, which wraps
}

// sample reads the kernel's counter of the socket fd: the one that SO_RXQ_OVFL reports (socket(7)), but without waiting for
// the next datagram to carry it. It returns the datagrams dropped so far. Where the kernel does not say, the count stays.
func (d *drops) sample(fd int) uint64 {
	if info, ok := memory(fd); ok {
		d.total += uint64(info[unix.SK_MEMINFO_DROPS] - d.last)
		d.last = info[unix.SK_MEMINFO_DROPS]
	}
	return d.total
}

// unsent is how much memory the datagrams take that were handed to the socket fd and have not left the machine, and how much they
// may take; bytes of the kernel's own accounting, zero where it does not say.
func unsent(fd int) (bytes, limit int) {
	info, _ := memory(fd)
	return int(info[unix.SK_MEMINFO_WMEM_ALLOC]), int(info[unix.SK_MEMINFO_SNDBUF])
}
