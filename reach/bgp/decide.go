package bgp

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft/control"
	"weft/internal/config"
	"weft/reach"
)

// path is a way to a prefix that a peer told of.
type path struct {
	prefix netip.Prefix
	via    netip.Addr
	from   netip.Addr // the peer
	stale  bool

	// What paths are compared by (RFC 4271 §9.1).
	pref     uint32 // LOCAL_PREF
	length   int    // of the AS_PATH
	origin   uint8
	med      uint32
	internal bool   // the peer is of this node's AS
	as       string // the AS_PATH
}

// rank orders paths, the better first. Those of the same rank are used beside each other. What a peer told of that is gone for the moment is
// used where there is nothing else alone: nobody knows whether it comes back.
func rank(a, b path) int {
	external := func(p path) int {
		if p.internal {
			return 1
		}
		return 0
	}
	waiting := func(p path) int {
		if p.stale {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(waiting(a), waiting(b)), cmp.Compare(b.pref, a.pref), cmp.Compare(a.length, b.length), cmp.Compare(a.origin, b.origin), cmp.Compare(a.med, b.med), cmp.Compare(external(a), external(b)))
}

// world is what paths are held against.
type world struct {
	o        *Options
	network  []netip.Prefix
	self     []netip.Prefix
	owners   map[netip.Prefix]string // of the nodes' prefixes
	at       map[netip.Addr]string   // whose endpoints these are
	sessions map[netip.Addr]session
	imports  map[netip.Addr][]config.Import // of routers
	onLink   func(netip.Addr) (string, error)
	reserved []control.Reserved // what this node needs besides
	own      []netip.Addr       // this node's endpoints
}

func newWorld(o *Options, s *control.State, sessions map[netip.Addr]session) *world {
	w := &world{o: o, network: o.Network, self: s.Self.Prefixes, own: s.Self.Endpoints, owners: map[netip.Prefix]string{}, at: map[netip.Addr]string{}, sessions: sessions, imports: map[netip.Addr][]config.Import{}}
	for i := range s.Nodes {
		for _, p := range s.Nodes[i].Prefixes {
			w.owners[p] = s.Nodes[i].Name
		}
		for _, a := range s.Nodes[i].Endpoints {
			w.at[a] = s.Nodes[i].Name
		}
	}
	if o.Reserved != nil {
		w.reserved = o.Reserved()
	}
	for _, p := range o.Config.Peers {
		w.imports[p.Address] = p.Import
	}
	// The kernel is asked once an address.
	type answer struct {
		device string
		err    error
	}
	known := map[netip.Addr]answer{}
	w.onLink = func(a netip.Addr) (string, error) {
		is, asked := known[a]
		if !asked {
			is.device, is.err = o.OnLink(a)
			known[a] = is
		}
		return is.device, is.err
	}
	return w
}

// mostRefused is how many refused prefixes are named: a peer may tell of any number.
const mostRefused = 1000

// decide chooses among the paths, which may be in any order. more counts what was refused and is not among the first mostRefused.
func (w *world) decide(paths []path) (routes []reach.Route, refused []reach.Refused, more int) {
	good := map[netip.Prefix][]path{}
	cut := func() {
		slices.SortFunc(refused, func(a, b reach.Refused) int {
			return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.From, b.From), a.Via.Compare(b.Via))
		})
		if n := len(refused); n > mostRefused {
			refused, more = refused[:mostRefused], more+n-mostRefused
		}
	}
	for _, p := range paths {
		if wrong := w.wrong(p); wrong != "" {
			from := p.from.String()
			if s, known := w.sessions[p.from]; known {
				from = s.from()
			}
			refused = append(refused, reach.Refused{Prefix: p.prefix, From: from, Via: p.via, Reason: wrong})
			if len(refused) >= 2*mostRefused {
				cut()
			}
			continue
		}
		good[p.prefix] = append(good[p.prefix], p)
	}
	for prefix, list := range good {
		slices.SortFunc(list, func(a, b path) int { return cmp.Or(rank(a, b), a.via.Compare(b.via), a.from.Compare(b.from)) })
		r := reach.Route{Prefix: prefix, Node: w.owners[prefix], Path: list[0].as}
		for _, p := range list {
			if rank(list[0], p) != 0 {
				break
			}
			r.Stale = r.Stale || p.stale
			if s := w.sessions[p.from]; !slices.Contains(r.From, s.from()) {
				r.From = append(r.From, s.from())
			}
			if !slices.Contains(r.Via, p.via) && len(r.Via) < reach.MaxVia {
				r.Via = append(r.Via, p.via)
			}
		}
		slices.Sort(r.From)
		routes = append(routes, r)
	}
	slices.SortFunc(routes, func(a, b reach.Route) int { return a.Prefix.Compare(b.Prefix) })
	cut()
	return routes, refused, more
}

