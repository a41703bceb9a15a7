package hostnet

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The netlink library speaks net.IP, weft netip. They meet in this file.

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// ipOf returns nil for the zero Addr.
func ipOf(a netip.Addr) net.IP { return a.AsSlice() }

// netOf keeps the host bits of p.
func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: ipOf(p.Addr()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addrOf returns the zero Addr for nil.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// prefixOf returns the zero Prefix for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	a := addrOf(n.IP)
	if bits == 32 {
		a = a.Unmap() // a default route's 0.0.0.0 comes in 16 bytes
	}
	return netip.PrefixFrom(a, ones)
}

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
