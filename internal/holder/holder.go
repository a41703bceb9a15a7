// Package holder finds out who has what somebody else wants: a port, a device. It is for errors, which name the holder, and for doctor. What
// may not be looked into is left out.
package holder

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Unseen is a holder of a port who is there, and more is not to be had.
const Unseen = "a process that cannot be seen from here"

// Process is a process in words.
func Process(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d (gone)", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}

// Vxlan is a device in words.
func Vxlan(device string) string { return "the vxlan device " + device }

// UDP names who has sockets bound to a port in the calling thread's network namespace: processes, and the kernel's own tunnel devices, whose
// sockets belong to no process.
func UDP(port uint16) ([]string, error) { return sockets(port, vxlanOn(port), "udp", "udp6") }

// TCP names who listens at a port, or has connections at it.
func TCP(port uint16) ([]string, error) { return sockets(port, nil, "tcp", "tcp6") }

func sockets(port uint16, list []string, files ...string) ([]string, error) {
	inodes := map[string]bool{}
	for _, name := range files {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = readSockets(f, port, inodes)
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	of := processes(inodes)
	if len(list) > 0 { // a device's socket is no process's
		of = slices.DeleteFunc(of, func(p string) bool { return p == Unseen })
	}
	list = append(list, of...)
	slices.Sort(list)
	return slices.Compact(list), nil
}

// Netlink names who has the netlink socket of a protocol with a port number, by which the kernel knows it, in the calling thread's network namespace.
func Netlink(protocol int, port uint32) ([]string, error) {
	f, err := os.Open("/proc/thread-self/net/netlink")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	inodes := map[string]bool{}
	if err := readNetlink(f, protocol, port, inodes); err != nil {
		return nil, err
	}
	return processes(inodes), nil
}

// readNetlink reads the format of /proc/net/netlink: "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode".
func readNetlink(r io.Reader, protocol int, port uint32, inodes map[string]bool) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) >= 10 && f[1] == strconv.Itoa(protocol) && f[2] == strconv.FormatUint(uint64(port), 10) {
			inodes[f[9]] = true
		}
	}
	return lines.Err()
}

// XDP names who has an AF_XDP socket at a device's queue, in the calling thread's network namespace.
func XDP(ifindex, queue int) ([]string, error) {
	list, err := netlink.SocketDiagXDP()
	if err != nil {
		return nil, err
	}
	inodes := map[string]bool{}
	for _, s := range list {
		if s.XDPInfo != nil && s.XDPDiagMsg != nil && int(s.XDPInfo.Ifindex) == ifindex && int(s.XDPInfo.QueueID) == queue {
			inodes[strconv.FormatUint(uint64(s.XDPDiagMsg.Ino), 10)] = true
		}
	}
	return processes(inodes), nil
}

// File names who has a file open.
func File(name string) []string {
	list := descriptors(func(fd, target string) bool { return target == name })
	slices.Sort(list)
	return slices.Compact(list)
}

// processes names who has sockets, by their inodes.
func processes(inodes map[string]bool) (list []string) {
	if len(inodes) == 0 {
		return nil
	}
	list = descriptors(func(fd, target string) bool {
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		return isSocket && inodes[strings.TrimSuffix(inode, "]")]
	})
	if len(list) == 0 {
		list = append(list, Unseen)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// readSockets reads the format of /proc/net/udp: "sl local_address rem_address st … uid timeout inode …".
func readSockets(r io.Reader, port uint16, inodes map[string]bool) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
			inodes[f[9]] = true
		}
	}
	return lines.Err()
}

// descriptors names the processes that have an open file of a kind; fd is its path in /proc, target what it is a link to.
func descriptors(wanted func(fd, target string) bool) (list []string) {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // fails for bad patterns only
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !wanted(fd, target) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(fd, "/")[2]); err == nil {
			list = append(list, Process(pid))
		}
	}
	return list
}

// vxlanOn names the kernel's vxlan devices on a port.
func vxlanOn(port uint16) (names []string) {
	for _, l := range links() {
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(port) {
			names = append(names, Vxlan(v.Name))
		}
	}
	return names
}

func links() []netlink.Link {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	defer h.Close()
	list, _ := h.LinkList()
	return list
}

// Device says what a device is and, of a TUN or TAP, who has it open: "a tun device of process 7 (openvpn)"; "" where there is none of the name.
func Device(name string) string {
	list := links()
	i := slices.IndexFunc(list, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if i < 0 {
		return ""
	}
	text := Link(list[i])
	if list[i].Type() == "tuntap" {
		if of := Tun(name); len(of) > 0 {
			text += " of " + strings.Join(of, " and ")
		}
	}
	return text
}

// Link is a device's kind in words, and the alias that somebody gave it.
func Link(l netlink.Link) string {
	text := fmt.Sprintf("a %s device", l.Type())
	if alias := l.Attrs().Alias; alias != "" {
		text += fmt.Sprintf(" with the alias %q", alias)
	}
	return text
}

// Tun names the processes of the calling thread's network namespace that have a TUN or TAP device of that name open.
func Tun(name string) []string {
	here, _ := os.Readlink("/proc/thread-self/ns/net")
	list := descriptors(func(fd, target string) bool {
		if target != "/dev/net/tun" {
			return false
		}
		if there, err := os.Readlink(filepath.Dir(filepath.Dir(fd)) + "/ns/net"); err != nil || there != here {
			return false
		}
		info, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		return err == nil && slices.Contains(strings.Split(string(info), "\n"), "iff:\t"+name)
	})
	slices.Sort(list)
	return slices.Compact(list)
}
