package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Folder makes a folder of this test process's, for what outlives a test. remove removes it; where the process is killed before, the
// next one does (Sweep).
func Folder() (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", fmt.Sprintf("%s-%d-", testPrefix, os.Getpid()))
	if err != nil {
		return "", nil, fmt.Errorf("nettest: a folder for what tests build: %w", err)
	}
	return dir, func() { os.RemoveAll(dir) }, nil
}

// Weft builds the command weft into a folder; flags are those of go build.
func Weft(dir string, flags ...string) (path string, err error) {
	path = filepath.Join(dir, "weft")
	args := append(append([]string{"build", "-o", path}, flags...), "weft/cmd/weft")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("nettest: build weft: %w\n%s", err, out)
	}
	return path, nil
}

// WithWeft is what a TestMain of tests that start the command weft does: it builds it, runs them, and removes it. It returns the exit code.
func WithWeft(run func(weft string) int, flags ...string) int {
	dir, remove, err := Folder()
	if err == nil {
		defer remove()
		var weft string
		if weft, err = Weft(dir, flags...); err == nil {
			return run(weft)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}
