package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

// bench is a namespace with an underlay device eth0 and a Host in it.
type bench struct {
	t    testing.TB
	ns   *nettest.NS
	host *Host
	logs *observer.ObservedLogs

	bpffs string // where it is mounted, once it is needed
}

func newBench(t testing.TB) *bench {
	t.Helper()
	nettest.RequireKernel(t, kernel.Veth, kernel.VXLAN)
	nettest.RequireTool(t, "ip", "bridge")
	ns, far := nettest.New(t), nettest.New(t)
	nettest.Pair(t,
		nettest.End{NS: ns, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: far, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, 1500)
	b := &bench{t: t, ns: ns, bpffs: t.TempDir()}
	t.Cleanup(func() { _ = unix.Unmount(b.bpffs, unix.MNT_DETACH) }) // if it is still mounted
	b.host, b.logs = b.open()
	return b
}

// open makes another Host, as a restarted daemon would.
func (b *bench) open(owners ...string) (*Host, *observer.ObservedLogs) {
	b.t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	var h *Host
	var err error
	b.ns.Do(func() { h, err = New(zap.New(core), owners...) })
	if err != nil {
		b.t.Fatal(err)
	}
	h.bpffs = b.bpffs
	b.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			b.t.Error(err)
		}
	})
	return h, logs
}

func (b *bench) apply(w Want) {
	b.t.Helper()
	if err := b.host.Apply("test", w); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) ip(args ...string) string {
	b.t.Helper()
	return b.ns.MustRun(b.t, "ip", args...)
}

// kernel returns all that iproute2, which is not ours, sees of weft's objects, each on a line, sorted.
func (b *bench) kernel() []string {
	b.t.Helper()
	var all []string
	add := func(out string, keep func(string) bool) {
		for _, line := range strings.Split(out, "\n") {
			if line = strings.Join(strings.Fields(line), " "); line != "" && keep(line) {
				all = append(all, line)
			}
		}
	}
	weft := func(s string) bool { return strings.Contains(s, "weft") }
	for _, fam := range []string{"-4", "-6"} {
		add(b.ip("-d", fam, "route", "show", "table", "all"), func(s string) bool { return strings.Contains(s, "proto 87") })
		add(b.ip(fam, "neigh", "show", "nud", "permanent"), weft)
		add(b.ip("-o", fam, "addr", "show"), weft)
	}
	add(b.ns.MustRun(b.t, "bridge", "fdb", "show"), weft)
	add(b.ip("-o", "-d", "link", "show"), weft)
	slices.Sort(all)
	return all
}

func (b *bench) mustHave(want ...string) {
	b.t.Helper()
	have := b.kernel()
	for _, w := range want {
		if !slices.ContainsFunc(have, func(line string) bool { return strings.Contains(line, w) }) {
			b.t.Errorf("the kernel has no %q; it has\n%s", w, strings.Join(have, "\n"))
		}
	}
}

func (b *bench) mustLack(not ...string) {
	b.t.Helper()
	for _, n := range not {
		for _, line := range b.kernel() {
			if strings.Contains(line, n) {
				b.t.Errorf("the kernel still has %q", line)
			}
		}
	}
}

var mac2 = [6]byte{0x02, 0, 0, 0, 0, 2}

// sample wants one of everything, for a peer with a prefix of each family.
func sample() Want {
	return Want{
		Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Links: []Link{{
			Name: "weft-vx4", MTU: 1450, MAC: [6]byte{0x02, 0, 0, 0, 0, 1},
			Vxlan: &Vxlan{VNI: 7, Port: 4789, Local: netip.MustParseAddr("192.0.2.1"), Checksum: true},
		}},
		Addrs: []Addr{
			{Dev: "weft-vx4", Prefix: netip.MustParsePrefix("10.244.1.1/32")},
			{Dev: "weft-vx4", Prefix: netip.MustParsePrefix("fd00:10:244:1::1/128")},
		},
		Routes: []Route{
			route("10.244.2.0/24", "10.244.2.0", "10.244.1.1"), route("fd00:10:244:2::/64", "fd00:10:244:2::", "fd00:10:244:1::1"),
		},
		Neighbors: []Neighbor{
			{Dev: "weft-vx4", IP: netip.MustParseAddr("10.244.2.0"), MAC: mac2},
			{Dev: "weft-vx4", IP: netip.MustParseAddr("fd00:10:244:2::"), MAC: mac2},
		},
		FDB:   []FDBEntry{{Dev: "weft-vx4", MAC: mac2, Remote: netip.MustParseAddr("192.0.2.2")}},
		Watch: []string{"eth0"},
	}
}

