package hostnet

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Route is one route of protocol 87.
type Route struct {
	Dst         netip.Prefix // masked
	Dev         string       // "" for an unreachable route
	Via         netip.Addr   // next hop, taken to be on the link (onlink); zero = Dst is on the link itself
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

// rtmsg (linux/rtnetlink.h), 12 bytes:
//
//	family 1 | dst_len 1 | src_len 1 | tos 1 | table 1 | protocol 1 | scope 1 | type 1 | flags 4
const sizeofRtMsg = unix.SizeofRtMsg

// rtaNHID is RTA_NH_ID (linux/rtnetlink.h): a route through a nexthop object.
const rtaNHID = 30

// add returns the request that makes the route. Where replace is false it fails if a route has the same key.
func (r Route) add(replace bool, index map[string]int32) message {
	m := r.message(unix.RTM_NEWROUTE, addFlags(replace), index)
	m.body[6] = unix.RT_SCOPE_UNIVERSE
	if r.Dst.Addr().Is4() && !r.Via.IsValid() && !r.Unreachable {
		m.body[6] = unix.RT_SCOPE_LINK
	}
	if r.Src.IsValid() {
		m.attr(unix.RTA_PREFSRC, r.Src.AsSlice())
	}
	if r.MTU != 0 {
		m.nest(unix.RTA_METRICS, func() { m.u32(unix.RTAX_MTU, r.MTU) })
	}
	return m
}

// del returns the request that removes the route.
func (r Route) del(index map[string]int32) message {
	m := r.message(unix.RTM_DELROUTE, 0, index)
	m.body[6] = unix.RT_SCOPE_NOWHERE // of any scope
	return m
}

// evict returns the request that removes whichever route, of whatever protocol, has r's key.
func (r Route) evict(index map[string]int32) message {
	m := Route{Dst: r.Dst, Metric: r.Metric, Table: r.Table}.del(index)
	m.body[5], m.body[7] = unix.RTPROT_UNSPEC, unix.RTN_UNSPEC
	return m
}

func (r Route) message(kind, flags uint16, index map[string]int32) message {
	family, rtype := family(r.Dst.Addr()), byte(unix.RTN_UNICAST)
	if r.Unreachable {
		rtype = unix.RTN_UNREACHABLE
	}
	m := message{kind: kind, flags: flags, body: make([]byte, sizeofRtMsg, 96)}
	copy(m.body, []byte{family, byte(r.Dst.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, Protocol, 0, rtype})
	m.attr(unix.RTA_DST, r.Dst.Addr().AsSlice())
	m.u32(unix.RTA_TABLE, r.Table)
	if r.Metric != 0 {
		m.u32(unix.RTA_PRIORITY, r.Metric)
	}
	if r.Dev != "" {
		m.u32(unix.RTA_OIF, uint32(index[r.Dev]))
	}
	if r.Via.IsValid() && !r.odd {
		native.PutUint32(m.body[8:], unix.RTNH_F_ONLINK)
		m.attr(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	return m
}

// dumpRoutes returns all routes of protocol 87 in every table of a family.
func dumpRoutes(s *socket, fam uint8, names map[int32]string) ([]Route, error) {
	m := message{kind: unix.RTM_GETROUTE, body: make([]byte, sizeofRtMsg)}
	m.body[0], m.body[5] = fam, Protocol
	return dump(s, m, unix.RTM_NEWROUTE, func(b []byte) (Route, bool) { return parseRoute(b, names) })
}

// parseRoute reads a route; false unless it is of protocol 87 and v4 or v6.
func parseRoute(b []byte, names map[int32]string) (r Route, ok bool) {
	if len(b) < sizeofRtMsg || b[5] != Protocol || native.Uint32(b[8:])&unix.RTM_F_CLONED != 0 {
		return r, false
	}
	var dst netip.Addr
	switch b[0] {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return r, false
	}
	bits, flags := int(b[1]), native.Uint32(b[8:])
	r.Table = uint32(b[4])
	switch b[7] {
	case unix.RTN_UNICAST:
	case unix.RTN_UNREACHABLE:
		r.Unreachable = true
	default:
		r.odd = true
	}
	r.odd = r.odd || b[2] != 0 || b[3] != 0 // a source prefix, a TOS
	for kind, v := range attrs(b[sizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case unix.RTA_TABLE:
			r.Table = u32(v)
		case unix.RTA_PRIORITY:
			r.Metric = u32(v)
		case unix.RTA_OIF:
			r.Dev = names[int32(u32(v))]
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(v)
		case unix.RTA_METRICS:
			for kind, v := range attrs(v) {
				if kind == unix.RTAX_MTU {
					r.MTU = u32(v)
				} else {
					r.odd = true
				}
			}
		case unix.RTA_MULTIPATH, unix.RTA_VIA, unix.RTA_ENCAP, rtaNHID, unix.RTA_SRC, unix.RTA_FLOW:
			r.odd = true
		}
	}
	if r.Unreachable {
		r.Dev = "" // the kernel files such IPv6 routes under lo
	} else if r.Via.IsValid() != (flags&unix.RTNH_F_ONLINK != 0) {
		r.odd = true
	}
	r.Dst = netip.PrefixFrom(dst, bits)
	return r, r.Dst.IsValid()
}

// addFlags says whether a request may replace what has the same key.
func addFlags(replace bool) uint16 {
	if replace {
		return unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return unix.NLM_F_CREATE | unix.NLM_F_EXCL
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func u32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return native.Uint32(v)
}
