package doctor

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

	"weft/api"
	"weft/catalog/mode"
	"weft/internal/config"
)

// port says who has the tunnel's UDP port.
func port(p Subject, s api.Status, running bool) Finding {
	usual, _ := mode.Find(p.Modes, mode.Default)
	n := usual.Port
	switch {
	case running:
		n = s.Port
	case p.Config != nil:
		n = p.Config.Network.Port
		if e := p.Config.Encryption; e.Cipher != config.CipherNone {
			n = e.Port
		}
	}
	f := Finding{Name: "udp port", Level: OK, Found: fmt.Sprintf("%d is free", n)}
	if n == 0 {
		f.Found = "none: this mode sends no UDP"
		return f
	}
	holders, err := udpHolders(n)
	switch {
	case err != nil:
		f.Level, f.Found, f.Remedy = Note, err.Error(), "mount /proc"
	case len(holders) == 0 && !running:
	case len(holders) == 0:
		f.Level, f.Found = Wrong, fmt.Sprintf("%d is not open although the daemon runs", n)
		f.Remedy = "see `weft status`; the daemon may be in another network namespace"
	case running && slices.ContainsFunc(holders, func(h string) bool {
		return h == ours(s.PID) || h == kernelHolder("weft0") || strings.HasPrefix(h, kernelHolder("weft-"))
	}):
		f.Found = fmt.Sprintf("%d is the daemon's", n)
	default:
		f.Level, f.Found = Wrong, fmt.Sprintf("%d is in use by %s", n, strings.Join(holders, " and "))
		f.Remedy = "stop that, or set network.port on every node"
	}
	return f
}

func ours(pid int) string { return fmt.Sprintf("process %d (%s)", pid, command(pid)) }

func kernelHolder(device string) string { return "the vxlan device " + device }

// udpHolders names who has sockets bound to a UDP port in this network namespace: processes, and the
// kernel's own tunnel devices, whose sockets belong to no process.
func udpHolders(port uint16) ([]string, error) {
	inodes := map[string]bool{}
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		if err := socketsOn(file, port, inodes); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	list := tunnelDevices(port)
	for _, process := range socketOwners(inodes) {
		list = append(list, process)
	}
	if len(inodes) > 0 && len(list) == 0 {
		list = append(list, "a process that cannot be seen from here")
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// socketsOn reads the inodes of the sockets bound to a port.
func socketsOn(file string, port uint16, inodes map[string]bool) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return readSockets(f, port, inodes)
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

// socketOwners finds the processes that hold sockets, by inode. What may not be looked into is
// left out.
func socketOwners(inodes map[string]bool) map[string]string {
	owners := map[string]string{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // fails for bad patterns only
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil {
			continue
		}
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		inode = strings.TrimSuffix(inode, "]")
		if !isSocket || !inodes[inode] {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(fd, "/")[2]); err == nil {
			owners[inode] = ours(pid)
		}
	}
	return owners
}

func command(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(string(name))
}

// tunnelDevices names the kernel's vxlan devices on a port.
func tunnelDevices(port uint16) []string {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil
	}
	var names []string
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(port) {
			names = append(names, kernelHolder(v.Name))
		}
	}
	return names
}
