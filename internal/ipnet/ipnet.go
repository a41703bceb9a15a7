// Package ipnet is where netip's types meet those of package net, which the libraries speak.
package ipnet

import (
	"net"
	"net/netip"
)

// Host is the prefix of an address alone.
func Host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// Everything is the prefix of all addresses of a's IP version: a default route's.
func Everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// Of is a prefix as package net has it, with the bits behind its length as they are.
func Of(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Addr is the zero Addr for nil. An IPv4 address in 16 bytes stays one.
func Addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// Prefix is the zero Prefix for nil. It is of the version that the mask is of.
func Prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	a := Addr(n.IP)
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}
