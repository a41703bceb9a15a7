package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	"weft/packet"
)

func load(b *packet.Batch, data []byte, from string, hop *packet.Hop) *packet.Packet {
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data))
	if from != "" {
		p.From = netip.MustParseAddrPort(from)
	}
	p.Hop = hop
	b.SetLen(1)
	return p
}

func TestRouteInChecksSourceAndDestination(t *testing.T) {
	owner := &packet.Hop{Peer: packet.Peer{ID: 1}}
	other := &packet.Hop{Peer: packet.Peer{ID: 2}}
	tab := NewTable()
	tab.InsertSelf(netip.MustParsePrefix("10.1.0.0/24"))
	tab.InsertSelf(netip.MustParsePrefix("fd00:1::/64"))
	tab.Insert(netip.MustParsePrefix("10.0.0.0/24"), owner)
	tab.Insert(netip.MustParsePrefix("fd00::/64"), owner)
	tab.Insert(netip.MustParsePrefix("10.9.0.0/24"), other)
	tab.InsertPeer(netip.MustParseAddr("192.0.2.1"), owner)
	tab.InsertPeer(netip.MustParseAddr("2001:db8::1"), owner)
	tab.InsertPeer(netip.MustParseAddr("192.0.2.2"), other)
	r := NewRoute()
	r.Publish(tab)
	stale := *owner // the same peer, from a table swapped out meanwhile
	data := ip4("10.0.0.1", "10.1.0.3", 64)
	data6 := ip6("fd00::1", "fd00:1::3", 64)
	for _, c := range []struct {
		name string
		data []byte
		hop  *packet.Hop
		from string
		want packet.Drop
	}{
		{"sealed owner", data, owner, "203.0.113.9:1", packet.Alive},
		{"sealed owner, old table", data, &stale, "203.0.113.9:1", packet.Alive},
		{"sealed other", data, other, "192.0.2.1:1", packet.WrongSource},
		{"plain owner", data, nil, "192.0.2.1:1", packet.Alive},
		{"plain owner by its other address", data, nil, "[2001:db8::1]:1", packet.Alive},
		{"plain other", data, nil, "192.0.2.2:1", packet.WrongSource},
		{"plain stranger", data, nil, "198.51.100.1:1", packet.UnknownPeer},
		{"our own source", ip4("10.1.0.9", "10.1.0.3", 64), nil, "192.0.2.1:1", packet.WrongSource},
		{"source outside the overlay", ip4("8.8.8.8", "10.1.0.3", 64), nil, "192.0.2.1:1", packet.WrongSource},
		{"for another node", ip4("10.0.0.1", "10.9.0.3", 64), nil, "192.0.2.1:1", packet.NotOurs},
		{"for the world", ip4("10.0.0.1", "8.8.8.8", 64), nil, "192.0.2.1:1", packet.NotOurs},
		{"multicast", ip4("10.0.0.1", "224.0.0.1", 64), nil, "192.0.2.1:1", packet.NotOurs},
		{"v6 owner", data6, nil, "192.0.2.1:1", packet.Alive},
		{"v6 other", data6, nil, "192.0.2.2:1", packet.WrongSource},
		{"empty", nil, nil, "192.0.2.1:1", packet.TooShort},
		{"short v4", data[:19], nil, "192.0.2.1:1", packet.TooShort},
		{"short v6", data6[:39], nil, "192.0.2.1:1", packet.TooShort},
		{"version 5", append([]byte{0x55}, data[1:]...), nil, "192.0.2.1:1", packet.BadHeader},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := packet.NewBatch(2, 2000)
			p := load(b, c.data, c.from, c.hop)
			r.In(b)
			if p.Drop != c.want {
				t.Fatalf("drop %v, want %v", p.Drop, c.want)
			}
		})
	}
}

// TestRouteInRun: the shortcut for runs of one flow must not let a second peer's packet through.
func TestRouteInRun(t *testing.T) {
	r, _ := twoNodes()
	tab := r.Table()
	other := &packet.Hop{Peer: packet.Peer{ID: 2}}
	tab.InsertPeer(netip.MustParseAddr("192.0.2.3"), other)
	data := ip4("10.244.2.5", "10.244.1.5", 64)
	b := packet.NewBatch(8, 2000)
	from := []string{"192.0.2.2:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.2:1"}
	for i, f := range from {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.From = netip.MustParseAddrPort(f)
	}
	b.SetLen(len(from))
	r.In(b)
	for i, f := range from {
		want := packet.Alive
		if f == "192.0.2.3:1" {
			want = packet.WrongSource
		}
		if got := b.Packets()[i].Drop; got != want {
			t.Errorf("packet %d from %s: %v, want %v", i, f, got, want)
		}
	}
}

