package egress

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/control"
	"weft/hostnet"
)

// machine is a kernel of the test's making. Devices are numbered in their order, from 1.
type machine struct {
	devices []hostnet.Device
	addrs   map[string]string // address → devices, by name
	routes  map[string]string // peer → "device via router mtu N", several with " + " between
	learnt  map[string]int    // peer → what the kernel has learnt of the path's MTU
	asked   int
}

func (m *machine) PathMTU(dst, _ netip.Addr) int { return m.learnt[dst.String()] }

func (m *machine) DeviceAt(index int) (hostnet.Device, error) {
	if index < 1 || index > len(m.devices) || m.devices[index-1].Name == "" {
		return hostnet.Device{}, errors.New("no such device")
	}
	d := m.devices[index-1]
	d.Index = index
	return d, nil
}

func (m *machine) index(name string) int {
	return 1 + slices.IndexFunc(m.devices, func(d hostnet.Device) bool { return d.Name == name })
}

func (m *machine) Device(name string) (hostnet.Device, error) {
	d, err := m.DeviceAt(m.index(name))
	if err != nil {
		err = fmt.Errorf("device %s does not exist", name)
	}
	return d, err
}

func (m *machine) Holders() (map[netip.Addr][]int, error) {
	on := map[netip.Addr][]int{}
	for a, names := range m.addrs {
		for name := range strings.FieldsSeq(names) {
			on[netip.MustParseAddr(a)] = append(on[netip.MustParseAddr(a)], m.index(name))
		}
	}
	return on, nil
}

func (m *machine) DefaultDevice() (string, error) {
	to, ok := m.routes["default"]
	if !ok {
		return "", errors.New("no default route")
	}
	return to, nil
}

func (m *machine) Exits(dst, src netip.Addr) (exits []hostnet.Exit, err error) {
	m.asked++
	if len(m.addrs[src.String()]) == 0 {
		return nil, fmt.Errorf("%v is not ours", src)
	}
	to, ok := m.routes[dst.String()]
	if !ok {
		return nil, errors.New("unreachable")
	}
	for hop := range strings.SplitSeq(to, " + ") {
		f := strings.Fields(hop)
		e := hostnet.Exit{Index: m.index(f[0])}
		for i := 1; i < len(f); i += 2 {
			switch f[i] {
			case "via":
				e.Via = netip.MustParseAddr(f[i+1])
			case "mtu":
				fmt.Sscan(f[i+1], &e.MTU)
			}
		}
		exits = append(exits, e)
	}
	return exits, nil
}

// two is a machine with two cards and a loopback device.
func two() *machine {
	return &machine{
		devices: []hostnet.Device{{Name: "lo", MTU: 65536, Inert: true}, {Name: "eth0", MTU: 1500}, {Name: "eth1", MTU: 9000}, {Name: "vpn0", MTU: 1420}},
		addrs: map[string]string{"192.0.2.1": "eth0", "198.51.100.1": "eth1", "203.0.113.1": "lo", "2001:db8::1": "eth0", "2001:db8:1::1": "eth1",
			"203.0.113.9": "lo eth1"},
		routes: map[string]string{"192.0.2.2": "eth0", "198.51.100.2": "eth1", "203.0.113.2": "eth0 via 192.0.2.254 + eth1 via 198.51.100.254",
			"203.0.113.3": "vpn0", "203.0.113.4": "eth1 via 198.51.100.254 mtu 4000", "2001:db8::2": "eth0", "default": "eth0"},
	}
}

func node(name string, endpoints ...string) (n control.Node) {
	n.Name = name
	for _, e := range endpoints {
		n.Endpoints = append(n.Endpoints, netip.MustParseAddr(e))
	}
	return n
}

