package verdict

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of linux/pidfd.h and asm-generic/socket.h.
const (
	pidfdGetNetNamespace = 0xff04 // PIDFD_GET_NET_NAMESPACE, Linux 6.11
	soPeerPidfd          = 77     // SO_PEERPIDFD, Linux 6.5
)

// Caller returns the inode of the network namespace that the process is in which opened a connection of a unix socket, by SO_PEERCRED. On Linux
// before 6.11 it has to be one that this process sees (hostPID in Kubernetes). It takes CAP_SYS_PTRACE to look at others' processes.
func Caller(c net.Conn) (inode uint64, err error) {
	u, ok := c.(syscall.Conn)
	if !ok || c.LocalAddr().Network() != "unix" {
		return 0, errors.New("this is no unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { inode, err = callerOf(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return inode, err
}

func callerOf(socket int) (uint64, error) {
	pidfd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, soPeerPidfd)
	if err != nil {
		pidfd = -1
	} else {
		defer unix.Close(pidfd)
		if ns, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetNetNamespace, 0); no == 0 {
			defer unix.Close(int(ns))
			return inodeOf(int(ns))
		}
	}
	peer, err := unix.GetsockoptUcred(socket, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("who calls cannot be told: %w", err)
	}
	if peer.Pid == 0 {
		return 0, errors.New("the caller is in a PID namespace that the daemon does not see")
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", peer.Pid))
	if err != nil {
		return 0, fmt.Errorf("the caller's network namespace cannot be told: %w", err)
	}
	defer ns.Close()
	if pidfd >= 0 { // it still lives, so that the number was its own when the file was opened
		if err := unix.PidfdSendSignal(pidfd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
			return 0, errors.New("the caller has ended")
		}
	}
	return inodeOf(int(ns.Fd()))
}

func inodeOf(fd int) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return 0, err
	}
	return s.Ino, nil
}
