package hostnet

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
)

// Within runs fn on a thread that is in the namespace, and ends with it, so that it need not be brought back. It takes CAP_SYS_ADMIN.
func Within(ns netns.NsHandle, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// within runs fn in the Host's namespace.
func (h *Host) within(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ns, err := h.elsewhere()
	if err != nil {
		return err
	}
	if !ns.IsOpen() {
		return fn()
	}
	return Within(ns, fn)
}
