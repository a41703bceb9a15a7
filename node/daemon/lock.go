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

// namespaceLocks are names in the abstract unix socket namespace. Those belong to a network
// namespace, as do all the kernel objects weft makes, and vanish with their process. Anybody may take one: so there are
// several, a daemon holds one of them, and it counts who holds the others.
var namespaceLocks = []string{"@weft/daemon", "@weft/daemon/2", "@weft/daemon/3", "@weft/daemon/4", "@weft/daemon/5", "@weft/daemon/6"}

// Lock keeps two daemons apart. It is held until Release or the process's end, however that comes.
type Lock struct {
	// Squatters are processes of other users that hold names which are meant for daemons. They keep nobody from starting.
	Squatters []Squatter

	file      *os.File
	namespace net.Listener // nil where squatters have all names
}

// Squatter is a process that holds a name.
type Squatter struct {
	Name string
	PID  int32  // 0 where it is not told
	UID  uint32 // of PID
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
	l := &Lock{file: f}
	if err := l.lockNamespace(); err != nil {
		l.Release()
		return nil, err
	}
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintln(f, os.Getpid()) // only for the message of the next one
	}
	return l, nil
}

// lockNamespace takes the first name that is free, unless a daemon has one of them.
func (l *Lock) lockNamespace() error {
	for _, name := range namespaceLocks {
		if l.namespace == nil {
			listener, err := net.Listen("unix", name)
			if err == nil {
				l.namespace = listener
				go answer(listener)
				continue
			}
			if !errors.Is(err, unix.EADDRINUSE) {
				return fmt.Errorf("daemon: lock the network namespace: %w", err)
			}
		}
		s, held := whoHas(name)
		switch {
		case held && (s.UID == 0 || s.UID == uint32(os.Geteuid())):
			return fmt.Errorf("daemon: %w in this network namespace (pid %d): there can be one; stop it first", ErrRunning, s.PID)
		case held || l.namespace == nil: // a daemon says who it is
			l.Squatters = append(l.Squatters, s)
		}
	}
	return nil
}

// answer takes connections, which are questions who listens, so that there is always room for one.
func answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil && errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.Close()
		}
	}
}

// whoHas says which process listens at a name. One that does not listen, or leaves no room for a connection, is not told.
func whoHas(name string) (s Squatter, held bool) {
	s.Name = name
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, false
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: name}) != nil {
		return s, false
	}
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return s, false
	}
	s.PID, s.UID = peer.Pid, peer.Uid
	return s, true
}

// Release lets another daemon start.
func (l *Lock) Release() {
	if l.namespace != nil {
		l.namespace.Close()
	}
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