func route(dst, via, src string) Route {
	return Route{
		Dst: netip.MustParsePrefix(dst), Via: netip.MustParseAddr(via), Src: netip.MustParseAddr(src), Dev: "weft-vx4",
	}
}

func TestApplyMakesEverything(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	b.mustHave(
		"unreachable 10.244.0.0/16 table main proto 87 scope global metric 4294960000",
		"unreachable fd00:10:244::/48 dev lo table main proto 87 scope global metric 4294960000",
		"unicast 10.244.2.0/24 via 10.244.2.0 dev weft-vx4 table main proto 87 scope global src 10.244.1.1 onlink",
		"unicast fd00:10:244:2::/64 via fd00:10:244:2:: dev weft-vx4 table main proto 87 scope global src fd00:10:244:1::1 metric 1024 onlink",
		"10.244.2.0 dev weft-vx4 lladdr 02:00:00:00:00:02 PERMANENT",
		"fd00:10:244:2:: dev weft-vx4 lladdr 02:00:00:00:00:02 PERMANENT",
		"02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 self permanent",
		"inet 10.244.1.1/32 scope global weft-vx4",
		"inet6 fd00:10:244:1::1/128 scope global",
		"vxlan id 7 local 192.0.2.1", "dstport 4789", "nolearning", "df set", "mtu 1450", "link/ether 02:00:00:00:00:01",
		"addrgenmode none", "udpcsum noudp6zerocsumtx noudp6zerocsumrx", "UP,LOWER_UP",
	)
	b.mustLack("noudpcsum", "fe80::")
}