func TestDerive(t *testing.T) {
	for name, c := range map[string]struct {
		choice Choice
		self   []string
		peers  []string
		want   string // local, device, MTU, devices; or a part of the error
		paths  map[string]string
	}{
		"the device that has the endpoint": {self: []string{"192.0.2.1"}, want: "[192.0.2.1] eth0 1500 [eth0]"},
		"of the first of each family":      {self: []string{"192.0.2.1", "198.51.100.1", "2001:db8:1::1", "2001:db8::1"}, want: "[192.0.2.1 2001:db8:1::1] eth0 1500 [eth0 eth1]"},
		"the interface that is asked for": {choice: Choice{Interface: "eth1"}, self: []string{"192.0.2.1", "198.51.100.1", "2001:db8::1"},
			want: "[198.51.100.1] eth1 9000 [eth1]"},
		"a missing interface": {choice: Choice{Interface: "eth7"}, self: []string{"192.0.2.1"}, want: "device eth7 does not exist"},
		"an interface without an endpoint": {choice: Choice{Interface: "eth1"}, self: []string{"192.0.2.1", "2001:db8::1"},
			want: "eth1 has none of this node's endpoints (192.0.2.1, 2001:db8::1)"},
		"an interface, and an address on lo": {choice: Choice{Interface: "eth1"}, self: []string{"203.0.113.1"}, want: "[203.0.113.1] eth1 9000 [eth1 lo]"},
		"lo is asked for": {choice: Choice{Interface: "lo"}, self: []string{"192.0.2.1", "203.0.113.1"}, peers: []string{"198.51.100.2"},
			want: "[203.0.113.1] eth1 9000 [eth1 lo]"},
		"an MTU":                   {choice: Choice{MTU: 1400}, self: []string{"192.0.2.1"}, want: "[192.0.2.1] eth0 1400 [eth0]"},
		"no endpoint":              {want: `node "self" has no endpoint`},
		"an endpoint nobody has":   {self: []string{"192.0.2.77"}, want: "no device has the address 192.0.2.77: set node.interface"},
		"lo without peers":         {self: []string{"203.0.113.1"}, want: "[203.0.113.1] eth0 1500 [eth0 lo]"},
		"lo and the way to a peer": {self: []string{"203.0.113.1"}, peers: []string{"203.0.113.77", "198.51.100.2"}, want: "[203.0.113.1] eth1 9000 [eth1 lo]"},
		"lo and a card":            {self: []string{"203.0.113.9"}, want: "[203.0.113.9] eth1 9000 [eth1]"},
		"peers behind narrower devices": {choice: Choice{Interface: "eth1"}, self: []string{"198.51.100.1"}, peers: []string{"198.51.100.2", "203.0.113.2", "203.0.113.3", "203.0.113.4"},
			want: "[198.51.100.1] eth1 9000 [eth1 eth0 vpn0]",
			paths: map[string]string{"198.51.100.2": "198.51.100.1 eth1 9000", "203.0.113.2": "198.51.100.1 eth0 via 192.0.2.254 1500",
				"203.0.113.3": "198.51.100.1 vpn0 1420", "203.0.113.4": "198.51.100.1 eth1 via 198.51.100.254 4000", "203.0.113.99": "none 9000"}},
		"peers behind wider ones": {self: []string{"192.0.2.1"}, peers: []string{"198.51.100.2"}, want: "[192.0.2.1] eth0 1500 [eth0 eth1]",
			paths: map[string]string{"198.51.100.2": "192.0.2.1 eth1 1500"}},
		"a peer of the other family": {self: []string{"192.0.2.1"}, peers: []string{"2001:db8::2"}, want: "[192.0.2.1] eth0 1500 [eth0]",
			paths: map[string]string{"2001:db8::2": "none 1500"}},
		"an MTU, and a narrower device": {choice: Choice{MTU: 1450}, self: []string{"192.0.2.1"}, peers: []string{"203.0.113.3", "192.0.2.2"},
			want: "[192.0.2.1] eth0 1450 [eth0 vpn0]", paths: map[string]string{"203.0.113.3": "192.0.2.1 vpn0 1420", "192.0.2.2": "192.0.2.1 eth0 1450"}},
	} {
		t.Run(name, func(t *testing.T) {
			var peers []control.Node
			for i, p := range c.peers {
				peers = append(peers, node(fmt.Sprint("n", i), p))
			}
			u, err := NewFinder(two(), c.choice).Derive(node("self", c.self...), peers)
			got := fmt.Sprint(err)
			if err == nil {
				got = fmt.Sprint(u.Local, " ", u.Device, " ", u.MTU, " ", u.Devices)
			}
			if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
				t.Fatalf("%s\nwant %s", got, c.want)
			}
			for to, want := range c.paths {
				p, ok := u.To(netip.MustParseAddr(to))
				got := fmt.Sprint(p.Source, " ", p.Device)
				if p.Via.IsValid() {
					got += fmt.Sprint(" via ", p.Via)
				}
				if !ok {
					got = "none"
				}
				if got = fmt.Sprint(got, " ", p.MTU); got != want {
					t.Errorf("to %s: %s, want %s", to, got, want)
				}
			}
		})
	}
}

