package testbed

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

// namePrefix begins the name of every namespace and folder of the lab; the lab's process id follows.
const namePrefix = "weftlab-"

const netnsDir = "/run/netns"

// Dir makes the folder that holds a lab's files, <temp>/weftlab-<pid>. Whoever makes it removes it.
func Dir() (string, error) {
	dir := filepath.Join(os.TempDir(), namePrefix+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("testbed: make the lab's folder: %w", err)
	}
	return dir, nil
}

// Leftovers is what labs left behind.
type Leftovers struct {
	Namespaces []string `json:"namespaces"` // names
	Processes  []int    `json:"processes"`  // process ids, inside those namespaces
	Dirs       []string `json:"folders"`    // paths
}

// Empty says that nothing was found.
func (l Leftovers) Empty() bool {
	return len(l.Namespaces)+len(l.Processes)+len(l.Dirs) == 0
}

// All chooses every lab, the running ones included.
func All(int) bool { return true }

// Dead chooses labs whose process has ended. A zombie has: it holds nothing any more.
func Dead(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	text := string(data)
	state := strings.TrimSpace(text[strings.LastIndexByte(text, ')')+1:])
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// Find lists what there is of the labs that which chooses by their process id.
func Find(which func(pid int) bool) (Leftovers, error) {
	var l Leftovers
	var err error
	if l.Namespaces, err = named(netnsDir, which); err != nil {
		return l, err
	}
	dirs, err := named(os.TempDir(), which)
	if err != nil {
		return l, err
	}
	l.Dirs = []string{}
	for _, d := range dirs {
		l.Dirs = append(l.Dirs, filepath.Join(os.TempDir(), d))
	}
	l.Processes, err = inside(l.Namespaces)
	return l, err
}

// Remove kills the processes and removes the namespaces and folders.
func (l Leftovers) Remove() error {
	errs := []error{kill(l.Processes)}
	for _, name := range l.Namespaces {
		if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("testbed: remove namespace %s: %w", name, remedy(err)))
		}
	}
	for _, dir := range l.Dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// kill ends processes that are nobody's children here, and waits for their end.
func kill(pids []int) error {
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("testbed: kill process %d: %w", pid, err))
		}
	}
	deadline := time.Now().Add(grace)
	for _, pid := range pids {
		for !Dead(pid) {
			if time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("testbed: process %d does not end", pid))
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// killStrays ends what processes of the lab started inside its namespaces and did not end.
func killStrays(all []*Namespace) error {
	var names []string
	for _, ns := range all {
		names = append(names, ns.Name)
	}
	pids, err := inside(names)
	return errors.Join(err, kill(pids))
}

// named lists the entries of a folder that a lab made: weftlab-<pid>, weftlab-<pid>-….
func named(dir string, which func(pid int) bool) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("testbed: look for leftovers: %w", err)
	}
	names := []string{}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), namePrefix)
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(number)
		if err == nil && pid > 0 && which(pid) { // else not a name the lab gives
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// inside lists the processes, this one excepted, whose network namespace is one of the named ones.
func inside(names []string) ([]int, error) {
	wanted := map[uint64]bool{}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(netnsDir, name), &st); err == nil {
			wanted[st.Ino] = true
		}
	}
	if len(wanted) == 0 {
		return []int{}, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("testbed: look for processes: %w", err)
	}
	pids := []int{}
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
