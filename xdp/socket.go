package xdp

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/holder"
)

// bindPatience is how long bind is retried while the queue is busy. The kernel frees the queue of a closed socket, or
// of a killed process, some 15 to 50 ms later.
const bindPatience = 3 * time.Second

// txBudget is how many frames one sendto sends where the kernel lets us say so; else it is 32.
const txBudget = 256

// socket is an AF_XDP socket, either for receiving or for sending. poll() on a socket that has a TX ring transmits it,
// and both do so under one lock in the kernel; separate sockets keep the lanes of the two directions apart.
type socket struct {
	fd      int
	offsets unix.XDPMmapOffsets
}

func newSocket() (socket, error) {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		remedy := "run as root or grant CAP_NET_RAW"
		if errors.Is(err, unix.EAFNOSUPPORT) {
			remedy = "the kernel is built without CONFIG_XDP_SOCKETS: use a mode without AF_XDP"
		}
		return socket{fd: -1}, fmt.Errorf("AF_XDP socket: %w: %s", err, remedy)
	}
	return socket{fd: fd}, nil
}

// register makes u the socket's own UMEM.
func (s *socket) register(u *umem) error {
	reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(u.mem)))), Len: uint64(len(u.mem)), Size: uint32(u.size)}
	if err := setsockopt(s.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); err != nil {
		return fmt.Errorf("register %d bytes of UMEM: %w: grant CAP_IPC_LOCK or raise `ulimit -l`", len(u.mem), err)
	}
	return nil
}

// size creates the named rings with n entries each.
func (s *socket) size(n uint32, rings ...int) error {
	for _, r := range rings {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, r, int(n)); err != nil {
			return fmt.Errorf("create ring %d of %d entries: %w", r, n, err)
		}
	}
	length := uint32(unsafe.Sizeof(s.offsets))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&s.offsets)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return fmt.Errorf("ask for the rings' layout: %w", errno)
	}
	return nil
}

// bind ties the socket to a device's queue. share is the descriptor of a bound socket whose UMEM it shares, -1 for
// none: then the driver's zero-copy is used where it has it. If that socket is bound to the same queue its fill and
// completion rings are shared too. Sharing sockets inherit the other flags.
func (s *socket) bind(ifindex, queue, share int) error {
	sa := &unix.SockaddrXDP{Ifindex: uint32(ifindex), QueueID: uint32(queue)}
	if share >= 0 {
		sa.Flags, sa.SharedUmemFD = unix.XDP_SHARED_UMEM, uint32(share)
	} else {
		sa.Flags = unix.XDP_USE_NEED_WAKEUP
	}
	deadline := time.Now().Add(bindPatience)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Bind(s.fd, sa)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EBUSY) && time.Now().Before(deadline):
			time.Sleep(pause)
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("bind to queue %d: %w: %s", queue, err, TakenBy(ifindex, queue))
		case errors.Is(err, unix.EINVAL):
			return fmt.Errorf("bind to queue %d: %w: the device has fewer queues; set `queues` to what `ethtool -l` shows", queue, err)
		default:
			return fmt.Errorf("bind to queue %d: %w", queue, err)
		}
	}
}

// TakenBy says who has the AF_XDP socket of a device's queue, and what to do about it.
func TakenBy(ifindex, queue int) string {
	if list, err := holder.XDP(ifindex, queue); err == nil && len(list) > 0 {
		return strings.Join(list, " and ") + " has an AF_XDP socket there: stop that"
	}
	return "another AF_XDP socket has it: stop the process that `ss --xdp -p` names"
}

// zeroCopy says whether the driver receives into the UMEM itself.
func (s *socket) zeroCopy() bool {
	options, err := unix.GetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_OPTIONS) // struct xdp_options is one number
	return err == nil && options&unix.XDP_OPTIONS_ZEROCOPY != 0
}

// statistics asks for XDP_STATISTICS.
func (s *socket) statistics() (st unix.XDPStatistics, err error) {
	length := uint32(unsafe.Sizeof(st))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_XDP, unix.XDP_STATISTICS,
		uintptr(unsafe.Pointer(&st)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return st, errno
	}
	return st, nil
}

func (s *socket) close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}

func setsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(option), uintptr(value), size, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