// TestLooksAgain: a route is asked for once a second at most, and what changed is said.
func TestLooksAgain(t *testing.T) {
	m, now := two(), time.Unix(1000, 0)
	f := NewFinder(m, Choice{})
	f.now = func() time.Time { return now }
	self, peers := node("self", "192.0.2.1"), []control.Node{node("a", "192.0.2.2"), node("b", "203.0.113.3")}
	derive := func(revision uint64, asked int, mtu int) {
		t.Helper()
		m.asked = 0
		u, err := f.Derive(self, peers)
		if err != nil {
			t.Fatal(err)
		}
		if p, _ := u.To(peers[1].Endpoints[0]); u.Revision != revision || m.asked != asked || cmp.Or(p.Heard, p.MTU) != mtu {
			t.Fatalf("revision %d, %d routes asked for, %+v; want %d, %d, MTU %d", u.Revision, m.asked, p, revision, asked, mtu)
		}
	}
	derive(0, 2, 1420)
	derive(0, 0, 1420)
	peers = append(peers, node("c", "198.51.100.2"))
	derive(0, 1, 1420) // a new peer alone
	m.routes["203.0.113.3"] = "eth0"
	derive(0, 0, 1420) // believed
	now = now.Add(2 * lookAgain)
	derive(1, 3, 1500)
	m.learnt = map[string]int{"203.0.113.3": 1340} // by a router in the middle
	now = now.Add(2 * lookAgain)
	derive(2, 3, 1340)
	m.learnt = nil // it is forgotten
	now = now.Add(2 * lookAgain)
	derive(3, 3, 1500)
	m.devices[1].MTU = 1300
	derive(4, 3, 1300) // at once
	m.routes["203.0.113.3"] = "vpn0"
	now = now.Add(2 * lookAgain)
	derive(5, 3, 1300) // by another device now
	peers = peers[:2]
	now = now.Add(2 * lookAgain)
	derive(5, 2, 1300)
	delete(m.routes, "203.0.113.3")
	now = now.Add(2 * lookAgain)
	derive(6, 2, 1300)
	m.devices[3].Name = "" // whoever is gone and was used by nobody
	derive(6, 0, 1300)
	if len(f.paths) != 2 {
		t.Errorf("paths of peers that left are kept: %v", f.paths)
	}
}

