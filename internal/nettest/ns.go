// Package nettest makes network namespaces, joins them and runs things in them: for tests (testing.go) and for
// the lab, which uses the same parts without a testing.TB.
//
// Everything is named <prefix>-<pid>-<n>, so that two test binaries never meet and Sweep can tell what a dead
// process left behind. Device names need no such care: they are made inside the namespaces.
package nettest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nsDir is where ip-netns(8) keeps named namespaces; ours are visible to `ip netns` too.
const nsDir = "/run/netns"

// counter numbers this process's namespaces.
var counter atomic.Uint32

// NS is a named network namespace that this process made. Safe for concurrent use.
type NS struct {
	name   string
	fd     netns.NsHandle
	handle *netlink.Handle

	mu    sync.Mutex
	procs []*Process
}

// Create makes a namespace named <prefix>-<pid>-<n>, with lo up. Close removes it.
func Create(prefix string) (*NS, error) {
	if err := prepareDir(); err != nil {
		return nil, err
	}
	name := fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), counter.Add(1))
	type result struct {
		fd  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		// Never unlocked: the thread that unshared dies with this goroutine instead of going back to the pool.
		runtime.LockOSThread()
		fd, err := netns.NewNamed(name)
		made <- result{fd, err}
	}()
	r := <-made
	if r.err != nil {
		_ = os.Remove(filepath.Join(nsDir, name)) // the mount point, where only the mount failed
		return nil, fmt.Errorf("nettest: create namespace %s: %w: run as root", name, r.err)
	}
	h, err := netlink.NewHandleAt(r.fd, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nettest: open netlink in %s: %w", name, err), r.fd.Close(), remove(name))
	}
	ns := &NS{name: name, fd: r.fd, handle: h}
	if err := ns.LinkUp("lo"); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// prepareDir does to /run/netns what `ip netns add` does: makes it a shared mount of its own. Were it left to a
// later ip-netns(8), that would copy our mounts on top of themselves and they could not be removed again.
func prepareDir() error {
	if err := os.MkdirAll(nsDir, 0o755); err != nil {
		return fmt.Errorf("nettest: %w", err)
	}
	// The lock that ip-netns(8) takes for the same purpose: two at once would mount twice.
	dir, err := os.Open(nsDir)
	if err != nil {
		return fmt.Errorf("nettest: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("nettest: lock %s: %w", nsDir, err)
	}
	err = unix.Mount("", nsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(nsDir, nsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", nsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("nettest: share %s: %w: run as root", nsDir, err)
	}
	return nil
}

// Close kills what Start began here and removes the namespace with all its devices. Idempotent.
func (ns *NS) Close() error {
	ns.mu.Lock()
	procs := ns.procs
	ns.procs = nil
	ns.mu.Unlock()
	for _, p := range procs {
		p.Kill()
	}
	if !ns.fd.IsOpen() {
		return nil
	}
	ns.handle.Close()
	return errors.Join(ns.fd.Close(), remove(ns.name))
}

func remove(name string) error {
	if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("nettest: remove namespace %s: %w", name, err)
	}
	return nil
}

// Name returns the name that `ip netns` shows.
func (ns *NS) Name() string { return ns.name }

// Path returns the file that stands for the namespace, as CNI_NETNS wants it.
func (ns *NS) Path() string { return filepath.Join(nsDir, ns.name) }

// FD returns the namespace's descriptor; the NS keeps owning it.
func (ns *NS) FD() int { return int(ns.fd) }

// Netlink returns a route-netlink handle bound to the namespace; the NS keeps owning it.
func (ns *NS) Netlink() *netlink.Handle { return ns.handle }

// Do calls fn in the caller's goroutine with its thread inside the namespace. Sockets, files under /proc/sys/net
// and processes made by fn belong to the namespace; goroutines that fn starts do NOT run in it. If the thread
// cannot be brought back, it stays locked, so that no other goroutine ever runs on it. fn may call t.FailNow.
func (ns *NS) Do(fn func()) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		panic(fmt.Sprintf("nettest: read the thread's namespace: %v", err))
	}
	defer func() {
		err := netns.Set(home)
		_ = home.Close()
		if err == nil {
			runtime.UnlockOSThread()
		}
	}()
	if err := netns.Set(ns.fd); err != nil {
		panic(fmt.Sprintf("nettest: enter namespace %s: %v", ns.name, err))
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
			done <- fmt.Errorf("nettest: enter namespace %s: %w", ns.name, err)
			return
		}
		done <- fn()
	}()
	return done
}