// TestApplyIsIdempotent: a second Apply, by the same and by a new Host, touches nothing. The kernel says so: it
// sends no notification, and the device keeps its index.
func TestApplyIsIdempotent(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	before := b.kernel()
	mon := b.monitor()
	b.apply(sample())
	restarted, logs := b.open()
	if err := restarted.Apply("test", sample()); err != nil {
		t.Fatal(err)
	}
	if events := mon(); len(events) > 0 {
		t.Errorf("a second Apply changed the kernel's state:\n%s", strings.Join(events, "\n"))
	}
	if after := b.kernel(); !slices.Equal(before, after) {
		t.Errorf("before\n%s\nafter\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	if b.host.Repairs() != 0 || restarted.Repairs() != 0 {
		t.Errorf("repairs = %d and %d, want none", b.host.Repairs(), restarted.Repairs())
	}
	if n := logs.FilterMessage("changed").Len(); n != 0 {
		t.Errorf("the restarted Host logs %v", logs.All())
	}
}

// monitor returns a function that returns what the kernel has announced about weft's objects since.
func (b *bench) monitor() func() []string {
	b.t.Helper()
	p := b.ns.MustStart(b.t, "ip", "monitor", "link", "address", "route", "neigh")
	// The monitor works once it has told of a change of ours.
	nettest.Eventually(b.t, waitLong, func() error {
		b.ip("route", "replace", "198.51.100.0/24", "dev", "eth0")
		b.ip("route", "del", "198.51.100.0/24", "dev", "eth0")
		if !strings.Contains(p.Output(), "198.51.100.0/24") {
			return errors.New("ip monitor is not listening yet")
		}
		return nil
	})
	return func() []string {
		b.ip("route", "add", "203.0.113.0/24", "dev", "eth0")
		nettest.Eventually(b.t, waitLong, func() error {
			if !strings.Contains(p.Output(), "203.0.113.0/24") {
				return errors.New("ip monitor has not told the last change")
			}
			return nil
		})
		var events []string
		for _, line := range strings.Split(p.Output(), "\n") {
			if strings.Contains(line, "weft") || strings.Contains(line, "proto 87") {
				events = append(events, line)
			}
		}
		return events
	}
}

// TestApplyCorrects: every object that is there with a wrong attribute is put right.
func TestApplyCorrects(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil []string
	}{
		{"route via another next hop", []string{"ip route replace 10.244.2.0/24 via 10.244.9.9 dev weft-vx4 onlink proto 87"}},
		{"route without source", []string{"ip route replace 10.244.2.0/24 via 10.244.2.0 dev weft-vx4 onlink proto 87"}},
		{"route with an MTU", []string{"ip route replace 10.244.2.0/24 via 10.244.2.0 dev weft-vx4 onlink proto 87 src 10.244.1.1 mtu 1300"}},
		{"route on another device", []string{"ip route replace 10.244.2.0/24 dev eth0 proto 87"}},
		{"route of another protocol", []string{"ip route replace 10.244.2.0/24 dev eth0 proto static"}},
		{"second route with the same key", []string{"ip route append 10.244.2.0/24 dev eth0 proto 87"}},
		{"v6 route on another device", []string{"ip -6 route del fd00:10:244:2::/64", "ip -6 route add fd00:10:244:2::/64 dev eth0 proto 87"}},
		{"v6 route with two next hops", []string{"ip -6 route append fd00:10:244:2::/64 via 2001:db8::2 dev eth0 proto 87"}},
		{"v6 route of another protocol", []string{"ip -6 route replace fd00:10:244:2::/64 via 2001:db8::2 dev eth0 proto static"}},
		{"guard blackholed", []string{"ip route replace blackhole 10.244.0.0/16 metric 4294960000 proto 87"}},
		{"guards gone", []string{"ip route del unreachable 10.244.0.0/16 metric 4294960000", "ip -6 route del unreachable fd00:10:244::/48 metric 4294960000"}},
		{"neighbour with another MAC", []string{"ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 dev weft-vx4 nud permanent"}},
		{"neighbour not permanent", []string{"ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev weft-vx4 nud reachable"}},
		{"neighbours gone", []string{"ip neigh del 10.244.2.0 dev weft-vx4", "ip neigh del fd00:10:244:2:: dev weft-vx4"}},
		{"fdb to another endpoint", []string{"bridge fdb replace 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.99 self permanent"}},
		{"fdb to another port and VNI", []string{"bridge fdb replace 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 port 9999 vni 9 self permanent"}},
		{"fdb to another port", []string{"bridge fdb replace 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 port 9999 self permanent"}},
		{"fdb with default destinations", []string{"bridge fdb append 00:00:00:00:00:00 dev weft-vx4 dst 192.0.2.66 self permanent", "bridge fdb append 00:00:00:00:00:00 dev weft-vx4 dst 192.0.2.2 port 9999 vni 9 self permanent"}},
		{"fdb not permanent", []string{"bridge fdb replace 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 self dynamic"}},
		{"fdb gone", []string{"bridge fdb del 02:00:00:00:00:02 dev weft-vx4 dst 192.0.2.2 self"}},
		{"address gone", []string{"ip addr del 10.244.1.1/32 dev weft-vx4"}},
		{"v6 address gone", []string{"ip addr del fd00:10:244:1::1/128 dev weft-vx4"}},
		{"v6 address with a route of its own", []string{"ip addr change fd00:10:244:1::1/128 dev weft-vx4 nodad"}},
		{"address to expire", []string{"ip addr change 10.244.1.1/32 dev weft-vx4 valid_lft 1000 preferred_lft 1000"}},
		{"stranger's address", []string{"ip addr add 10.99.0.1/24 dev weft-vx4"}},
		{"link down", []string{"ip link set weft-vx4 down"}},
		{"link MTU", []string{"ip link set weft-vx4 mtu 1200"}},
		{"link MAC", []string{"ip link set weft-vx4 address 02:00:00:00:00:77"}},
		{"link address generation", []string{"ip link set weft-vx4 addrgenmode eui64"}},
		{"link gone", []string{"ip link del weft-vx4"}},
		{"link of another VNI", []string{"ip link del weft-vx4", "ip link add weft-vx4 type vxlan id 8 local 192.0.2.1 dstport 4789 nolearning"}},
		{"link without checksum", []string{"ip link del weft-vx4", "ip link add weft-vx4 address 02:00:00:00:00:01 type vxlan id 7 local 192.0.2.1 dstport 4789 nolearning noudpcsum"}},
		{"link whose packets may be cut", []string{"ip link del weft-vx4", "ip link add weft-vx4 address 02:00:00:00:00:01 type vxlan id 7 local 192.0.2.1 dstport 4789 nolearning udpcsum"}},
		{"link that learns", []string{"ip link del weft-vx4", "ip link add weft-vx4 address 02:00:00:00:00:01 type vxlan id 7 local 192.0.2.1 dstport 4789"}},
		{"link with a default remote", []string{"ip link del weft-vx4", "ip link add weft-vx4 address 02:00:00:00:00:01 type vxlan id 7 local 192.0.2.1 remote 192.0.2.5 dstport 4789 nolearning"}},
		{"link of another kind", []string{"ip link del weft-vx4", "ip link add weft-vx4 type bridge"}},
		{"another device with our VNI", []string{"ip link del weft-vx4", "ip link add weft-old type vxlan id 7 local 192.0.2.1 dstport 4789"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			b.apply(sample())
			right := b.withoutIndex()
			for _, cmd := range c.spoil {
				args := strings.Fields(cmd)
				b.ns.MustRun(t, args[0], args[1:]...)
			}
			if slices.Equal(b.withoutIndex(), right) {
				t.Fatal("the test did not spoil anything")
			}
			b.apply(sample())
			if got := b.withoutIndex(); !slices.Equal(got, right) {
				t.Errorf("want\n%s\n\nhave\n%s", strings.Join(right, "\n"), strings.Join(got, "\n"))
			}
			if b.host.Repairs() == 0 || b.logs.FilterMessage("repaired").Len() == 0 {
				t.Errorf("repairs = %d, %d log lines; want some", b.host.Repairs(), b.logs.FilterMessage("repaired").Len())
			}
			n := b.host.Repairs()
			b.apply(sample())
			if b.host.Repairs() != n {
				t.Errorf("repairs went on without a cause: %v", b.logs.All())
			}
		})
	}
}

