package hostnet

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go.uber.org/zap"
)

// inForce is what the last pass left in the kernel, by key.
type inForce struct {
	links     map[string]Link
	hops      map[uint32]NextHop
	rules     map[Rule]Rule
	addrs     map[Addr]Addr
	routes    map[routeKey]Route
	neighbors map[neighborKey]Neighbor
	fdb       map[fdbKey]FDBEntry
	programs  map[programKey]Program
	own       map[netip.Addr]bool
	common    map[any]bool // keys of what more than one owner wants, alike or not

	names   map[int]string // of all devices
	index   map[string]int
	devices map[int]string // names of ours
}

// maxRepairLines is how many repairs of one pass get a log line of their own.
const maxRepairLines = 20

// pass is one look at everything, and what follows from it.
type pass struct {
	h       *Host
	links   []claim[Link]
	ours    map[string]bool // names in links
	quiet   map[string]bool // those of them on which IPv6 makes no address by itself
	names   map[int]string  // of all devices
	index   map[string]int
	devices map[int]string // names of ours that exist
	watched map[int]bool
	anew    map[string]bool // devices made in this pass because they are wanted otherwise than before

	first       bool // nothing is known of before
	settled     bool // what nobody wants is a stranger
	before, now inForce
	repairs     int // objects put back or taken away in this pass
}

func newPass(h *Host) *pass {
	p := &pass{
		h: h, ours: map[string]bool{}, quiet: map[string]bool{}, names: map[int]string{},
		index: map[string]int{}, devices: map[int]string{}, watched: map[int]bool{}, anew: map[string]bool{},
		first: h.prev == nil, settled: h.settled(),
	}
	p.now.links, p.now.common = map[string]Link{}, map[any]bool{}
	p.links = p.mergeLinks()
	for _, l := range p.links {
		p.ours[l.object.Name] = true
		p.quiet[l.object.Name] = l.object.quiet()
	}
	if !p.first {
		p.before = *h.prev
	}
	return p
}

// run makes the kernel be what all owners want. Additions go from the bottom up and removals from the top down, so that no packet
// meets a route whose neighbour is missing, and no address goes while a route still names it as its source. What is replaced is
// replaced in one step: what was in force is so until its successor is. Programs come last and go first, since a packet that one takes
// passes all else by.
func (p *pass) run() {
	h := p.h
	p.guard()
	p.syncLinks()
	p.syncSysctls() // some are the links'

	own := p.syncOwn()
	addrs := syncTable(p, merge(p, func(w *Want) []Addr { return w.Addrs }), p.addrs, p.before.addrs, &p.now.addrs)
	p.awaitLocal(maps.Keys(p.now.addrs))
	neighbors := syncTable(p, merge(p, func(w *Want) []Neighbor { return w.Neighbors }), p.neighbors, p.before.neighbors, &p.now.neighbors)
	fdb := syncTable(p, merge(p, func(w *Want) []FDBEntry { return w.FDB }), p.fdb, p.before.fdb, &p.now.fdb)
	hops := syncTable(p, merge(p, (*Want).hops), p.hops, p.before.hops, &p.now.hops)
	routes := syncTable(p, merge(p, (*Want).routes), p.routes, p.before.routes, &p.now.routes)
	rules := syncTable(p, p.wantedRules(), p.rules, p.before.rules, &p.now.rules)
	h.syncFirewall()
	programs := syncTable(p, merge(p, func(w *Want) []Program { return w.Programs }), p.programs, p.before.programs, &p.now.programs)

	remove(p, programs, p.before.programs)
	remove(p, rules, p.before.rules)
	remove(p, routes, p.before.routes)
	slices.SortFunc(hops, func(a, b NextHop) int { return cmp.Compare(b.Members[0].ID, a.Members[0].ID) }) // groups first
	remove(p, hops, p.before.hops)
	remove(p, fdb, p.before.fdb)
	remove(p, neighbors, p.before.neighbors)
	remove(p, addrs, p.before.addrs)
	removed, err := h.removeOwn(p.index[loopback], own)
	h.wrote = h.wrote || len(removed) > 0
	p.fail(err)
	p.removeStrayLinks()

	p.now.names, p.now.index, p.now.devices = p.names, p.index, p.devices
	h.prev = &p.now
	h.watched.Store(&p.watched)
	if p.repairs > maxRepairLines {
		h.log.Warn("repaired more", zap.Int("objects", p.repairs-maxRepairLines))
	}
}

