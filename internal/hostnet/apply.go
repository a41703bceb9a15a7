package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// object is one entry of a kernel table: the whole value says what it is, its key (K) what the kernel tells it
// apart by, add and del the requests that make and remove it.
type object[K comparable] interface {
	comparable
	fmt.Stringer
	key() K
	add(replace bool, index map[string]int32) message
	del(index map[string]int32) message
}

// wanted is a Want as sets.
type wanted struct {
	links     map[string]bool
	addrs     map[Addr]bool
	routes    map[Route]bool
	neighbors map[Neighbor]bool
	fdb       map[FDBEntry]bool
}

// maxRepairLines is how many repairs of one Apply get a log line of their own.
const maxRepairLines = 20

// Apply makes the kernel's state be w; see the package comment for what is ours. It is idempotent, and what is
// already right is not touched. On an error the rest of w is in force; call it again.
func (h *Host) Apply(w Want) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs := []error{h.Guard(w.Network), h.syncSysctls(w.Sysctls)}

	links, err := h.syncLinks(w)
	errs = append(errs, err)
	p := newPass(h, w, links)

	// Additions go from the bottom up and removals from the top down, so that no packet meets a route whose
	// neighbour is missing, and no address goes while a route still names it as its source.
	addrs, err := syncTable(p, w.Addrs, p.addrs, func(s *wanted) *map[Addr]bool { return &s.addrs })
	errs = append(errs, err)
	neighbors, err := syncTable(p, w.Neighbors, p.neighbors, func(s *wanted) *map[Neighbor]bool { return &s.neighbors })
	errs = append(errs, err)
	fdb, err := syncTable(p, w.FDB, p.fdb, func(s *wanted) *map[FDBEntry]bool { return &s.fdb })
	errs = append(errs, err)
	routes := make([]Route, 0, len(w.Routes)+len(w.Network))
	for _, prefix := range w.Network {
		routes = append(routes, guard(prefix))
	}
	for _, r := range w.Routes {
		routes = append(routes, r.normal())
	}
	strayRoutes, err := syncTable(p, routes, p.routes, func(s *wanted) *map[Route]bool { return &s.routes })
	errs = append(errs, err)

	errs = append(errs, remove(p, strayRoutes, p.prevSet().routes), remove(p, fdb, p.prevSet().fdb),
		remove(p, neighbors, p.prevSet().neighbors), remove(p, addrs, p.prevSet().addrs))

	h.prev = &p.now
	h.watched.Store(&p.watched)
	if p.repairs > maxRepairLines {
		h.log.Warn("repaired more", zap.Int("objects", p.repairs-maxRepairLines))
	}
	return errors.Join(errs...)
}

// pass is one Apply at work.
type pass struct {
	h       *Host
	w       Want
	names   map[int32]string
	index   map[string]int32
	devices []link // ours: named in w.Links, and existing
	watched map[int32]watch
	now     wanted
	repairs int // objects put back or taken away in this pass
}

func newPass(h *Host, w Want, links []link) *pass {
	p := &pass{
		h: h, w: w, names: map[int32]string{}, index: map[string]int32{}, watched: map[int32]watch{},
		now: wanted{links: map[string]bool{}},
	}
	for _, l := range w.Links {
		p.now.links[l.Name] = true
	}
	under := map[string]bool{}
	for _, name := range w.Watch {
		under[name] = true
	}
	for _, l := range links {
		p.names[l.index], p.index[l.name] = l.name, l.index
		switch {
		case p.now.links[l.name]:
			p.devices = append(p.devices, l)
			p.watched[l.index] = ours
		case under[l.name]:
			p.watched[l.index] = underlay
		}
	}
	return p
}

// prevSet returns what the last Apply wanted; empty sets before the first.
func (p *pass) prevSet() *wanted {
	if p.h.prev == nil {
		return &wanted{}
	}
	return p.h.prev
}

func (p *pass) addrs() ([]Addr, error) {
	table, err := dumpAddrs(p.h.rt)
	var list []Addr
	for _, a := range table {
		name := p.names[a.index]
		if p.now.links[name] && !a.prefix.Addr().IsLinkLocalUnicast() {
			list = append(list, a.ours(name))
		}
	}
	return list, err
}

func (p *pass) neighbors() (list []Neighbor, err error) {
	for _, d := range p.devices {
		for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
			part, e := dumpNeighbors(p.h.rt, fam, d.name, d.index)
			list, err = append(list, part...), errors.Join(err, e)
		}
	}
	return list, err
}

func (p *pass) fdb() (list []FDBEntry, err error) {
	for _, d := range p.devices {
		if d.kind != "vxlan" {
			continue
		}
		part, e := dumpFDB(p.h.rt, d.name, d.index)
		list, err = append(list, part...), errors.Join(err, e)
	}
	return list, err
}

