package underlay

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2): a message and how many bytes of it were moved.
type mmsghdr struct {
	unix.Msghdr
	moved uint32
}

// name is room for a socket address of either family.
type name = unix.RawSockaddrInet6

// recvmmsg receives up to len(m) datagrams without blocking.
func recvmmsg(fd int, m []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// sendmmsg sends the datagrams of m in order, without blocking, up to the first that fails. An error
// is about m[0].
func sendmmsg(fd int, m []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)),
		unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// setName writes a as a socket address and returns its length.
//
//	IPv4: | family 2 | port 2, big endian | address 4 | zero 8 |
//	IPv6: | family 2 | port 2, big endian | flow info 4 | address 16 | scope 4 |
func setName(to *name, a netip.AddrPort) uint32 {
	addr := a.Addr().Unmap()
	if addr.Is4() {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(to))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: bigEndian(a.Port()), Addr: addr.As4()}
		return unix.SizeofSockaddrInet4
	}
	*to = name{Family: unix.AF_INET6, Port: bigEndian(a.Port()), Addr: addr.As16()}
	return unix.SizeofSockaddrInet6
}

// nameOf reads a socket address; the zero AddrPort if it is of neither family.
func nameOf(n *name) netip.AddrPort {
	switch n.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), bigEndian(v4.Port))
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.Addr).Unmap(), bigEndian(n.Port))
	}
	return netip.AddrPort{}
}

// bigEndian converts between a port number and its two bytes in network order, read as the
// machine's integer.
func bigEndian(v uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&v))
	return uint16(b[0])<<8 | uint16(b[1])
}

// control is the ancillary data of one message: at most one item, the segment size of UDP_SEGMENT
// (sending, 16 bits) or UDP_GRO (receiving, 32 bits), in the machine's byte order.
//
//	| length 8 | level 4 | type 4 | size 2 or 4, padded to 8 |
type control struct {
	unix.Cmsghdr
	data [8]byte
}

const controlSize = int(unsafe.Sizeof(control{}))

func (c *control) bytes() *[controlSize]byte { return (*[controlSize]byte)(unsafe.Pointer(c)) }

// segment returns the segment size that the kernel put into the first n bytes, 0 if there is none.
func (c *control) segment(n int) int {
	const want = unix.SizeofCmsghdr + 4
	if n < want || c.Len < want || uint64(c.Len) > uint64(n) || c.Level != unix.SOL_UDP || c.Type != unix.UDP_GRO {
		return 0
	}
	return int(*(*int32)(unsafe.Pointer(&c.data)))
}

// setSegment asks the kernel to cut the message into datagrams of that size.
func (c *control) setSegment(size int) {
	c.Level, c.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	c.SetLen(unix.SizeofCmsghdr + 2)
	*(*uint16)(unsafe.Pointer(&c.data)) = uint16(size)
}
