package xdp

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// TestColdDestination: the first packets to a peer nobody has spoken to arrive, by the kernel's hand, and later ones go
// by the ring.
func TestColdDestination(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, pendingBudget, 0)
	for i, addr := range addrsB {
		far := datagrams(t, u.b, addr, testPort)
		hop := hopTo(addr)
		loadBatch(b, pendingBudget, []byte("cold"), hop)
		// The resolver stands still meanwhile: here it may know the way before the first packet asks for it.
		d := q.(*outsideQueue).to(hop)
		out.resolver.mu.Lock()
		known := d.adjacency.Swap(pendingAdjacency(pendingBudget, 0))
		err := q.Send(b)
		d.adjacency.Store(known)
		out.resolver.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		for range pendingBudget {
			p, from, err := readUDP(far)
			if err != nil || string(p) != "cold" || from != netip.AddrPortFrom(addrsA[i], testPort) {
				t.Fatalf("%q from %v: %v", p, from, err)
			}
		}
		resolve(t, out, hop)
		loadBatch(b, 1, []byte("warm"), hop)
		b.Packets()[0].Flow = 7
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		p, from, err := readUDP(far)
		if err != nil || string(p) != "warm" || from != netip.AddrPortFrom(addrsA[i], out.sources.of(i == 1, 7)) {
			t.Fatalf("%q from %v: %v", p, from, err)
		}
	}
}

// TestNeighbourChangeFollowed: a peer's MAC address changes and says so, or is changed by hand: packets follow.
func TestNeighbourChangeFollowed(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	for i, addr := range addrsB {
		far := datagrams(t, u.b, addr, testPort)
		hop := hopTo(addr)
		resolve(t, out, hop)
		d := out.resolver.destination(hop.Path.Dst)
		family := []string{"-4", "-6"}[i]

		// A MAC that nobody has: packets go there, and nowhere else.
		u.a.MustRun(t, "ip", family, "neigh", "replace", addr.String(), "lladdr", "02:00:00:00:00:77", "dev", "eth0", "nud", "permanent")
		until(t, "the new neighbour entry", func() bool { return macIn(d) == [6]byte{2, 0, 0, 0, 0, 0x77} })

		// The entry goes, and comes back with what the peer says.
		u.a.MustRun(t, "ip", family, "neigh", "del", addr.String(), "dev", "eth0")
		until(t, "the neighbour's own answer", func() bool { return macIn(d) == macOf(t, u.b, "eth0") })

		// The peer's device gets another MAC and announces it.
		if err := u.b.Sysctl([]string{"ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify"}[i], "1"); err != nil {
			t.Fatal(err)
		}
		u.b.MustRun(t, "ip", "link", "set", "eth0", "address", []string{"02:00:00:00:01:04", "02:00:00:00:01:06"}[i])
		until(t, "the announced address", func() bool { return macIn(d) == macOf(t, u.b, "eth0") })

		loadBatch(b, 1, []byte("found"), hop)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		if p, _, err := readUDP(far); err != nil || string(p) != "found" {
			t.Fatalf("%q: %v", p, err)
		}
	}
}

// macIn is the destination address in a destination's template; zero without one.
func macIn(d *destination) (mac [6]byte) {
	if c := d.adjacency.Load(); c != nil && c.template != nil {
		copy(mac[:], c.template.header[:])
	}
	return mac
}