func (p *pass) routes() (list []Route, err error) {
	tables := map[uint32]bool{MainTable: true}
	for _, r := range p.w.Routes {
		tables[r.normal().Table] = true
	}
	for _, fam := range []uint8{unix.AF_INET, unix.AF_INET6} {
		part, e := dumpRoutes(p.h.rt, fam, p.names)
		err = errors.Join(err, e)
		for _, r := range part {
			if tables[r.Table] && (Owned(r.Dev) || !strings.HasPrefix(r.Dev, LinkPrefix)) {
				list = append(list, r)
			}
		}
	}
	return list, err
}

// syncTable adds and corrects what one table misses of want, and returns what it holds besides. dump reads the
// table; set says where want is remembered.
func syncTable[T object[K], K comparable](p *pass, want []T, dump func() ([]T, error), set func(*wanted) *map[T]bool) ([]T, error) {
	wants := make(map[T]bool, len(want))
	for _, o := range want {
		wants[o] = true
	}
	*set(&p.now) = wants
	var before map[T]bool
	if p.h.prev != nil {
		before = *set(p.h.prev)
	}
	have, err := dump()
	if err != nil {
		// Nothing can be compared: leave the table alone rather than guess.
		return nil, fmt.Errorf("hostnet: %w", err)
	}

	right := make(map[T]bool, len(have)) // wanted and there
	other := map[K][]T{}                 // there and not wanted, by key
	for _, o := range have {
		if wants[o] {
			right[o] = true
		} else {
			other[o.key()] = append(other[o.key()], o)
		}
	}
	var msgs []message
	var todo, was []T // was[i] is what todo[i] replaces, or the zero T
	for _, o := range want {
		if right[o] {
			continue
		}
		right[o] = true // a second mention in want
		// Ours was in force: whatever has its place now took it, a foreign route, say.
		replace := before[o]
		reason := "it was missing"
		var wrong T
		if there := other[o.key()]; len(there) > 0 {
			replace, wrong = true, there[0]
			reason = "it was " + wrong.String()
			other[o.key()] = there[1:]
		}
		if before[o] {
			p.repaired("put back", o, reason)
		}
		msgs = append(msgs, o.add(replace, p.index))
		todo, was = append(todo, o), append(was, wrong)
	}
	errs := p.h.rt.do(msgs)
	for i, e := range errs {
		var zero T
		if errors.Is(e, unix.EINVAL) && was[i] != zero {
			// IPv6 refuses to move a route to another device in one step: it looks the new next hop up in
			// the old route.
			e = errors.Join(p.h.rt.do([]message{was[i].del(p.index), todo[i].add(false, p.index)})...)
		}
		errs[i] = explain(todo[i], e)
	}
	var strays []T
	for _, list := range other {
		strays = append(strays, list...)
	}
	return strays, errors.Join(errs...)
}

// explain gives an object's error its name and remedy.
func explain(o fmt.Stringer, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("hostnet: add %s: %w: something that is not weft's has its place; remove that", o, err)
	}
	return fmt.Errorf("hostnet: add %s: %w%s", o, err, hint(err))
}

// remove takes strays away. before holds what weft itself wanted last: that is retired, not repaired.
func remove[T object[K], K comparable](p *pass, strays []T, before map[T]bool) error {
	msgs := make([]message, len(strays))
	for i, o := range strays {
		if p.h.prev != nil && !before[o] {
			p.repaired("took away", o, "not wanted")
		}
		msgs[i] = o.del(p.index)
	}
	answers := p.h.rt.do(msgs)
	var errs []error
	for i, err := range answers {
		if err == nil || gone(err) {
			continue
		}
		errs = append(errs, fmt.Errorf("hostnet: remove %s: %w%s", strays[i], err, hint(err)))
	}
	return errors.Join(errs...)
}

// gone says whether an object could not be removed because it is not there: with its device, its source
// address, or by another hand.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, unix.EADDRNOTAVAIL)
}

func (p *pass) repaired(what string, o fmt.Stringer, reason string) {
	p.repairs++
	p.h.repairs.Add(1)
	if p.repairs <= maxRepairLines {
		p.h.log.Warn("repaired", zap.String("action", what), zap.String("object", o.String()), zap.String("reason", reason))
	}
}

// changed logs a change to a device; repair says that it undoes somebody's doing.
func (h *Host) changed(what, object string, repair bool, reason string) {
	fields := []zap.Field{zap.String("action", what), zap.String("object", object), zap.String("reason", reason)}
	if repair {
		h.repairs.Add(1)
		h.log.Warn("repaired", fields...)
		return
	}
	h.log.Info("changed", fields...)
}
