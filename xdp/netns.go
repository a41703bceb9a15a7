package xdp

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// netns is a network namespace that has no name and ends with the process: then the kernel deletes its devices.
type netns struct{ fd int }

// newNetns makes one.
func newNetns() (netns, error) {
	ns := netns{fd: -1}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace for the port's end of the veth: %w: run as root or grant CAP_SYS_ADMIN", err)
		}
		var err error
		ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	return ns, err
}

// do calls fn on a thread inside the namespace. Sockets and files below /proc/sys/net that fn opens are of the
// namespace.
func (ns netns) do(fn func() error) error {
	return onOwnThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the port's network namespace: %w", err)
		}
		return fn()
	})
}

func (ns netns) close() error {
	if ns.fd < 0 {
		return nil
	}
	return unix.Close(ns.fd)
}

// onOwnThread calls fn on a thread that ends with it.
func onOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		err := errors.New("the thread ended") // by runtime.Goexit in fn
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: what fn does to the thread is nobody else's
		err = fn()
	}()
	return <-done
}
