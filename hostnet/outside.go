package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// OutsideNet is what this node reaches without the overlay, by a device that is not weft's.
type OutsideNet struct {
	Prefix       netip.Prefix // a network on the device's link, or the address of a router
	Dev          string
	Router       bool // of the default route
	DefaultRoute bool // the device has a default route: the way out, and as a rule that to the other nodes
}

func (g OutsideNet) String() string {
	if g.Router {
		return fmt.Sprintf("the router %v on %s", g.Prefix.Addr(), g.Dev)
	}
	return fmt.Sprintf("this node's own network %v on %s", g.Prefix, g.Dev)
}

// Outside is all that this node reaches without the overlay.
type Outside struct {
	Nets   []OutsideNet
	routes []netip.Prefix // of others, in the main table
}

// Leads says whether some route of others leads to an address, the default route among them.
func (t Outside) Leads(a netip.Addr) bool {
	return slices.ContainsFunc(t.routes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// OutsideNews counts what was heard, or may have been missed, that could make the Outside another one.
func (h *Host) OutsideNews() uint64 { return h.outsideNews.Load() }

// Outside lists what devices that are up and not weft's lead to: the networks on their links, by the main table, and the routers of
// default routes. Loopback devices, single addresses and link-local ones are left out.
func (h *Host) Outside() (t Outside, err error) {
	links, err := dumpLinks(h.rt)
	if err != nil {
		return t, fmt.Errorf("hostnet: list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && !strings.HasPrefix(a.Name, LinkPrefix) {
			names[a.Index] = a.Name
		}
	}
	routes, err := dumpBoth(func(fam int) ([]netlink.Route, error) {
		return h.strict.RouteListFiltered(fam, &netlink.Route{Table: MainTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return t, fmt.Errorf("hostnet: list routes: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Protocol == Protocol || r.Type != unix.RTN_UNICAST })
	outside := map[int]bool{}
	each := func(r netlink.Route, visit func(index int, gw netip.Addr)) {
		if len(r.MultiPath) == 0 {
			visit(r.LinkIndex, nextHop(r.Gw, r.Via))
		}
		for _, n := range r.MultiPath {
			visit(n.LinkIndex, nextHop(n.Gw, n.Via))
		}
	}
	for _, r := range routes {
		t.routes = append(t.routes, ipnet.Prefix(r.Dst))
		if ipnet.Prefix(r.Dst).Bits() == 0 {
			each(r, func(index int, _ netip.Addr) { outside[index] = true })
		}
	}
	add := func(p netip.Prefix, index int, router bool) {
		name, known := names[index]
		if !known || !p.IsValid() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() || p.Bits() == 0 || !router && p.IsSingleIP() {
			return
		}
		if g := (OutsideNet{p, name, router, outside[index]}); !slices.Contains(t.Nets, g) {
			t.Nets = append(t.Nets, g)
		}
	}
	for _, r := range routes {
		dst := ipnet.Prefix(r.Dst)
		each(r, func(index int, gw netip.Addr) {
			switch {
			case !gw.IsValid():
				add(dst, index, false)
			case dst.Bits() == 0:
				add(ipnet.Host(gw), index, true)
			}
		})
	}
	return t, nil
}
