package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Cleanup removes everything that any weft left in this namespace: nftables tables and links whose names start
// with LinkPrefix, and the routes of Protocol in every table, the guards of the overlay's prefixes last. It
// returns what it removed, in words. On an error the rest is removed.
func (h *Host) Cleanup() ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prev = nil
	removed, err := removeTables(h.ns)
	errs := []error{err}

	links, err := dumpLinks(h.rt)
	if err != nil {
		errs = append(errs, fmt.Errorf("hostnet: list links: %w", err))
	}
	names := map[int32]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	routes, err := h.allRoutes(names)
	errs = append(errs, err)
	for _, l := range links {
		if !strings.HasPrefix(l.name, LinkPrefix) {
			continue
		}
		// The other end of a veth that was removed a moment ago is gone with it.
		if err := h.rt.do1(deleteLink(l.index)); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("hostnet: remove link %s: %w%s", l.name, err, hint(err)))
			continue
		}
		removed = append(removed, "link "+l.name)
	}
	for _, r := range routes {
		// Routes over the links went with them; that is as good.
		if err := h.rt.do1(r.del(indexOf(names))); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove route %s: %w%s", r, err, hint(err)))
			continue
		}
		removed = append(removed, "route "+r.String())
	}
	return removed, errors.Join(errs...)
}

// allRoutes returns our routes of every table, guards at the end.
func (h *Host) allRoutes(names map[int32]string) (routes []Route, err error) {
	var guards []Route
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		part, e := dumpRoutes(h.rt, fam, names)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("hostnet: list routes: %w", e))
		}
		for _, r := range part {
			if r.Unreachable && r.Metric == GuardMetric {
				guards = append(guards, r)
			} else {
				routes = append(routes, r)
			}
		}
	}
	return append(routes, guards...), err
}

func indexOf(names map[int32]string) map[string]int32 {
	index := make(map[string]int32, len(names))
	for i, name := range names {
		index[name] = i
	}
	return index
}
