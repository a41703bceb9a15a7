package hostnet

import (
	"errors"
	"slices"
)

// differsInPeersOnly says that two Wants are about the same devices and addresses, with other routes, neighbours and FDB entries
// if anything.
func (w *Want) differsInPeersOnly(o Want) bool {
	return slices.Equal(w.Network, o.Network) && slices.Equal(w.Sysctls, o.Sysctls) && slices.EqualFunc(w.Links, o.Links, Link.same) &&
		slices.Equal(w.Addrs, o.Addrs) && slices.Equal(w.Own, o.Own) && slices.Equal(w.Watch, o.Watch)
}

// applyChanges puts in force what w says about peers otherwise than the last Want, which is wholly in force. After an error the
// kernel holds something in between. The caller holds h.mu.
func (h *Host) applyChanges(w Want) error {
	last := h.prev
	neighborsGone, neighbors := difference(last.want.Neighbors, w.Neighbors)
	fdbGone, fdb := difference(last.want.FDB, w.FDB)
	routesGone, routes := difference(last.want.Routes, w.Routes)
	for _, list := range [][]Route{routesGone, routes} {
		for i := range list {
			list[i] = list[i].normal()
		}
	}
	// As in a whole Apply: additions from the bottom up, removals from the top down.
	err := errors.Join(
		addTo(h, last.neighbors, neighbors), addTo(h, last.fdb, fdb), addTo(h, last.routes, routes),
		removeFrom(h, last.routes, routesGone), removeFrom(h, last.fdb, fdbGone), removeFrom(h, last.neighbors, neighborsGone))
	last.want = w
	return err
}

// difference compares two lists that have most of their elements in common, and those in the same order.
func difference[T comparable](old, now []T) (gone, come []T) {
	for len(old) > 0 && len(now) > 0 && old[0] == now[0] {
		old, now = old[1:], now[1:]
	}
	for len(old) > 0 && len(now) > 0 && old[len(old)-1] == now[len(now)-1] {
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	was := make(map[T]bool, len(old))
	for _, o := range old {
		was[o] = true
	}
	for _, o := range now {
		if was[o] {
			was[o] = false
		} else {
			come = append(come, o)
		}
	}
	for _, o := range old {
		if was[o] {
			gone = append(gone, o)
		}
	}
	return gone, come
}

// addTo puts objects into the kernel, and into the table of what it holds.
func addTo[T object[K], K comparable](h *Host, table map[K]T, list []T) error {
	for _, o := range list {
		_, replace := table[o.key()]
		if err := o.add(h.rt, h.prev.index[o.device()], replace); err != nil {
			return err
		}
		table[o.key()] = o
	}
	return nil
}

// removeFrom takes objects out of the kernel, unless another one has got their place.
func removeFrom[T object[K], K comparable](h *Host, table map[K]T, list []T) error {
	for _, o := range list {
		if !holds(table, o) {
			continue
		}
		if err := o.remove(h.rt, h.prev.index[o.device()]); err != nil && !gone(err) {
			return err
		}
		delete(table, o.key())
	}
	return nil
}
