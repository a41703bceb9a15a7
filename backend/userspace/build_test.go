package userspace

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft/backend"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet/egress"
	"weft/packet"
)

// some is a random choice of forty nodes, which take over what others had.
func some(random *rand.Rand) (nodes []control.Node) {
	prefixes := random.Perm(60)
	for i := range 40 {
		if random.IntN(4) == 0 {
			continue
		}
		own := i
		if random.IntN(5) == 0 {
			own = 40 + prefixes[i]
		}
		n := control.Node{Name: fmt.Sprintf("n%02d", i), MAC: control.VTEPMAC(fmt.Sprint(i, random.IntN(8) == 0)),
			Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(100*random.IntN(2) + i)})},
			Prefixes:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(own), 0}), 24)}}
		if random.IntN(10) == 0 {
			n.Endpoints = []netip.Addr{netip.MustParseAddr("2001:db8::1")} // cannot be reached
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// TestBuildFromTheLast: what is built from the last State is what is built from nothing.
func TestBuildFromTheLast(t *testing.T) {
	for name, inner := range map[string]packet.Layer{"packets": packet.IP, "frames": packet.Ethernet} {
		t.Run(name, func(t *testing.T) { buildFromTheLast(t, Kind{Inner: inner}) })
	}
}

func buildFromTheLast(t *testing.T, kind Kind) {
	random := rand.New(rand.NewPCG(3, 4))
	self := control.Node{Name: "self", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.250")}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.250.0/24")}}
	under := &egress.Underlay{Local: self.Endpoints, Device: "eth0", MTU: 1500}
	path := Path{Port: 4789, VNI: 1, UnderlayMTU: 1500, InnerMTU: 1450, MAC: control.VTEPMAC("self")}
	b := &planner{kind: kind, ids: map[string]uint32{}}
	nodes := some(random)
	for round := range 300 {
		if random.IntN(2) == 0 { // one node changes, or many
			nodes = slices.Clone(nodes)
			if other := some(random); random.IntN(2) == 0 {
				nodes = other
			} else if at := random.IntN(len(nodes)); random.IntN(2) == 0 {
				nodes = slices.Delete(nodes, at, at+1)
			} else {
				nodes[at].Features = append(nodes[at].Features, fmt.Sprint(round))
			}
		}
		s := &control.State{Self: self, Nodes: nodes}
		oldHops, oldTable := slices.Clone(b.built.hops), lookups(b.built.table)
		last := b.built
		b.built = b.build(s, path, under)
		if last.table != nil && (!reflect.DeepEqual(last.hops, oldHops) || lookups(last.table) != oldTable) {
			t.Fatalf("round %d: what was built before was edited", round)
		}
		fresh := (&planner{kind: kind, ids: b.ids}).build(s, path, under)
		if !reflect.DeepEqual(b.built.hops, fresh.hops) || !reflect.DeepEqual(b.built.peers, fresh.peers) || b.built.table.Len() != fresh.table.Len() {
			t.Fatalf("round %d: %d hops, %d peers, %d prefixes; want %d, %d, %d", round, len(b.built.hops), len(b.built.peers), b.built.table.Len(),
				len(fresh.hops), len(fresh.peers), fresh.table.Len())
		}
		if !slices.IsSortedFunc(b.built.hops, func(a, c backend.Hop) int { return strings.Compare(a.Node, c.Node) }) {
			t.Fatalf("round %d: hops are not sorted", round)
		}
		got, want := lookups(b.built.table), lookups(fresh.table)
		for i := range got {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Fatalf("round %d: what is for prefix %d goes to %+v, want %+v", round, i, got[i], want[i])
			}
		}
	}
}

// lookups are the hops of all prefixes that some has, and others.
func lookups(t *dataplane.Table) (hops [256]*packet.Hop) {
	if t == nil {
		return hops
	}
	for i := range hops {
		hops[i], _ = t.Lookup(netip.AddrFrom4([4]byte{10, 244, byte(i), 9}))
	}
	return hops
}

// TestBuildFollowsAPath: a peer's MTU that becomes another reaches the hop that lanes see already; no table is made for it. Another
// address of ours towards the peer is another path.
func TestBuildFollowsAPath(t *testing.T) {
	self := control.Node{Name: "self", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.250"), netip.MustParseAddr("192.0.2.251")},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.250.0/24")}}
	s := &control.State{Self: self, Nodes: some(rand.New(rand.NewPCG(5, 6)))}
	path := Path{Port: 4789, VNI: 1, UnderlayMTU: 1500, InnerMTU: 1450, MAC: control.VTEPMAC("self")}
	b := &planner{ids: map[string]uint32{}}
	paths := func(source string, mtu int) map[netip.Addr]egress.Path {
		all := map[netip.Addr]egress.Path{}
		for _, n := range s.Nodes {
			all[n.Endpoints[0]] = egress.Path{Source: netip.MustParseAddr(source), Device: "eth0", MTU: mtu}
		}
		return all
	}
	revision := uint64(0)
	build := func(source string, mtu int) (was, is built) {
		was = b.built
		revision++
		under := &egress.Underlay{Local: self.Endpoints, Device: "eth0", MTU: 1500, Revision: revision, Paths: paths(source, mtu)}
		b.built = b.build(s, path, under)
		b.built.learn()
		for i, h := range b.built.hops {
			if p := b.built.peers[i].Hop.Path; h.MTU != mtu-50 || p.MTU() != mtu-50 || h.Source.String() != source || p.Src != h.Source || p.Dst != h.Endpoint {
				t.Fatalf("MTU %d from %s: %+v, and in the table %+v of %d bytes", mtu, source, h, p, p.MTU())
			}
		}
		return was, b.built
	}
	build("192.0.2.250", 1500)
	told := b.built.hops[0]
	if was, is := build("192.0.2.250", 1400); was.table != is.table || was.peers[0].Hop != is.peers[0].Hop {
		t.Error("a table was made for another MTU")
	}
	if told.MTU != 1450 {
		t.Errorf("what Status gave away changed to %d", told.MTU)
	}
	if was, is := build("192.0.2.250", 1500); was.table != is.table {
		t.Error("a table was made for the old MTU")
	}
	if was, is := build("192.0.2.251", 1500); was.table == is.table {
		t.Error("the source is another, and the hops are the old ones")
	}
}
