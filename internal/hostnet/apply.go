package hostnet

import (
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// object is one entry of a kernel table: the whole value says what it is, its key (K) what the kernel tells it
// apart by.
type object[K comparable] interface {
	comparable
	fmt.Stringer
	key() K
	device() string // the link it needs, "" for none
	shared() bool   // others may rightly have an object with this key
	add(replace bool, index map[string]int32) message
	del(index map[string]int32) message
	evict(index map[string]int32) message // removes whatever has the object's key
}

// inForce is what an Apply left in the kernel, as sets.
type inForce struct {
	links     map[string]Link
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
	p := newPass(h, w)
	errs := []error{p.guard(), p.links(), h.syncSysctls(w.Sysctls)} // some settings are the links'

	// Additions go from the bottom up and removals from the top down, so that no packet meets a route whose
	// neighbour is missing, and no address goes while a route still names it as its source.
	addrs, err := syncTable(p, w.Addrs, p.addrs, p.before.addrs, &p.now.addrs)
	errs = append(errs, err, awaitLocal(h.rt, p.now.addrs))
	neighbors, err := syncTable(p, w.Neighbors, p.neighbors, p.before.neighbors, &p.now.neighbors)
	errs = append(errs, err)
	fdb, err := syncTable(p, w.FDB, p.fdb, p.before.fdb, &p.now.fdb)
	errs = append(errs, err)
	routes, err := syncTable(p, p.wantedRoutes(), p.routes, p.before.routes, &p.now.routes)
	errs = append(errs, err,
		remove(p, routes, p.before.routes), remove(p, fdb, p.before.fdb),
		remove(p, neighbors, p.before.neighbors), remove(p, addrs, p.before.addrs))

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
	ours    map[string]bool // names in w.Links
	makes   map[string]bool // those of them that weft makes itself
	names   map[int32]string
	index   map[string]int32
	devices []link // ours that exist
	watched map[int32]watch
	anew    map[string]bool // devices made in this pass because they are wanted otherwise than before

	first       bool // nothing is known of before
	before, now inForce
	repairs     int // objects put back or taken away in this pass
}

func newPass(h *Host, w Want) *pass {
	p := &pass{
		h: h, w: w, ours: map[string]bool{}, makes: map[string]bool{}, names: map[int32]string{},
		index: map[string]int32{}, watched: map[int32]watch{}, anew: map[string]bool{}, first: h.prev == nil,
	}
	for _, l := range w.Links {
		p.ours[l.Name] = true
		p.makes[l.Name] = l.Vxlan != nil
	}
	if !p.first {
		p.before = *h.prev
	}
	p.now.links = map[string]Link{}
	return p
}

// guard puts the guards in force before anything else.
func (p *pass) guard() error {
	made, err := p.h.guard(p.w.Network)
	for _, r := range made {
		if p.before.routes[r] {
			p.repaired("put back", r, "it was missing")
		}
	}
	return err
}

// links makes the links right and learns all devices' numbers.
func (p *pass) links() error {
	links, err := p.syncLinks()
	under := map[string]bool{}
	for _, name := range p.w.Watch {
		under[name] = true
	}
	for _, l := range links {
		p.names[l.index], p.index[l.name] = l.name, l.index
		switch {
		case p.ours[l.name]:
			p.devices = append(p.devices, l)
			p.watched[l.index] = ours
		case under[l.name]:
			p.watched[l.index] = underlay
		}
	}
	return err
}

func (p *pass) addrs() ([]Addr, error) {
	table, err := dumpAddrs(p.h.rt)
	var list []Addr
	for _, a := range table {
		name := p.names[a.index]
		// A link-local address is the kernel's, except where we told it to make none.
		if p.ours[name] && (p.makes[name] || !a.prefix.Addr().IsLinkLocalUnicast()) {
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

func (p *pass) wantedRoutes() []Route {
	routes := make([]Route, 0, len(p.w.Routes)+len(p.w.Network))
	for _, prefix := range p.w.Network {
		routes = append(routes, guard(prefix))
	}
	for _, r := range p.w.Routes {
		routes = append(routes, r.normal())
	}
	return routes
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
// table, before is what the last Apply left in it, now is set to what this one does.
//
// A dump of a table that others change meanwhile may miss an entry (the kernel marks only some of these), so
// what looks missing is added under the condition that nothing has its place. What has, if anything, a second
// dump tells: the object itself after all, or a usurper.
func syncTable[T object[K], K comparable](p *pass, want []T, dump func() ([]T, error), before map[T]bool, now *map[T]bool) ([]T, error) {
	have, err := dump()
	if err != nil {
		// Nothing can be compared: leave the table alone rather than guess.
		*now = before
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	right, other := compare(want, have)
	var todo []change[T]
	var errs []error
	waiting := map[string]int{} // objects by the device that does not exist
	for _, o := range want {
		if _, exists := p.index[o.device()]; !exists && o.device() != "" {
			waiting[o.device()]++
			continue
		}
		if right[o] {
			continue
		}
		right[o] = true
		c := change[T]{to: o, ours: before[o] || !o.shared(), reason: "it was missing"}
		if there := other[o.key()]; len(there) > 0 {
			c.ours, c.replace, c.reason = true, true, "it was "+there[0].String()
			other[o.key()] = there[1:]
		}
		todo = append(todo, c)
	}
	for dev, n := range waiting {
		errs = append(errs, fmt.Errorf("hostnet: device %s does not exist; %d objects wait for it", dev, n))
	}
	for _, c := range carryOut(p, todo, dump) {
		switch {
		case c.err != nil:
			delete(right, c.to)
			errs = append(errs, explain(c.to, c.err))
		case before[c.to] && !c.there && !p.anew[c.to.device()]:
			p.repaired("put back", c.to, c.reason)
		}
	}
	*now = right
	var strays []T
	for _, list := range other {
		strays = append(strays, list...)
	}
	return strays, errors.Join(errs...)
}

// compare sorts a table into the wanted objects that are right, and the rest by key.
func compare[T object[K], K comparable](want, have []T) (right map[T]bool, other map[K][]T) {
	wants := make(map[T]bool, len(want))
	for _, o := range want {
		wants[o] = true
	}
	right, other = make(map[T]bool, len(want)), map[K][]T{}
	for _, o := range have {
		if wants[o] {
			right[o] = true
		} else {
			other[o.key()] = append(other[o.key()], o)
		}
	}
	return right, other
}

// change is one object to be put into the kernel, and how that went.
type change[T any] struct {
	to      T
	replace bool   // something of ours has its place
	ours    bool   // whatever has its place may be replaced
	reason  string // for the log
	there   bool   // it was there all the time
	err     error
}

// carryOut makes changes and returns them with their outcome.
func carryOut[T object[K], K comparable](p *pass, todo []change[T], dump func() ([]T, error)) []change[T] {
	msgs := make([]message, len(todo))
	for i, c := range todo {
		msgs[i] = c.to.add(c.replace, p.index)
	}
	taken := 0
	for i, err := range p.h.rt.do(msgs) {
		c := &todo[i]
		if errors.Is(err, unix.EINVAL) && c.ours {
			// IPv6 refuses to move a route to another device in one step: it looks the new next hop up in
			// the old route.
			err = errors.Join(p.h.rt.do([]message{c.to.evict(p.index), c.to.add(false, p.index)})...)
		}
		if c.err = err; errors.Is(err, unix.EEXIST) {
			taken++
		}
	}
	if taken == 0 {
		return todo
	}
	have, err := dump()
	there := make(map[T]bool, len(have))
	for _, o := range have {
		there[o] = true
	}
	for i := range todo {
		c := &todo[i]
		switch {
		case !errors.Is(c.err, unix.EEXIST):
		case err != nil:
			c.err = err
		case there[c.to]:
			c.there, c.err = true, nil
		case c.ours:
			c.err = p.h.rt.do1(c.to.add(true, p.index))
		}
	}
	return todo
}

// explain gives an object's error its name and remedy.
func explain(o fmt.Stringer, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("hostnet: add %s: %w: something that is not weft's has its place; remove that", o, err)
	}
	return fmt.Errorf("hostnet: add %s: %w%s", o, err, hint(err))
}

// remove takes strays away. before holds what weft itself wanted last: that is retired, not repaired.
func remove[T object[K], K comparable](p *pass, strays []T, before map[T]bool) error {
	msgs := make([]message, len(strays))
	for i, o := range strays {
		if !p.first && !before[o] {
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
func (p *pass) changed(what, link string, repair bool, reason string) {
	fields := []zap.Field{zap.String("action", what), zap.String("device", link), zap.String("reason", reason)}
	if repair {
		p.h.repairs.Add(1)
		p.h.log.Warn("repaired", fields...)
		return
	}
	p.h.log.Info("changed", fields...)
}
