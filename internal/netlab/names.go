package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Dir is where ip-netns(8) keeps named namespaces; ours are visible to `ip netns` too.
const Dir = "/run/netns"

// Name is <prefix>-<pid>-<label>, the name of something of this process that Find recognises.
func Name(prefix, label string) string {
	return prefix + "-" + strconv.Itoa(os.Getpid()) + "-" + label
}

// owner reads the process id out of <prefix>-<pid> and <prefix>-<pid>-<label>.
func owner(name, prefix string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix+"-")
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, "-")
	pid, err := strconv.Atoi(number)
	return pid, err == nil && pid > 0
}

// prepare does to Dir what `ip netns add` does: makes it a shared mount of its own. So namespaces made later are
// seen in mount namespaces made earlier, also where the root mount is private. Were it left to a later
// ip-netns(8), that would copy our mounts on top of themselves and they could not be removed again. As with
// ip-netns(8), it stays.
func prepare() error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	// The lock that ip-netns(8) takes for the same purpose: two at once would mount twice.
	dir, err := os.Open(Dir)
	if err != nil {
		return fmt.Errorf("netlab: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("netlab: lock %s: %w", Dir, err)
	}
	err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err = unix.Mount(Dir, Dir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", Dir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("netlab: share %s: %w", Dir, err)
	}
	return nil
}

// Dead says that a process has ended. A zombie has: it holds nothing any more.
func Dead(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	text := string(data)
	state := strings.TrimSpace(text[strings.LastIndexByte(text, ')')+1:])
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// Find lists the entries of a folder, Dir or another, whose names begin with <prefix>-<pid>, of the processes that
// which chooses. A folder that does not exist has none.
func Find(dir, prefix string, which func(pid int) bool) ([]string, error) {
	names := []string{}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return names, nil
	}
	if err != nil {
		return nil, fmt.Errorf("netlab: look for leftovers: %w", err)
	}
	for _, e := range entries {
		if pid, ok := owner(e.Name(), prefix); ok && which(pid) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Inside lists the processes, this one excepted, whose network namespace is one of the named ones.
func Inside(names []string) ([]int, error) {
	wanted := map[uint64]bool{}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(Dir, name), &st); err == nil {
			wanted[st.Ino] = true
		}
	}
	pids := []int{}
	if len(wanted) == 0 {
		return pids, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("netlab: look for processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat("/proc/"+e.Name()+"/ns/net", &st); err == nil && wanted[st.Ino] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// patience bounds the wait for killed processes.
const patience = 3 * time.Second

// Kill ends processes that are nobody's children here, and waits for their end.
func Kill(pids []int) error {
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("netlab: kill process %d: %w", pid, err))
		}
	}
	deadline := time.Now().Add(patience)
	for _, pid := range pids {
		for !Dead(pid) {
			if time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("netlab: process %d does not end", pid))
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// Remove kills what still runs in the named namespaces and removes them. One that is gone already is no error:
// others may be at it too. Whoever calls says whose they are; see Find.
func Remove(names ...string) error {
	pids, err := Inside(names)
	errs := []error{err, Kill(pids)}
	for _, name := range names {
		errs = append(errs, remove(name))
	}
	return errors.Join(errs...)
}

func remove(name string) error {
	err := netns.DeleteNamed(name)
	if errors.Is(err, unix.EINVAL) { // not a mount point (any more): a half-made or half-removed one
		err = os.Remove(filepath.Join(Dir, name))
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("netlab: remove namespace %s: %w", name, remedy(err))
}

// remedy adds what to do to the error an ordinary user gets.
func remedy(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: run as root", err)
	}
	return err
}
