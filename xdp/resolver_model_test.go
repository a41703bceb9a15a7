package xdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/packet/packettest"
)

// resolverModel has a real kernel change its neighbours, routes and device all the time, sometimes faster than its notifications can
// be read. The oracle asks the kernel anew for everything.
type resolverModel struct {
	u     underlay
	other *nettest.NS
	dev   device
	link  netlink.Link
}

// The destinations: on the link, behind routers on it, on another link, nowhere.
var resolverDestinations = []netip.Addr{
	netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("203.0.113.2"),
	netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8:9::9"), netip.MustParseAddr("2001:db8:1::2"),
}

var resolverRouters = []netip.Addr{
	netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("192.0.2.4"),
	netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8::4"),
}

func newResolverModel(t testing.TB) *resolverModel {
	m := &resolverModel{u: newUnderlay(t), other: nettest.New(t)}
	nettest.Pair(t, nettest.End{NS: m.u.a, Dev: "eth1", Addrs: nettest.Prefixes("203.0.113.1/24", "2001:db8:1::1/64")},
		nettest.End{NS: m.other, Dev: "eth0", Addrs: nettest.Prefixes("203.0.113.2/24", "2001:db8:1::2/64")}, 1500)
	var err error
	if m.link, err = m.u.a.Netlink().LinkByName("eth0"); err != nil {
		t.Fatal(err)
	}
	// Nobody answers: what the neighbours are is the test's to say.
	m.u.b.MustRun(t, "ip", "link", "set", "eth0", "arp", "off")
	m.u.a.Do(func() { m.dev, err = inspect("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// play implements packettest.Play.
func (m *resolverModel) play(t *packettest.Tape) (err error) {
	var r *resolver
	m.u.a.Do(func() { r, err = subscribe(m.dev, addrsA, &testSources) })
	if err != nil {
		return err
	}
	defer r.free()
	var all []*destination
	for _, a := range resolverDestinations {
		all = append(all, r.destination(netip.AddrPortFrom(a, testPort)))
	}
	if err := m.settle(r, all); err != nil {
		return err
	}
	for t.More() {
		if t.Chance(40) { // faster than it is read: the socket holds a few, and loses the rest
			if err := unix.SetsockoptInt(r.events.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
				return err
			}
			for range 60 {
				if err := m.change(t); err != nil {
					return err
				}
			}
		}
		for range min(t.Run(), 8) {
			if err := m.change(t); err != nil {
				return err
			}
			t.Step(1)
		}
		if t.Chance(8) {
			all[t.N(len(all))].used.Store(true)
			r.tick()
		}
		if err := m.settle(r, all); err != nil {
			return err
		}
	}
	return nil
}

// change changes something in the kernel's tables.
func (m *resolverModel) change(t *packettest.Tape) error {
	h := m.u.a.Netlink()
	router := packettest.Pick(t, resolverRouters...)
	neighbour := &netlink.Neigh{LinkIndex: m.dev.index, IP: net.IP(router.AsSlice()), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 1, byte(t.N(256))},
		State: packettest.Pick(t, netlink.NUD_PERMANENT, netlink.NUD_NOARP, netlink.NUD_REACHABLE, netlink.NUD_STALE)}
	dst := packettest.Pick(t, "198.51.100.0/24", "198.51.100.9/32", "2001:db8:9::/64", "2001:db8:9::9/128")
	prefix, err := netlink.ParseIPNet(dst)
	if err != nil {
		return err
	}
	route := &netlink.Route{Dst: prefix, Table: unix.RT_TABLE_MAIN, MTU: packettest.Pick(t, 0, 0, 1400)}
	for router.Is4() != (prefix.IP.To4() != nil) {
		router = resolverRouters[(t.N(3)+3*t.N(2))%6]
		if !t.More() {
			router = resolverRouters[map[bool]int{true: 0, false: 3}[prefix.IP.To4() != nil]]
		}
	}
	switch t.N(16) {
	default:
		err = h.NeighSet(neighbour)
	case 6, 7:
		err = h.NeighDel(neighbour)
	case 8, 9, 10:
		route.LinkIndex, route.Gw, route.Flags = m.dev.index, net.IP(router.AsSlice()), int(netlink.FLAG_ONLINK)
		err = h.RouteReplace(route)
	case 11:
		route.Type = packettest.Pick(t, unix.RTN_UNREACHABLE, unix.RTN_BLACKHOLE)
		err = h.RouteReplace(route)
	case 12:
		err = h.RouteDel(route)
	case 13:
		err = h.LinkSetMTU(m.link, packettest.Pick(t, 1500, 1400, 1450))
	case 14:
		if t.Chance(3) {
			err = h.LinkSetHardwareAddr(m.link, net.HardwareAddr{2, 0, 0, 0, 2, byte(t.N(256))})
		}
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil // it was not there
	}
	return err
}

// settle lets the resolver follow until all adjacencies are as the kernel's tables are. They change by themselves, too: a neighbour that
// is used and does not answer fails.
func (m *resolverModel) settle(r *resolver, all []*destination) (err error) {
	for deadline := time.Now().Add(patience / 4); ; time.Sleep(time.Millisecond) {
		if r.follow() {
			r.each(func(d *destination) { d.visited = false })
		}
		r.each(r.update)
		err = nil
		for _, d := range all {
			err = errors.Join(err, m.judge(d))
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// judge asks the kernel what must become of packets to a destination.
func (m *resolverModel) judge(d *destination) error {
	h := m.u.a.Netlink()
	i := 0
	if d.addr.Addr().Is6() {
		i = 1
	}
	c := d.adjacency.Load()
	routes, err := h.RouteGetWithOptions(d.addr.Addr().AsSlice(), &netlink.RouteGetOptions{SrcAddr: addrsA[i].AsSlice()})
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST {
		if c.template != nil {
			return fmt.Errorf("%v has no route (%v), and packets go to %x", d.addr, err, c.template.header[:6])
		}
		return nil
	}
	if routes[0].LinkIndex != m.dev.index {
		if c.template != nil || !c.kernel || c.pending {
			return fmt.Errorf("%v is on another device: adjacency %+v", d.addr, c)
		}
		return nil
	}
	next := net.IP(d.addr.Addr().AsSlice())
	if routes[0].Gw != nil {
		next = routes[0].Gw
	}
	entries, err := h.NeighList(m.dev.index, []int{unix.AF_INET, unix.AF_INET6}[i])
	if err != nil {
		return err
	}
	link, err := h.LinkByIndex(m.dev.index)
	if err != nil {
		return err
	}
	for _, n := range entries {
		if n.IP.Equal(next) && n.State&nudValid != 0 && len(n.HardwareAddr) == 6 {
			mtu := link.Attrs().MTU
			if known := routes[0].MTU; known != 0 {
				mtu = min(mtu, known)
			}
			want := *newTemplate([6]byte(link.Attrs().HardwareAddr), [6]byte(n.HardwareAddr), addrsA[i], d.addr, mtu, &testSources)
			if c.template == nil || *c.template != want {
				return fmt.Errorf("%v by %v: adjacency %+v, want the way to %v", d.addr, next, c, n.HardwareAddr)
			}
			return nil
		}
	}
	if c.template != nil {
		return fmt.Errorf("%v by %v, who is not known: packets go to %x", d.addr, next, c.template.header[:6])
	}
	return nil
}

func TestResolverModel(t *testing.T) { packettest.Sequences(t, 1000, newResolverModel(t).play) }

// TestBehindTheTables: what waits to be read when notifications were lost is older than the tables, and must not be believed.
func TestBehindTheTables(t *testing.T) {
	m := newResolverModel(t)
	var r *resolver
	var err error
	m.u.a.Do(func() { r, err = subscribe(m.dev, addrsA, &testSources) })
	if err != nil {
		t.Fatal(err)
	}
	defer r.free()
	if err := unix.SetsockoptInt(r.events.GetFd(), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
		t.Fatal(err)
	}
	const changes = 200
	for i := range changes { // the socket keeps the first, and never hears of the last
		err := m.u.a.Netlink().NeighSet(&netlink.Neigh{LinkIndex: m.dev.index, IP: net.IP(addrsB[0].AsSlice()), State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 3, byte(i)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !r.follow() {
		t.Error("nothing may have changed")
	}
	if got, want := r.neighbours[addrsB[0]].mac, [6]byte{2, 0, 0, 0, 3, changes - 1}; got != want {
		t.Errorf("the neighbour is at %x, want %x", got, want)
	}
}
