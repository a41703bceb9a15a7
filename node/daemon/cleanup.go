package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"weft/api"
	"weft/hostnet"
	"weft/node/pods"
)

// Cleanup removes what daemons left in this network namespace, in the state directory and of the
// socket, and returns what it removed, in words. While a daemon runs it is ErrRunning. Keys stay.
func Cleanup(stateDir, socket string, log *zap.Logger) (removed []string, err error) {
	_, statErr := os.Stat(stateDir)
	madeHere := errors.Is(statErr, os.ErrNotExist) // by Acquire, and nothing to report
	lock, err := Acquire(stateDir)
	if err != nil {
		return nil, err
	}
	defer lock.Release()
	h, err := hostnet.New(log)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	removed, err = h.Cleanup()
	errs := []error{err}

	if _, err := os.Lstat(socket); err == nil {
		if err := api.RemoveStale(socket, "api.socket"); err != nil {
			errs = append(errs, err)
		} else {
			removed = append(removed, "socket "+socket)
		}
	}
	if err := os.Remove(filepath.Join(stateDir, LockFile)); err != nil {
		errs = append(errs, fmt.Errorf("daemon: state_dir: %w", err))
	}
	for _, name := range []string{pods.File, pods.File + pods.Damaged, drainedFile} {
		file := filepath.Join(stateDir, name)
		if err := os.Remove(file); err == nil {
			removed = append(removed, "file "+file)
		} else if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("daemon: state_dir: %w", err))
		}
	}
	// Only where it is empty: keys are a person's.
	if os.Remove(stateDir) == nil && !madeHere {
		removed = append(removed, "directory "+stateDir)
	}
	return removed, errors.Join(errs...)
}
