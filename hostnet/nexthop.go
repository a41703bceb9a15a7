package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft/internal/ipnet"
)

// NextHop is a next-hop object of protocol 87 (`ip nexthop`, Linux 5.3): one way, or, with Members, several that packets are spread
// over. Routes name it by its ID, so that one change moves all of them.
type NextHop struct {
	ID      uint32
	Dev     string     // of a single one
	Via     netip.Addr // of a single one; zero = destinations are on the link itself
	OnLink  bool       // Via is taken to be on the link
	V6      bool       // of a single one without Via: for IPv6 routes
	Members [8]Member  // of a group; the first with ID 0 ends it

	odd bool // has attributes that weft never sets
}

// Member is one of a group. The group must be wanted with its members, whose objects are made first.
type Member struct {
	ID     uint32
	Weight uint8 // packets' share, 1 to 255; 0 counts as 1
}

func (n NextHop) group() bool    { return n.Members[0].ID != 0 }
func (n NextHop) key() uint32    { return n.ID }
func (n NextHop) device() string { return n.Dev }
func (n NextHop) shared() bool   { return true }

func (n NextHop) add(rt *handle, index int, replace bool) error {
	return rt.raw.addNextHop(n, index, replace)
}
func (n NextHop) remove(rt *handle, _ int) error { return rt.raw.removeNextHop(n) }
func (n NextHop) evict(rt *handle, _ int) error  { return rt.raw.removeNextHop(n) }

func (n NextHop) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "nexthop %d", n.ID)
	if n.group() {
		b.WriteString(" group")
		for _, m := range n.Members {
			if m.ID != 0 {
				fmt.Fprintf(&b, " %d,%d", m.ID, m.Weight)
			}
		}
		return b.String()
	}
	if n.Via.IsValid() {
		fmt.Fprintf(&b, " via %s", n.Via)
	}
	return fmt.Sprintf("%s dev %s", b.String(), n.Dev)
}

// normal fills in what the kernel does.
func (n NextHop) normal() NextHop {
	for i := range n.Members {
		if m := &n.Members[i]; m.ID != 0 && m.Weight == 0 {
			m.Weight = 1
		}
	}
	if n.Via.IsValid() {
		n.V6 = n.Via.Is6()
	}
	return n
}

// hops are a Want's next hops: single ones first, for groups need them.
func (w *Want) hops() []NextHop {
	list := make([]NextHop, 0, len(w.NextHops))
	for _, group := range []bool{false, true} {
		for _, n := range w.NextHops {
			if n.group() == group {
				list = append(list, n.normal())
			}
		}
	}
	return list
}

// Attributes and flags of linux/nexthop.h and linux/rtnetlink.h, which the libraries lack. nhmsg is struct nhmsg.
const (
	rtmNewNextHop, rtmDelNextHop, rtmGetNextHop = 104, 105, 106
	nhaID, nhaGroup, nhaOIF, nhaGateway         = 1, 2, 5, 6
	nhaGroupType, nhaBlackhole                  = 3, 4
	groupNextHop                                = 32 // RTNLGRP_NEXTHOP
	rtaNextHopID                                = 30 // RTA_NH_ID
)

type nhmsg struct {
	family, protocol uint8
	flags            uint32
}

func (m nhmsg) Len() int { return 8 }
func (m nhmsg) Serialize() []byte {
	return binary.NativeEndian.AppendUint32([]byte{m.family, 0, m.protocol, 0}, m.flags)
}

// request is a message about n to the kernel.
func (n NextHop) request(kind, flags, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	msg := nhmsg{family: unix.AF_INET, protocol: Protocol}
	if n.V6 {
		msg.family = unix.AF_INET6
	}
	if n.OnLink {
		msg.flags = unix.RTNH_F_ONLINK
	}
	if kind == rtmDelNextHop || n.group() {
		msg.family, msg.flags = unix.AF_UNSPEC, 0
	}
	if kind == rtmDelNextHop {
		msg.protocol = 0
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(nhaID, nl.Uint32Attr(n.ID)))
	switch {
	case kind == rtmDelNextHop:
	case n.group():
		var group []byte // struct nexthop_grp: id, weight - 1, reserved
		for _, m := range n.Members {
			if m.ID != 0 {
				group = append(binary.NativeEndian.AppendUint32(group, m.ID), max(m.Weight, 1)-1, 0, 0, 0)
			}
		}
		req.AddData(nl.NewRtAttr(nhaGroup, group))
	default:
		req.AddData(nl.NewRtAttr(nhaOIF, nl.Uint32Attr(uint32(index))))
		if n.Via.IsValid() {
			req.AddData(nl.NewRtAttr(nhaGateway, n.Via.AsSlice()))
		}
	}
	return req
}

