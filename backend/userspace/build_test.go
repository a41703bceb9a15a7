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
	"weft/hostnet/egress"
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
	random := rand.New(rand.NewPCG(3, 4))
	self := control.Node{Name: "self", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.250")}, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.250.0/24")}}
	under := &egress.Underlay{Local: self.Endpoints, Device: "eth0", MTU: 1500}
	path := Path{Port: 4789, VNI: 1, UnderlayMTU: 1500, InnerMTU: 1450, MAC: control.VTEPMAC("self")}
	b := &Backend{ids: map[string]uint32{}}
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
		old := b.built.table
		oldHops := slices.Clone(b.built.hops)
		last := b.built
		b.built = b.build(s, path, under)
		if old != nil && !reflect.DeepEqual(last.hops, oldHops) {
			t.Fatalf("round %d: what was built before was edited", round)
		}
		fresh := (&Backend{ids: b.ids}).build(s, path, under)
		if !reflect.DeepEqual(b.built.hops, fresh.hops) || !reflect.DeepEqual(b.built.peers, fresh.peers) || b.built.table.Len() != fresh.table.Len() {
			t.Fatalf("round %d: %d hops, %d peers, %d prefixes; want %d, %d, %d", round, len(b.built.hops), len(b.built.peers), b.built.table.Len(),
				len(fresh.hops), len(fresh.peers), fresh.table.Len())
		}
		if !slices.IsSortedFunc(b.built.hops, func(a, c backend.Hop) int { return strings.Compare(a.Node, c.Node) }) {
			t.Fatalf("round %d: hops are not sorted", round)
		}
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 244, byte(i), 9})
			got, ok := b.built.table.Lookup(a)
			want, wanted := fresh.table.Lookup(a)
			if ok != wanted || ok && !reflect.DeepEqual(got, want) {
				t.Fatalf("round %d: %v goes to %+v %v, want %+v %v", round, a, got, ok, want, wanted)
			}
		}
	}
}