// TestRouteChangeFollowed: a destination behind routers moves from one to the other, to another device, to nowhere and
// back.
func TestRouteChangeFollowed(t *testing.T) {
	u := newUnderlay(t)
	other := nettest.New(t)
	nettest.Pair(t, nettest.End{NS: u.a, Dev: "eth1", Addrs: nettest.Prefixes("203.0.113.1/24", "2001:db8:1::1/64")},
		nettest.End{NS: other, Dev: "eth0", Addrs: nettest.Prefixes("203.0.113.2/24", "2001:db8:1::2/64", "198.51.100.9/32", "2001:db8:9::9/128")}, 1500)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	for i, at := range []string{"198.51.100.9", "2001:db8:9::9"} {
		family := []string{"-4", "-6"}[i]
		routers := [][]string{{"192.0.2.51", "192.0.2.52"}, {"2001:db8::51", "2001:db8::52"}}[i]
		elsewhere := []string{"203.0.113.2", "2001:db8:1::2"}[i]
		back := []string{"192.0.2.0/24", "2001:db8::/64"}[i]
		other.MustRun(t, "ip", family, "route", "add", back, "via", []string{"203.0.113.1", "2001:db8:1::1"}[i])
		for k, r := range routers {
			u.a.MustRun(t, "ip", family, "neigh", "add", r, "lladdr", "02:00:00:00:00:5"+string(rune('1'+k)), "dev", "eth0", "nud", "permanent")
		}
		hop := hopTo(netip.MustParseAddr(at))
		for k, r := range routers {
			u.a.MustRun(t, "ip", family, "route", "replace", at, "via", r)
			d := out.resolver.destination(hop.Path.Dst)
			until(t, "router "+r, func() bool { return macIn(d) == [6]byte{2, 0, 0, 0, 0, byte(0x51 + k)} })
		}
		d := out.resolver.destination(hop.Path.Dst)

		// Behind another device: the kernel carries it there.
		u.a.MustRun(t, "ip", family, "route", "replace", at, "via", elsewhere, "dev", "eth1")
		until(t, "the kernel's path", func() bool { c := d.adjacency.Load(); return c.kernel && !c.pending })
		far := datagrams(t, other, hop.Path.Dst.Addr(), testPort)
		loadBatch(b, 1, []byte("by the kernel"), hop)
		if err := q.Send(b); err != nil || b.Packets()[0].Drop != packet.Alive {
			t.Fatalf("%v, dropped as %v", err, b.Packets()[0].Drop)
		}
		if p, _, err := readUDP(far); err != nil || string(p) != "by the kernel" {
			t.Fatalf("%q: %v", p, err)
		}

		// No route: dropped by name.
		u.a.MustRun(t, "ip", family, "route", "del", at)
		u.a.MustRun(t, "ip", family, "route", "add", "unreachable", at)
		until(t, "no way", func() bool { c := d.adjacency.Load(); return !c.kernel && c.template == nil })
		loadBatch(b, 1, []byte("lost"), hop)
		if err := q.Send(b); err != nil || b.Packets()[0].Drop != packet.Unresolved {
			t.Fatalf("%v, dropped as %v, want unresolved", err, b.Packets()[0].Drop)
		}
		u.a.MustRun(t, "ip", family, "route", "del", "unreachable", at)
		u.a.MustRun(t, "ip", family, "route", "add", at, "via", routers[0])
		until(t, "the way back", func() bool { return macIn(d) == [6]byte{2, 0, 0, 0, 0, 0x51} })
	}
}

// TestUnresolvedIsCounted: a neighbour that does not answer is asked again and again, what goes there is counted, and it
// is reached as soon as it is there.
func TestUnresolvedIsCounted(t *testing.T) {
	u := newUnderlay(t)
	for _, key := range []string{"ipv4/neigh/eth0/", "ipv6/neigh/eth0/"} {
		if err := u.a.Sysctl(key+"mcast_solicit", "1"); err != nil {
			t.Fatal(err)
		}
	}
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	for _, at := range []string{"192.0.2.99", "2001:db8::99"} {
		addr := netip.MustParseAddr(at)
		hop := hopTo(addr)
		send := func() packet.Drop {
			loadBatch(b, 1, []byte("anybody?"), hop)
			if err := q.Send(b); err != nil {
				t.Fatal(err)
			}
			return b.Packets()[0].Drop
		}
		sent, dropped := 0, 0
		until(t, "packets to be dropped by name", func() bool {
			if send() == packet.Unresolved {
				dropped++
			} else {
				sent++
			}
			return dropped > 100
		})
		before := out.KernelDrops()["neighbour-unresolved"]
		if before == 0 {
			// The first answer may still be out: the kernel gives up after a second.
			until(t, "the kernel to give up", func() bool { send(); return out.KernelDrops()["neighbour-unresolved"] > 0 })
		}
		if err := u.b.AddAddrs("eth0", netip.PrefixFrom(addr, addr.BitLen())); err != nil {
			t.Fatal(err)
		}
		far := datagrams(t, u.b, addr, testPort)
		d := out.resolver.destination(hop.Path.Dst)
		until(t, "the neighbour to be found", func() bool { send(); return macIn(d) != [6]byte{} })
		if send() != packet.Alive {
			t.Error("a packet to a neighbour that answered was dropped")
		}
		if p, _, err := readUDP(far); err != nil || string(p) != "anybody?" {
			t.Errorf("%q: %v", p, err)
		}
	}
}

// TestStaleNeighbourIsProbed: the kernel does not see the ring's packets; what they use is kept fresh all the same.
func TestStaleNeighbourIsProbed(t *testing.T) {
	u := newUnderlay(t)
	if err := u.a.Sysctl("ipv4/neigh/eth0/delay_first_probe_time", "1"); err != nil {
		t.Fatal(err)
	}
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	hop := hopTo(addrsB[0])
	resolve(t, out, hop)
	mac := macOf(t, u.b, "eth0")
	u.a.MustRun(t, "ip", "neigh", "replace", addrsB[0].String(), "lladdr", net.HardwareAddr(mac[:]).String(), "dev", "eth0", "nud", "stale")
	until(t, "the stale entry to be confirmed", func() bool {
		loadBatch(b, 1, []byte("used"), hop)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(u.a.MustRun(t, "ip", "neigh", "show", addrsB[0].String(), "dev", "eth0"), "REACHABLE")
	})
}

