package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another daemon has what this one would need for itself.
var ErrRunning = errors.New("another daemon is running")

// LockFile is the file in the state directory that a running daemon holds locked.
const LockFile = "lock"

// namespaceLock is a name in the abstract unix socket namespace. Those belong to a network
// namespace, as do all the kernel objects weft makes, and vanish with their process.
const namespaceLock = "@weft/daemon"

// Lock keeps two daemons apart. It is held until Release or the process's end, however that comes.
type Lock struct {
	file      *os.File
	namespace net.Listener
}

// Acquire makes sure that no other daemon has the state directory or works in this network
// namespace, and that none starts before Release. It makes the directory, mode 0700.
func Acquire(stateDir string) (*Lock, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("daemon: state_dir: %w", err)
	}
	name := filepath.Join(stateDir, LockFile)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("daemon: state_dir: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("daemon: state_dir %s: %w%s: stop it or set state_dir", stateDir, ErrRunning, holder(f))
		}
		return nil, fmt.Errorf("daemon: lock %s: %w", name, err)
	}
	l, err := net.Listen("unix", namespaceLock)
	if err != nil {
		defer f.Close()
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("daemon: %w in this network namespace: there can be one; stop it first", ErrRunning)
		}
		return nil, fmt.Errorf("daemon: lock the network namespace: %w", err)
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid()) // only for the message of the next one
	}
	return &Lock{file: f, namespace: l}, nil
}

// Release lets another daemon start.
func (l *Lock) Release() {
	l.namespace.Close()
	l.file.Close()
}

// holder names the process that wrote the lock file.
func holder(f *os.File) string {
	text := make([]byte, 32)
	n, _ := f.ReadAt(text, 0)
	if pid := strings.TrimSpace(string(text[:n])); pid != "" {
		return " (pid " + pid + ")"
	}
	return ""
}
