package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// End is one end of a veth pair: a device in a namespace with addresses.
type End struct {
	NS    *NS
	Dev   string
	Addrs []netip.Prefix
}

// Join makes a veth pair between two namespaces, both ends up with the given MTU (0 = 1500) and addresses. Both
// ends are made inside their namespaces; neither is ever visible elsewhere. It vanishes with either namespace.
func Join(a, b End, mtu int) error {
	if mtu == 0 {
		mtu = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = a.Dev, mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerNamespace = b.Dev, uint32(mtu), netlink.NsFd(b.NS.FD())
	if err := a.NS.handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("netlab: veth %s in %s to %s in %s: %w", a.Dev, a.NS.name, b.Dev, b.NS.name, err)
	}
	for _, e := range []End{a, b} {
		if err := e.NS.LinkUp(e.Dev); err != nil {
			return err
		}
		if err := e.NS.AddAddrs(e.Dev, e.Addrs...); err != nil {
			return err
		}
	}
	return nil
}

// AddBridge makes a bridge with the given MTU and sets it up. It floods multicast: without a querier snooping may
// hold back neighbour discovery at first.
func (ns *NS) AddBridge(name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	snoop := false
	if err := ns.handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}); err != nil {
		return fmt.Errorf("netlab: %s: make bridge %s: %w", ns.name, name, err)
	}
	return ns.LinkUp(name)
}

// Enslave makes a device a port of a bridge.
func (ns *NS) Enslave(dev, bridge string) error {
	port, err := ns.handle.LinkByName(dev)
	var master netlink.Link
	if err == nil {
		master, err = ns.handle.LinkByName(bridge)
	}
	if err == nil {
		err = ns.handle.LinkSetMaster(port, master)
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: put %s into %s: %w", ns.name, dev, bridge, err)
	}
	return nil
}

// LinkUp sets a device up.
func (ns *NS) LinkUp(dev string) error {
	l, err := ns.handle.LinkByName(dev)
	if err == nil {
		err = ns.handle.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: set %s up: %w", ns.name, dev, err)
	}
	return nil
}

// AddAddrs puts addresses on a device, without duplicate address detection, and returns once they work.
func (ns *NS) AddAddrs(dev string, addrs ...netip.Prefix) error {
	l, err := ns.handle.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("netlab: %s: find %s: %w", ns.name, dev, err)
	}
	for _, p := range addrs {
		a := &netlink.Addr{IPNet: ipnet.Of(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := ns.handle.AddrAdd(l, a); err != nil {
			return fmt.Errorf("netlab: %s: add %s to %s: %w", ns.name, p, dev, err)
		}
		if err := ns.awaitLocal(p.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// awaitLocal waits until the local routing table holds an address: for IPv6 the kernel puts it there in a work
// queue, some time after it has accepted the address.
func (ns *NS) awaitLocal(a netip.Addr) error {
	fam := netlink.FAMILY_V4
	if a.Is6() {
		fam = netlink.FAMILY_V6
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipnet.Of(ipnet.Host(a))}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		routes, err := ns.handle.RouteListFiltered(fam, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		switch {
		case err == nil && len(routes) > 0:
			return nil
		case err != nil && !errors.Is(err, netlink.ErrDumpInterrupted):
			return fmt.Errorf("netlab: %s: list local routes: %w", ns.name, err)
		case time.Now().After(end):
			return fmt.Errorf("netlab: %s: address %s does not begin to work", ns.name, a)
		}
	}
}

// AddRoute adds a route to dst over dev; via may be invalid (a route on the link) and need not be on the link.
func (ns *NS) AddRoute(dst netip.Prefix, via netip.Addr, dev string) error {
	l, err := ns.handle.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("netlab: %s: find %s: %w", ns.name, dev, err)
	}
	r := &netlink.Route{Dst: ipnet.Of(dst), LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
	if via.IsValid() {
		r.Gw, r.Scope, r.Flags = via.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if err := ns.handle.RouteAdd(r); err != nil {
		return fmt.Errorf("netlab: %s: add route %s via %s dev %s: %w", ns.name, dst, via, dev, err)
	}
	return nil
}

// AddNeighbour tells dev for good that addr is at a device of another namespace.
func (ns *NS) AddNeighbour(dev string, addr netip.Addr, far *NS, farDev string) error {
	link, err := ns.handle.LinkByName(dev)
	var peer netlink.Link
	if err == nil {
		peer, err = far.handle.LinkByName(farDev)
	}
	if err == nil {
		err = ns.handle.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: peer.Attrs().HardwareAddr,
		})
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: tell %s where %s is: %w", ns.name, dev, addr, err)
	}
	return nil
}