// TestIdleDestinationIsForgotten: what is not used is not followed; when it is used again it is looked up again.
func TestIdleDestinationIsForgotten(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0].(*outsideQueue)
	hop := hopTo(addrsB[0])
	resolve(t, out, hop)
	d := q.to(hop)
	out.resolver.forget(d) // what tick does after idleTicks
	if len(out.resolver.known) != 0 {
		t.Errorf("%d destinations are followed", len(out.resolver.known))
	}
	again := q.to(hop)
	if c := q.adjacency(again); again == d || !c.kernel || !c.pending {
		t.Fatalf("adjacency %+v, want the kernel's until it is looked up", c)
	}
	resolve(t, out, hop)
	if q.to(hop) != again {
		t.Error("another destination while this one is used")
	}
}

// TestTick: a destination goes idle after idleTicks without a packet.
func TestTick(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	hop := hopTo(addrsB[0])
	resolve(t, out, hop)
	d := out.resolver.destination(hop.Path.Dst)
	r := out.resolver
	r.close() // so that this goroutine may take its place
	out.resolver = nil
	d.used.Store(true)
	d.mtu, d.age, d.visited = 1400, 0, true
	for i := range narrowTicks {
		if !d.visited {
			t.Fatalf("a narrow path is looked at again after %d ticks", i)
		}
		r.tick()
	}
	if d.visited {
		t.Fatalf("a narrow path is not looked at again after %d ticks", narrowTicks)
	}
	d.used.Store(true)
	for i := range idleTicks {
		r.tick()
		if d.gone.Load() {
			t.Fatalf("forgotten after %d ticks", i)
		}
	}
	r.tick()
	if !d.gone.Load() || len(r.known) > 0 {
		t.Fatalf("not forgotten after %d ticks without a packet", idleTicks)
	}
}

// TestPathMTU: a router says that a packet of ours was too big for the link behind it. From then on what is larger dies here, by name,
// and when the kernel forgets it, it goes out again.
func TestPathMTU(t *testing.T) {
	u := newUnderlay(t) // b is the router, with a narrow link behind it
	far := nettest.New(t)
	nettest.Pair(t, nettest.End{NS: u.b, Dev: "eth1", Addrs: nettest.Prefixes("198.51.100.1/24", "2001:db8:1::1/64")},
		nettest.End{NS: far, Dev: "eth0", Addrs: nettest.Prefixes("198.51.100.2/24", "2001:db8:1::2/64")}, 1400)
	for _, key := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
		if err := u.b.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	u.a.MustRun(t, "ip", "route", "add", "198.51.100.0/24", "via", addrsB[0].String())
	u.a.MustRun(t, "ip", "-6", "route", "add", "2001:db8:1::/64", "via", addrsB[1].String())
	far.MustRun(t, "ip", "route", "add", "default", "via", "198.51.100.1")
	far.MustRun(t, "ip", "-6", "route", "add", "default", "via", "2001:db8:1::1")
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := q.(packet.Batcher).NewBatch(2)
	for i, family := range []string{"-4", "-6"} {
		to := hopTo([]netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")}[i])
		headers := []int{28, 48}[i]
		send := func(n int) packet.Drop { // an outer packet of n bytes
			loadBatch(b, 1, make([]byte, n-headers), to)
			if err := q.Send(b); err != nil {
				t.Fatal(err)
			}
			return b.Packets()[0].Drop
		}
		until(t, "a packet of 1400 bytes goes", func() bool {
			return send(1400) == packet.Alive && out.resolver.destination(to.Path.Dst).adjacency.Load().template != nil
		})
		if died := send(1500); died != packet.Alive {
			t.Fatalf("%s: a packet of the device's MTU: %v, before anybody knew", family, died)
		}
		until(t, "one above the path's MTU is too big", func() bool { return send(1401) == packet.TooBig })
		if died := send(1400); died != packet.Alive {
			t.Errorf("%s: a packet of the path's MTU: %v", family, died)
		}
		u.a.MustRun(t, "ip", family, "route", "flush", "cache")
		u.b.MustRun(t, "ip", "link", "set", "eth1", "mtu", "1500")
		far.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1500")
		u.a.MustRun(t, "ip", family, "route", "add", "unreachable", []string{"203.0.113.0/24", "2001:db8:9::/64"}[i]) // sooner than the tick
		until(t, "the path's MTU is forgotten", func() bool { return send(1500) == packet.Alive })
		u.b.MustRun(t, "ip", "link", "set", "eth1", "mtu", "1400")
	}
}
