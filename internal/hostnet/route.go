package hostnet

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Route is one route of protocol 87.
type Route struct {
	Dst         netip.Prefix // masked
	Dev         string       // "" for an unreachable route
	Via         netip.Addr   // next hop, taken to be on the link (onlink), IPv6 for an IPv4 Dst too; zero = Dst is on the link itself
	Src         netip.Addr   // preferred source of this node's own packets; zero = the kernel's choice
	Metric      uint32       // 0 = the family's default: 0 (v4), 1024 (v6)
	Table       uint32       // 0 = MainTable
	MTU         uint32       // 0 = the device's
	Unreachable bool         // answer with ICMP unreachable

	odd bool // has attributes that weft never sets
}

// routeKey is what the kernel tells routes apart by.
type routeKey struct {
	dst           netip.Prefix
	metric, table uint32
}

func (r Route) key() routeKey  { return routeKey{r.Dst, r.Metric, r.Table} }
func (r Route) device() string { return r.Dev }
func (r Route) shared() bool   { return true }

// ip6RouteMetric is what an IPv6 route without a metric gets (IP6_RT_PRIO_USER).
const ip6RouteMetric = 1024

// normal fills in the kernel's defaults, so that a wanted route compares equal to the dumped one.
func (r Route) normal() Route {
	if r.Table == 0 {
		r.Table = MainTable
	}
	if r.Metric == 0 && r.Dst.Addr().Is6() {
		r.Metric = ip6RouteMetric
	}
	r.Dst = r.Dst.Masked()
	return r
}

// guard is the unreachable route that stands for a prefix of the overlay.
func guard(p netip.Prefix) Route {
	return Route{Dst: p, Unreachable: true, Metric: GuardMetric}.normal()
}

func (r Route) String() string {
	var b strings.Builder
	if r.Unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Via)
	}
	if r.Dev != "" {
		fmt.Fprintf(&b, " dev %s", r.Dev)
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Src)
	}
	fmt.Fprintf(&b, " metric %d table %d", r.Metric, r.Table)
	return b.String()
}

// kernel is the route as the library puts it, over the device of this number.
func (r Route) kernel(index int) *netlink.Route {
	k := &netlink.Route{
		Dst: netOf(r.Dst), LinkIndex: index, Gw: ipOf(r.Via), Src: ipOf(r.Src), MTU: int(r.MTU),
		Priority: int(r.Metric), Table: int(r.Table), Family: family(r.Dst.Addr()), Protocol: Protocol, Type: unix.RTN_UNICAST,
	}
	if r.Via.IsValid() && r.Via.Is4() != r.Dst.Addr().Is4() {
		k.Gw, k.Via = nil, &netlink.Via{AddrFamily: family(r.Via), Addr: ipOf(r.Via)}
	}
	switch {
	case r.Unreachable:
		k.Type = unix.RTN_UNREACHABLE
	case r.Via.IsValid():
		k.Flags = int(netlink.FLAG_ONLINK)
	case r.Dst.Addr().Is4():
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

func (r Route) add(rt *netlink.Handle, index int, replace bool) error {
	if replace {
		return rt.RouteReplace(r.kernel(index))
	}
	return rt.RouteAdd(r.kernel(index))
}

func (r Route) remove(rt *netlink.Handle, index int) error {
	k := r.kernel(index)
	k.Scope = netlink.SCOPE_NOWHERE // of any scope
	if r.odd {                      // what is odd about it is not known here
		k.Gw, k.Via, k.Src, k.MTU, k.Flags, k.Type = nil, nil, nil, 0, 0, 0
	}
	return rt.RouteDel(k)
}

// evict removes whichever route, of whatever protocol, has r's key.
func (r Route) evict(rt *netlink.Handle, _ int) error {
	return rt.RouteDel(&netlink.Route{
		Dst: netOf(r.Dst), Priority: int(r.Metric), Table: int(r.Table), Scope: netlink.SCOPE_NOWHERE,
	})
}

// dumpRoutes returns all routes of protocol 87 in every table, but those over links that names does not know: a link made
// since is likely a pod's, whose routes are not the reconciler's; the next look knows it.
func dumpRoutes(strict *netlink.Handle, names map[int]string) (list []Route, err error) {
	ours := &netlink.Route{Protocol: Protocol} // and RT_TABLE_UNSPEC: any
	table, err := dumpBoth(func(fam int) ([]netlink.Route, error) {
		return strict.RouteListFiltered(fam, ours, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	for _, k := range table {
		if _, known := names[k.LinkIndex]; known || k.LinkIndex == 0 {
			list = append(list, routeFrom(k, names))
		}
	}
	return list, err
}

func routeFrom(k netlink.Route, names map[int]string) Route {
	r := Route{
		Dst: prefixOf(k.Dst), Via: addrOf(k.Gw), Src: addrOf(k.Src), MTU: uint32(k.MTU),
		Metric: uint32(k.Priority), Table: uint32(k.Table), Unreachable: k.Type == unix.RTN_UNREACHABLE,
	}
	if via, ok := k.Via.(*netlink.Via); ok {
		r.Via = addrOf(via.Addr)
	}
	if r.Unreachable {
		k.LinkIndex = 0 // the kernel files such IPv6 routes under lo
	}
	r.Dev = names[k.LinkIndex]
	k.Dst, k.Flags = netOf(r.Dst), k.Flags&int(netlink.FLAG_ONLINK) // the other flags tell the device's state
	// Whatever weft would not have written: more next hops, another type, TOS, metrics, an encapsulation, …
	r.odd = !reflect.DeepEqual(k, *r.kernel(k.LinkIndex))
	return r
}

// routeMessage reads a notification about a route as far as weft's own ones go; false for one that has more to it.
// The library reads such messages in its dumps and subscriptions only.
func routeMessage(b []byte) (k netlink.Route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return k, false
	}
	msg := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[msg.Len():])
	if err != nil {
		return k, false
	}
	k = netlink.Route{Scope: netlink.Scope(msg.Scope), Protocol: netlink.RouteProtocol(msg.Protocol), Table: int(msg.Table),
		Type: int(msg.Type), Tos: int(msg.Tos), Flags: int(msg.Flags), Family: int(msg.Family)}
	for _, a := range attrs {
		number := func() int {
			if len(a.Value) < 4 {
				return -1
			}
			return int(binary.NativeEndian.Uint32(a.Value))
		}
		switch a.Attr.Type {
		case unix.RTA_DST:
			k.Dst = &net.IPNet{IP: a.Value, Mask: net.CIDRMask(int(msg.Dst_len), 8*len(a.Value))}
		case unix.RTA_GATEWAY:
			k.Gw = a.Value
		case unix.RTA_VIA:
			via := &netlink.Via{}
			if err := via.Decode(a.Value); err != nil {
				return k, false
			}
			k.Via = via
		case unix.RTA_PREFSRC:
			k.Src = a.Value
		case unix.RTA_OIF:
			k.LinkIndex = number()
		case unix.RTA_PRIORITY:
			k.Priority = number()
		case unix.RTA_TABLE:
			k.Table = number()
		case unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(a.Value)
			if err != nil || len(metrics) != 1 || metrics[0].Attr.Type != unix.RTAX_MTU || len(metrics[0].Value) < 4 {
				return k, false
			}
			k.MTU = int(binary.NativeEndian.Uint32(metrics[0].Value))
		case unix.RTA_CACHEINFO, unix.RTA_PREF: // statistics; a preference that weft leaves as it is
		default:
			return k, false
		}
	}
	return k, true
}
