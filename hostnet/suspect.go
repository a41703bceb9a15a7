package hostnet

import (
	"errors"
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
	foreign := false // a route of somebody else's
	var look func(m []byte, there bool) (surprise bool, err error)
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		msg := nl.DeserializeRtMsg(m.Data)
		if foreign = msg.Protocol != Protocol && leads(msg); foreign {
			h.outsideNews.Add(1)
			h.around.Store(true)
		}
		// A replaced route is told by its successor alone, whose protocol may be anybody's.
		if msg.Protocol != Protocol && m.Header.Flags&unix.NLM_F_REPLACE == 0 {
			return foreign
		}
		look = h.routeNews
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		look = h.neighborNews
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		look = h.addrNews
	case rtmNewNextHop, rtmDelNextHop:
		look = h.nextHopNews
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		look = h.ruleNews
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		look = h.linkNews
	default:
		return false
	}
	there := false
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_NEWNEIGH, unix.RTM_NEWADDR, rtmNewNextHop, unix.RTM_NEWRULE, unix.RTM_NEWLINK:
		there = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.prev == nil { // nothing is ours yet
		return false
	}
	surprise, err := look(m.Data, there)
	if err != nil { // whatever it says may concern us
		h.doubt.Store(true)
	}
	return surprise || err != nil || foreign
}

func (h *Host) nextHopNews(m []byte, there bool) (bool, error) {
	n, mine, err := nextHopFrom(m, h.prev.names)
	if err != nil {
		return false, err
	}
	_, wanted := h.prev.hops[n.ID]
	return (mine || wanted) && judge(h, h.prev.hops, n, there), nil
}

func (h *Host) ruleNews(m []byte, there bool) (bool, error) {
	r, mine, err := ruleMessage(m)
	if err != nil {
		return false, err
	}
	if !mine {
		h.around.Store(true)
		h.doubt.Store(true) // whether there are guards among the rules depends on others'
		return true, nil
	}
	return judge(h, h.prev.rules, r, there), nil
}

// linkKey is a link among suspects.
type linkKey string

func (h *Host) linkNews(m []byte, there bool) (bool, error) {
	l, err := netlink.LinkDeserialize(nil, m)
	if err != nil {
		return false, err
	}
	is := l.Attrs()
	if !Ours(is.Name) {
		return false, nil
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
			return true, nil
		}
		return false, nil
	}
	h.suspects[linkKey(is.Name)] = true
	return true, nil
}

func (h *Host) addrNews(m []byte, there bool) (bool, error) {
	k, err := addrMessage(m)
	if err != nil {
		return false, err
	}
	name, ok := h.prev.devices[k.LinkIndex]
	if !ok || k.IP.IsLinkLocalUnicast() && !h.prev.links[name].quiet() {
		return false, nil
	}
	return judge(h, h.prev.addrs, addrFrom(k, name), there), nil
}

func (h *Host) routeNews(m []byte, there bool) (bool, error) {
	k, hop, ok := routeMessage(m)
	if !ok {
		return false, errors.New("hostnet: a route's message cannot be read")
	}
	r := routeFrom(k, h.prev.names)
	if hop != 0 {
		r = hopRoute(k, hop)
	}
	r.odd = r.odd || k.Protocol != Protocol
	return judge(h, h.prev.routes, r, there), nil
}

// leads says whether a route may lead packets to another machine, or refuse them: not to the node's own addresses or to groups.
func leads(msg *nl.RtMsg) bool {
	switch msg.Type {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST:
		return false
	}
	return msg.Flags&unix.RTM_F_CLONED == 0
}

func (h *Host) neighborNews(m []byte, there bool) (bool, error) {
	row, err := fdbRowFrom(m) // both kinds are the same message
	if err != nil {
		return false, err
	}
	if row.Family == unix.AF_BRIDGE {
		e, ok := fdbFrom(row, h.prev.devices)
		return ok && judge(h, h.prev.fdb, e, there), nil
	}
	n, permanent := neighborFrom(row.Neigh, h.prev.devices)
	return judge(h, h.prev.neighbors, n, there && permanent), nil
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
