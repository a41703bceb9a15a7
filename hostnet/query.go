package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// Counters are a device's packets that got lost.
type Counters struct {
	RxErrors, TxErrors, RxDropped, TxDropped, TxCarrier uint64
}

// OnLink returns the device on whose link an address of another node is, as the kernel would send to it now; or why it is
// on none.
func (h *Host) OnLink(addr netip.Addr) (iface string, err error) {
	routes, err := h.rt.RouteGet(ipOf(addr))
	if err != nil {
		return "", fmt.Errorf("no route to %s: %w", addr, err)
	}
	if len(routes) == 0 {
		return "", fmt.Errorf("no route to %s", addr)
	}
	r := routes[0]
	switch {
	case r.Type != unix.RTN_UNICAST:
		return "", fmt.Errorf("%s is an address of this node itself, or of a group", addr)
	case r.Gw != nil:
		return "", fmt.Errorf("%s is not on a link of this node, but behind the router %s", addr, ipnet.Addr(r.Gw))
	case r.Via != nil || len(r.MultiPath) > 0:
		return "", fmt.Errorf("%s is not on a link of this node, but behind a router", addr)
	}
	l, err := h.rt.LinkByIndex(r.LinkIndex)
	if err != nil {
		return "", fmt.Errorf("the device towards %s: %w", addr, err)
	}
	if Owned(l.Attrs().Name) {
		return "", fmt.Errorf("%s is an address of the overlay itself", addr)
	}
	return l.Attrs().Name, nil
}

// Counters returns a device's lost packets.
func (h *Host) Counters(iface string) (Counters, error) {
	l, err := h.linkByName(iface)
	if err != nil {
		return Counters{}, fmt.Errorf("hostnet: %w", err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return Counters{}, nil
	}
	return Counters{
		RxErrors: s.RxErrors, TxErrors: s.TxErrors, RxDropped: s.RxDropped, TxDropped: s.TxDropped, TxCarrier: s.TxCarrierErrors,
	}, nil
}

// Endpoints returns the addresses of this node that other nodes may send to, IPv4 first, each family in the
// kernel's order: those of iface, or where that is "", of the device of the best default route. Addresses that
// come and go (temporary, deprecated, tentative) or do not leave the link are left out.
func (h *Host) Endpoints(iface string) ([]netip.Addr, error) {
	if iface == "" {
		var err error
		if iface, err = h.DefaultDevice(); err != nil {
			return nil, err
		}
	}
	l, err := h.linkByName(iface)
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	table, err := dumpAddrs(h.rt)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list addresses: %w", err)
	}
	const passing = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	var list []netip.Addr
	for _, k := range table {
		ip := ipnet.Addr(k.IP)
		temporary := ip.Is6() && k.Flags&unix.IFA_F_TEMPORARY != 0 // for v4 the bit means "secondary"
		if k.LinkIndex == l.Attrs().Index && k.Flags&passing == 0 && !temporary && ip.IsGlobalUnicast() {
			list = append(list, ip)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("hostnet: %s has no address that other nodes could reach: set node.interface", iface)
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return list, nil
}

// DefaultDevice returns the device of the default route with the lowest metric, of IPv4 where there is one.
func (h *Host) DefaultDevice() (string, error) {
	main := &netlink.Route{Table: MainTable}
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump(func() ([]netlink.Route, error) { return h.strict.RouteListFiltered(fam, main, netlink.RT_FILTER_TABLE) })
		if err != nil {
			return "", fmt.Errorf("hostnet: list routes: %w", err)
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
			return ipnet.Prefix(r.Dst).Bits() != 0 || r.Type != unix.RTN_UNICAST
		})
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
		for _, r := range routes {
			index := r.LinkIndex
			if len(r.MultiPath) > 0 { // the first will do
				index = r.MultiPath[0].LinkIndex
			}
			l, err := h.rt.LinkByIndex(index)
			if err == nil && !Owned(l.Attrs().Name) {
				return l.Attrs().Name, nil
			}
		}
	}
	return "", errors.New("hostnet: no default route says which device leads to the other nodes: set node.interface")
}
