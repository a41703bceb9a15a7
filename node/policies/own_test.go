package policies

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"weft/internal/nettest"
)

// answered says whether a TCP connection is answered.
func answered(from *nettest.NS, to netip.Addr, port int, wait time.Duration) bool {
	var conn net.Conn
	var err error
	from.Do(func() { conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, uint16(port)).String(), wait) })
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (b *bench) listenIn(ns *nettest.NS, ports ...int) {
	b.t.Helper()
	for _, port := range ports {
		var l net.Listener
		var err error
		ns.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { l.Close() })
	}
}

// TestHosts: a node is judged where policies are about it, over both families; its failsafe ports stay open, its own pods can be reached by it,
// neighbours are found, and connections that a change denies end.
func TestHosts(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	far, node := b.c.Nodes[0], b.c.Nodes[1]
	b.listenIn(node.NS, 22, 80, 81)
	b.listenIn(far.NS, 53, 80)
	b.listenIn(node.Pod, 80)
	for family := range 2 {
		if !answered(far.NS, node.Underlay[family], 80, patience) {
			t.Fatal("a node without policies is not reached")
		}
	}
	deny := own("node", "{tier: strict, priority: 1, subject: {nodes: {matchExpressions: [{key: none, operator: DoesNotExist}]}}, policyTypes: [Egress], ingress: [{action: Accept, protocols: [{tcp: {destinationPort: {number: 81}}}]}]}")
	b.write(deny)
	b.has("node", true)
	for family := range 2 {
		node.NS.MustRun(t, "ip", "neigh", "flush", "dev", node.Iface) // they are asked for anew
		far.NS.MustRun(t, "ip", "neigh", "flush", "dev", far.Iface)
		for _, c := range []struct {
			from   *nettest.NS
			to     netip.Addr
			port   int
			passes bool
			what   string
		}{
			{far.NS, node.Underlay[family], 22, true, "SSH to the node"},
			{far.NS, node.Underlay[family], 81, true, "what its policy allows"},
			{far.NS, node.Underlay[family], 80, false, "what it does not"},
			{node.NS, far.Underlay[family], 53, true, "DNS of the node"},
			{node.NS, far.Underlay[family], 80, false, "a connection of the node"},
			{node.NS, node.PodAddrs[family], 80, true, "the node to its own pod"},
			{node.NS, node.Underlay[family], 80, true, "the node to itself"},
			{far.Pod, node.PodAddrs[family], 80, true, "pods, of which no policy is"},
		} {
			wait := waits
			if c.passes {
				wait = patience
			}
			if got := answered(c.from, c.to, c.port, wait); got != c.passes {
				t.Errorf("%s: %s, port %d: passes %v", c.what, c.to, c.port, got)
			}
		}
	}
	b.eventually("the node's packets are counted", func(s Status) bool {
		return slices.ContainsFunc(s.Counts, func(c Count) bool {
			return c.What == Denied && c.Policy == "node" && c.Tier == "strict" && c.Packets > 0
		}) &&
			slices.ContainsFunc(s.Counts, func(c Count) bool { return c.What == Allowed && c.Policy == "failsafe" && c.Packets > 0 })
	})
	b.write("")
	b.has("node", false)
	if !answered(far.NS, node.Underlay[0], 80, patience) {
		t.Error("a node is not reached whose policy is gone")
	}
}

// TestSessionsGoOn: sessions of a node's failsafe ports that stand when the first policy about the node comes go on, whoever speaks first, also where
// connection tracking took them up the wrong way round; others end.
func TestSessionsGoOn(t *testing.T) {
	t.Parallel()
	for name, tracked := range map[string]bool{"untracked": false, "taken up from their servers": true} {
		t.Run(name, func(t *testing.T) {
			b := prepare(t)
			far, node := b.c.Nodes[0], b.c.Nodes[1]
			var stay, end []both
			for family := range 2 {
				stay = append(stay, b.session(far.NS, node.NS, netip.AddrPortFrom(node.Underlay[family], 22)), b.session(node.NS, far.NS, netip.AddrPortFrom(far.Underlay[family], 2379)))
				end = append(end, b.session(far.NS, node.NS, netip.AddrPortFrom(node.Underlay[family], 80)))
			}
			if tracked {
				node.NS.MustRun(t, "nft", "add table inet other; add chain inet other c { type filter hook input priority 0; }; add rule inet other c ct state new counter")
				for _, s := range stay {
					if !heard(s.server, s.client, patience) {
						t.Fatal("a session does not pass without policies")
					}
				}
			}
			b.write(own("node", "{tier: strict, priority: 1, subject: {nodes: {}}, policyTypes: [Ingress, Egress]}"))
			b.start()
			t.Cleanup(func() { b.stop() })
			for i, s := range stay {
				first, second := s.server, s.client
				if i/2 == 1 {
					first, second = second, first
				}
				if !heard(first, second, patience) || !heard(second, first, patience) {
					t.Errorf("the session %v → %v does not go on", s.client.LocalAddr(), s.client.RemoteAddr())
				}
			}
			for _, s := range end {
				if heard(s.client, s.server, waits) || heard(s.server, s.client, waits) {
					t.Errorf("the session %v → %v goes on", s.client.LocalAddr(), s.client.RemoteAddr())
				}
			}
		})
	}
}

