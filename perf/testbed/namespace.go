package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, one OS thread that lives in it, and a netlink handle on it.
//
// Everything that must happen inside runs on that thread (Do, Start). The thread lives as long as
// the namespace does, for two reasons: a child's parent-death signal fires when the THREAD that
// forked it dies (prctl(2), PR_SET_PDEATHSIG), and the thread's CPU affinity and its own view of
// /sys are what the children inherit.
type Namespace struct {
	Name string
	Link *netlink.Handle

	file      netns.NsHandle
	calls     chan func()
	dead      chan struct{} // closed when the thread has gone
	processes []*Process
}

// Path is the file that stands for the namespace.
func (ns *Namespace) Path() string { return filepath.Join(netnsDir, ns.Name) }

// newNamespace makes the named namespace (visible to `ip netns`) with its loopback up. cpus is where
// its processes may run; empty means anywhere.
func newNamespace(name string, cpus []int) (*Namespace, error) {
	ns := &Namespace{Name: name, file: netns.None(), calls: make(chan func()), dead: make(chan struct{})}
	ready := make(chan error)
	go ns.live(cpus, ready)
	if err := <-ready; err != nil {
		ns.close()
		return nil, fmt.Errorf("testbed: make namespace %s: %w", name, err)
	}
	return ns, nil
}

// live is the namespace's thread. It is never unlocked, so it dies with this goroutine: a thread
// that has changed its namespaces must not serve other goroutines.
func (ns *Namespace) live(cpus []int, ready chan<- error) {
	defer close(ns.dead)
	runtime.LockOSThread()
	err := ns.enter(cpus)
	ready <- err
	if err != nil {
		return
	}
	for call := range ns.calls {
		call()
	}
}

func (ns *Namespace) enter(cpus []int) (err error) {
	if ns.file, err = netns.NewNamed(ns.Name); err != nil {
		return remedy(err)
	}
	if ns.Link, err = netlink.NewHandleAt(ns.file); err != nil {
		return err
	}
	if err := privateSys(); err != nil {
		return err
	}
	for _, s := range [...][2]string{
		{"net/ipv4/conf/all/rp_filter", "0"}, {"net/ipv4/conf/default/rp_filter", "0"},
		// Addresses are usable at once, and no router is looked for: the lab counts packets.
		{"net/ipv6/conf/all/accept_dad", "0"}, {"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/router_solicitations", "0"},
	} {
		if err := setSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	lo, err := ns.Link.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := ns.Link.LinkSetUp(lo); err != nil {
		return err
	}
	return setAffinity(cpus)
}

// privateSys gives the calling thread a /sys that shows this namespace's devices, with a BPF file
// system of its own, as `ip netns exec` does: sysfs shows the devices of whoever mounted it.
func privateSys() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	// A kernel without BPF has no /sys/fs/bpf; then no contender here needs one.
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mount /sys/fs/bpf: %w", err)
	}
	return nil
}

// Do runs f on the namespace's thread. A panic in f is raised in the caller, so that the caller's
// deferred clean-up runs.
func (ns *Namespace) Do(f func() error) error {
	var err error
	var panicked any
	done := make(chan struct{})
	call := func() {
		defer close(done)
		defer func() { panicked = recover() }()
		err = f()
	}
	select {
	case ns.calls <- call:
		<-done
	case <-ns.dead:
		return fmt.Errorf("testbed: namespace %s: %w", ns.Name, os.ErrClosed)
	}
	if panicked != nil {
		panic(panicked)
	}
	return err
}

// Sysctl writes one setting of the namespace; name is a path below /proc/sys.
func (ns *Namespace) Sysctl(name, value string) error {
	return ns.Do(func() error { return setSysctl(name, value) })
}

func setSysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("testbed: set %s=%s: %w", name, value, err)
	}
	return nil
}

// steer makes cpus do the receive work of a device (RPS, Documentation/networking/scaling.rst).
func (ns *Namespace) steer(device string, cpus []int) error {
	if len(cpus) == 0 {
		return nil
	}
	return ns.Do(func() error {
		queues := "/sys/class/net/" + device + "/queues"
		entries, err := os.ReadDir(queues)
		if err != nil {
			return fmt.Errorf("testbed: steer %s: %w", device, err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "rx-") {
				continue
			}
			if err := os.WriteFile(queues+"/"+e.Name()+"/rps_cpus", []byte(cpuMask(cpus)), 0); err != nil {
				return fmt.Errorf("testbed: steer %s: %w", device, err)
			}
		}
		return nil
	})
}

// cpuMask writes cpus as the kernel reads bitmaps: hexadecimal words of 32 bits, highest first.
func cpuMask(cpus []int) string {
	highest := 0
	for _, c := range cpus {
		highest = max(highest, c)
	}
	words := make([]uint32, highest/32+1)
	for _, c := range cpus {
		words[c/32] |= 1 << (c % 32)
	}
	text := strconv.FormatUint(uint64(words[len(words)-1]), 16)
	for i := len(words) - 2; i >= 0; i-- {
		text += fmt.Sprintf(",%08x", words[i])
	}
	return text
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

// stop ends the processes that were started inside, the newest first.
func (ns *Namespace) stop() {
	for _, p := range slices.Backward(ns.processes) {
		p.Stop(context.Background())
	}
	ns.processes = nil
}

// close removes the namespace.
func (ns *Namespace) close() error {
	var errs []error
	if ns.Link != nil {
		ns.Link.Close()
	}
	close(ns.calls)
	<-ns.dead
	if ns.file.IsOpen() {
		errs = append(errs, ns.file.Close(), netns.DeleteNamed(ns.Name))
	}
	return errors.Join(errs...)
}

// remedy adds what to do to the error an ordinary user gets.
func remedy(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: run as root, the lab makes namespaces", err)
	}
	return err
}
