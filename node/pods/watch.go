package pods

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"weft/hostnet"
)

const (
	// watchSettle is how long a burst of changes in a pod passes before it is looked at, watchSpacing the least time between two looks:
	// who keeps undoing our work, or has a pod of his own to make noise in, makes us look five times a second.
	watchSettle  = 20 * time.Millisecond
	watchSpacing = 200 * time.Millisecond
	// watchBuffer is the room for changes that were not read, bytes. What does not fit is noticed (ENOBUFS), and costs one look.
	watchBuffer = 16 << 10
)

// watches are the sockets by which the kernel tells what happens in pods' namespaces, by attachment. A socket keeps a namespace alive
// that has nobody else, so it goes as soon as its path leads elsewhere. They belong to the goroutine of Run.
type watches struct {
	m    *Manager
	open map[string]*watch
}

type watch struct {
	inode  uint64
	file   *os.File      // nil where the namespace cannot be listened to, which is said once
	tried  time.Time     // when it was opened, or that failed
	closed chan struct{} // closes with it
	failed atomic.Bool   // it does not tell of anything any more
}

// follow opens and closes sockets so that there is one for each attachment.
func (w *watches) follow(attached []attachment) {
	stays := map[string]bool{}
	for _, a := range attached {
		k := a.key()
		number, err := inode(a.Netns)
		if err != nil || number != a.Inode {
			continue
		}
		have := w.open[k]
		if have != nil && have.inode == number && !have.failed.Load() && (have.file != nil || time.Since(have.tried) < w.m.every) {
			stays[k] = true
			continue
		}
		again := have != nil && have.inode == number && have.file == nil
		file, err := listenInside(a.Netns, a.Inode)
		w.close(k)
		now := &watch{inode: number, file: file, tried: time.Now(), closed: make(chan struct{})}
		w.open[k], stays[k] = now, true
		if err != nil && again {
			continue
		}
		if err != nil {
			w.m.o.Log.Warn("a pod's namespace does not tell of changes, and is looked at every few seconds", zap.String("container", a.ContainerID), zap.Error(err))
			continue
		}
		w.m.suspect(k) // for what happened before
		go w.m.hear(k, now)
	}
	for k := range w.open {
		if !stays[k] {
			w.close(k)
		}
	}
}

func (w *watches) close(k string) {
	if have := w.open[k]; have != nil {
		close(have.closed)
		if have.file != nil {
			have.file.Close()
		}
		delete(w.open, k)
	}
}

func (w *watches) closeAll() {
	for k := range w.open {
		w.close(k)
	}
}

// listenInside opens a netlink socket in a namespace that hears of its links, addresses, routes and neighbours.
func listenInside(path string, number uint64) (*os.File, error) {
	ns, is, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if is != number {
		return nil, fmt.Errorf("pods: %s is another namespace by now", path)
	}
	fd := -1
	err = hostnet.Within(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("pods: listen in %s: %w", path, err)
	}
	var groups uint32
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		groups |= 1 << (g - 1)
	}
	err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, watchBuffer), unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pods: listen in %s: %w", path, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// hear has an attachment looked at whenever something happens in its namespace, until the socket is closed. One that fails is
// marked, for follow to open another.
func (m *Manager) hear(k string, w *watch) {
	pause := func(d time.Duration) (closed bool) {
		select {
		case <-w.closed:
			return true
		case <-time.After(d):
			return false
		}
	}
	if m.listen(k, w.file, pause); !pause(watchSpacing) {
		w.failed.Store(true)
		m.poke()
	}
}

// listen returns when the socket is closed, or fails.
func (m *Manager) listen(k string, file *os.File, pause func(time.Duration) (closed bool)) {
	conn, err := file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		read, heard := false, false
		var failed error
		err := conn.Read(func(fd uintptr) bool {
			for ; ; read = true {
				n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
				sender, _ := from.(*unix.SockaddrNetlink)
				switch {
				case errors.Is(err, unix.EAGAIN):
					return read
				case errors.Is(err, unix.EINTR):
				case errors.Is(err, unix.ENOBUFS):
					heard = true
				case err != nil:
					failed = err
					return true
				case sender != nil && sender.Pid == 0: // the kernel
					heard = heard || n > len(buf) || concerns(buf[:n])
				}
			}
		})
		if errors.Join(err, failed) != nil {
			return
		}
		// Also after what does not concern us: who makes noise wakes us no more often than this.
		if pause(watchSettle) {
			return
		}
		if heard {
			m.suspect(k)
		}
		if pause(watchSpacing - watchSettle) {
			return
		}
	}
}

// concerns says whether a notification may be about something that furnish has set up: of neighbours, the gateways only.
func concerns(b []byte) bool {
	if len(b) < unix.SizeofNlMsghdr {
		return true
	}
	switch binary.NativeEndian.Uint16(b[4:]) {
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(b[unix.SizeofNlMsghdr:])
		if err != nil {
			return true
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		ip = ip.Unmap()
		return ip == gateway4 || ip == gateway6
	}
	return true
}

// suspect has Run look at an attachment's pod.
func (m *Manager) suspect(k string) {
	m.mu.Lock()
	m.suspects[k] = true
	m.mu.Unlock()
	m.poke()
}

// poke has Run look at the suspects, and follow the attachments that there are by now.
func (m *Manager) poke() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// suspected takes the attachments out that are to be looked at.
func (m *Manager) suspected() map[string]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.suspects
	m.suspects = map[string]bool{}
	return list
}
