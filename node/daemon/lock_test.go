package daemon

import (
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// listenAs has a user's process listen at a name of a namespace; backlog < 0 = it does not listen.
func listenAs(t *testing.T, ns *nettest.NS, uid uint32, name string, backlog int) (stop func()) {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() {
		runtime.LockOSThread() // whose user it is alone: the kernel notes it when a socket begins to listen
		defer runtime.UnlockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			err = errno
			return
		}
		defer unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0))
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err == nil && backlog >= 0 {
			err = unix.Listen(fd, backlog)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { unix.Close(fd) })
	t.Cleanup(stop)
	return stop
}

// TestSquatters: who is not root cannot keep a daemon from starting, whatever it binds; and two daemons are kept apart all the same.
func TestSquatters(t *testing.T) {
	const nobody = 65534
	acquire := func(ns *nettest.NS, dir string) (l *Lock, err error) {
		ns.Do(func() { l, err = Acquire(dir) })
		return l, err
	}
	for name, squat := range map[string]func(*testing.T, *nettest.NS) (told int){
		"nobody squats": func(*testing.T, *nettest.NS) int { return 0 },
		"the first name": func(t *testing.T, ns *nettest.NS) int {
			listenAs(t, ns, nobody, namespaceLocks[0], 5)
			return 1
		},
		"without listening": func(t *testing.T, ns *nettest.NS) int {
			listenAs(t, ns, nobody, namespaceLocks[0], -1)
			return 1
		},
		"without room for a question": func(t *testing.T, ns *nettest.NS) int {
			listenAs(t, ns, nobody, namespaceLocks[0], 0)
			ns.Do(func() {
				for range 3 {
					if c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: namespaceLocks[0], Net: "unix"}); err == nil {
						t.Cleanup(func() { c.Close() })
					} else {
						break
					}
					if _, held := whoHas(namespaceLocks[0]); !held {
						return
					}
				}
				t.Error("there is always room")
			})
			return 1
		},
		"some names": func(t *testing.T, ns *nettest.NS) int {
			for _, i := range []int{0, 1, 4} {
				listenAs(t, ns, nobody, namespaceLocks[i], 5)
			}
			return 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := nettest.New(t)
			told := squat(t, ns)
			first, err := acquire(ns, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if len(first.Squatters) != told {
				t.Errorf("squatters %+v, want %d", first.Squatters, told)
			}
			for _, s := range first.Squatters {
				if s.PID != 0 && s.UID != nobody || s.Name == "" {
					t.Errorf("%+v", s)
				}
			}
			second, err := acquire(ns, t.TempDir())
			if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "network namespace (pid ") {
				t.Errorf("a second daemon: %+v, %v", second, err)
			}
			first.Release()
			if second, err = acquire(ns, t.TempDir()); err != nil {
				t.Fatal(err)
			}
			second.Release()
		})
	}
	t.Run("who has gone since", func(t *testing.T) { // the daemon holds the second name, and the first is free
		ns := nettest.New(t)
		stop := listenAs(t, ns, nobody, namespaceLocks[0], 5)
		first, err := acquire(ns, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer first.Release()
		stop()
		if second, err := acquire(ns, t.TempDir()); !errors.Is(err, ErrRunning) {
			t.Errorf("a second daemon: %+v, %v", second, err)
		}
	})
	t.Run("all names", func(t *testing.T) {
		ns := nettest.New(t)
		for _, name := range namespaceLocks {
			listenAs(t, ns, nobody, name, 5)
		}
		first, err := acquire(ns, t.TempDir())
		if err != nil || len(first.Squatters) != len(namespaceLocks) {
			t.Fatalf("%+v, %v", first, err)
		}
		first.Release()
	})
}
