package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// HostCongestion, as the name of a TCP congestion control, leaves each end what its host uses for its own connections. Any other has to be root's
// to choose, or one of net.ipv4.tcp_allowed_congestion_control.
const HostCongestion = "host"

// OwnCongestion is the TCP congestion control that this host uses for its own connections; "" where the kernel does not say.
func OwnCongestion() string {
	name, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	return strings.TrimSpace(string(name))
}

// Congestion says why this kernel has no TCP congestion control of a name; nil = it has.
func Congestion(name string) error {
	if name == HostCongestion {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return fmt.Errorf("open a TCP socket: %w", err)
	}
	defer unix.Close(fd)
	err = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	has, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	return fmt.Errorf("this kernel has no TCP congestion control %q, it has %s: load the module tcp_%s", name, strings.TrimSpace(string(has)), name)
}

// registered says why a TCP congestion control may not be asked for at the other end's word: to ask the kernel for one that it does
// not have would load a module.
func registered(name string) error {
	if name == HostCongestion {
		return nil
	}
	const file = "/proc/sys/net/ipv4/tcp_available_congestion_control"
	has, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("which TCP congestion controls the kernel has: %w", err)
	}
	if !slices.Contains(strings.Fields(string(has)), name) {
		return fmt.Errorf("this host has no TCP congestion control %q: choose one of its net.ipv4.tcp_available_congestion_control (%s), or load the module tcp_%s there", name, strings.TrimSpace(string(has)), name)
	}
	return nil
}
