package userspace

import (
	"net/netip"
	"slices"
	"strings"

	"weft/backend"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet/egress"
	"weft/packet"
)

// built is what follows from a State and a path. Immutable: the next one shares what stays.
type built struct {
	self  control.Node
	nodes []control.Node
	path  Path
	ways  uint64 // egress.Underlay.Revision
	under *egress.Underlay

	table *dataplane.Table
	hops  []backend.Hop // of the nodes that can be reached, sorted by name; traffic is filled in by Status
	peers []SealedPeer  // the same nodes, for the sealer
}

// patchMost is from how many nodes on that change it is no less work to build everything anew.
const patchMost = 64

// build makes the route table, the report of it and the list of peers. Where only some nodes are others than before, so is the work.
func (p *planner) build(s *control.State, path Path, under *egress.Underlay) built {
	last := &p.built
	if last.table != nil && last.path.equal(path) && last.ways != under.Revision {
		last.follow(under)
	}
	now := built{self: s.Self, nodes: s.Nodes, path: path, ways: under.Revision, under: under}
	first, old, fresh := changed(last.nodes, s.Nodes)
	if last.table != nil && last.path.equal(path) && last.ways == now.ways && last.self.Equal(s.Self) && last.table.Unambiguous() && len(old)+len(fresh) <= patchMost {
		if len(old)+len(fresh) == 0 {
			now.table, now.hops, now.peers = last.table, last.hops, last.peers
			return now
		}
		from, _ := slices.BinarySearchFunc(last.hops, first, func(h backend.Hop, name string) int { return strings.Compare(h.Node, name) })
		to := from
		for to < len(last.hops) && len(old) > 0 && last.hops[to].Node <= old[len(old)-1].Name {
			to++
		}
		now.table = last.table.Clone()
		for i := range last.peers[from:to] {
			p.take(now.table, &last.peers[from+i], path)
		}
		hops, peers := p.insert(now.table, s.Self, fresh, path, under)
		now.hops = slices.Concat(last.hops[:from], hops, last.hops[to:])
		now.peers = slices.Concat(last.peers[:from], peers, last.peers[to:])
		return now
	}
	now.table = dataplane.NewTable()
	now.table.SetStation(path.MAC)
	for _, prefix := range s.Self.Prefixes {
		now.table.InsertSelf(prefix)
	}
	now.hops, now.peers = p.insert(now.table, s.Self, s.Nodes, path, under)
	return now
}

// follow brings what is built in line with the paths as they are now: the table stays, and learn tells its hops. A path that begins at
// another address of ours is another path: then ways stays what it was, and all is built anew.
func (l *built) follow(under *egress.Underlay) {
	hops := slices.Clone(l.hops)
	for i := range hops {
		h := &hops[i]
		way, _ := under.To(h.Endpoint.Addr())
		if way.Source != h.Source {
			return
		}
		h.Device, h.Router, h.MTU, h.Narrowed = way.Device, way.Via, l.path.towards(h.Endpoint.Addr(), under), way.By
	}
	l.hops, l.ways = hops, under.Revision
}

// learn tells the hops of the table, published or not, the MTU of their paths.
func (l *built) learn() {
	for i := range l.hops {
		l.peers[i].Hop.Path.SetMTU(l.path.carries(l.hops[i].Endpoint.Addr(), l.under))
	}
}

// changed compares two lists of nodes, sorted by name: it returns the part of each outside of which they are the same, and the
// first name in either.
func changed(old, now []control.Node) (first string, was, is []control.Node) {
	for len(old) > 0 && len(now) > 0 && old[0].Equal(now[0]) {
		old, now = old[1:], now[1:]
	}
	for len(old) > 0 && len(now) > 0 && old[len(old)-1].Equal(now[len(now)-1]) {
		old, now = old[:len(old)-1], now[:len(now)-1]
	}
	switch {
	case len(old) == 0 && len(now) == 0:
		return "", nil, nil
	case len(old) == 0:
		first = now[0].Name
	case len(now) == 0:
		first = old[0].Name
	default:
		first = min(old[0].Name, now[0].Name)
	}
	return first, old, now
}

// insert puts nodes into a table, and returns those that can be reached.
func (p *planner) insert(t *dataplane.Table, self control.Node, nodes []control.Node, path Path, under *egress.Underlay) ([]backend.Hop, []SealedPeer) {
	// Remote checksum offload is used where both sides announced it and this mode can do it.
	rco := slices.Contains(p.kind.Features, control.FeatureRCO) && slices.Contains(self.Features, control.FeatureRCO)
	hops, peers := make([]backend.Hop, 0, len(nodes)), make([]SealedPeer, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		at, ok := control.Endpoint(self, *n)
		if !ok {
			continue // Check has said so
		}
		id, known := p.ids[n.Name]
		if !known {
			id = uint32(len(p.ids)) // never reused: counters and sessions go by it
			p.ids[n.Name] = id
		}
		way, _ := under.To(at)
		h := &packet.Hop{
			Peer: packet.Peer{ID: id, VNI: path.VNI, MAC: n.VTEP(), RCO: rco && slices.Contains(n.Features, control.FeatureRCO)},
			Path: packet.NewPath(way.Source, netip.AddrPortFrom(at, path.Port), path.carries(at, under)),
		}
		if p.kind.Inner == packet.Ethernet {
			t.InsertStation(h)
		}
		for _, prefix := range n.Prefixes {
			t.Insert(prefix, h)
		}
		peer := sealedPeer(n, h, p.set, path)
		peers = append(peers, peer)
		if peer.named(path) {
			for _, a := range n.Endpoints {
				t.InsertPeer(a, h)
			}
		}
		hops = append(hops, backend.Hop{Node: n.Name, Endpoint: h.Path.Dst, Source: way.Source, Device: way.Device, Router: way.Via,
			Prefixes: n.Prefixes, VNI: path.VNI, MTU: path.towards(at, under), Narrowed: way.By, MAC: n.VTEP().String()})
	}
	return hops, peers
}

// named says whether an outer address names the peer: it proves nothing where seals do.
func (p *SealedPeer) named(path Path) bool { return !path.Sealed || p.Plain != nil }

// take takes out of a table what insert put in for a peer.
func (p *planner) take(t *dataplane.Table, peer *SealedPeer, path Path) {
	if p.kind.Inner == packet.Ethernet {
		t.RemoveStation(peer.Hop)
	}
	for _, prefix := range peer.Node.Prefixes {
		t.Remove(prefix)
	}
	if peer.named(path) {
		for _, a := range peer.Node.Endpoints {
			t.RemovePeer(a)
		}
	}
}
