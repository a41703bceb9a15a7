package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
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
	Resolve     bool         // Via must be on a link by the kernel's own routes, and is not just taken to be
	NextHop     uint32       // the ID of a NextHop, in place of Dev and Via; 0 = none

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
	if r.NextHop != 0 {
		fmt.Fprintf(&b, " nhid %d", r.NextHop)
	}
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
		Dst: ipnet.Of(r.Dst), LinkIndex: index, Gw: ipOf(r.Via), Src: ipOf(r.Src), MTU: int(r.MTU),
		Priority: int(r.Metric), Table: int(r.Table), Family: family(r.Dst.Addr()), Protocol: Protocol, Type: unix.RTN_UNICAST,
	}
	if r.Via.IsValid() && r.Via.Is4() != r.Dst.Addr().Is4() {
		k.Gw, k.Via = nil, &netlink.Via{AddrFamily: family(r.Via), Addr: ipOf(r.Via)}
	}
	switch {
	case r.Unreachable:
		k.Type = unix.RTN_UNREACHABLE
	case r.Via.IsValid() && r.Resolve:
	case r.Via.IsValid():
		k.Flags = int(netlink.FLAG_ONLINK)
	case r.Dst.Addr().Is4():
		k.Scope = netlink.SCOPE_LINK
	}
	return k
}

func (r Route) add(rt *handle, index int, replace bool) error {
	if r.NextHop != 0 {
		return rt.raw.addHopRoute(r, replace)
	}
	if replace {
		return rt.RouteReplace(r.kernel(index))
	}
	return rt.RouteAdd(r.kernel(index))
}

func (r Route) remove(rt *handle, index int) error {
	k := r.kernel(index)
	k.Scope = netlink.SCOPE_NOWHERE // of any scope
	if r.odd || r.NextHop != 0 {    // what is odd about it is not known here
		k.Gw, k.Via, k.Src, k.MTU, k.Flags, k.Type = nil, nil, nil, 0, 0, 0
	}
	return rt.RouteDel(k)
}

// evict removes whichever route, of whatever protocol, has r's key.
func (r Route) evict(rt *handle, _ int) error {
	return rt.RouteDel(&netlink.Route{
		Dst: ipnet.Of(r.Dst), Priority: int(r.Metric), Table: int(r.Table), Scope: netlink.SCOPE_NOWHERE,
	})
}

// dumpRoutes returns all routes of protocol 87 in every table, but those over links that names does not know: such a link was made
// by somebody else after names was read; the next look knows it.
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
		Dst: ipnet.Prefix(k.Dst), Via: ipnet.Addr(k.Gw), Src: ipnet.Addr(k.Src), MTU: uint32(k.MTU),
		Metric: uint32(k.Priority), Table: uint32(k.Table), Unreachable: k.Type == unix.RTN_UNREACHABLE,
	}
	if via, ok := k.Via.(*netlink.Via); ok {
		r.Via = ipnet.Addr(via.Addr)
	}
	if r.Unreachable {
		k.LinkIndex = 0 // the kernel files such IPv6 routes under lo
	}
	r.Dev = names[k.LinkIndex]
	r.Resolve = r.Via.IsValid() && k.Flags&int(netlink.FLAG_ONLINK) == 0
	k.Dst, k.Flags = ipnet.Of(r.Dst), k.Flags&int(netlink.FLAG_ONLINK) // the other flags tell the device's state
	// Whatever weft would not have written: more next hops, another type, TOS, metrics, an encapsulation, …
	r.odd = !reflect.DeepEqual(k, *r.kernel(k.LinkIndex))
	return r
}

