package contender

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func nothing() error { return nil }

// device says whether a character device can be opened.
func device(path string) func() error {
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("%w: load the driver, or run as root", err)
		}
		return f.Close()
	}
}

// socket says whether the kernel has an address family.
func socket(family int, name string) func() error {
	return func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		switch {
		case errors.Is(err, unix.EAFNOSUPPORT):
			return fmt.Errorf("this kernel has no %s", name)
		case err != nil:
			return fmt.Errorf("open a socket of %s: %w: run as root", name, err)
		}
		return unix.Close(fd)
	}
}

// kernelLink says whether the kernel makes network devices of a kind. It tries.
func kernelLink(kind string) func() error {
	return func() error { return apart(func() error { return tryLink(kind) }) }
}

// apart tries something in a namespace of its own that nobody else sees.
func apart(try func() error) error {
	result := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		ns, err := netns.New()
		if err != nil {
			result <- fmt.Errorf("make a namespace: %w: run as root", err)
			return
		}
		defer ns.Close()
		result <- try()
	}()
	return <-result
}

func tryLink(kind string) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "weftprobe"}, LinkType: kind}
	err := netlink.LinkAdd(link)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("this kernel has no %s module", kind)
	}
	return nil // made, or refused for the want of parameters: the kind is known
}