// TestLookupAgainstSlowList holds the table against the obvious longest-prefix search.
func TestLookupAgainstSlowList(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	type route struct {
		p netip.Prefix
		h *packet.Hop
	}
	var list []route
	tab := NewTable()
	addr := func() netip.Addr {
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		}
		a := [16]byte{0xfd, 0, 0, byte(rng.IntN(4)), byte(rng.IntN(256))}
		a[15] = byte(rng.IntN(256))
		return netip.AddrFrom16(a)
	}
	seen := map[netip.Prefix]bool{}
	for len(list) < 2000 {
		a := addr()
		p, _ := a.Prefix(8 + rng.IntN(a.BitLen()-7))
		if seen[p] {
			continue
		}
		seen[p] = true
		h := &packet.Hop{Peer: packet.Peer{ID: uint32(len(list))}}
		list = append(list, route{p, h})
		tab.Insert(p, h)
	}
	for range 20000 {
		a := addr()
		var want *packet.Hop
		bits := -1
		for _, r := range list {
			if r.p.Contains(a) && r.p.Bits() > bits {
				want, bits = r.h, r.p.Bits()
			}
		}
		got, ok := tab.Lookup(a)
		if ok != (want != nil) || ok && got != want {
			t.Fatalf("%v: got %v, want %v", a, got, want)
		}
	}
}

func bigTable(n int) *Table {
	t := NewTable()
	for i := range n {
		t.Insert(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), &packet.Hop{Peer: packet.Peer{ID: uint32(i)}, Path: packet.NewPath(netip.Addr{}, netip.AddrPort{}, 1450)})
	}
	return t
}

func BenchmarkLookup10k(b *testing.B) {
	r := NewRoute()
	r.Publish(bigTable(10000))
	run := func(b *testing.B) {
		i := 0
		for b.Loop() {
			i += 7919
			k := i % 10000
			if _, ok := r.Table().Lookup(netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), 9})); !ok {
				b.Fatal("no route")
			}
		}
	}
	b.Run("quiet", run)
	b.Run("swapped", func(b *testing.B) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			tabs := [2]*Table{bigTable(10000), bigTable(10000)}
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					r.Publish(tabs[i&1])
				}
			}
		})
		run(b)
		close(stop)
		wg.Wait()
	})
}

// TestTableWithoutAPeer: a clone that a peer is taken out of is what was built without it, and the first table stays as it was.
func TestTableWithoutAPeer(t *testing.T) {
	hops := []*packet.Hop{}
	for i, mtu := range []int{1400, 1300, 1450} {
		hops = append(hops, &packet.Hop{Peer: packet.Peer{ID: uint32(i), MAC: [6]byte{2, byte(i + 1)}}, Path: packet.NewPath(netip.Addr{}, netip.AddrPort{}, mtu)})
	}
	prefix := func(h *packet.Hop) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(h.Peer.ID), 0}), 24)
	}
	outer := func(h *packet.Hop) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(h.Peer.ID)}) }
	build := func(list ...*packet.Hop) *Table {
		tab := NewTable()
		for _, h := range list {
			tab.InsertStation(h)
			tab.Insert(prefix(h), h)
			tab.InsertPeer(outer(h), h)
		}
		return tab
	}
	same := func(what string, got, want *Table) {
		t.Helper()
		if got.Len() != want.Len() || !got.peers.Equal(want.peers.Fast) || !reflect.DeepEqual(got.stations, want.stations) ||
			!reflect.DeepEqual(got.flood, want.flood) || got.least() != want.least() {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
		for _, h := range hops {
			a, _ := got.Lookup(prefix(h).Addr())
			b, _ := want.Lookup(prefix(h).Addr())
			if a != b || got.hop(h.Peer.ID) != want.hop(h.Peer.ID) {
				t.Errorf("%s: peer %d is %v %v, want %v %v", what, h.Peer.ID, a, got.hop(h.Peer.ID), b, want.hop(h.Peer.ID))
			}
		}
	}
	whole := build(hops...)
	for i, h := range hops {
		less := whole.Clone()
		less.RemoveStation(h)
		less.Remove(prefix(h))
		less.RemovePeer(outer(h))
		same(fmt.Sprint("without ", i), less, build(slices.Concat(hops[:i], hops[i+1:])...))
		same("the first", whole, build(hops...))
	}
	if twin := *hops[0]; !whole.Unambiguous() {
		t.Error("three MACs of three peers are ambiguous")
	} else if twin.Peer.ID = 3; build(hops[0], &twin).Unambiguous() {
		t.Error("one MAC of two peers is not")
	}
}
