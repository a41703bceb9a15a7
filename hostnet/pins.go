package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// bpffs is where a machine has its BPF file system, by custom and by systemd's word.
const bpffs = "/sys/fs/bpf"

// pinsOf names a namespace's directory for pins: by its inode number, which `lsns -t net` shows and the kernel gives again to another
// namespace, and by its cookie, which it never does (SO_NETNS_COOKIE).
type pinsOf struct {
	inode, cookie uint64
}

// pinsHere looks at the calling thread's namespace, of which ns is.
func pinsHere(ns netns.NsHandle) (of pinsOf, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns), &st); err != nil {
		return of, fmt.Errorf("look at the network namespace: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return of, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil { // before Linux 5.14, which has no tcx either
		cookie = 0
	}
	return pinsOf{st.Ino, cookie}, nil
}

func (of pinsOf) String() string { return fmt.Sprintf("%d-%d", of.inode, of.cookie) }

// stale says whether a directory is of a namespace that is no more.
func (of pinsOf) stale(dir string) bool {
	return strings.HasPrefix(dir, fmt.Sprintf("%d-", of.inode)) && dir != of.String()
}

// Pins returns the directory in a bpffs for what of this namespace is to outlive the process, and makes it. What is pinned in "links" there is
// the Host's (Program.Pinned); parts may pin maps beside it, whose names start with ProgramPrefix. Cleanup removes it with all that is in it.
//
// Where /sys/fs/bpf has no bpffs it is mounted, with "weft" as its source, which takes CAP_SYS_ADMIN. A daemon in a container has to have the
// machine's, or what it pins goes with the container.
func (h *Host) Pins() (string, error) {
	dir, err := h.pinsDir(true)
	if err != nil {
		return "", fmt.Errorf("hostnet: %w", err)
	}
	return dir, nil
}

// pinsDir is Pins; without create it is "" where there is no bpffs.
func (h *Host) pinsDir(create bool) (string, error) {
	mounted, err := isBPFFS(h.bpffs)
	switch {
	case !create && !mounted: // whoever cannot look there has pinned nothing
		return "", nil
	case err != nil:
		return "", err
	case !mounted:
		if err := mountBPFFS(h.bpffs); err != nil {
			return "", err
		}
	}
	base := filepath.Join(h.bpffs, LinkPrefix)
	dir := filepath.Join(base, h.pins.String())
	if !create || exists(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a directory for pins: %w", err)
	}
	others, err := os.ReadDir(base)
	if err != nil {
		return "", fmt.Errorf("list directories of pins: %w", err)
	}
	for _, o := range others {
		if h.pins.stale(o.Name()) {
			if err := os.RemoveAll(filepath.Join(base, o.Name())); err != nil {
				return "", fmt.Errorf("remove what a namespace that is gone left: %w", err)
			}
		}
	}
	return dir, nil
}

func isBPFFS(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// mountBPFFS mounts one, unless another process is quicker: of two on top of each other, one would be hidden.
func mountBPFFS(dir string) error {
	under, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("mount a BPF file system: %w", err)
	}
	defer under.Close()
	if err := unix.Flock(int(under.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	if mounted, err := isBPFFS(dir); err != nil || mounted {
		return err
	}
	if err := unix.Mount(LinkPrefix, dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system: %w: mount -t bpf bpf %s, or grant CAP_SYS_ADMIN", err, dir)
	}
	return nil
}

// removePins removes the namespace's directory and, where it was the last thing there, the bpffs that weft mounted.
func (h *Host) removePins() (removed []string, err error) {
	dir, err := h.pinsDir(false)
	if err != nil || dir == "" {
		return nil, err
	}
	if exists(dir) {
		_ = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error { // what cannot be read, RemoveAll tells
			if err == nil && !d.IsDir() {
				removed = append(removed, "pin "+file)
			}
			return err
		})
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("hostnet: remove pins: %w", err)
		}
	}
	_ = os.Remove(filepath.Join(h.bpffs, LinkPrefix)) // another namespace's are there
	left, err := os.ReadDir(h.bpffs)
	left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return strings.Contains(e.Name(), ".") }) // the kernel's own: nobody else may have a dot
	if err != nil || len(left) > 0 {
		return removed, err
	}
	mounts, err := os.ReadFile("/proc/thread-self/mounts")
	if err != nil {
		return removed, fmt.Errorf("hostnet: list mounts: %w", err)
	}
	if slices.ContainsFunc(strings.Split(string(mounts), "\n"), func(line string) bool {
		return strings.HasPrefix(line, LinkPrefix+" "+h.bpffs+" bpf ")
	}) {
		if err := unix.Unmount(h.bpffs, 0); err != nil && !errors.Is(err, unix.EBUSY) {
			return removed, fmt.Errorf("hostnet: unmount %s: %w", h.bpffs, err)
		}
		removed = append(removed, "mount "+h.bpffs)
	}
	return removed, nil
}
