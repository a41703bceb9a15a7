package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Addr is an address of this node on a device of ours.
type Addr struct {
	Dev    string
	Prefix netip.Prefix // the address with its length, not masked
	OnLink bool         // the rest of the prefix is on the device's link: the kernel has a route to it there

	odd bool // limited in time, with a peer, or refused by duplicate address detection
}

func (a Addr) key() Addr      { return Addr{Dev: a.Dev, Prefix: a.Prefix} }
func (a Addr) device() string { return a.Dev }
func (a Addr) shared() bool   { return false }

func (a Addr) String() string { return fmt.Sprintf("address %s dev %s", a.Prefix, a.Dev) }

// flags6 are the flags of our IPv6 addresses. No duplicate address detection: nobody on the device could answer,
// and routes that name the address as their source are refused until it is over. No route to the address on the
// link, except where OnLink asks for it: all it would do is to send the node's own packets out while the local route is not there
// yet.
const flags6 = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE

func (a Addr) kernel(index int) *netlink.Addr {
	k := &netlink.Addr{IPNet: ipnet.Of(a.Prefix), LinkIndex: index, Broadcast: net.IPv4zero} // no broadcast address
	switch {
	case a.Prefix.Addr().Is6() && a.OnLink:
		k.Flags = unix.IFA_F_NODAD
	case a.Prefix.Addr().Is6():
		k.Flags = flags6
	}
	return k
}

func (a Addr) add(rt *handle, index int, replace bool) error {
	if replace {
		return rt.AddrReplace(nil, a.kernel(index))
	}
	return rt.AddrAdd(nil, a.kernel(index))
}

func (a Addr) remove(rt *handle, index int) error { return rt.AddrDel(nil, a.kernel(index)) }
func (a Addr) evict(rt *handle, index int) error  { return a.remove(rt, index) }

// dumpAddrs returns all addresses of the namespace.
func dumpAddrs(rt *handle) ([]netlink.Addr, error) {
	return dump(func() ([]netlink.Addr, error) { return rt.AddrList(nil, netlink.FAMILY_ALL) })
}

// addrFrom turns the kernel's entry into an Addr of the named device.
func addrFrom(k netlink.Addr, dev string) Addr {
	a := Addr{Dev: dev, Prefix: ipnet.Prefix(k.IPNet), odd: k.Flags&unix.IFA_F_PERMANENT == 0}
	if k.Peer != nil { // the length is the peer's
		a.Prefix, a.odd = netip.PrefixFrom(a.Prefix.Addr(), ipnet.Prefix(k.Peer).Bits()), true
	}
	if a.Prefix.Addr().Is6() {
		a.OnLink = k.Flags&unix.IFA_F_NOPREFIXROUTE == 0
		a.odd = a.odd || k.Flags&unix.IFA_F_NODAD == 0 || k.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0
	} else { // an address of host length has no such route
		a.OnLink = k.Flags&unix.IFA_F_NOPREFIXROUTE == 0 && a.Prefix.Bits() < 32
	}
	return a
}

// localTimeout bounds the wait for an IPv6 address to begin to work.
const localTimeout = 10 * time.Second

func (p *pass) awaitLocal(addrs iter.Seq[Addr]) { p.fail(awaitLocal(p.h.rt, addrs)) }

// awaitLocal waits until the node takes packets to the given IPv6 addresses as its own. The kernel does so in a
// work queue some time after it has accepted an address, and until then would forward them.
func awaitLocal(rt *handle, addrs iter.Seq[Addr]) error {
	deadline := time.Now().Add(localTimeout)
	for a := range addrs {
		ip := a.Prefix.Addr()
		if !ip.Is6() || ip.IsLinkLocalUnicast() { // one on the link is asked for with its device
			continue
		}
		for {
			local, err := isLocal(rt, ip)
			if err != nil {
				return fmt.Errorf("hostnet: look up %s: %w", ip, err)
			}
			if local {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("hostnet: %s does not work: the local routing table has no route for it", a)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// isLocal says whether the kernel's route to an address ends at this node.
func isLocal(rt *handle, ip netip.Addr) (bool, error) {
	routes, err := rt.RouteGet(ipOf(ip))
	if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) {
		return false, nil // the guard's answer
	}
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
}

// addrMessage reads a notification about an address.
func addrMessage(b []byte) (k netlink.Addr, err error) {
	msg := nl.DeserializeIfAddrmsg(b)
	attrs, err := parseAttrs(b[msg.Len():])
	if err != nil {
		return k, fmt.Errorf("read an address: %w", err)
	}
	k.LinkIndex, k.Flags = int(msg.Index), int(msg.Flags)
	var local, address netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			local = ipnet.Addr(a.Value)
		case unix.IFA_ADDRESS:
			address = ipnet.Addr(a.Value)
		case unix.IFA_FLAGS:
			if len(a.Value) >= 4 {
				k.Flags = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	if !local.IsValid() {
		local = address
	}
	if !local.IsValid() || int(msg.Prefixlen) > local.BitLen() {
		return k, errors.New("read an address: it has none")
	}
	k.IPNet = ipnet.Of(netip.PrefixFrom(local, int(msg.Prefixlen)))
	if address.IsValid() && address != local {
		k.Peer = ipnet.Of(netip.PrefixFrom(address, int(msg.Prefixlen)))
	}
	return k, nil
}
