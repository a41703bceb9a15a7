package testbed

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// neverFragment sets the don't-fragment policy of a socket that is being made (ip(7),
// IP_MTU_DISCOVER; ipv6(7)).
func neverFragment(v4 bool) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		ctl := c.Control(func(fd uintptr) {
			if v4 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			}
		})
		return errors.Join(ctl, err)
	}
}
