package hostnet

import (
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
)

// patchable says whether what w says otherwise than the owner's last Want can be put in force by itself, without a look at what the
// kernel has: it is about links, addresses, next hops, routes, rules, neighbours, FDB entries, nftables and programs.
func (w *Want) patchable(o Want) bool {
	return slices.Equal(w.Network, o.Network) && slices.Equal(w.Sysctls, o.Sysctls) && slices.Equal(w.Own, o.Own) && slices.Equal(w.Watch, o.Watch)
}

// applyChanges puts in force what w says otherwise than the owner's last Want, which is wholly in force. After an error
// the kernel holds something in between. The caller holds h.mu.
func (h *Host) applyChanges(o *owner, w Want) error {
	have := h.prev
	linksGone, links := difference(flat(o.want.Links), flat(w.Links))
	addrsGone, addrs := difference(o.want.Addrs, w.Addrs)
	neighborsGone, neighbors := difference(o.want.Neighbors, w.Neighbors)
	fdbGone, fdb := difference(o.want.FDB, w.FDB)
	hopsGone, hops := difference(o.want.hops(), w.hops())
	rulesGone, rules := difference(o.want.rules(), w.rules())
	routesGone, routes := difference(o.want.Routes, w.Routes)
	programsGone, programs := difference(o.want.Programs, w.Programs)
	for _, list := range [][]Route{routesGone, routes} {
		for i := range list {
			list[i] = list[i].normal()
		}
	}
	if err := h.changeLinks(linksGone, links); err != nil {
		return err
	}
	// As in a look at everything: additions from the bottom up, removals from the top down.
	err := errors.Join(
		addTo(h, have.addrs, addrsGone, addrs), awaitLocal(h.rt, slices.Values(addrs)),
		addTo(h, have.neighbors, neighborsGone, neighbors), addTo(h, have.fdb, fdbGone, fdb),
		addTo(h, have.hops, hopsGone, hops), addTo(h, have.routes, routesGone, routes), addTo(h, have.rules, rulesGone, rules))
	if err != nil {
		return err
	}
	firewall := len(o.want.Tables)+len(w.Tables)+len(o.want.Passage)+len(w.Passage) > 0
	o.want = w
	if firewall {
		h.syncFirewall()
	}
	return errors.Join(
		addTo(h, have.programs, programsGone, programs), removeFrom(h, have.programs, programsGone),
		removeFrom(h, have.rules, rulesGone), removeFrom(h, have.routes, routesGone), removeFrom(h, have.hops, reversed(hopsGone)), removeFrom(h, have.fdb, fdbGone), removeFrom(h, have.neighbors, neighborsGone),
		removeFrom(h, have.addrs, addrsGone), h.dropLinks(linksGone))
}

func reversed[T any](list []T) []T { // groups of next hops stand behind their members
	slices.Reverse(list)
	return list
}

func flat(links []Link) []flatLink {
	list := make([]flatLink, len(links))
	for i, l := range links {
		list[i] = l.flat()
	}
	return list
}

func (f flatLink) full() Link {
	l := f.Link
	if f.vxlan {
		l.Vxlan = &f.v
	}
	if f.veth {
		l.Veth = &f.p
	}
	return l
}

// changeLinks makes or corrects links. gone are those that the owner has had and wants no more, or not so.
func (h *Host) changeLinks(gone, list []flatLink) error {
	if len(list) == 0 {
		return nil
	}
	p := &pass{h: h, before: *h.prev, anew: map[string]bool{}}
	for _, f := range list {
		want := f.full()
		mine := slices.ContainsFunc(gone, func(g flatLink) bool { return g.Name == want.Name })
		if _, taken := h.prev.links[want.Name]; taken && !mine || h.prev.common[linkKey(want.Name)] {
			return errTaken
		}
		have, err := h.rt.LinkByName(want.Name)
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
			return err
		}
		if _, err := p.syncLink(want, have, nil); err != nil {
			return err
		}
		if have, err = h.linkByName(want.Name); err != nil {
			return err
		}
		index := have.Attrs().Index
		if old, known := h.prev.index[want.Name]; known && old != index {
			return errTaken // what hung on the old one went with it
		}
		h.prev.links[want.Name], h.prev.index[want.Name], h.prev.names[index], h.prev.devices[index] = want, index, want.Name, want.Name
	}
	return nil
}

// dropLinks removes those of the links that have no successor of the name.
func (h *Host) dropLinks(gone []flatLink) error {
	for _, f := range gone {
		if have, known := h.prev.links[f.Name]; !known || !have.same(f.full()) {
			continue
		}
		if h.prev.common[linkKey(f.Name)] {
			return errTaken
		}
		if f.full().made() {
			index := h.prev.index[f.Name]
			if err := h.removeLink(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: f.Name, Index: index}}); err != nil {
				return err
			}
			delete(h.prev.names, index)
			delete(h.prev.index, f.Name)
			delete(h.prev.devices, index)
		}
		delete(h.prev.links, f.Name)
	}
	return nil
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
