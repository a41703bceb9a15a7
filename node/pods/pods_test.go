package pods

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap/zaptest"

	"weft/api"
	"weft/hostnet"
	"weft/internal/nettest"
)

// rig is a node with a Manager, and an outside that it is joined to.
type rig struct {
	t             *testing.T
	host, outside *nettest.NS
	m             *Manager
	o             Options
}

var node = Node{Prefixes: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), Network: prefixes("10.244.0.0/16", "fd00:10:244::/48"), MTU: 1450, Ports: []uint16{4789, 8473}, Ready: true}

func newRig(t *testing.T, style string) *rig {
	t.Helper()
	r := &rig{t: t, host: nettest.New(t), outside: nettest.New(t)}
	nettest.Pair(t, nettest.End{NS: r.host, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: r.outside, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, 1500)
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := r.host.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	r.o = Options{StateDir: t.TempDir(), Attach: style, Masquerade: true, SpoofCheck: true, Node: func() Node { return node }, Log: zaptest.NewLogger(t)}
	r.start()
	t.Cleanup(r.close)
	return r
}

func (r *rig) start() {
	r.t.Helper()
	var err error
	r.host.Do(func() {
		if r.o.Host, err = hostnet.New(r.o.Log, Owner); err == nil {
			r.m, err = New(r.o)
		}
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.m.tend(true); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) close() {
	r.t.Helper()
	if err := errors.Join(r.m.Close(), r.o.Host.Close()); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) restart() {
	r.t.Helper()
	r.close()
	r.start()
}

func request(pod *nettest.NS, id string) api.AttachRequest {
	return api.AttachRequest{ContainerID: id, IfName: "eth0", Netns: pod.Path(), Network: "weft", PodNamespace: "default", PodName: "pod-" + id}
}

func (r *rig) attach(q api.AttachRequest) api.AttachResult {
	r.t.Helper()
	a, err := r.m.Attach(r.t.Context(), q)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

// reach asks the kernel's ping for one answer.
func reach(t *testing.T, from *nettest.NS, to netip.Addr) {
	t.Helper()
	nettest.Eventually(t, nettest.Patience, func() error {
		_, err := from.Run("ping", "-n", "-c1", "-W1", to.String())
		return err
	})
}

// left lists what a Manager may have made in the node's namespace.
func (r *rig) left() (list []string) {
	r.t.Helper()
	links, err := r.host.Netlink().LinkList()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range links {
		if hostnet.PodLink(l.Attrs().Name) {
			list = append(list, l.Attrs().Name)
		}
	}
	routes, err := r.host.Netlink().RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: hostnet.Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, route := range routes {
		list = append(list, route.String())
	}
	all, err := r.m.store.all()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, one := range all {
		list = append(list, one.key())
	}
	return list
}

func TestAttach(t *testing.T) {
	nettest.RequireTool(t, "ping")
	for _, style := range []string{Routed, Bridge} {
		t.Run(style, func(t *testing.T) {
			r := newRig(t, style)
			x, y := nettest.New(t), nettest.New(t)
			q := request(x, "x")
			q.MAC, q.IPs = "02:11:22:33:44:55", prefixes("10.244.1.77/24")
			a, b := r.attach(q), r.attach(request(y, "y"))
			if a.IPs[0].Address.Addr() != netip.MustParseAddr("10.244.1.77") || len(a.IPs) != 2 || len(a.Routes) != 2 || a.MTU != node.MTU ||
				a.PodInterface != (api.PodInterface{Name: "eth0", MAC: q.MAC, Netns: x.Path()}) {
				t.Errorf("%+v", a)
			}
			if again := r.attach(q); fmt.Sprint(again) != fmt.Sprint(a) {
				t.Errorf("asked again: %+v, not %+v", again, a)
			}
			if err := r.m.Check(t.Context(), api.CheckRequest{AttachRequest: q, Expect: a}); err != nil {
				t.Error(err)
			}
			for i := range a.IPs {
				to, from := b.IPs[i].Address.Addr(), a.IPs[i].Address.Addr()
				reach(t, x, to)                                                // pod to pod
				reach(t, y, from)                                              //
				reach(t, r.host, to)                                           // node to its own pod
				reach(t, x, outside(to.Is6()))                                 // outside, which knows no way back but to the node
				reach(t, x, a.IPs[i].Gateway.WithZone(zone(a.IPs[i].Gateway))) // the gateway answers
			}
			r.restart() // pods stay
			reach(t, x, b.IPs[0].Address.Addr())
			if err := r.m.tend(true); err != nil {
				t.Error(err)
			}
			for _, id := range []string{"x", "y", "x"} { // twice: idempotent
				if err := r.m.Detach(t.Context(), api.DetachRequest{ContainerID: id, IfName: "eth0", Network: "weft"}); err != nil {
					t.Error(err)
				}
			}
			if left := r.left(); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
			if err := r.m.Check(t.Context(), api.CheckRequest{AttachRequest: q}); code(err) != api.CodeNotFound {
				t.Errorf("check of what is gone: %v", err)
			}
		})
	}
}

func zone(a netip.Addr) string {
	if a.IsLinkLocalUnicast() && a.Is6() {
		return "eth0"
	}
	return ""
}

func outside(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8::2")
	}
	return netip.MustParseAddr("192.0.2.2")
}

// TestHairpin: a packet that comes back to the pod that sent it, as from a service it is behind itself.
func TestHairpin(t *testing.T) {
	r := newRig(t, Bridge)
	pod := nettest.New(t)
	a := r.attach(request(pod, "x"))
	link, err := r.host.Netlink().LinkByName(a.HostInterface)
	if err != nil {
		t.Fatal(err)
	}
	info, err := r.host.Netlink().LinkGetProtinfo(link)
	if err != nil || !info.Hairpin {
		t.Errorf("hairpin %+v, %v", info, err)
	}
}

func TestRefused(t *testing.T) {
	r := newRig(t, Routed)
	pod, other := nettest.New(t), nettest.New(t)
	r.attach(request(other, "taken"))
	taken := r.left()
	edit := func(f func(*api.AttachRequest)) api.AttachRequest {
		q := request(pod, "x")
		f(&q)
		return q
	}
	for name, c := range map[string]struct {
		q    api.AttachRequest
		code string
	}{
		"outside":       {edit(func(q *api.AttachRequest) { q.IPs = prefixes("10.244.2.9/24") }), api.CodeNotInPrefix},
		"given":         {edit(func(q *api.AttachRequest) { q.IPs = prefixes("10.244.1.2/24") }), api.CodeExists},
		"two of one":    {edit(func(q *api.AttachRequest) { q.IPs = prefixes("10.244.1.8/24", "10.244.1.9/24") }), api.CodeInvalid},
		"group MAC":     {edit(func(q *api.AttachRequest) { q.MAC = "01:00:00:00:00:01" }), api.CodeInvalid},
		"too large":     {edit(func(q *api.AttachRequest) { q.MTU = 1451 }), api.CodeInvalid},
		"no namespace":  {edit(func(q *api.AttachRequest) { q.Netns = "/run/netns/weft-none" }), api.CodeNoNetns},
		"a file":        {edit(func(q *api.AttachRequest) { q.Netns = "/etc/passwd" }), api.CodeNoNetns},
		"the node's":    {edit(func(q *api.AttachRequest) { q.Netns = r.host.Path() }), api.CodeInvalid},
		"interface":     {edit(func(q *api.AttachRequest) { q.IfName = "lo" }), api.CodeExists},
		"name":          {edit(func(q *api.AttachRequest) { q.IfName = "a/b" }), api.CodeInvalid},
		"other MAC now": {func() api.AttachRequest { q := request(other, "taken"); q.MAC = "02:00:00:00:00:01"; return q }(), api.CodeExists},
	} {
		if _, err := r.m.Attach(t.Context(), c.q); code(err) != c.code {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
		if left := r.left(); fmt.Sprint(left) != fmt.Sprint(taken) {
			t.Errorf("%s: left behind: %q", name, left)
		}
	}
	r.m.o.Node = func() Node { return Node{Reason: "asleep"} }
	if _, err := r.m.Attach(t.Context(), request(pod, "x")); code(err) != api.CodeUnavailable || !strings.Contains(err.Error(), "asleep") {
		t.Errorf("not ready: %v", err)
	}
	if s := r.m.PodStatus(); s.Ready || s.Code != api.CodeUnavailable {
		t.Errorf("%+v", s)
	}
}

func TestManyAtOnce(t *testing.T) {
	r := newRig(t, Routed)
	const many = 50
	pods := make([]*nettest.NS, many)
	for i := range pods {
		pods[i] = nettest.New(t)
	}
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for i, pod := range pods {
		wg.Go(func() {
			a, err := r.m.Attach(t.Context(), request(pod, fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, ip := range a.IPs {
				if seen[ip.Address.Addr()] {
					t.Errorf("%s twice", ip.Address)
				}
				seen[ip.Address.Addr()] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != 2*many {
		t.Errorf("%d addresses", len(seen))
	}
	if err := r.m.GC(t.Context(), api.GCRequest{Network: "other"}); err != nil || len(r.left()) != many*4 {
		t.Errorf("GC of another network: %v, left %d", err, len(r.left()))
	}
	if err := r.m.GC(t.Context(), api.GCRequest{Network: "weft", Valid: []api.Attachment{{ContainerID: "7", IfName: "eth0"}}}); err != nil || len(r.left()) != 4 {
		t.Errorf("GC: %v, left %q", err, r.left())
	}
}

// TestCutOff: whatever a killed daemon had done so far, the next one takes back.
func TestCutOff(t *testing.T) {
	r := newRig(t, Routed)
	q := request(nettest.New(t), "x")
	r.attach(q)
	rec, err := r.m.store.get(key("weft", "x", "eth0"))
	if err != nil {
		t.Fatal(err)
	}
	rec.Result = nil // as before the last step
	if err := r.m.store.finish(rec); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// A link whose record is lost is nobody's.
	r.attach(q)
	if err := r.m.store.free(rec); err != nil {
		t.Fatal(err)
	}
	r.restart()
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	r.attach(q) // and the name is free again
}

func TestNamespaceGone(t *testing.T) {
	r := newRig(t, Routed)
	pod := nettest.New(t)
	r.attach(request(pod, "x"))
	if err := r.m.sweep(); err != nil || len(r.left()) == 0 {
		t.Fatalf("a living pod was swept, %v", err)
	}
	if err := pod.Close(); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, nettest.Patience, func() error { // the kernel takes the link down in its own time
		if err := r.m.sweep(); err != nil {
			return err
		}
		if left := r.left(); len(left) > 0 {
			return fmt.Errorf("left behind: %q", left)
		}
		return nil
	})
}

func TestRepair(t *testing.T) {
	r := newRig(t, Routed)
	pod := nettest.New(t)
	a := r.attach(request(pod, "x"))
	r.host.MustRun(t, "ip", "route", "del", a.IPs[0].Address.String())
	check := api.CheckRequest{AttachRequest: request(pod, "x"), Expect: a}
	if err := r.m.Check(t.Context(), check); code(err) != api.CodeMismatch {
		t.Errorf("check: %v", err)
	}
	if err := r.m.tend(true); err != nil {
		t.Fatal(err)
	}
	if err := r.m.Check(t.Context(), check); err != nil {
		t.Errorf("check: %v", err)
	}
	pod.MustRun(t, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	if err := r.m.Check(t.Context(), check); code(err) != api.CodeMismatch {
		t.Errorf("check without addresses: %v", err)
	}
}

// TestFirewall: a firewall that drops what is forwarded lets pods through, and is as before afterwards.
func TestFirewall(t *testing.T) {
	nettest.RequireTool(t, "ping", "nft", "iptables-nft")
	r := newRig(t, Routed)
	r.host.MustRun(t, "iptables-nft", "-P", "FORWARD", "DROP")
	r.host.MustRun(t, "nft", "add table inet guard; add chain inet guard entry { type filter hook forward priority 0; policy drop; }; add rule inet guard entry ip daddr 10.9.9.9 drop")
	others := func() string {
		return r.host.MustRun(t, "nft", "list", "table", "ip", "filter") + r.host.MustRun(t, "nft", "list", "table", "inet", "guard")
	}
	before := others()
	x, y := nettest.New(t), nettest.New(t)
	r.attach(request(x, "x"))
	b := r.attach(request(y, "y"))
	reach(t, x, b.IPs[0].Address.Addr())
	reach(t, x, b.IPs[1].Address.Addr())
	reach(t, x, netip.MustParseAddr("192.0.2.2"))
	during := r.host.MustRun(t, "nft", "list", "ruleset")
	if err := r.m.tend(true); err != nil {
		t.Fatal(err)
	}
	strip := func(s string) string { // counters count on
		f := strings.Fields(s)
		for i := range f {
			if i > 0 && (f[i-1] == "packets" || f[i-1] == "bytes") {
				f[i] = "n"
			}
		}
		return strings.Join(f, " ")
	}
	if again := r.host.MustRun(t, "nft", "list", "ruleset"); strip(again) != strip(during) {
		t.Errorf("tending changes what is right:\n%s\n%s", during, again)
	}
	// Loaded anew, the firewall has forgotten ours; the next look puts them back.
	r.host.MustRun(t, "nft", "flush", "chain", "inet", "guard", "entry")
	if err := r.m.tend(true); err != nil {
		t.Fatal(err)
	}
	reach(t, x, b.IPs[0].Address.Addr())
	r.host.MustRun(t, "nft", "insert", "rule", "inet", "guard", "entry", "ip", "daddr", "10.9.9.9", "drop")
	r.host.Do(func() {
		h, err := hostnet.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if removed, err := h.Cleanup(); err != nil {
			t.Errorf("%q, %v", removed, err)
		}
	})
	if after := others(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if left := r.host.MustRun(t, "nft", "list", "tables"); strings.Contains(left, "weft") {
		t.Errorf("cleanup left %s", left)
	}
}

// TestNoMasquerade: pod to pod keeps its source, to the outside it does not, and not at all where it is not wanted.
func TestNoMasquerade(t *testing.T) {
	r := newRig(t, Routed)
	pod := nettest.New(t)
	r.attach(request(pod, "x"))
	if rules := r.host.MustRun(t, "nft", "list", "table", "inet", table); strings.Count(rules, "masquerade") != 2 || strings.Count(rules, "return") != 6 {
		t.Errorf("%s", rules)
	}
	r.m.o.Masquerade = false
	if err := r.m.tend(true); err != nil {
		t.Fatal(err)
	}
	if rules := r.host.MustRun(t, "nft", "list", "ruleset"); strings.Contains(rules, "masquerade") {
		t.Errorf("%s", rules)
	}
}

func TestDelegated(t *testing.T) {
	r := newRig(t, Bridge)
	pod := nettest.New(t)
	q := request(pod, "x")
	q.Delegated = []api.DelegatedIP{{Address: netip.MustParsePrefix("10.244.1.200/24"), Gateway: netip.MustParseAddr("10.244.1.1")}}
	a := r.attach(q)
	if len(a.IPs) != 1 || a.IPs[0] != (api.PodIP{Address: q.Delegated[0].Address, Gateway: q.Delegated[0].Gateway}) {
		t.Errorf("%+v", a)
	}
	reach(t, r.host, q.Delegated[0].Address.Addr())
	if err := r.m.Detach(t.Context(), api.DetachRequest{ContainerID: "x", IfName: "eth0", Network: "weft"}); err != nil {
		t.Fatal(err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestStoreIsPrivate: nobody else reads or writes what is kept.
func TestStoreIsPrivate(t *testing.T) {
	r := newRig(t, Routed)
	info, err := os.Stat(filepath.Join(r.o.StateDir, File))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestAnnounced: what another IPAM has given out is listed until it is given back, whatever happens in between.
func TestAnnounced(t *testing.T) {
	r := newRig(t, Routed)
	pod := nettest.New(t)
	ctx := t.Context()
	listed := func(attached bool) {
		t.Helper()
		list, err := r.m.Pods()
		if err != nil || len(list) != 1 || list[0].ContainerID != "x" || list[0].Attached != attached {
			t.Errorf("%+v, %v; want x, attached %t", list, err, attached)
		}
	}
	announce := api.AnnounceRequest{ContainerID: "x", IfName: "eth0", Netns: pod.Path(), Network: "weft"}
	for range 2 {
		if err := r.m.Announce(ctx, announce); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	listed(false)
	q := request(pod, "x")
	q.Delegated, q.MTU = []api.DelegatedIP{{Address: netip.MustParsePrefix("10.244.1.200/24")}}, 1451
	if _, err := r.m.Attach(ctx, q); code(err) != api.CodeInvalid {
		t.Errorf("too large: %v", err)
	}
	listed(false)
	q.MTU = 0
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := r.m.Attach(gone, q); err == nil {
		t.Error("attached for one who is gone")
	}
	listed(false)
	r.attach(q)
	listed(true)
	if err := r.m.Announce(ctx, announce); code(err) != api.CodeExists {
		t.Errorf("announced what is attached: %v", err)
	}
	q2 := api.DetachRequest{ContainerID: "x", IfName: "eth0", Network: "weft", Keep: true}
	if err := r.m.Detach(gone, q2); err == nil {
		t.Error("detached for one who is gone")
	}
	listed(true)
	if err := r.m.Detach(ctx, q2); err != nil {
		t.Error(err)
	}
	listed(false)
	r.restart()
	listed(false)
	if left := r.left(); len(left) != 1 { // but what is written down
		t.Errorf("left behind: %q", left)
	}
	if err := r.m.GC(ctx, api.GCRequest{Network: "weft"}); err != nil {
		t.Error(err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestAskerGone: nobody knows of a pod that is attached for one who has gone meanwhile, and so it is not.
func TestAskerGone(t *testing.T) {
	r := newRig(t, Routed)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.m.Attach(gone, request(nettest.New(t), "x")); err == nil {
		t.Error("attached")
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestForeignRoute: an address that something else on the node has is not taken from it.
func TestForeignRoute(t *testing.T) {
	r := newRig(t, Routed)
	r.host.MustRun(t, "ip", "route", "add", "10.244.1.9", "dev", "eth0")
	q := request(nettest.New(t), "x")
	q.IPs = prefixes("10.244.1.9/24")
	if _, err := r.m.Attach(t.Context(), q); code(err) != api.CodeExists {
		t.Errorf("%v", err)
	}
	if left := r.left(); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if route := r.host.MustRun(t, "ip", "route", "show", "10.244.1.9"); !strings.Contains(route, "eth0") {
		t.Errorf("the route is now %q", route)
	}
}
