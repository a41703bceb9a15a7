package hostnet

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The netlink library speaks net.IP, weft netip: see package ipnet, and here.

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ipOf returns nil for the zero Addr.
func ipOf(a netip.Addr) net.IP { return a.AsSlice() }

// macOf returns zero for what is not an Ethernet address.
func macOf(hw net.HardwareAddr) (mac [6]byte) {
	copy(mac[:], hw)
	return mac
}

func macString(mac [6]byte) string { return net.HardwareAddr(mac[:]).String() }

// dumpTries is how often a dump that changed underneath is repeated.
const dumpTries = 10

// dump reads a table of the kernel; again when it changed underneath, since then entries may be missing.
func dump[T any](list func() ([]T, error)) (table []T, err error) {
	for range dumpTries {
		if table, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return table, err
		}
	}
	return nil, err
}

// dumpBoth is dump for a table that each address family has of its own.
func dumpBoth[T any](list func(family int) ([]T, error)) (table []T, err error) {
	for _, fam := range []int{unix.AF_INET, unix.AF_INET6} {
		part, e := dump(func() ([]T, error) { return list(fam) })
		table, err = append(table, part...), errors.Join(err, e)
	}
	return table, err
}
