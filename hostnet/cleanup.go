package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Cleanup removes everything that any weft left in this namespace: programs that are pinned, nftables tables and links whose names start
// with LinkPrefix, its rules in others' forward chains, the routes of Protocol in every table, the guards of the overlay's prefixes last, and the loopback
// device's addresses of Protocol. It returns what it removed, in words. On an error the rest is removed.
func (h *Host) Cleanup() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prev, h.firewall = nil, firewall{}
	var removed []string
	var errs []error
	links, err := dumpLinks(h.rt)
	if err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list links: %w", err))
	}
	names, index := map[int]string{}, map[string]int{}
	for _, l := range links {
		names[l.Attrs().Index], index[l.Attrs().Name] = l.Attrs().Name, l.Attrs().Index
	}
	for _, remove := range []func() ([]string, error){func() ([]string, error) { return h.removePrograms(names) }, h.removeTables, h.removeRules} {
		words, err := remove()
		removed, errs = append(removed, words...), append(errs, err)
	}
	routes, err := dumpRoutes(h.strict, names)
	if err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list routes: %w", err))
	}
	for _, l := range links {
		name := l.Attrs().Name
		if !strings.HasPrefix(name, LinkPrefix) {
			continue
		}
		// The other end of a veth that was removed a moment ago is gone with it.
		if err := h.rt.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("hostnet: remove link %s: %w%s", name, err, hint(err)))
			continue
		}
		removed = append(removed, "link "+name)
	}
	policy, err := dumpRules(h.rt)
	if err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list rules: %w", err))
	}
	for _, r := range policy {
		if err := r.remove(h.rt, 0); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove %s: %w%s", r, err, hint(err)))
			continue
		}
		removed = append(removed, r.String())
	}
	isGuard := func(r Route) int {
		if r.Unreachable && r.Metric == GuardMetric {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(routes, func(a, b Route) int { return isGuard(a) - isGuard(b) }) // guards last
	for _, r := range routes {
		// Routes over the links went with them; that is as good.
		if err := r.remove(h.rt, index[r.Dev]); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove route %s: %w%s", r, err, hint(err)))
			continue
		}
		removed = append(removed, "route "+r.String())
	}
	hops, err := h.raw.nextHops(names)
	if err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list next hops: %w", err))
	}
	for _, n := range hops { // a group whose members are gone goes too
		if err := h.raw.removeNextHop(n); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove %s: %w%s", n, err, hint(err)))
			continue
		}
		removed = append(removed, n.String())
	}
	if own, err := h.raw.hostAddrs(index[loopback]); err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list addresses of %s: %w", loopback, err))
	} else {
		maps.DeleteFunc(own, func(_ netip.Addr, ours bool) bool { return !ours })
		gone, err := h.removeOwn(index[loopback], slices.SortedFunc(maps.Keys(own), netip.Addr.Compare))
		removed, errs = append(removed, gone...), append(errs, err)
	}
	return removed, errors.Join(errs...)
}
