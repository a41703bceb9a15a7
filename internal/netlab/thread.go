package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Thread is an OS thread that lives in a namespace, with a mount namespace of its own, whose /sys shows the network
// namespace's devices. What it starts inherits all of that, and its affinity. It lives until Close, because a
// child's parent-death signal fires when the THREAD that forked it dies (prctl(2), PR_SET_PDEATHSIG).
type Thread struct {
	name  string
	calls chan func()
	dead  chan struct{} // closed when the thread has gone
}

// Thread starts a thread in the namespace. cpus is where it and its children may run; empty means anywhere.
func (ns *NS) Thread(cpus []int) (*Thread, error) {
	t := &Thread{name: ns.name, calls: make(chan func()), dead: make(chan struct{})}
	ready := make(chan error)
	go t.live(ns.fd, cpus, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("netlab: enter namespace %s: %w", ns.name, remedy(err))
	}
	return t, nil
}

// live is the thread. It is never unlocked, so it dies with this goroutine: a thread that has changed its
// namespaces must not serve other goroutines.
func (t *Thread) live(ns netns.NsHandle, cpus []int, ready chan<- error) {
	defer close(t.dead)
	runtime.LockOSThread()
	err := netns.Set(ns)
	if err == nil {
		err = privateMounts()
	}
	if err == nil {
		err = setAffinity(cpus)
	}
	ready <- err
	if err != nil {
		return
	}
	for call := range t.calls {
		call()
	}
}

// privateMounts gives the calling thread a /sys that shows its namespace's devices, with a BPF file system of its
// own, as `ip netns exec` does: sysfs shows the devices of whoever mounted it. And a /proc/sys that can be written.
func privateMounts() error {
	if err := apartMounts(); err != nil {
		return err
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	// A kernel without BPF has no /sys/fs/bpf; then nothing here needs one.
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount /sys/fs/bpf: %w", err)
	}
	return writableSysctls()
}

// apartMounts gives the calling thread a mount namespace of its own.
func apartMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	// Slave, not private: namespaces that are made later must be seen in Dir.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	return nil
}

// writableSysctls makes /proc/sys writable for the calling thread, whose mounts are its own, where it is not, as in
// containers: what is written there are settings of the thread's network namespace.
func writableSysctls() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/sys", &st); err != nil {
		return fmt.Errorf("look at /proc/sys: %w", err)
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	// These bits mean the same to statfs(2) and mount(2).
	keep := uintptr(st.Flags & (unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC))
	err := unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|keep, "")
	if errors.Is(err, unix.EINVAL) { // it is no mount of its own
		err = unix.Mount("", "/proc", "", unix.MS_REMOUNT|unix.MS_BIND|keep, "")
	}
	if err != nil {
		return fmt.Errorf("make /proc/sys writable: %w", err)
	}
	return nil
}

func setAffinity(cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	var set unix.CPUSet
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to cores %v: %w", cpus, err)
	}
	return nil
}

// Do runs f on the thread. A panic in f is raised in the caller, so that the caller's deferred clean-up runs.
func (t *Thread) Do(f func() error) error {
	var err error
	var panicked any
	done := make(chan struct{})
	call := func() {
		defer close(done)
		defer func() { panicked = recover() }()
		err = f()
	}
	select {
	case t.calls <- call:
		<-done
	case <-t.dead:
		return fmt.Errorf("netlab: namespace %s: %w", t.name, os.ErrClosed)
	}
	if panicked != nil {
		panic(panicked)
	}
	return err
}

// Close ends the thread, once; nothing else may be called at the same time.
func (t *Thread) Close() {
	close(t.calls)
	<-t.dead
}