// held adds to routes what was known before and nobody has told of yet, also where some of its next hops have been told of and others not. Next hops that
// nobody would be believed are left out.
func (w *world) held(held map[netip.Prefix][]netip.Addr, routes []reach.Route) []reach.Route {
	if len(held) == 0 {
		return routes
	}
	all := map[netip.Prefix]reach.Route{}
	for _, r := range routes {
		all[r.Prefix] = r
	}
	for p, list := range held {
		owner, owned := w.owners[p]
		listed := slices.ContainsFunc(w.o.Config.Peers, func(peer config.BGPPeer) bool {
			return peer.For(w.o.Node) && slices.ContainsFunc(peer.Import, func(i config.Import) bool { return i.Takes(p) })
		})
		if !owned && (!listed || slices.ContainsFunc(w.network, p.Overlaps) || w.outside(p) != "") {
			continue
		}
		var via []netip.Addr
		for _, a := range list {
			if w.hop(p, owner, a) == "" && (listed || w.at[a] == owner) {
				via = append(via, a)
			}
		}
		told := all[p]
		if len(via) > len(told.Via) && !slices.ContainsFunc(told.Via, func(a netip.Addr) bool { return !slices.Contains(via, a) }) {
			all[p] = reach.Route{Prefix: p, Node: owner, Via: via, From: slices.Concat([]string{}, told.From), Path: told.Path, Stale: true}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b reach.Route) int { return a.Prefix.Compare(b.Prefix) })
}

// wrong says why a path is not believed; "" = it is.
func (w *world) wrong(p path) string {
	s, known := w.sessions[p.from]
	if !known {
		return "its peer is none any more"
	}
	overlaps := func(o netip.Prefix) bool { return o.Overlaps(p.prefix) }
	if slices.ContainsFunc(w.self, overlaps) {
		return "it is of this node's own prefixes"
	}
	owner, owned := w.owners[p.prefix]
	switch {
	case slices.ContainsFunc(w.network, overlaps) && !owned:
		return w.nobodys(p.prefix)
	case s.node != "" && !owned:
		return "nodes tell of nodes' prefixes alone, and it is outside of network.prefixes"
	case s.node != "" && owner != s.node:
		return fmt.Sprintf("it belongs to %s, and %s tells of it: see `weft nodes`", owner, s.node)
	case s.node != "" && w.at[p.via] != s.node:
		return fmt.Sprintf("the next hop %v is no endpoint of %s", p.via, s.node)
	case s.node != "":
		return cmp.Or(w.hop(p.prefix, owner, p.via), w.offLink(p.via))
	}
	if !slices.ContainsFunc(w.imports[p.from], func(i config.Import) bool { return i.Takes(p.prefix) }) {
		if owned {
			return fmt.Sprintf("it belongs to %s, and a router is believed a node's prefix only where its import lists it", owner)
		}
		return "the router's import does not list it"
	}
	if !owned {
		if wrong := w.outside(p.prefix); wrong != "" {
			return wrong
		}
	}
	return cmp.Or(w.hop(p.prefix, owner, p.via), w.offLink(p.via))
}

// hop says why a next hop is not believed, whoever tells of it: it is neither the owner's nor a router's, or cannot be.
func (w *world) hop(prefix netip.Prefix, owner string, via netip.Addr) string {
	_, router := w.imports[via]
	switch by := w.at[via]; {
	case prefix.Addr().Is6() && via.Is4(): // the other way round there is RFC 8950
		return fmt.Sprintf("IPv6 needs an IPv6 next hop, and %v is none", via)
	case by != "" && by != owner:
		return fmt.Sprintf("the next hop %v is an endpoint of %s, which does not own it", via, by)
	case by == "" && !router:
		return fmt.Sprintf("the next hop %v is no router of bgp.peers", via)
	}
	return ""
}

// outside says why a prefix that is outside of the cluster cannot be a router's: the longest prefix wins in the kernel, whatever its metric, so that a part of
// a network that this node is in would go before the network. What holds all of such a network takes nothing of it.
func (w *world) outside(prefix netip.Prefix) string {
	taken := func(g control.Reserved) string { return "it would take away " + g.What }
	for _, g := range w.reserved {
		if !g.Prefix.Overlaps(prefix) {
			continue
		}
		if g.Prefix.Bits() <= prefix.Bits() {
			return taken(g)
		}
		wins := func(n control.Reserved) bool {
			return !n.Prefix.IsSingleIP() && n.Prefix.Bits() > prefix.Bits() && n.Prefix.Contains(g.Prefix.Addr())
		}
		if g.Prefix.IsSingleIP() && !slices.ContainsFunc(w.reserved, wins) {
			return taken(g)
		}
	}
	if a := prefix.Addr(); prefix.IsSingleIP() {
		_, router := w.imports[a]
		switch by := w.at[a]; {
		case by != "":
			return "it is an endpoint of " + by
		case router:
			return "it is a router of bgp.peers"
		case slices.Contains(w.own, a):
			return "it is an endpoint of this node"
		}
	}
	return ""
}

// nobodys says why a prefix of the network is no node's.
func (w *world) nobodys(prefix netip.Prefix) string {
	var first netip.Prefix
	for p := range w.owners {
		if p.Overlaps(prefix) && (!first.IsValid() || p.Compare(first) < 0) {
			first = p
		}
	}
	if !first.IsValid() {
		return "no node owns it: see `weft nodes`"
	}
	return fmt.Sprintf("%s owns %v, and prefixes of nodes are told of as they are, neither in parts nor together with others", w.owners[first], first)
}

func (w *world) offLink(a netip.Addr) string {
	if _, err := w.onLink(a); err != nil {
		return fmt.Sprintf("the next hop cannot be used: %v", err)
	}
	return ""
}
