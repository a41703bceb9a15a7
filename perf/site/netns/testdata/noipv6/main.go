// Command noipv6 becomes another command, for which the kernel has no IPv6, as with ipv6.disable=1 on the kernel's command
// line: a filter (seccomp(2)) answers every socket(AF_INET6, …) with EAFNOSUPPORT, in all that it starts as well.
//
//	noipv6 COMMAND ARGUMENT...
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if err := become(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "noipv6:", err)
		os.Exit(2)
	}
}

func become(argv []string) error {
	if len(argv) == 0 {
		return fmt.Errorf("want a command")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // filters are a thread's; exec(2) is done by this one
	if err := refuseIPv6(); err != nil {
		return err
	}
	return syscall.Exec(path, argv, os.Environ())
}

func refuseIPv6() error {
	// struct seccomp_data: the call's number is at 0, the low half of its first argument at 16 (little endian).
	const number, family = 0, 16
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: skip, K: value}
	}
	answer := func(with uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: with}
	}
	filter := []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 3),
		load(family), unless(unix.AF_INET6, 1),
		answer(unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return fmt.Errorf("set the filter: %w", err)
	}
	return nil
}
