package doctor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// privileges looks for the one capability that everything needs.
func privileges() Finding {
	const name = "privileges"
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Finding{name, Note, err.Error(), "mount /proc"}
	}
	for line := range strings.Lines(string(data)) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			bits, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			if err == nil && bits&(1<<unix.CAP_NET_ADMIN) != 0 {
				return Finding{name, OK, "CAP_NET_ADMIN", ""}
			}
		}
	}
	return Finding{name, Missing, "CAP_NET_ADMIN is lacking", "run as root or grant it; what follows is what can be seen without"}
}

// ability is something a kernel may lack, and the modes that cannot do without.
type ability struct {
	name   string
	modes  []string
	probe  func() error
	remedy string
}

func allAbilities() []ability {
	return []ability{
		{"tun device", []string{"tun", "tun-gso", "udp", "tap", "tun-xdp", "cached"}, probeTUN,
			"modprobe tun; in a container, pass in /dev/net/tun"},
		{"vxlan device", []string{"vxlan", "vxlan-nocsum"}, probeVXLAN,
			"modprobe vxlan, or a kernel with CONFIG_VXLAN; userspace modes do without"},
		{"af_xdp socket", []string{"xdp", "xdp-lib", "xdp-udp", "tun-xdp"}, probeXDP,
			"a kernel with CONFIG_XDP_SOCKETS and CONFIG_BPF_SYSCALL, and CAP_NET_RAW"},
	}
}

// abilities tries what the modes of this build need from the kernel.
func abilities(p Patient) []Finding {
	var list []Finding
	for _, a := range allAbilities() {
		needed := slices.DeleteFunc(slices.Clone(a.modes), func(m string) bool { return !slices.Contains(p.Modes, m) })
		if len(needed) == 0 {
			continue
		}
		f := Finding{Name: a.name, Level: OK, Found: "works"}
		if err := a.probe(); err != nil {
			f.Level, f.Found, f.Remedy = Note, fmt.Sprintf("%v: modes %s cannot run here", err, strings.Join(needed, ", ")), a.remedy
			if p.Config != nil && slices.Contains(needed, p.Config.Mode) {
				f.Level = Missing
			}
		}
		list = append(list, f)
	}
	return list
}

// probeTUN opens the control device and asks what it can do; that makes no interface.
func probeTUN() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	if _, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES); err != nil {
		return fmt.Errorf("ioctl TUNGETFEATURES: %w", err)
	}
	return nil
}

func probeXDP() error {
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("AF_XDP socket: %w", err)
	}
	return unix.Close(fd)
}

// probeVXLAN makes a device in a network namespace of its own, which vanishes with the thread.
func probeVXLAN() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace to try in: %w", err)
			}
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return fmt.Errorf("netlink: %w", err)
			}
			defer h.Close()
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "weft-probe"
			if err := h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789}); err != nil {
				return fmt.Errorf("make a vxlan device: %w", err)
			}
			return nil
		}()
	}()
	return <-done
}

// wantBuffer is the socket buffer that absorbs a few milliseconds of 10 Gbit/s, bytes.
const wantBuffer = 4 << 20

// socketBuffers tries to get a large receive buffer.
func socketBuffers() Finding {
	const name = "socket buffers"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Finding{name, Wrong, fmt.Sprintf("UDP socket: %v", err), "raise the limit of open files"}
	}
	defer unix.Close(fd)
	forced := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wantBuffer)
	if forced != nil {
		forced = errors.Join(forced, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, wantBuffer))
	}
	got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return Finding{name, Wrong, fmt.Sprintf("getsockopt SO_RCVBUF: %v", err), ""}
	}
	got /= 2 // the kernel doubles what was asked for, for its own use
	if got < wantBuffer {
		return Finding{name, Note, fmt.Sprintf("at most %d bytes (%v)", got, forced),
			fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%[1]d, or grant CAP_NET_ADMIN", wantBuffer)}
	}
	return Finding{name, OK, fmt.Sprintf("%d bytes", got), ""}
}
