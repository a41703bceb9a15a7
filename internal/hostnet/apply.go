package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
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

	// index is the device's number.
	add(rt *netlink.Handle, index int, replace bool) error
	remove(rt *netlink.Handle, index int) error
	evict(rt *netlink.Handle, index int) error // removes whatever has the object's key
}

// inForce is what an Apply left in the kernel, by key.
type inForce struct {
	want      Want // what it was told to
	whole     bool // all of it is in force
	links     map[string]Link
	addrs     map[Addr]Addr
	routes    map[routeKey]Route
	neighbors map[neighborKey]Neighbor
	fdb       map[fdbKey]FDBEntry
	own       map[netip.Addr]bool

	names   map[int]string // of all devices
	index   map[string]int
	devices map[int]string // names of ours
}

// holds says whether a table has just this object.
func holds[T object[K], K comparable](table map[K]T, o T) bool {
	have, ok := table[o.key()]
	return ok && have == o
}

// maxRepairLines is how many repairs of one Apply get a log line of their own.
const maxRepairLines = 20

// Apply makes the kernel's state be w; see the package comment for what is ours. It is idempotent, and what is
// already right is not touched. On an error the rest of w is in force; call it again.
//
// While Watch listens and has heard nothing that concerns us, the kernel holds what the last Apply left there: then a
// change of some nodes costs what these cost (applyChanges), and not what a look at the tables of thousands does.
func (h *Host) Apply(w Want) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listening.Load() && !h.doubtful() && h.prev != nil && h.prev.whole && h.prev.want.differsInPeersOnly(w) {
		if h.applyChanges(w) == nil {
			return nil
		}
		// A look at the tables tells what is wrong.
	}
	return h.applyWhole(w)
}

// doubtful says whether the kernel may hold something else than what the last Apply left there. The caller holds h.mu.
func (h *Host) doubtful() bool { return h.doubt.Load() || len(h.suspects) > 0 }

// applyWhole is Apply with a look at all that the kernel has. The caller holds h.mu.
func (h *Host) applyWhole(w Want) error {
	h.doubt.Store(false) // what happens from here on casts a new one
	clear(h.suspects)
	began := time.Now()
	defer func() { h.whole.Store(int64(time.Since(began))) }()
	p := newPass(h, w)
	errs := []error{p.guard(), p.links(), h.syncSysctls(w.Sysctls)} // some settings are the links'

	// Additions go from the bottom up and removals from the top down, so that no packet meets a route whose
	// neighbour is missing, and no address goes while a route still names it as its source.
	own, err := p.syncOwn()
	errs = append(errs, err)
	addrs, err := syncTable(p, w.Addrs, p.addrs, p.before.addrs, &p.now.addrs)
	errs = append(errs, err, awaitLocal(h.rt, maps.Keys(p.now.addrs)))
	neighbors, err := syncTable(p, w.Neighbors, p.neighbors, p.before.neighbors, &p.now.neighbors)
	errs = append(errs, err)
	fdb, err := syncTable(p, w.FDB, p.fdb, p.before.fdb, &p.now.fdb)
	errs = append(errs, err)
	routes, err := syncTable(p, p.wantedRoutes(), p.routes, p.before.routes, &p.now.routes)
	errs = append(errs, err,
		remove(p, routes, p.before.routes), remove(p, fdb, p.before.fdb),
		remove(p, neighbors, p.before.neighbors), remove(p, addrs, p.before.addrs))
	_, err = h.removeOwn(p.index[loopback], own)
	errs = append(errs, err)

	err = errors.Join(errs...)
	p.now.want, p.now.whole = w, err == nil
	p.now.names, p.now.index, p.now.devices = p.names, p.index, p.devices
	h.prev = &p.now
	h.watched.Store(&p.watched)
	if p.repairs > maxRepairLines {
		h.log.Warn("repaired more", zap.Int("objects", p.repairs-maxRepairLines))
	}
	return err
}

// pass is one Apply at work.
type pass struct {
	h       *Host
	w       Want
	ours    map[string]bool // names in w.Links
	quiet   map[string]bool // those of them on which IPv6 makes no address by itself
	names   map[int]string  // of all devices
	index   map[string]int
	devices map[int]string // names of ours that exist
	watched map[int]watch
	anew    map[string]bool // devices made in this pass because they are wanted otherwise than before

	first       bool // nothing is known of before
	before, now inForce
	repairs     int // objects put back or taken away in this pass
}

