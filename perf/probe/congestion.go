package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Congestion says why this kernel has no TCP congestion control of a name; nil = it has.
func Congestion(name string) error {
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
