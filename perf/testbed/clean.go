package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"weft/internal/netlab"
)

// namePrefix begins the name of every namespace and folder of the lab; the lab's process id follows.
const namePrefix = "weftlab"

// room is what a lab's files need at least, bytes: configurations, sockets and logs.
const room = 1 << 20

// Dir makes the folder that holds a lab's files, <temp>/weftlab-<pid>-<number>, and sees that there is room for them.
// Whoever makes it removes it.
func Dir() (string, error) {
	dir, err := os.MkdirTemp("", netlab.Name(namePrefix, "*"))
	if err != nil {
		return "", noRoom(err)
	}
	probe := filepath.Join(dir, "room")
	if err := os.WriteFile(probe, make([]byte, room), 0o600); err != nil {
		return "", errors.Join(noRoom(err), os.RemoveAll(dir))
	}
	return dir, os.Remove(probe)
}

func noRoom(err error) error {
	return fmt.Errorf("testbed: no place for the lab's files: %w: make room in %s, or set TMPDIR to a folder that has some", err, os.TempDir())
}

// Allowed returns nil where this process may build testbeds, else what to do.
func Allowed() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab makes network namespaces: run it as root")
	}
	return nil
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

// Dead chooses labs whose process has ended.
func Dead(pid int) bool { return netlab.Dead(pid) }

// Find lists what there is of the labs that which chooses by their process id.
func Find(which func(pid int) bool) (Leftovers, error) {
	l := Leftovers{Dirs: []string{}}
	var err error
	if l.Namespaces, err = netlab.Find(netlab.Dir, namePrefix, which); err != nil {
		return l, err
	}
	dirs, err := netlab.Find(os.TempDir(), namePrefix, which)
	if err != nil {
		return l, err
	}
	for _, d := range dirs {
		l.Dirs = append(l.Dirs, filepath.Join(os.TempDir(), d))
	}
	l.Processes, err = netlab.Inside(l.Namespaces)
	return l, err
}

// Remove kills the processes and removes the namespaces and folders.
func (l Leftovers) Remove() error {
	errs := []error{netlab.Kill(l.Processes), netlab.Remove(l.Namespaces...)}
	for _, dir := range l.Dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// killStrays ends what processes of the lab started inside its namespaces and did not end.
func killStrays(all []*Namespace) error {
	var names []string
	for _, ns := range all {
		names = append(names, ns.Name())
	}
	pids, err := netlab.Inside(names)
	return errors.Join(err, netlab.Kill(pids))
}