// TestSourcePort: who begins a connection chooses its source port. One from a failsafe port ends like any other when a policy denies it, also where a
// daemon that starts anew denies it, and packets that begin nothing do not pass by it.
func TestSourcePort(t *testing.T) {
	t.Parallel()
	b := prepare(t)
	far, node := b.c.Nodes[0], b.c.Nodes[1]
	only := func(port int) string {
		return own("node", fmt.Sprintf("{tier: strict, priority: 1, subject: {nodes: {}}, policyTypes: [Ingress, Egress], ingress: [{action: Accept, protocols: [{tcp: {destinationPort: {number: %d}}}]}]}", port))
	}
	b.write(only(80))
	b.start()
	b.has("node", true)
	for source, anew := range map[int]bool{6443: false, 2379: true} {
		var all []both
		for family := range 2 {
			all = append(all, b.sessionFrom(netip.AddrPortFrom(far.Underlay[family], uint16(source)), far.NS, node.NS, netip.AddrPortFrom(node.Underlay[family], 80)))
		}
		for _, s := range all {
			if !heard(s.client, s.server, patience) || !heard(s.server, s.client, patience) {
				t.Fatal("a connection that is allowed does not pass")
			}
		}
		if anew {
			b.stop()
		}
		b.write(only(81))
		if anew {
			b.start()
		}
		for _, s := range all {
			nettest.Eventually(t, patience, func() error { // what was sent before the change is read here
				if heard(s.client, s.server, waits) || heard(s.server, s.client, waits) {
					return fmt.Errorf("the session from port %d goes on", source)
				}
				return nil
			})
		}
		b.write(only(80))
	}
	b.stop()
}

// session is a connection of TCP between two namespaces.
func (b *bench) session(from, to *nettest.NS, at netip.AddrPort) both {
	b.t.Helper()
	return b.sessionFrom(netip.AddrPort{}, from, to, at)
}

// sessionFrom is one from an address and port; of none, from any.
func (b *bench) sessionFrom(source netip.AddrPort, from, to *nettest.NS, at netip.AddrPort) (s both) {
	b.t.Helper()
	var l net.Listener
	var err error
	to.Do(func() { l, err = net.Listen("tcp", at.String()) })
	if err != nil {
		b.t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{Timeout: patience}
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(source)
	}
	from.Do(func() { s.client, err = d.Dial("tcp", at.String()) })
	if err == nil {
		s.server, err = l.Accept()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.client.Close(); s.server.Close() })
	return s
}

// TestLogs: a rule that logs has both pods' names in the daemon's log, and a policy that is staged counts and changes nothing.
func TestLogs(t *testing.T) {
	t.Parallel()
	b := prepare(t)
	seen, told := observer.New(zapcore.InfoLevel)
	b.log = zap.New(seen)
	b.write(own("watch", "{tier: first, priority: 1, subject: {namespaces: {}}, ingress: [{name: web, action: Log, protocols: [{tcp: {destinationPort: {number: 80}}}]}]}") +
		own("try", "{tier: strict, priority: 1, staged: true, subject: {namespaces: {}}, ingress: [{action: Accept, protocols: [{tcp: {destinationPort: {number: 81}}}]}]}"))
	b.start()
	t.Cleanup(func() { b.stop() })
	b.listen(80)
	b.listen(81)
	for family := range 2 {
		for _, port := range []int{80, 81} {
			conn, err := b.dial(family, port, patience)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		want := fmt.Sprintf("%s → %s TCP 80", b.c.Nodes[0].PodAddrs[family], b.c.Nodes[1].PodAddrs[family])
		nettest.Eventually(t, patience, func() error {
			for _, e := range told.FilterMessage("a policy logs a connection").All() {
				f := e.ContextMap()
				if f["traffic"] == want && f["from"] == "pod x/p0" && f["to"] == "pod x/p1" && f["policy"] == "watch" && f["rule"] == `ingress[0] "web"` && f["tier"] == "first" {
					return nil
				}
			}
			return fmt.Errorf("no line about %s: %v", want, told.All())
		})
	}
	for _, c := range []Counter{{Logged, "first", "watch", `ingress[0] "web"`}, {WouldDeny, "strict", "try", ""}, {WouldAllow, "strict", "try", "ingress[0]"}} {
		b.eventually(fmt.Sprint(c), func(s Status) bool {
			return slices.ContainsFunc(s.Counts, func(have Count) bool { return have.Counter == c && have.Packets > 0 })
		})
	}
	// Another listener is nothing to stumble over: rules that log count then.
	if _, err := b.host.Logs(87); err == nil {
		t.Error("two listen to one group")
	}
}

func FuzzTraffic(f *testing.F) {
	f.Add([]byte{0x45, 19: 0})
	f.Add([]byte{0x60, 6: 6, 45: 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, ok := traffic(b); ok && !q.Src.IsValid() {
			t.Error(q)
		}
	})
}