func newPass(h *Host, w Want) *pass {
	p := &pass{
		h: h, w: w, ours: map[string]bool{}, quiet: map[string]bool{}, names: map[int]string{},
		index: map[string]int{}, devices: map[int]string{}, watched: map[int]watch{}, anew: map[string]bool{},
		first: h.prev == nil,
	}
	for _, l := range w.Links {
		p.ours[l.Name] = true
		p.quiet[l.Name] = l.quiet()
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
		if holds(p.before.routes, r) {
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
		name, index := l.Attrs().Name, l.Attrs().Index
		p.names[index], p.index[name] = name, index
		switch {
		case p.ours[name]:
			p.devices[index] = name
			p.watched[index] = ours
		case under[name], name == loopback && len(p.w.Own) > 0:
			p.watched[index] = underlay
		}
	}
	return err
}

func (p *pass) addrs() ([]Addr, error) {
	table, err := dumpAddrs(p.h.rt)
	var list []Addr
	for _, k := range table {
		name, ok := p.devices[k.LinkIndex]
		// A link-local address is the kernel's, except where we told it to make none.
		if ok && (p.quiet[name] || !k.IP.IsLinkLocalUnicast()) {
			list = append(list, addrFrom(k, name))
		}
	}
	return list, err
}

func (p *pass) neighbors() ([]Neighbor, error) { return dumpNeighbors(p.h.rt, p.devices) }
func (p *pass) fdb() ([]FDBEntry, error)       { return dumpFDB(p.h.raw.fdb, p.devices) }

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
	table, err := dumpRoutes(p.h.strict, p.names)
	for _, r := range table {
		if tables[r.Table] && (Owned(r.Dev) || !strings.HasPrefix(r.Dev, LinkPrefix)) {
			list = append(list, r)
		}
	}
	return list, err
}

// syncTable adds and corrects what one table misses of want, and returns what it holds besides. dump reads the
// table, before is what the last Apply left in it, now is set to what this one does.
//
// A dump of a table that others change meanwhile may miss an entry (the kernel marks only some of these), so
// what looks missing is added under the condition that nothing has its place. What has, if anything, further
// dumps tell: the object itself after all, or a usurper.
func syncTable[T object[K], K comparable](p *pass, want []T, dump func() ([]T, error), before map[K]T, now *map[K]T) ([]T, error) {
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
		if holds(right, o) {
			continue
		}
		right[o.key()] = o
		c := change[T]{to: o, ours: holds(before, o) || !o.shared(), reason: "it was missing"}
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
			delete(right, c.to.key())
			errs = append(errs, explain(c.to, c.err))
		case holds(before, c.to) && !c.there && !p.anew[c.to.device()]:
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
func compare[T object[K], K comparable](want, have []T) (right map[K]T, other map[K][]T) {
	wants := make(map[K]T, len(want))
	for _, o := range want {
		wants[o.key()] = o
	}
	right, other = make(map[K]T, len(want)), map[K][]T{}
	for _, o := range have {
		if holds(wants, o) {
			right[o.key()] = o
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
	var taken []*change[T] // something has their place
	for i := range todo {
		c := &todo[i]
		index := p.index[c.to.device()]
		c.err = c.to.add(p.h.rt, index, c.replace)
		if errors.Is(c.err, unix.EINVAL) && c.ours {
			// IPv6 refuses to move a route to another device in one step: it looks the new next hop up in
			// the old route.
			c.err = errors.Join(c.to.evict(p.h.rt, index), c.to.add(p.h.rt, index, false))
		}
		if errors.Is(c.err, unix.EEXIST) {
			taken = append(taken, c)
		}
	}
	// An object that is there after all shows in one of the dumps; so does what of ours has its place.
	var usurped []*change[T]
	for tries := 0; tries < maxDumps && len(taken) > 0; tries++ {
		have, err := dump()
		there, keys := make(map[T]bool, len(have)), make(map[K]bool, len(have))
		for _, o := range have {
			there[o], keys[o.key()] = true, true
		}
		var unseen []*change[T]
		for _, c := range taken {
			switch {
			case err != nil:
				c.err = err
			case there[c.to]:
				c.there, c.err = true, nil
			case keys[c.to.key()]:
				usurped = append(usurped, c)
			default: // missed again, or a stranger that no dump of ours shows
				unseen = append(unseen, c)
			}
		}
		taken = unseen
	}
	for _, c := range append(usurped, taken...) {
		if c.ours {
			c.err = c.to.add(p.h.rt, p.index[c.to.device()], true)
		}
	}
	return todo
}

// maxDumps bounds how often a table is read to learn what has an object's place: each reading may miss it anew.
const maxDumps = 5

// explain gives an object's error its name and remedy.
func explain(o fmt.Stringer, err error) error {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("hostnet: add %s: %w: something that is not weft's has its place; remove that", o, err)
	}
	return fmt.Errorf("hostnet: add %s: %w%s", o, err, hint(err))
}

// remove takes strays away. before holds what weft itself wanted last: that is retired, not repaired.
func remove[T object[K], K comparable](p *pass, strays []T, before map[K]T) error {
	var errs []error
	for _, o := range strays {
		if !p.first && !holds(before, o) {
			p.repaired("took away", o, "not wanted")
		}
		if err := o.remove(p.h.rt, p.index[o.device()]); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("hostnet: remove %s: %w%s", o, err, hint(err)))
		}
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
