package hostnet

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// holder says what has the place of an object that could not be added, and what to do about it; "" where that is not known.
func (h *Host) holder(o any, err error) string {
	r, ok := o.(Route)
	if !ok || !errors.Is(err, unix.EEXIST) {
		return ""
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return h.strict.RouteListFiltered(family(r.Dst.Addr()), &netlink.Route{Table: int(r.Table)}, netlink.RT_FILTER_TABLE)
	})
	at := slices.IndexFunc(routes, func(k netlink.Route) bool {
		return k.Protocol != Protocol && ipnet.Prefix(k.Dst) == r.Dst && uint32(k.Priority) == r.Metric
	})
	if err != nil || at < 0 {
		return ""
	}
	k := routes[at]
	dev := ""
	if l, err := h.rt.LinkByIndex(k.LinkIndex); err == nil {
		dev = l.Attrs().Name
	}
	if k.Gw == nil && k.Via == nil && len(k.MultiPath) == 0 && k.Type == unix.RTN_UNICAST && !Ours(dev) {
		return fmt.Sprintf("%v is this node's own network on %s, which the node needs: give the peer another prefix, or that network other addresses", r.Dst, dev)
	}
	text := fmt.Sprintf("a route of somebody else has its place (%s", routeTypes[k.Type])
	if gw := nextHop(k.Gw, k.Via); gw.IsValid() {
		text += fmt.Sprintf(" via %v", gw)
	}
	if dev != "" {
		text += " dev " + dev
	}
	table := ""
	if r.Table != MainTable {
		table = fmt.Sprintf(" table %d", r.Table)
	}
	return text + fmt.Sprintf(", protocol %v): if the overlay is to have it: ip route del %v metric %d%s", k.Protocol, r.Dst, r.Metric, table)
}
