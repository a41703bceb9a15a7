// Package netlab is the kit of network namespaces, for the lab (perf/testbed) and for tests (internal/nettest):
// make them, name them as ours, join them, run things in them, and clean up after a crash.
//
// Everything is named <prefix>-<pid>-<label>, so that two processes never meet and Find can tell what a dead one
// left behind. Device names need no such care: they are made inside the namespaces.
package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// taken are the names of this process's namespaces. An entry of Dir with this process's id that is not among them
// is of a process that had the id before.
var taken = struct {
	sync.Mutex
	names map[string]bool
}{names: map[string]bool{}}

// NS is a named network namespace that this process made. Safe for concurrent use.
type NS struct {
	name   string
	fd     netns.NsHandle
	handle *netlink.Handle

	closing sync.Mutex
}

// Create makes a namespace named <prefix>-<pid>-<label>, with lo up and the kernel's own settings, whatever the machine's are. Close removes it. A name that this process
// has in use is an error; what a dead process of the same id left under it is removed.
func Create(prefix, label string) (_ *NS, err error) {
	ns := &NS{name: Name(prefix, label), fd: netns.None()}
	defer func() {
		if err != nil {
			err = fmt.Errorf("netlab: make namespace %s: %w", ns.name, remedy(err))
		}
	}()
	if err := prepare(); err != nil {
		return nil, err
	}
	if err := claim(ns.name); err != nil {
		return nil, err
	}
	if err := ns.make(); err != nil {
		return nil, errors.Join(err, remove(ns.name), disclaim(ns.name))
	}
	if ns.handle, err = netlink.NewHandleAt(ns.fd, unix.NETLINK_ROUTE); err == nil {
		err = ns.LinkUp("lo")
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// claim takes a name for this process.
func claim(name string) error {
	taken.Lock()
	defer taken.Unlock()
	if taken.names[name] {
		return errors.New("this process has one of that name")
	}
	if _, err := os.Lstat(filepath.Join(Dir, name)); err == nil {
		if err := Remove(name); err != nil {
			return err
		}
	}
	taken.names[name] = true
	return nil
}

func disclaim(name string) error {
	taken.Lock()
	defer taken.Unlock()
	delete(taken.names, name)
	return nil
}

// make makes the namespace on a thread that ends with it: one that has changed its namespaces must not serve
// other goroutines.
func (ns *NS) make() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with this goroutine
		var err error
		if ns.fd, err = netns.NewNamed(ns.name); err == nil {
			err = plainSettings()
		}
		done <- err
	}()
	return <-done
}

// HasIPv6 says whether the kernel has IPv6 at all: not with ipv6.disable=1 on its command line.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.EAFNOSUPPORT)
	}
	_ = unix.Close(fd)
	return true
}

// Close removes the namespace with all its devices. Idempotent.
func (ns *NS) Close() error {
	ns.closing.Lock()
	defer ns.closing.Unlock()
	if !ns.fd.IsOpen() {
		return nil
	}
	if ns.handle != nil {
		ns.handle.Close()
	}
	return errors.Join(ns.fd.Close(), remove(ns.name), disclaim(ns.name))
}

// Name returns the name that `ip netns` shows.
func (ns *NS) Name() string { return ns.name }

// Path returns the file that stands for the namespace, as CNI_NETNS wants it.
func (ns *NS) Path() string { return filepath.Join(Dir, ns.name) }

// FD returns the namespace's descriptor; the NS keeps owning it.
func (ns *NS) FD() int { return int(ns.fd) }

// Netlink returns a route-netlink handle bound to the namespace; the NS keeps owning it.
func (ns *NS) Netlink() *netlink.Handle { return ns.handle }

// Do calls fn in the caller's goroutine with its thread inside the namespace. Sockets, files under /proc/sys/net
// and processes made by fn belong to the namespace; goroutines that fn starts do NOT run in it. If the thread
// cannot be brought back, it stays locked, so that no other goroutine ever runs on it. fn may end the goroutine.
func (ns *NS) Do(fn func()) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		panic(fmt.Sprintf("netlab: read the thread's namespace: %v", err))
	}
	defer func() {
		err := netns.Set(home)
		_ = home.Close()
		if err == nil {
			runtime.UnlockOSThread()
		}
	}()
	if err := netns.Set(ns.fd); err != nil {
		panic(fmt.Sprintf("netlab: enter namespace %s: %v", ns.name, err))
	}
	fn()
}

// Go runs fn in a goroutine of its own whose thread is inside the namespace for ever, for work that blocks.
// The channel yields fn's error once.
func (ns *NS) Go(fn func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if err := netns.Set(ns.fd); err != nil {
			done <- fmt.Errorf("netlab: enter namespace %s: %w", ns.name, err)
			return
		}
		done <- fn()
	}()
	return done
}

// StartCmd is cmd.Start with the child inside the namespace: a child inherits the forking thread's.
func (ns *NS) StartCmd(cmd *exec.Cmd) error {
	var err error
	ns.Do(func() { err = cmd.Start() })
	return err
}

// Sysctl writes a value below /proc/sys/net, e.g. Sysctl("ipv4/ip_forward", "1"). Slashes, since device names
// may hold dots.
func (ns *NS) Sysctl(key, value string) error {
	var err error
	ns.Do(func() { err = os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("netlab: %s: sysctl %s=%s: %w", ns.name, key, value, err)
	}
	return nil
}