func TestFits(t *testing.T) {
	u := Underlay{Device: "eth0", MTU: 1300, Local: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	v4, v6 := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/48")
	if err := u.Fits(1250, []netip.Prefix{v4}); err != nil {
		t.Error(err)
	}
	if err := u.Fits(1250, []netip.Prefix{v4, v6}); err == nil || !strings.Contains(err.Error(), "raise the MTU of eth0 to 1330") {
		t.Error(err)
	}
	if err := u.Fits(575, []netip.Prefix{v4}); err == nil {
		t.Error("576 bytes are needed")
	}
}

// TestMeasured: what packets of full size have shown narrows a path until they show something else, refutes what a router has said, and is of the
// path that they went over.
func TestMeasured(t *testing.T) {
	m, now := two(), time.Unix(1000, 0)
	f, e, sized := NewFinder(m, Choice{}), newICMPListener([]uint16{4789}), NewMeasured()
	defer e.Close()
	f.now = func() time.Time { return now }
	f.Hear(e)
	f.Measure(sized)
	to := netip.MustParseAddr("192.0.2.2")
	peers := []control.Node{node("b", to.String())}
	derive := func(what string, revision uint64, heard int, by string) (p Path) {
		t.Helper()
		u, err := f.Derive(node("self", "192.0.2.1"), peers)
		if err != nil {
			t.Fatal(err)
		}
		if p, _ = u.To(to); u.Revision != revision || p.Heard != heard || p.By != by {
			t.Fatalf("%s: revision %d, %+v; want %d, %d %q", what, u.Revision, p, revision, heard, by)
		}
		return p
	}
	news := func() bool {
		select {
		case <-sized.News():
			return true
		default:
			return false
		}
	}
	found := func(of Path, carries int, told bool) {
		t.Helper()
		now = now.Add(time.Millisecond)
		if sized.Found(to, of, carries, now); news() != told {
			t.Errorf("%d bytes: told %v", carries, !told)
		}
	}
	if _, ok := sized.Path(to); ok {
		t.Error("a path that nobody has asked for")
	}
	derive("nothing is known", 0, 0, "")
	p, ok := sized.Path(to)
	if !ok || p.MTU != 1500 {
		t.Fatalf("%+v", p)
	}
	found(p, 1500, false)
	derive("as large as it should be", 0, 0, "")
	found(p, 1400, true)
	derive("narrower", 1, 1400, ByProbes)
	found(p, 1400, false) // the same once more
	now = now.Add(2 * lookAgain)
	derive("as it was", 1, 1400, ByProbes)
	m.learnt = map[string]int{to.String(): 1300}
	now = now.Add(2 * lookAgain)
	derive("the kernel knows of less", 2, 1300, ByKernel)
	m.learnt = nil
	now = now.Add(2 * lookAgain)
	derive("and no more", 3, 1400, ByProbes)
	found(p, 1500, true)
	derive("wide again", 4, 0, "")
	// A router says less: believed until packets arrive that are larger, and not again.
	heard := func(revision uint64, mtu int, by string) {
		t.Helper()
		e.heard[to] = word{mtu: 1350, until: now.Add(believed)}
		e.told <- struct{}{}
		derive("a router's word", revision, mtu, by)
	}
	heard(5, 1350, ByRouter)
	found(p, 1500, true)
	derive("refuted", 6, 0, "")
	if _, told := e.refuted[to]; !told || len(e.heard) != 0 {
		t.Errorf("heard %v, refuted %v", e.heard, e.refuted)
	}
	m.learnt = map[string]int{to.String(): 1380}
	now = now.Add(2 * lookAgain)
	derive("the kernel has heard somebody", 7, 1380, ByKernel)
	found(p, 1500, true)
	derive("refuted", 8, 0, "")
	now = now.Add(2 * lookAgain)
	derive("the kernel still believes it", 8, 0, "")
	m.learnt[to.String()] = 1370
	now = now.Add(2 * lookAgain)
	derive("and now something else", 9, 1370, ByKernel)
	m.learnt = nil
	now = now.Add(2 * lookAgain)
	derive("and nothing any more", 10, 0, "")
	found(p, 1400, true)
	derive("narrower", 11, 1400, ByProbes)
	now = now.Add(believed + time.Second)
	derive("nobody has measured for long", 12, 0, "")
	found(p, 1400, true)
	derive("narrower", 13, 1400, ByProbes)
	m.devices[1].MTU = 1450
	now = now.Add(2 * lookAgain)
	derive("another path", 14, 0, "")
	if found(p, 1300, false); len(sized.found) != 0 {
		t.Errorf("found of a path that is not any more: %+v", sized.found)
	}
	peers = nil
	now = now.Add(2 * lookAgain)
	if _, err := f.Derive(node("self", "192.0.2.1"), peers); err != nil {
		t.Fatal(err)
	}
	if _, ok := sized.Path(to); ok {
		t.Error("the path of a peer that has left")
	}
}
