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

// applyChanges puts in force what w says about peers otherwise than the owner's last Want, which is wholly in force. After an error
// the kernel holds something in between. The caller holds h.mu.
func (h *Host) applyChanges(o *owner, w Want) error {
	have := h.prev
	neighborsGone, neighbors := difference(o.want.Neighbors, w.Neighbors)
	fdbGone, fdb := difference(o.want.FDB, w.FDB)
	routesGone, routes := difference(o.want.Routes, w.Routes)
	for _, list := range [][]Route{routesGone, routes} {
		for i := range list {
			list[i] = list[i].normal()
		}
	}
	// As in a look at everything: additions from the bottom up, removals from the top down.
	err := errors.Join(
		addTo(h, have.neighbors, neighborsGone, neighbors), addTo(h, have.fdb, fdbGone, fdb), addTo(h, have.routes, routesGone, routes),
		removeFrom(h, have.routes, routesGone), removeFrom(h, have.fdb, fdbGone), removeFrom(h, have.neighbors, neighborsGone))
	if err == nil {
		o.want = w
	}
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

// errTaken is an object whose place another owner's has.
var errTaken = errors.New("another owner has its place")

// addTo puts objects into the kernel, and into the table of what it holds. gone are those that the same owner has had and wants no
// more: one of them may be replaced, another owner's not.
func addTo[T object[K], K comparable](h *Host, table map[K]T, gone, list []T) error {
	var mine map[K]bool
	for _, o := range list {
		have, taken := table[o.key()]
		if taken && mine == nil {
			mine = make(map[K]bool, len(gone))
			for _, g := range gone {
				mine[g.key()] = true
			}
		}
		switch {
		case taken && !mine[o.key()] && have == o: // both want the same
			h.prev.common[o.key()] = true
			continue
		case taken && !mine[o.key()]:
			return errTaken
		}
		if err := o.add(h.rt, h.prev.index[o.device()], taken); err != nil {
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
		if h.prev.common[o.key()] {
			return errTaken
		}
		if err := o.remove(h.rt, h.prev.index[o.device()]); err != nil && !gone(err) {
			return err
		}
		delete(table, o.key())
	}
	return nil
}