// Run runs a command inside the namespace and returns its standard output and error together. The error names
// the command and quotes the output.
func (ns *NS) Run(name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := ns.StartCmd(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", ns.name, strings.Join(cmd.Args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), err
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
		return fmt.Errorf("nettest: %s: sysctl %s=%s: %w", ns.name, key, value, err)
	}
	return nil
}

// LinkUp sets a device up.
func (ns *NS) LinkUp(dev string) error {
	l, err := ns.handle.LinkByName(dev)
	if err == nil {
		err = ns.handle.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("nettest: %s: set %s up: %w", ns.name, dev, err)
	}
	return nil
}

// AddAddrs puts addresses on a device, without duplicate address detection, and returns once they work.
func (ns *NS) AddAddrs(dev string, addrs ...netip.Prefix) error {
	l, err := ns.handle.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("nettest: %s: find %s: %w", ns.name, dev, err)
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := ns.handle.AddrAdd(l, a); err != nil {
			return fmt.Errorf("nettest: %s: add %s to %s: %w", ns.name, p, dev, err)
		}
		if err := ns.awaitLocal(p.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// awaitLocal waits until the local routing table holds an address: for IPv6 the kernel puts it there in a work
// queue, some time after it has accepted the address.
func (ns *NS) awaitLocal(a netip.Addr) error {
	fam := netlink.FAMILY_V4
	if a.Is6() {
		fam = netlink.FAMILY_V6
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(host(a))}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := ns.handle.RouteListFiltered(fam, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		switch {
		case err == nil && len(routes) > 0:
			return nil
		case err != nil && !errors.Is(err, netlink.ErrDumpInterrupted):
			return fmt.Errorf("nettest: %s: list local routes: %w", ns.name, err)
		case time.Now().After(end):
			return fmt.Errorf("nettest: %s: address %s does not begin to work", ns.name, a)
		}
	}
}

// AddRoute adds a route to dst over dev; via may be invalid (a route on the link) and need not be on the link.
func (ns *NS) AddRoute(dst netip.Prefix, via netip.Addr, dev string) error {
	l, err := ns.handle.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("nettest: %s: find %s: %w", ns.name, dev, err)
	}
	r := &netlink.Route{Dst: ipNet(dst), LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Scope, r.Flags = via.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if err := ns.handle.RouteAdd(r); err != nil {
		return fmt.Errorf("nettest: %s: add route %s via %s dev %s: %w", ns.name, dst, via, dev, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Sweep removes namespaces <prefix>-<pid>-<n> whose process is gone, and kills what still runs in them. It
// returns the names it removed. Others sweeping at the same time do no harm.
func Sweep(prefix string) ([]string, error) {
	entries, err := os.ReadDir(nsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nettest: list namespaces: %w", err)
	}
	var removed []string
	var errs []error
	for _, e := range entries {
		if !orphan(e.Name(), prefix) {
			continue
		}
		errs = append(errs, killInside(filepath.Join(nsDir, e.Name())))
		err := remove(e.Name())
		if errors.Is(err, unix.EINVAL) { // not a mount point (any more): a half-made or half-removed one
			if err = os.Remove(filepath.Join(nsDir, e.Name())); errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		}
		errs = append(errs, err)
		removed = append(removed, e.Name())
	}
	return removed, errors.Join(errs...)
}

// orphan says whether name is <prefix>-<pid>-<n> of a process that no longer exists.
func orphan(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok {
		return false
	}
	pidText, n, ok := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(pidText)
	if _, nerr := strconv.Atoi(n); !ok || err != nil || nerr != nil || pid <= 0 {
		return false
	}
	return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// killInside kills every process whose network namespace is the one at path. Only Sweep may say which: the
// namespace of a dead test holds nothing but what that test started.
func killInside(path string) error {
	var want, have unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("nettest: stat %s: %w", path, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range procs {
		if unix.Stat(filepath.Join(dir, "ns/net"), &have) != nil || have.Ino != want.Ino || have.Dev != want.Dev {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
		}
	}
	return nil
}