// execute sends a request over the sockets of a handle. The library has no word for these, and a handle keeps its sockets to itself.
func (r raw) execute(req *nl.NetlinkRequest) error {
	req.Sockets = r
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (r raw) addNextHop(n NextHop, index int, replace bool) error {
	flags := unix.NLM_F_CREATE | unix.NLM_F_EXCL
	if replace {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return r.execute(n.request(rtmNewNextHop, flags, index))
}

func (r raw) removeNextHop(n NextHop) error { return r.execute(n.request(rtmDelNextHop, 0, 0)) }

// nextHops returns the next-hop objects of protocol 87; none where the kernel has no such objects.
func (r raw) nextHops(names map[int]string) (list []NextHop, err error) {
	answers, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(rtmGetNextHop, unix.NLM_F_DUMP)
		req.Sockets = r
		req.AddData(nhmsg{})
		return req.Execute(unix.NETLINK_ROUTE, rtmNewNextHop)
	})
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, b := range answers {
		n, ours, err := nextHopFrom(b, names)
		if err != nil {
			return nil, err
		}
		if ours {
			list = append(list, n)
		}
	}
	return list, nil
}

func nextHopFrom(b []byte, names map[int]string) (n NextHop, ours bool, err error) {
	if len(b) < 8 {
		return n, false, fmt.Errorf("read a next hop: %d bytes", len(b))
	}
	attrs, err := parseAttrs(b[8:])
	if err != nil {
		return n, false, fmt.Errorf("read a next hop: %w", err)
	}
	n.V6 = b[0] == unix.AF_INET6
	n.OnLink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	for _, a := range attrs {
		v := a.Value
		switch a.Attr.Type {
		case nhaID, nhaOIF:
			if len(v) < 4 {
				return n, false, fmt.Errorf("read a next hop: attribute %d has %d bytes", a.Attr.Type, len(v))
			}
			number := binary.NativeEndian.Uint32(v)
			if a.Attr.Type == nhaID {
				n.ID = number
			} else {
				n.Dev = names[int(number)]
			}
		case nhaGateway:
			n.Via = ipnet.Addr(v)
		case nhaGroup:
			for i := 0; len(v) >= 8; i, v = i+1, v[8:] {
				if i == len(n.Members) {
					n.odd = true
					break
				}
				n.Members[i] = Member{binary.NativeEndian.Uint32(v), v[4] + 1}
			}
		case nhaGroupType:
		case nhaBlackhole:
			n.odd = true
		}
	}
	return n, b[2] == Protocol, nil
}

// Gateways returns the next hops of the routes of protocol 87 in the main table, by destination, but of those over devices of weft's own: by
// what this node has been reaching others without a tunnel, an earlier process's routes included.
func (h *Host) Gateways() (map[netip.Prefix][]netip.Addr, error) {
	links, err := dumpLinks(h.rt)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	routes, err := dumpRoutes(h.strict, names)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list routes: %w", err)
	}
	byHop, err := h.raw.hopRoutes()
	if err != nil {
		return nil, fmt.Errorf("hostnet: list routes: %w", err)
	}
	hops, err := h.raw.nextHops(names)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list next hops: %w", err)
	}
	objects := map[uint32]NextHop{}
	for _, n := range hops {
		objects[n.ID] = n
	}
	found := map[netip.Prefix][]netip.Addr{}
	for _, r := range routes {
		if _, by := byHop[r.key()]; !by && r.Via.IsValid() && r.Table == MainTable && !Ours(r.Dev) {
			found[r.Dst] = append(found[r.Dst], r.Via)
		}
	}
	for _, r := range byHop {
		if r.Table != MainTable {
			continue
		}
		for _, m := range objects[r.NextHop].Members {
			if one, known := objects[m.ID]; known && one.Via.IsValid() {
				found[r.Dst] = append(found[r.Dst], one.Via)
			}
		}
	}
	return found, nil
}
