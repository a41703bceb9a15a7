package hostnet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// TestTerrain: networks on links and routers count, also where no address of ours is in them, or their route has a metric; what is weft's, a
// single host or down does not.
func TestTerrain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.apply(sample())
	far := nettest.New(t)
	nettest.Pair(t, nettest.End{NS: b.ns, Dev: "eth1"}, nettest.End{NS: far, Dev: "eth1"}, 1500)
	for _, cmd := range []string{"addr flush dev eth0", "addr add 192.0.2.1/24 dev eth0 noprefixroute", "route add 192.0.2.0/24 dev eth0 metric 100",
		"route add default via 192.0.2.9 metric 100", "addr add 10.9.0.1/16 dev eth1", "route add 203.0.113.0/24 via 10.9.0.2", "route add 10.8.0.7/32 dev eth1",
		"-6 addr add 2001:db8:9::1/64 dev eth1 nodad"} {
		b.ip(strings.Fields(cmd)...)
	}
	look := func() string {
		t.Helper()
		outside, err := b.host.Outside()
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, g := range outside.Nets {
			all = append(all, fmt.Sprint(g, " ", g.DefaultRoute))
		}
		slices.Sort(all)
		return strings.Join(all, "\n")
	}
	const want = `the router 192.0.2.9 on eth0 true
this node's own network 10.9.0.0/16 on eth1 false
this node's own network 192.0.2.0/24 on eth0 true
this node's own network 2001:db8:9::/64 on eth1 false`
	if got := look(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	b.ip("link", "set", "eth1", "down")
	if got := look(); strings.Contains(got, "eth1") {
		t.Errorf("a device that is down: %s", got)
	}
}

// TestGuardsAmongRules: a rule of somebody else does not lead the overlay's packets past the guard; where there is none, there is no
// rule of ours either, and none is left.
func TestGuardsAmongRules(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	w := sample()
	b.apply(w)
	none := b.ip("rule")
	b.ip("route", "add", "default", "via", "192.0.2.2", "table", "100")
	for _, rule := range []string{"from all lookup 100 pref 100", "iif lo lookup 100 pref 32000", "not from all fwmark 0x1 lookup 100 pref 1"} {
		b.ip(append([]string{"rule", "add"}, strings.Fields(rule)...)...)
		b.host.doubt.Store(true)
		b.apply(w)
		// A prefix of the network that nobody has.
		if out, err := b.ns.Run("ip", "route", "get", "10.244.250.1"); !strings.Contains(rule, "pref 1") && (err == nil || !strings.Contains(out, "No route to host")) {
			t.Errorf("%s: %s, %v\n%s", rule, out, err, b.ip("rule"))
		}
		if out := b.ip("route", "get", "203.0.113.1"); !strings.Contains(out, "via 192.0.2.2") {
			t.Errorf("what is not the overlay's does not follow the rule: %s", out)
		}
		open, guarded, err := b.host.Detours(w.Network)
		if early := strings.HasSuffix(rule, "pref 1"); err != nil || (len(open) == 1) != early || (len(guarded) == 1) == early {
			t.Errorf("%s: open %q, guarded %q, %v", rule, open, guarded, err)
		}
		b.ip(append([]string{"rule", "del"}, strings.Fields(rule)...)...)
	}
	b.host.doubt.Store(true)
	b.apply(w)
	b.guardsOutliveFailure(w)
	b.host.doubt.Store(true)
	b.apply(w)
	if now := b.ip("rule"); now != none {
		t.Errorf("rules are left:\n%s", now)
	}
	if got := b.host.holder(Route{Dst: w.Network[0]}.normal(), unix.ENOENT); got != "" {
		t.Errorf("a holder of nothing: %s", got)
	}
}

// guardsOutliveFailure: where others' rules of one address family cannot be listed, that family's guards stay, or come back, and the other
// family's do as always; also in a daemon that has just begun.
func (b *bench) guardsOutliveFailure(w Want) {
	b.t.Helper()
	for _, fam := range []string{"-4", "-6"} {
		b.ip(fam, "rule", "add", "from", "all", "lookup", "100", "pref", "100")
	}
	b.host.doubt.Store(true)
	b.apply(w)
	guards := func() string {
		return b.ip("-4", "rule", "show", "proto", "87") + b.ip("-6", "rule", "show", "proto", "87")
	}
	standing := guards()
	for _, fam := range []string{"-4", "-6"} {
		begun, _ := b.open()
		for name, h := range map[string]*Host{"that runs": b.host, "that has just begun": begun} {
			h.detours = func(rt *handle, v6 bool) ([]Rule, uint32, error) {
				if v6 == (fam == "-6") {
					return nil, 0, unix.EBUSY
				}
				return detours(rt, v6)
			}
			h.doubt.Store(true)
			if err := h.Apply("test", w); !errors.Is(err, unix.EBUSY) {
				b.t.Errorf("%s, a Host %s: %v", fam, name, err)
			}
			if now := guards(); now != standing || !strings.Contains(now, "10.244.0.0/16") || !strings.Contains(now, "fd00:10:244::/48") {
				b.t.Errorf("%s, a Host %s: guards are\n%s\nwere\n%s", fam, name, now, standing)
			}
		}
		b.ip(fam, "rule", "flush", "proto", "87")
		b.host.doubt.Store(true)
		if err := b.host.Apply("test", w); !errors.Is(err, unix.EBUSY) || guards() != standing {
			b.t.Errorf("%s: removed, and not put back: %v\n%s", fam, err, guards())
		}
		b.host.detours = detours
	}
	for _, fam := range []string{"-4", "-6"} {
		b.ip(fam, "rule", "del", "from", "all", "lookup", "100", "pref", "100")
	}
}