// guard puts the guards in force before anything else.
func (p *pass) guard() {
	made, err := p.h.guard(p.h.network())
	p.h.wrote = p.h.wrote || len(made) > 0
	p.fail(err)
	for _, r := range made {
		if holds(p.before.routes, r) {
			p.repaired("put back", r, "it was missing")
		}
	}
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

func (p *pass) hops() ([]NextHop, error) { return p.h.raw.nextHops(p.names) }

// wantedRules are the owners' and, where others' rules ask for them, the guards.
func (p *pass) wantedRules() wanted[Rule, Rule] {
	network := p.h.network()
	var guards []Rule
	for _, v6 := range []bool{false, true} {
		list, err := p.h.guardRules(network, v6)
		if err != nil { // nobody knows whether they are needed: those that stand do so until somebody does
			p.fail(err)
			list = p.standingGuards(network, v6)
		}
		guards = append(guards, list...)
	}
	return merge(p, func(w *Want) []Rule {
		if len(w.Network) == 0 {
			return w.rules()
		}
		return append(w.rules(), guards...)
	})
}

// standingGuards are the guards of one address family that the last pass left in force, or an earlier daemon.
func (p *pass) standingGuards(network []netip.Prefix, v6 bool) (list []Rule) {
	standing := slices.Collect(maps.Values(p.before.rules))
	if p.first {
		standing, _ = p.rules() // syncTable tells of the error, and then leaves all rules alone
	}
	for _, r := range standing {
		if r.V6 == v6 && slices.Contains(network, r.To) && r == guardRule(r.Priority, r.To) {
			list = append(list, r)
		}
	}
	return list
}

func (p *pass) rules() ([]Rule, error) { return dumpRules(p.h.rt) }

// routes are a Want's routes and guards, as the kernel has them.
func (w *Want) routes() []Route {
	routes := make([]Route, 0, len(w.Routes)+len(w.Network))
	for _, prefix := range w.Network {
		routes = append(routes, guard(prefix))
	}
	for _, r := range w.Routes {
		routes = append(routes, r.normal())
	}
	return routes
}

func (p *pass) routes() (list []Route, err error) {
	tables, over := map[uint32]bool{MainTable: true}, false
	for _, o := range p.h.owners {
		for _, r := range o.want.Routes {
			tables[r.normal().Table] = true
			over = over || r.NextHop != 0
		}
	}
	for _, r := range p.before.routes {
		tables[r.Table] = true
	}
	table, err := dumpRoutes(p.h.strict, p.names)
	var objects map[routeKey]Route
	if over && err == nil {
		objects, err = p.h.raw.hopRoutes()
	}
	for _, r := range table {
		if o, ok := objects[r.key()]; ok {
			r = o
		}
		if tables[r.Table] {
			list = append(list, r)
		}
	}
	return list, err
}

func (p *pass) repaired(what string, o fmt.Stringer, reason string) {
	p.repairs++
	p.h.repairs.Add(1)
	if p.repairs <= maxRepairLines {
		p.h.log.Warn("repaired", zap.String("action", what), zap.String("object", o.String()), zap.String("reason", reason))
	}
}

// changed logs a change to a device; repair says that it undoes somebody's doing.
func (h *Host) changed(what, link string, repair bool, reason string) {
	fields := []zap.Field{zap.String("action", what), zap.String("device", link), zap.String("reason", reason)}
	if repair {
		h.repairs.Add(1)
		h.log.Warn("repaired", fields...)
		return
	}
	h.log.Info("changed", fields...)
}

// watch lists the devices that are ours, and those besides whose changes concern us.
func (p *pass) watch() {
	under := union(p.h, func(w *Want) []string { return w.Watch })
	own := union(p.h, func(w *Want) []netip.Addr { return w.Own })
	for index, name := range p.names {
		switch {
		case p.ours[name]:
			p.devices[index] = name
		case slices.Contains(under, name), name == loopback && len(own) > 0:
			p.watched[index] = true
		}
	}
}
