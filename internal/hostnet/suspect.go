package hostnet

import (
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// surprising says whether a notification about a route, a neighbour or an FDB entry tells something else than what the last
// Apply left: then the object is suspect, until the news of it are as they should be. So it goes with an object that Apply takes
// away and puts back before the first of the news is read. It waits for an Apply that is at work, for that is what most news
// are about.
func (h *Host) surprising(m syscall.NetlinkMessage) bool {
	there := m.Header.Type == unix.RTM_NEWROUTE || m.Header.Type == unix.RTM_NEWNEIGH
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return h.surprisingRoute(m, there)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return h.surprisingNeighbor(m, there)
	}
	return false
}

func (h *Host) surprisingRoute(m syscall.NetlinkMessage, there bool) bool {
	// A replaced route is told by its successor alone, whose protocol may be anybody's.
	if nl.DeserializeRtMsg(m.Data).Protocol != Protocol && m.Header.Flags&unix.NLM_F_REPLACE == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	k, ok := routeMessage(m.Data)
	switch {
	case h.prev == nil: // nothing is ours yet
		return false
	case !ok:
		h.doubt.Store(true)
		return true
	case h.ofPod(k.LinkIndex):
		return false
	}
	r := routeFrom(k, h.prev.names)
	r.odd = r.odd || k.Protocol != Protocol
	return judge(h, h.prev.routes, r, there)
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

// ofPod says whether a link is a pod's, whose routes are not the reconciler's.
func (h *Host) ofPod(index int) bool {
	name, known := h.prev.names[index]
	if !known && index != 0 {
		l, err := h.rt.LinkByIndex(index)
		if err != nil {
			return false
		}
		name = l.Attrs().Name
	}
	return strings.HasPrefix(name, LinkPrefix) && !Owned(name)
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
