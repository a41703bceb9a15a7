package probe

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// burst is the memory of one sendmmsg or recvmmsg: n datagrams of room bytes each. It is used by one
// thread and reused for ever.
type burst struct {
	msgs  []mmsghdr
	iovs  []unix.Iovec
	arena []byte
	room  int

	controls []ancillary // of joined messages; nil = each is a datagram
}

// mmsghdr is the kernel's struct of that name.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // bytes of the datagram, written by the kernel
}

func newBurst(n, room int) *burst {
	b := &burst{
		msgs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n),
		arena: make([]byte, n*room), room: room,
	}
	for i := range b.msgs {
		b.iovs[i].Base = &b.arena[i*room]
		b.iovs[i].SetLen(room)
		b.msgs[i].hdr.Iov = &b.iovs[i]
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

// buffer is the i-th datagram's memory.
func (b *burst) buffer(i int) []byte { return b.arena[i*b.room : (i+1)*b.room] }

// received is the i-th datagram of the last recv.
func (b *burst) received(i int) []byte { return b.buffer(i)[:b.msgs[i].len] }

// send sends datagrams [from, to). The kernel stops at the first it refuses: n were taken, and err says why not even one
// was.
func (s socket) send(b *burst, from, to int) (n int, err syscall.Errno) {
	r, _, err := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s), uintptr(unsafe.Pointer(&b.msgs[from])), uintptr(to-from), 0, 0, 0)
	if err != 0 {
		return 0, err
	}
	return int(r), 0
}

// recv waits for a datagram, or with MSG_DONTWAIT does not, and takes what else is there.
func (s socket) recv(b *burst, flags uintptr) (n int, err syscall.Errno) {
	for i := range b.controls {
		b.msgs[i].hdr.SetControllen(ancillarySize)
	}
	r, _, err := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s), uintptr(unsafe.Pointer(&b.msgs[0])), uintptr(len(b.msgs)),
		unix.MSG_WAITFORONE|flags, 0, 0)
	if err != 0 {
		return 0, err
	}
	return int(r), 0
}

// getsockopt fills value, an array of 32-bit words.
func getsockopt(s socket, level, name int, value []uint32) error {
	size := uint32(len(value) * 4)
	_, _, err := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if err != 0 {
		return err
	}
	return nil
}