// routeMessage reads a notification about a route as far as weft's own ones go; false for one that has more to it.
// The library reads such messages in its dumps and subscriptions only.
func routeMessage(b []byte) (k netlink.Route, hop uint32, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return k, 0, false
	}
	msg := nl.DeserializeRtMsg(b)
	attrs, err := parseAttrs(b[msg.Len():])
	if err != nil {
		return k, 0, false
	}
	k = netlink.Route{Scope: netlink.Scope(msg.Scope), Protocol: netlink.RouteProtocol(msg.Protocol), Table: int(msg.Table),
		Type: int(msg.Type), Tos: int(msg.Tos), Flags: int(msg.Flags), Family: int(msg.Family)}
	several := false // next hops, which weft's routes have by their object only
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
				return k, 0, false
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
			metrics, err := parseAttrs(a.Value)
			if err != nil || len(metrics) != 1 || metrics[0].Attr.Type != unix.RTAX_MTU || len(metrics[0].Value) < 4 {
				return k, 0, false
			}
			k.MTU = int(binary.NativeEndian.Uint32(metrics[0].Value))
		case rtaNextHopID:
			hop = uint32(number())
		case unix.RTA_MULTIPATH:
			several = true
		case unix.RTA_CACHEINFO, unix.RTA_PREF: // statistics; a preference that weft leaves as it is
		default:
			return k, 0, false
		}
	}
	return k, hop, !several || hop != 0
}

// hopRoute is a route over a next-hop object: what else the kernel says of the way is the object's.
func hopRoute(k netlink.Route, hop uint32) Route {
	return Route{Dst: ipnet.Prefix(k.Dst), Src: ipnet.Addr(k.Src), MTU: uint32(k.MTU), Metric: uint32(k.Priority), Table: uint32(k.Table), NextHop: hop,
		odd: k.Type != unix.RTN_UNICAST || k.Tos != 0 || k.Protocol != Protocol}
}

// addHopRoute adds a route over a next-hop object. The library knows none.
func (r raw) addHopRoute(o Route, replace bool) error {
	flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL
	if replace {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len, msg.Protocol, msg.Table = uint8(family(o.Dst.Addr())), uint8(o.Dst.Bits()), Protocol, unix.RT_TABLE_UNSPEC
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, flags|unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, o.Dst.Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(o.Table)))
	req.AddData(nl.NewRtAttr(unix.RTA_PRIORITY, nl.Uint32Attr(o.Metric)))
	req.AddData(nl.NewRtAttr(rtaNextHopID, nl.Uint32Attr(o.NextHop)))
	if o.Src.IsValid() {
		req.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, o.Src.AsSlice()))
	}
	if o.MTU != 0 {
		metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
		metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(o.MTU))
		req.AddData(metrics)
	}
	return r.execute(req)
}

// hopRoutes returns the routes of protocol 87 over next-hop objects, of which the library's dump does not tell the object.
func (r raw) hopRoutes() (map[routeKey]Route, error) {
	found := map[routeKey]Route{}
	answers, err := dumpBoth(func(fam int) ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
		req.Sockets = r
		msg := nl.NewRtMsg()
		msg.Family = uint8(fam)
		req.AddData(msg)
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	})
	for _, b := range answers {
		if k, hop, _ := routeMessage(b); hop != 0 && k.Protocol == Protocol {
			o := hopRoute(k, hop)
			found[o.key()] = o
		}
	}
	return found, err
}

// Refuse removes every route of ours but the guards of network, which are put in force, and those to pods: for a mode that will not
// start while what an earlier run left would go on carrying traffic.
func (h *Host) Refuse(network []netip.Prefix) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.guard(network)
	errs := []error{err}
	links, err := dumpLinks(h.rt)
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("hostnet: list links: %w", err))...)
	}
	names, index := map[int]string{}, map[string]int{}
	for _, l := range links {
		names[l.Attrs().Index], index[l.Attrs().Name] = l.Attrs().Name, l.Attrs().Index
	}
	routes, err := dumpRoutes(h.strict, names)
	errs = append(errs, err)
	for _, r := range routes {
		if r.Unreachable || PodLink(r.Dev) || r.Dev == Bridge {
			continue
		}
		if err := r.remove(h.rt, index[r.Dev]); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove %s: %w%s", r, err, hint(err)))
		}
	}
	return errors.Join(errs...)
}