// withoutIndex is kernel without device numbers, which a remade device has anew.
func (b *bench) withoutIndex() []string {
	lines := b.kernel()
	for i, line := range lines {
		if n, rest, ok := strings.Cut(line, ": "); ok && len(n) < 4 {
			lines[i] = rest
		}
	}
	slices.Sort(lines)
	return lines
}

// TestApplySweepsStrangersAmongOurs and leaves everybody else's alone.
func TestApplySweepsStrangersAmongOurs(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	for _, cmd := range []string{
		// Ours by mark, wanted by nobody: another mode's, or a removed node's.
		"ip route add 10.244.77.0/24 dev eth0 proto 87",
		"ip -6 route add fd00:10:244:77::/64 dev eth0 proto 87",
		"ip route add unreachable 10.99.0.0/16 metric 4294960000 proto 87",
		"ip neigh add 10.244.77.0 lladdr 02:00:00:00:00:77 dev weft-vx4 nud permanent",
		"bridge fdb add 02:00:00:00:00:77 dev weft-vx4 dst 192.0.2.77 self permanent",
		"ip link add weft-stray type vxlan id 99 dstport 4790",
		"ip link add weft0 type bridge",
		"ip link add weft0123456789a type veth peer name other1", // a pod's that nobody knows
		"ip link add weftbr0 type bridge",
		// Foreign.
		"ip route add 10.244.88.0/24 dev eth0 proto static",
		"ip route add 10.66.0.0/16 dev eth0 proto 87 table 100",
		"ip neigh add 192.0.2.88 lladdr 02:00:00:00:00:88 dev eth0 nud permanent",
		"ip addr add 192.0.2.88/32 dev eth0",
		"ip link add weftpod1 type veth peer name other0",
		"ip link set weftpod1 up",
		"ip addr add 169.254.1.1/32 dev weftpod1",
		"ip neigh add 10.244.1.10 lladdr 02:00:00:00:00:10 dev weftpod1 nud permanent",
		"ip link add vxlan9 type vxlan id 9 dstport 4790",
		"bridge fdb add 02:00:00:00:00:88 dev vxlan9 dst 192.0.2.88 self permanent",
	} {
		args := strings.Fields(cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
	}
	b.apply(sample())
	b.mustLack("10.244.77.0", "fd00:10:244:77:", "02:00:00:00:00:77", "192.0.2.77", "10.99.0.0", "weft-stray", "weft0", "weftbr0")
	everything := b.ip("route", "show", "table", "all") + b.ip("neigh") + b.ip("addr") + b.ns.MustRun(t, "bridge", "fdb")
	for _, foreign := range []string{
		"10.244.88.0/24 dev eth0 proto static", "10.66.0.0/16 dev eth0 table 100", "192.0.2.88 dev eth0 lladdr",
		"192.0.2.88/32", "weftpod1", "other0", "169.254.1.1/32", "10.244.1.10 dev weftpod1 lladdr",
		"02:00:00:00:00:88 dev vxlan9",
	} {
		if !strings.Contains(everything, foreign) {
			t.Errorf("Apply took %q, which is not ours; left is\n%s", foreign, everything)
		}
	}
	if b.host.Repairs() == 0 {
		t.Error("taking strangers away is a repair; none counted")
	}
}

// TestClear takes the devices of another mode, and no pod's or stranger's.
func TestClear(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	for _, cmd := range []string{
		"ip link add weft0 type bridge",
		"ip link add weftpod1 type veth peer name other0",
		"ip link add vxlan9 type vxlan id 9 dstport 4790",
	} {
		args := strings.Fields(cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
	}
	if err := b.host.Clear("weft0"); err != nil {
		t.Fatal(err)
	}
	links := b.ip("link")
	for name, want := range map[string]bool{"weft-vx4": false, "weft0": true, "weftpod1": true, "vxlan9": true} {
		if strings.Contains(links, name) != want {
			t.Errorf("%s: there %v, want %v:\n%s", name, !want, want, links)
		}
	}
	if routes := b.ip("route", "show", "type", "unreachable"); !strings.Contains(routes, "4294960000") {
		t.Errorf("no guard is left:\n%s", routes)
	}
}

// TestApplyRetires: what is no longer wanted goes, and is no repair.
func TestApplyRetires(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	less := sample()
	less.Routes, less.Neighbors, less.FDB = less.Routes[:1], less.Neighbors[:1], nil
	b.apply(less)
	b.mustLack("fd00:10:244:2::", "dst 192.0.2.2")
	b.mustHave("10.244.2.0/24")
	b.apply(Want{Network: sample().Network})
	b.mustLack("weft-vx4", "10.244.2.0")
	b.mustHave("unreachable 10.244.0.0/16", "unreachable fd00:10:244::/48")
	if b.host.Repairs() != 0 {
		t.Errorf("repairs = %d, want 0: %v", b.host.Repairs(), b.logs.All())
	}
}

// TestApplyForeignRouteInOurPlace: a route somebody had before weft came is not taken over; the error says so,
// and the rest is in force.
func TestApplyForeignRouteInOurPlace(t *testing.T) {
	b := newBench(t)
	b.ip("route", "add", "10.244.2.0/24", "via", "192.0.2.2", "proto", "static")
	err := b.host.Apply("test", sample())
	if err == nil || !strings.Contains(err.Error(), "10.244.2.0/24") || !strings.Contains(err.Error(), "unicast via 192.0.2.2 dev eth0, protocol static): if the overlay is to have it: ip route del 10.244.2.0/24") {
		t.Errorf("Apply = %v, want an error that names the route and the remedy", err)
	}
	if out := b.ip("route", "show", "10.244.2.0/24"); !strings.Contains(out, "via 192.0.2.2 dev eth0 proto static") {
		t.Errorf("the foreign route is now %q", out)
	}
	b.mustHave("fd00:10:244:2::/64 via", "10.244.2.0 dev weft-vx4 lladdr")
	b.ip("route", "del", "10.244.2.0/24")
	b.apply(sample())
	b.mustHave("10.244.2.0/24 via 10.244.2.0 dev weft-vx4")
}

// TestApplyMovesBetweenDevices: a peer whose endpoint changed family.
func TestApplyMovesBetweenDevices(t *testing.T) {
	b := newBench(t)
	both := sample()
	vx6 := both.Links[0]
	vx6.Name, vx6.Vxlan = "weft-vx6", &Vxlan{VNI: 7, Port: 4789, Local: netip.MustParseAddr("2001:db8::1"), Checksum: true}
	both.Links = append(both.Links, vx6)
	b.apply(both)
	moved := both
	moved.Routes, moved.Neighbors = slices.Clone(both.Routes), slices.Clone(both.Neighbors)
	for i := range moved.Routes {
		moved.Routes[i].Dev, moved.Neighbors[i].Dev = "weft-vx6", "weft-vx6"
	}
	moved.FDB = []FDBEntry{{Dev: "weft-vx6", MAC: mac2, Remote: netip.MustParseAddr("2001:db8::2")}}
	b.apply(moved)
	b.mustHave("10.244.2.0/24 via 10.244.2.0 dev weft-vx6", "fd00:10:244:2::/64 via fd00:10:244:2:: dev weft-vx6",
		"02:00:00:00:00:02 dev weft-vx6 dst 2001:db8::2", "vxlan id 7 local 2001:db8::1")
	b.mustLack("dst 192.0.2.2", "10.244.2.0 dev weft-vx4", "fd00:10:244:2:: dev weft-vx4")
	b.apply(both)
	b.mustHave("fd00:10:244:2::/64 via fd00:10:244:2:: dev weft-vx4")
}

func TestChecksumOff(t *testing.T) {
	b := newBench(t)
	for _, local := range []string{"192.0.2.1", "2001:db8::1"} {
		w := sample()
		w.FDB = nil
		w.Links[0].Vxlan = &Vxlan{VNI: 7, Port: 4789, Local: netip.MustParseAddr(local)}
		b.apply(w)
		b.mustHave("noudpcsum")
		if strings.Contains(local, ":") {
			b.mustHave("noudpcsum udp6zerocsumtx udp6zerocsumrx")
		}
		index := b.ip("-o", "link", "show", "weft-vx4")
		b.apply(w)
		if again := b.ip("-o", "link", "show", "weft-vx4"); again != index {
			t.Errorf("an equal device was made anew: %s, then %s", index, again)
		}
	}
}

// TestApplyGuardsFirst: even when nothing else can be done, the guards are in force.
func TestApplyGuardsFirst(t *testing.T) {
	b := newBench(t)
	w := sample()
	w.Links[0].Vxlan = &Vxlan{VNI: 1 << 25, Port: 4789, Local: netip.MustParseAddr("192.0.2.1")}
	if err := b.host.Apply("test", w); err == nil || !strings.Contains(err.Error(), "weft-vx4") {
		t.Errorf("Apply with an impossible VNI = %v", err)
	}
	b.mustHave("unreachable 10.244.0.0/16", "unreachable fd00:10:244::/48")
}

func TestGuardOutlivesHost(t *testing.T) {
	b := newBench(t)
	b.ip("route", "add", "default", "via", "192.0.2.2") // where traffic would leak to
	h, _ := b.open()
	if err := h.Guard(sample().Network); err != nil {
		t.Fatal(err)
	}
	if err := h.Guard(sample().Network); err != nil {
		t.Errorf("second Guard = %v", err)
	}
	if out, err := b.ns.Run("ip", "route", "get", "10.244.5.5"); err == nil {
		t.Errorf("traffic to the overlay would go %s", out)
	}
	if out, err := b.ns.Run("ip", "-6", "route", "get", "fd00:10:244:5::5"); err == nil {
		t.Errorf("traffic to the overlay would go %s", out)
	}
}

func TestCleanup(t *testing.T) {
	b := newBench(t)
	clean := b.everything()
	b.apply(sample())
	for _, cmd := range []string{
		"ip route add 10.66.0.0/16 dev eth0 proto 87 table 100",
		"ip link add weftpod1 type veth peer name weftpod2",
		"ip link add weft0 type bridge",
		"ip route add unreachable 10.99.0.0/16 metric 5 proto 87",
	} {
		args := strings.Fields(cmd)
		b.ns.MustRun(t, args[0], args[1:]...)
	}
	haveNft := kernel.NFTables.Probe() == nil
	if haveNft {
		nettest.RequireTool(t, "nft")
		b.ns.MustRun(t, "nft", "add table ip weft-nat; add table inet weft-policy; add table ip other")
	}
	removed, err := b.host.Cleanup()
	if err != nil {
		t.Fatal(err)
	}
	if after := b.everything(); after != clean {
		t.Errorf("Cleanup left\n%s\nof what was at first\n%s", after, clean)
	}
	want := []string{"link weft-vx4", "link weft0", "route 10.66.0.0/16 dev eth0 metric 0 table 100",
		"route unreachable 10.244.0.0/16 metric 4294960000 table 254"}
	if haveNft {
		want = append(want, "nftables table weft-nat", "nftables table weft-policy")
		if left := b.ns.MustRun(t, "nft", "list", "tables"); strings.TrimSpace(left) != "table ip other" {
			t.Errorf("Cleanup left the tables %q", left)
		}
	}
	for _, w := range want {
		if !slices.Contains(removed, w) {
			t.Errorf("Cleanup does not say that it removed %q: %q", w, removed)
		}
	}
	if removed, err = b.host.Cleanup(); err != nil || len(removed) != 0 {
		t.Errorf("second Cleanup = %q, %v; want nothing", removed, err)
	}
	b.apply(sample()) // and weft can start again
	if b.host.Repairs() != 0 {
		t.Error("starting again after Cleanup is no repair")
	}
}

// everything is the namespace as iproute2 shows it, without the link-local addresses and their routes, which
// come to eth0 in their own time.
func (b *bench) everything() string {
	all := b.ip("-4", "route", "show", "table", "all") + b.ip("-6", "route", "show", "table", "all") +
		b.ip("-o", "link") + b.ip("-o", "addr")
	lines := slices.DeleteFunc(strings.Split(all, "\n"), func(s string) bool {
		return strings.Contains(s, "fe80:") || strings.Contains(s, "ff00:") || strings.Contains(s, "anycast")
	})
	return strings.Join(lines, "\n")
}

// TestSysctls: settings are those of the Host's namespace, whichever thread applies, and stay afterwards.
func TestSysctls(t *testing.T) {
	b := newBench(t)
	if err := b.ns.Sysctl("ipv4/ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	read := func(key string) (v string) {
		b.ns.Do(func() {
			raw, err := os.ReadFile(filepath.Join("/proc/sys/net", key))
			if err != nil {
				t.Fatal(err)
			}
			v = strings.TrimSpace(string(raw))
		})
		return v
	}
	home, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	w := sample()
	w.Sysctls = append(Forwarding(w.Network), Sysctl{Key: "ipv4/conf/weft-vx4/rp_filter", Value: "2"})
	b.apply(w)
	for key, want := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/weft-vx4/rp_filter": "2",
		"ipv6/conf/eth0/accept_ra": "2", // or the router's default route would be lost
	} {
		if got := read(key); got != want {
			t.Errorf("%s = %s, want %s", key, got, want)
		}
	}
	if now, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err != nil || string(now) != string(home) {
		t.Errorf("Apply changed this process's own namespace: %s, %v", now, err)
	}
	said := b.logs.FilterMessageSnippet("set sysctl").Len()
	b.apply(w)
	if again := b.logs.FilterMessageSnippet("set sysctl").Len(); again != said || said != 3 {
		t.Errorf("sysctls said %d times, then %d; want 3 and no more", said, again)
	}
	if _, err := b.host.Cleanup(); err != nil || read("ipv4/ip_forward") != "1" {
		t.Errorf("Cleanup turned forwarding off, %v", err)
	}
	w.Sysctls = []Sysctl{{Key: "ipv4/no_such", Value: "1"}}
	if err := b.host.Apply("test", w); err == nil || !strings.Contains(err.Error(), "no_such") {
		t.Errorf("an unknown sysctl: %v", err)
	}
	if got := Forwarding(w.Network[:1]); len(got) != 1 || got[0].Key != "ipv4/ip_forward" {
		t.Errorf("Forwarding of a v4 network = %v", got)
	}
}

// TestLinkOfAnotherMaker: a device weft's ports make is adjusted, neither made nor removed.
func TestLinkOfAnotherMaker(t *testing.T) {
	b := newBench(t)
	w := Want{
		Links: []Link{{Name: "weft0", MTU: 1400}},
		Addrs: []Addr{{Dev: "weft0", Prefix: netip.MustParsePrefix("10.244.1.1/32")}},
	}
	if err := b.host.Apply("test", w); err == nil || !strings.Contains(err.Error(), "weft0") {
		t.Errorf("Apply without the device = %v", err)
	}
	b.ip("tuntap", "add", "weft0", "mode", "tun")
	b.apply(w)
	b.mustHave("mtu 1400", "10.244.1.1/32 scope global weft0")
	if out := b.ip("-o", "link", "show", "weft0"); !strings.Contains(out, "UP") {
		t.Errorf("weft0 is not up: %s", out)
	}
	b.apply(w)
	if b.host.Repairs() != 0 {
		t.Errorf("repairs = %d: %v", b.host.Repairs(), b.logs.All())
	}
	foreign := Want{Links: []Link{{Name: "eth0", MTU: 1300}}}
	if err := b.host.Apply("test", foreign); err == nil || !strings.Contains(b.ip("link", "show", "eth0"), "mtu 1500") {
		t.Errorf("Apply touched a foreign device: %v", err)
	}
}

func TestQueries(t *testing.T) {
	b := newBench(t)
	b.ip("link", "set", "eth0", "mtu", "1400")
	eth0, err := b.host.Device("eth0")
	if err != nil || eth0.MTU != 1400 || eth0.Inert || !eth0.Up {
		t.Errorf("Device(eth0) = %+v, %v", eth0, err)
	}
	if at, err := b.host.DeviceAt(eth0.Index); err != nil || at != eth0 {
		t.Errorf("DeviceAt = %+v, %v, want %+v", at, err, eth0)
	}
	b.ip("addr", "add", "203.0.113.1/32", "dev", "lo")
	holders, err := b.host.Holders()
	for a, dev := range map[string]string{"192.0.2.1": "eth0", "2001:db8::1": "eth0", "203.0.113.1": "lo"} {
		on := holders[netip.MustParseAddr(a)]
		if err != nil || len(on) != 1 {
			t.Fatalf("%s is on %v, %v", a, on, err)
		}
		if d, err := b.host.DeviceAt(on[0]); err != nil || d.Name != dev || d.Inert != (dev == "lo") {
			t.Errorf("%s is on %+v, %v", a, d, err)
		}
	}
	b.ip("addr", "del", "203.0.113.1/32", "dev", "lo")
	if len(holders[netip.MustParseAddr("192.0.2.77")]) != 0 {
		t.Error("somebody has an address that nobody has")
	}
	if _, err := b.host.Endpoints(""); err == nil || !strings.Contains(err.Error(), "node.interface") {
		t.Errorf("Endpoints without a default route = %v, want the remedy", err)
	}
	b.ip("route", "add", "default", "via", "192.0.2.2", "metric", "50")
	b.ip("link", "add", "other0", "type", "bridge")
	b.ip("link", "set", "other0", "up")
	b.ip("addr", "add", "198.51.100.1/24", "dev", "other0")
	b.ip("route", "add", "default", "via", "198.51.100.2", "metric", "100")
	b.ip("addr", "add", "192.0.2.11/24", "dev", "eth0") // a second one is no less an endpoint
	b.ip("addr", "add", "2001:db8::dead/64", "dev", "eth0", "preferred_lft", "0", "nodad")
	b.ip("addr", "add", "169.254.3.3/16", "dev", "eth0")
	got, err := b.host.Endpoints("")
	if err != nil || fmt.Sprint(got) != "[192.0.2.1 192.0.2.11 2001:db8::1]" {
		t.Errorf("Endpoints = %v, %v", got, err)
	}
	if got, err = b.host.Endpoints("other0"); err != nil || fmt.Sprint(got) != "[198.51.100.1]" {
		t.Errorf("Endpoints(other0) = %v, %v", got, err)
	}
	for _, name := range []string{"lo", "nosuch0"} {
		if got, err := b.host.Endpoints(name); err == nil {
			t.Errorf("Endpoints(%s) = %v", name, got)
		}
	}
	b.ip("route", "del", "default", "metric", "50")
	b.ip("route", "del", "default", "metric", "100")
	b.ip("-6", "route", "add", "default", "via", "2001:db8::2")
	if got, err = b.host.Endpoints(""); err != nil || len(got) != 3 {
		t.Errorf("Endpoints by the v6 default route = %v, %v", got, err)
	}
}

// TestExits: where packets leave is what the tables say, all next hops of a route, and its MTU.
func TestExits(t *testing.T) {
	b := newBench(t)
	eth0, err := b.host.Device("eth0")
	if err != nil {
		t.Fatal(err)
	}
	b.ip("link", "add", "other0", "type", "bridge")
	b.ip("link", "set", "other0", "up")
	b.ip("addr", "add", "198.51.100.1/24", "dev", "other0")
	other0, err := b.host.Device("other0")
	if err != nil {
		t.Fatal(err)
	}
	b.ip("route", "add", "203.0.113.0/25", "via", "192.0.2.254", "mtu", "1300")
	b.ip("route", "add", "203.0.113.128/25", "nexthop", "via", "192.0.2.254", "nexthop", "via", "198.51.100.254")
	b.ip("route", "add", "unreachable", "203.0.113.77/32")
	b.ip("-6", "route", "add", "2001:db8:9::/64", "via", "2001:db8::fe", "mtu", "1400")
	b.ip("rule", "add", "from", "198.51.100.1", "lookup", "77")
	b.ip("route", "add", "192.0.2.0/24", "dev", "other0", "table", "77")
	via := netip.MustParseAddr
	for _, c := range []struct {
		dst, src string
		want     []Exit
	}{
		{"192.0.2.2", "192.0.2.1", []Exit{{eth0.Index, netip.Addr{}, 0}}},
		{"192.0.2.2", "198.51.100.1", []Exit{{other0.Index, netip.Addr{}, 0}}},
		{"203.0.113.1", "192.0.2.1", []Exit{{eth0.Index, via("192.0.2.254"), 1300}}},
		{"203.0.113.200", "192.0.2.1", []Exit{{eth0.Index, via("192.0.2.254"), 0}, {other0.Index, via("198.51.100.254"), 0}}},
		{"2001:db8:9::1", "2001:db8::1", []Exit{{eth0.Index, via("2001:db8::fe"), 1400}}},
		{"2001:db8::2", "2001:db8::1", []Exit{{eth0.Index, netip.Addr{}, 0}}},
		{"203.0.113.77", "192.0.2.1", nil},
		{"8.8.8.8", "192.0.2.1", nil},
		{"192.0.2.1", "192.0.2.1", nil},
	} {
		got, err := b.host.Exits(via(c.dst), via(c.src))
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s from %s: %v, %v, want %v", c.dst, c.src, got, err, c.want)
		}
	}
}
