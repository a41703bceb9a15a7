package hostnet

import (
	"net"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// surprising says whether a notification about an object of ours tells something else than what the last
// Apply left: then the object is suspect, until the news of it are as they should be. So it goes with an object that Apply takes
// away and puts back before the first of the news is read. It waits for an Apply that is at work, for that is what most news
// are about.
func (h *Host) surprising(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return h.surprisingRoute(m, m.Header.Type == unix.RTM_NEWROUTE)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return h.surprisingNeighbor(m, m.Header.Type == unix.RTM_NEWNEIGH)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return h.surprisingAddr(m, m.Header.Type == unix.RTM_NEWADDR)
	case rtmNewNextHop, rtmDelNextHop:
		return h.surprisingNextHop(m, m.Header.Type == rtmNewNextHop)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return h.surprisingRule(m, m.Header.Type == unix.RTM_NEWRULE)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return h.surprisingLink(m, m.Header.Type == unix.RTM_NEWLINK)
	}
	return false
}

func (h *Host) surprisingNextHop(m syscall.NetlinkMessage, there bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.prev == nil {
		return false
	}
	n, mine, err := nextHopFrom(m.Data, h.prev.names)
	if err != nil {
		h.doubt.Store(true)
		return true
	}
	_, wanted := h.prev.hops[n.ID]
	return (mine || wanted) && judge(h, h.prev.hops, n, there)
}

func (h *Host) surprisingRule(m syscall.NetlinkMessage, there bool) bool {
	r, mine, err := ruleMessage(m.Data)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.prev == nil {
		return false
	}
	if err != nil {
		h.doubt.Store(true)
		return true
	}
	if !mine {
		h.around.Store(true)
		h.doubt.Store(true) // whether there are guards among the rules depends on others'
		return true
	}
	return judge(h, h.prev.rules, r, there)
}

// linkKey is a link among suspects.
type linkKey string

func (h *Host) surprisingLink(m syscall.NetlinkMessage, there bool) bool {
	l, err := netlink.LinkDeserialize(nil, m.Data)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		h.doubt.Store(true)
		return true
	}
	is := l.Attrs()
	if h.prev == nil || !Ours(is.Name) {
		return false
	}
	want, wanted := h.prev.links[is.Name]
	var fine bool
	switch {
	case wanted && there:
		fine = h.prev.index[is.Name] == is.Index && is.Flags&net.FlagUp != 0 && (want.MTU == 0 || want.MTU == is.MTU) &&
			(want.MAC == [6]byte{} || want.MAC == macOf(is.HardwareAddr)) && (want.Master == "" || h.prev.index[want.Master] == is.MasterIndex)
	case wanted: // an earlier device of the name, or the one that is meant
		fine = h.prev.index[is.Name] != is.Index
	default:
		fine = !there
	}
	if fine {
		delete(h.suspects, any(linkKey(is.Name)))
		// The other end is down, in a namespace that is not ours to hear of.
		if wanted && there && want.Veth != nil && is.RawFlags&unix.IFF_RUNNING == 0 {
			h.inside.Store(true)
			return true
		}
		return false
	}
	h.suspects[linkKey(is.Name)] = true
	return true
}

func (h *Host) surprisingAddr(m syscall.NetlinkMessage, there bool) bool {
	k, err := addrMessage(m.Data)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.prev == nil {
		return false
	}
	if err != nil {
		h.doubt.Store(true)
		return true
	}
	name, ok := h.prev.devices[k.LinkIndex]
	if !ok || k.IP.IsLinkLocalUnicast() && !h.prev.links[name].quiet() {
		return false
	}
	return judge(h, h.prev.addrs, addrFrom(k, name), there)
}

func (h *Host) surprisingRoute(m syscall.NetlinkMessage, there bool) bool {
	msg := nl.DeserializeRtMsg(m.Data)
	foreign := msg.Protocol != Protocol && leads(msg)
	if foreign {
		h.outsideNews.Add(1)
		h.around.Store(true)
	}
	// A replaced route is told by its successor alone, whose protocol may be anybody's.
	if msg.Protocol != Protocol && m.Header.Flags&unix.NLM_F_REPLACE == 0 {
		return foreign
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	k, hop, ok := routeMessage(m.Data)
	switch {
	case h.prev == nil: // nothing is ours yet
		return false
	case !ok:
		h.doubt.Store(true)
		return true
	}
	r := routeFrom(k, h.prev.names)
	if hop != 0 {
		r = hopRoute(k, hop)
	}
	r.odd = r.odd || k.Protocol != Protocol
	return judge(h, h.prev.routes, r, there) || foreign
}

// leads says whether a route may lead packets to another machine, or refuse them: not to the node's own addresses or to groups.
func leads(msg *nl.RtMsg) bool {
	switch msg.Type {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return false
	}
	return msg.Flags&unix.RTM_F_CLONED == 0
}

func (h *Host) surprisingNeighbor(m syscall.NetlinkMessage, there bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	row, err := fdbRowFrom(m.Data) // both kinds are the same message
	switch {
	case h.prev == nil:
		return false
	case err != nil:
		h.doubt.Store(true)
		return true
	case row.Family == unix.AF_BRIDGE:
		e, ok := fdbFrom(row, h.prev.devices)
		return ok && judge(h, h.prev.fdb, e, there)
	}
	n, permanent := neighborFrom(row.Neigh, h.prev.devices)
	return judge(h, h.prev.neighbors, n, there && permanent)
}

// judge makes an object suspect, or no longer so: news is that the object is there, or else that none with its key is there as
// it should be. It says whether that is a surprise.
func judge[T object[K], K comparable](h *Host, table map[K]T, o T, there bool) bool {
	_, wanted := table[o.key()]
	if there && holds(table, o) || !there && !wanted {
		delete(h.suspects, any(o.key()))
		return false
	}
	h.suspects[o.key()] = true
	return true
}
