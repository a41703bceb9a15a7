package hostnet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"weft/internal/kernel"
	"weft/internal/nettest"
)

// everyKind wants one object of every kind there is, on top of sample.
func everyKind() Want {
	w := sample()
	w.Links = append(w.Links, Link{Name: Bridge, Bridge: true, MTU: 1450, Quiet: true})
	w.Addrs = append(w.Addrs,
		Addr{Dev: Bridge, Prefix: netip.MustParsePrefix("10.244.1.1/24"), OnLink: true}, Addr{Dev: Bridge, Prefix: netip.MustParsePrefix("fd00:10:244:1::1/64"), OnLink: true})
	w.Addrs = slices.DeleteFunc(w.Addrs, func(a Addr) bool { return a.Dev == "weft-vx4" && a.Prefix.Addr().Is6() })
	w.Own = []netip.Addr{netip.MustParseAddr("10.244.1.3")}
	w.NextHops = []NextHop{
		{ID: 8703, Members: [8]Member{{8701, 1}, {8702, 3}}},
		{ID: 8701, Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0"}, {ID: 8702, Via: netip.MustParseAddr("192.0.2.3"), Dev: "eth0", OnLink: true},
	}
	w.Routes = append(w.Routes,
		Route{Dst: netip.MustParsePrefix("10.245.0.0/16"), NextHop: 8703, MTU: 1400},
		Route{Dst: netip.MustParsePrefix("10.246.0.0/16"), Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0", Resolve: true, Table: 8700},
	)
	w.Rules = []Rule{
		{Priority: 8700, Table: 8700, From: netip.MustParsePrefix("10.244.1.0/24"), Mark: 0x40, Mask: 0xf0},
		{Priority: 8701, Table: 8700, V6: true, Iif: "eth0", To: netip.MustParsePrefix("2001:db8:9::/64")},
	}
	w.Tables = []Table{policy("10.244.1.7", "10.244.1.8")}
	w.Passage = w.Network
	w.Programs = []Program{
		{Name: "weft_in", Dev: "eth0", Code: program("weft_in"), Pinned: true},
		{Name: "weft_out", Dev: Bridge, Egress: true, Code: program("weft_out"), Pinned: true},
	}
	return w
}

// policy is a table as network policy has it: a base chain that dispatches by a verdict map, and a chain that this leads to.
func policy(addrs ...string) Table {
	hook, priority := *nftables.ChainHookForward, *nftables.ChainPriorityRef(-5)
	t := Table{Name: "weft-test", Family: nftables.TableFamilyINet, Sets: []Set{{Set: nftables.Set{Name: "pods", IsMap: true,
		KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}}}}
	for _, a := range addrs {
		t.Sets[0].Elements = append(t.Sets[0].Elements, nftables.SetElement{Key: netip.MustParseAddr(a).AsSlice(),
			VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: "denied"}})
	}
	t.Chains = []TableChain{
		{Name: "denied", Rules: [][]expr.Any{{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}},
		{Name: "ingress", Type: nftables.ChainTypeFilter, Hook: &hook, Priority: &priority, Rules: [][]expr.Any{{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: "pods"},
		}}},
	}
	return t
}

// everything is what iproute2 and nft see of the kinds that kernel does not list, counters and index numbers left aside.
func (b *bench) kinds() []string {
	b.t.Helper()
	all := b.kernel()
	for i, line := range all {
		if f := strings.SplitN(line, ": ", 2); len(f) == 2 && strings.Trim(f[0], "0123456789") == "" {
			all[i] = f[1]
		}
		all[i] = strings.ReplaceAll(all[i], "permanent master", "permanent") // of a port
	}
	all = slices.DeleteFunc(all, func(line string) bool { // a bridge's MAC is the kernel's choice, its timers run
		return strings.HasPrefix(line, Bridge+":") || strings.Contains(line, "dev "+Bridge+" ") || strings.HasPrefix(line, "33:33") || strings.HasPrefix(line, "01:00:5e") ||
			strings.HasSuffix(line, "master "+Bridge+" permanent") || strings.Contains(line, "eth0@")
	})
	add := func(out, must string) {
		for _, line := range strings.Split(out, "\n") {
			if line = strings.Join(strings.Fields(line), " "); line != "" && strings.Contains(line, must) {
				all = append(all, line)
			}
		}
	}
	for _, fam := range []string{"-4", "-6"} {
		add(b.ip("-d", fam, "rule", "show"), "proto 87")
	}
	add(b.ip("-d", "nexthop", "show"), "proto 87")
	add(b.ip("-o", "addr", "show", "lo"), "10.244")
	for _, f := range strings.Fields(b.ip("-br", "link", "show", "type", "bridge")) {
		if f == Bridge || f == "UP" || f == "DOWN" && false {
			all = append(all, "bridge "+f)
		}
	}
	add(b.ns.MustRun(b.t, "nft", "-s", "list", "ruleset"), "")
	return append(all, b.hooks("eth0", Bridge)...)
}

// TestEveryKindIsPutBack: whatever somebody removes or changes of any kind of object returns; a restart adopts all of it; and Cleanup
// leaves nothing. How long each took is logged.
func TestEveryKindIsPutBack(t *testing.T) {
	nettest.RequireTool(t, "nft", "bridge")
	nettest.RequireKernel(t, kernel.TCX)
	b := newBench(t)
	b.ns.MustRun(t, "nft", "add table inet guard; add chain inet guard entry { type filter hook forward priority 0; policy drop; }")
	bare := b.ns.MustRun(t, "nft", "list", "ruleset")
	b.apply(everyKind())
	right := b.kinds()
	mon := b.monitor()
	b.apply(everyKind())
	again, _ := b.open("test")
	generation := again.raw.generation()
	if err := again.Apply("test", everyKind()); err != nil || again.Repairs() != 0 || again.raw.generation() != generation {
		t.Errorf("a restart: %v, %d repairs, nftables were of generation %d and are of %d", err, again.Repairs(), generation, again.raw.generation())
	}
	if events := mon(); len(events) > 0 {
		t.Errorf("a second Apply changed the kernel's state:\n%s", strings.Join(events, "\n"))
	}
	if got := b.kinds(); !slices.Equal(got, right) {
		t.Fatalf("again:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(right, "\n"))
	}
	b.guarded(everyKind())
	byHand := map[string]func(){
		"detach weft_in":    func() { b.detach("eth0", false) },
		"replace weft_in":   func() { b.replace("eth0", false) },
		"unpin weft_in":     func() { b.unpin("weft_in:ingress:eth0") },
		"detach weft_out":   func() { b.detach(Bridge, true) },
		"unpin all of them": func() { b.unpin("") },
	}
	for _, cmd := range append([]string{
		"ip route del 10.245.0.0/16",
		"ip route replace 10.245.0.0/16 via 192.0.2.2 proto 87",
		"ip route del 10.246.0.0/16 table 8700",
		"ip route replace 10.246.0.0/16 via 192.0.2.2 onlink dev eth0 table 8700 proto 87",
		"ip nexthop del id 8703",
		"ip nexthop del id 8701",
		"ip nexthop replace id 8702 via 192.0.2.9 dev eth0 proto 87",
		"ip nexthop add id 8709 blackhole proto 87",
		"ip rule del priority 8700",
		"ip -6 rule del priority 8701",
		"ip rule add priority 8702 lookup 8700 proto 87",
		"ip addr del 10.244.1.3/32 dev lo",
		"ip addr del 10.244.1.1/24 dev weftbr0",
		"ip link set weftbr0 down",
		"ip link del weftbr0",
		"nft delete table inet weft-test",
		"nft flush chain inet weft-test ingress",
		"nft add rule inet weft-test denied accept",
		"nft delete element inet weft-test pods { 10.244.1.7 }",
		"nft add element inet weft-test pods { 10.244.1.9 : accept }",
		"nft add table ip weft-stray",
		"nft flush chain inet guard entry",
		"nft flush ruleset; nft add table inet guard; nft add chain inet guard entry '{ type filter hook forward priority 0; policy drop; }'",
	}, slices.Sorted(maps.Keys(byHand))...) {
		if do := byHand[cmd]; do != nil {
			do()
		} else {
			b.ns.MustRun(t, "sh", "-ec", cmd)
		}
		began := time.Now()
		nettest.Eventually(t, waitLong, func() error {
			got := b.kinds()
			slices.Sort(got)
			want := slices.Sorted(slices.Values(right))
			if !slices.Equal(got, want) {
				return fmt.Errorf("after %q the kernel has\n%s\nwant\n%s", cmd, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return nil
		})
		t.Logf("%6d ms  %s", time.Since(began).Milliseconds(), cmd)
	}
	// One owner's elements change: the rules stay, with their counters.
	handle := b.ns.MustRun(t, "nft", "-a", "list", "chain", "inet", "weft-test", "ingress")
	w := everyKind()
	w.Tables = []Table{policy("10.244.1.8", "10.244.1.9")}
	b.apply(w)
	if out := b.ns.MustRun(t, "nft", "list", "map", "inet", "weft-test", "pods"); strings.Contains(out, "1.7") || !strings.Contains(out, "1.9") {
		t.Errorf("elements: %s", out)
	}
	if now := b.ns.MustRun(t, "nft", "-a", "list", "chain", "inet", "weft-test", "ingress"); now != handle {
		t.Errorf("the chain was\n%s\nand is\n%s", handle, now)
	}
	if removed, err := b.host.Cleanup(); err != nil || !slices.Contains(removed, "program weft_in dev eth0 ingress") {
		t.Errorf("%q, %v", removed, err)
	}
	b.mustLack("weft-vx4", "weftbr", "proto 87")
	if rules := b.ip("rule"); strings.Contains(rules, "8700") {
		t.Errorf("after Cleanup: %s", rules)
	}
	if hops := b.ip("nexthop"); hops != "" {
		t.Errorf("after Cleanup: %s", hops)
	}
	if left := b.hooks("eth0"); len(left) > 0 || exists(b.bpffs+"/weft") {
		t.Errorf("after Cleanup: %q", left)
	}
	if after := b.ns.MustRun(t, "nft", "list", "ruleset"); after != bare {
		t.Errorf("after Cleanup:\n%s", after)
	}
}
