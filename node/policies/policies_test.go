package policies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"weft/hostnet"
	"weft/internal/nettest"
	"weft/policy"
	"weft/policy/nft"
)

const patience = 30 * time.Second

// waits is how long an answer is waited for that is not to come.
const waits = 500 * time.Millisecond

// bench is two nodes with plain routes between them, and policies in force on the second.
type bench struct {
	t    *testing.T
	c    *nettest.Cluster
	file string
	from policy.Source // nil = the file
	m    *Manager
	host *hostnet.Host
	log  *zap.Logger // of the policies; nil = the test's
	stop func()
}

func newBench(t *testing.T, policies string) *bench {
	t.Helper()
	b := prepare(t)
	b.write(policies)
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

// prepare makes the nodes; write and start are to follow.
func prepare(t *testing.T) *bench {
	t.Helper()
	nettest.RequireRoot(t)
	b := &bench{t: t, c: nettest.NewCluster(t, nettest.ClusterOptions{}), file: filepath.Join(t.TempDir(), "policies.yaml")}
	for i, n := range b.c.Nodes {
		for k, p := range b.c.Nodes[1-i].Prefixes {
			if err := n.NS.AddRoute(p, b.c.Nodes[1-i].Underlay[k], n.Iface); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b
}

func (b *bench) write(policies string) {
	b.t.Helper()
	b.writeWhole(b.text(policies))
}

// text is the file with these policies.
func (b *bench) text(policies string) string {
	var text strings.Builder
	text.WriteString("tiers: [{name: first, order: 5}, {name: strict, order: 7, default: Deny}]\nnodes:\n")
	for i, n := range b.c.Nodes {
		fmt.Fprintf(&text, "  - {name: n%d, addresses: [%q, %q]}\n", i, n.Underlay[0], n.Underlay[1])
	}
	text.WriteString("pods:\n")
	for i, n := range b.c.Nodes {
		fmt.Fprintf(&text, "  - {name: p%d, namespace: x, labels: {name: p%d}, addresses: [%q, %q]}\n", i, i, n.PodAddrs[0], n.PodAddrs[1])
	}
	return text.String() + "policies:\n" + np("nobody", "none", "{podSelector: {}}") + policies
}

func (b *bench) writeWhole(text string) {
	b.t.Helper()
	if err := errors.Join(os.WriteFile(b.file+".new", []byte(text), 0o600), os.Rename(b.file+".new", b.file)); err != nil {
		b.t.Fatal(err)
	}
}

func np(name, namespace, spec string) string {
	return "  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: " + name + ", namespace: " + namespace + "}, spec: " + spec + "}\n"
}

func own(name, spec string) string {
	return "  - {apiVersion: policy.weft/v1alpha1, kind: Policy, metadata: {name: " + name + "}, spec: " + spec + "}\n"
}

// start starts a daemon's part: a Host, and the policies.
func (b *bench) start() {
	b.t.Helper()
	n := b.c.Nodes[1]
	if b.log == nil {
		b.log = zaptest.NewLogger(b.t)
	}
	var err error
	n.NS.Do(func() { b.host, err = hostnet.New(zaptest.NewLogger(b.t), Owner) })
	if err != nil {
		b.t.Fatal(err)
	}
	source := b.from
	if source == nil {
		source = File(b.file)
	}
	b.m = New(Options{Source: source, Name: "n1", Node: func() ([]netip.Prefix, bool) { return n.Prefixes, true }, Host: b.host, Log: b.log})
	if b.m.Ready() == nil {
		b.t.Error("ready before anything is in force")
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- b.host.Run(ctx) }()
	go func() { ended <- b.m.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, b.host.Close()); err != nil {
			b.t.Error(err)
		}
		b.stop = func() {}
	}
	nettest.Eventually(b.t, patience, b.m.Ready)
}

// eventually waits for what Status says.
func (b *bench) eventually(what string, is func(Status) bool) {
	b.t.Helper()
	nettest.Eventually(b.t, patience, func() error {
		if s := b.m.Status(); !is(s) {
			return fmt.Errorf("%s: problem %q, denied %v", what, s.Problem, s.Counts)
		}
		return nil
	})
}

// has waits until a policy is in force, or is not.
func (b *bench) has(name string, want bool) {
	b.t.Helper()
	b.eventually(name, func(s Status) bool {
		return s.Problem == "" && want == slices.ContainsFunc(s.World.List(), func(l policy.Listed) bool { return l.Policy == name })
	})
}

func (b *bench) listen(port int) net.Listener {
	b.t.Helper()
	var l net.Listener
	var err error
	b.c.Nodes[1].Pod.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	return l
}

func (b *bench) dial(family, port int, wait time.Duration) (conn net.Conn, err error) {
	b.c.Nodes[0].Pod.Do(func() {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(b.c.Nodes[1].PodAddrs[family], uint16(port)).String(), wait)
	})
	return conn, err
}

// both are the two ends of a connection.
type both struct{ client, server net.Conn }

func (b *bench) connect(l net.Listener, family, port int) both {
	b.t.Helper()
	client, err := b.dial(family, port, patience)
	if err != nil {
		b.t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { client.Close(); server.Close() })
	return both{client, server}
}

// heard says whether a byte from one end comes to the other.
func heard(from, to net.Conn, wait time.Duration) bool {
	if _, err := from.Write([]byte{1}); err != nil {
		return false
	}
	_ = to.SetReadDeadline(time.Now().Add(wait))
	_, err := io.ReadFull(to, make([]byte, 1))
	return err == nil
}

// TestChangesBite: a change ends the connections that it denies, in both directions, whoever speaks first, and no others; taken back, they go
// on. What it denied is counted under its name, over changes of the table.
func TestChangesBite(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	l80, l81 := b.listen(80), b.listen(81)
	for family := range 2 {
		ends, stays := b.connect(l80, family, 80), b.connect(l81, family, 81)
		for _, c := range []both{ends, stays} {
			if !heard(c.client, c.server, patience) || !heard(c.server, c.client, patience) {
				t.Fatal("a connection does not pass without policies")
			}
		}
		b.write(np("only81", "x", "{podSelector: {matchLabels: {name: p1}}, ingress: [{ports: [{port: 81}]}]}"))
		b.has("x/only81", true)
		if heard(ends.server, ends.client, waits) {
			t.Error("the server of a connection that is denied by now is heard")
		}
		if heard(ends.client, ends.server, waits) {
			t.Error("the client of a connection that is denied by now is heard")
		}
		if !heard(stays.server, stays.client, patience) || !heard(stays.client, stays.server, patience) {
			t.Error("a connection that is allowed ended")
		}
		if _, err := b.dial(family, 80, waits); err == nil {
			t.Error("a new connection passes that is denied")
		}
		b.eventually("denied packets are counted", func(s Status) bool {
			return slices.ContainsFunc(s.Counts, func(c Count) bool {
				return c.What == Denied && c.Policy == "x/only81" && c.Tier == "NetworkPolicy" && c.Packets > 0
			})
		})
		if n := b.m.Status().Ended; n < uint64(family+1) {
			t.Errorf("%d connections ended, want %d at least", n, family+1)
		}
		before := b.m.Status().Counts
		only81 := np("only81", "x", "{podSelector: {matchLabels: {name: p1}}, ingress: [{ports: [{port: 81}]}]}")
		b.write(only81 + np("more", "x", "{podSelector: {matchLabels: {name: nobody}}}"))
		b.has("x/more", true)
		for _, d := range before {
			if !slices.ContainsFunc(b.m.Status().Counts, func(c Count) bool { return c.Counter == d.Counter && c.Packets >= d.Packets }) {
				t.Errorf("%+v was forgotten: %+v", d, b.m.Status().Counts)
			}
		}
		b.write("")
		b.has("x/only81", false)
		if d := b.m.Status().Counts; slices.ContainsFunc(d, func(c Count) bool { return c.Policy == "x/only81" }) {
			t.Errorf("a policy that is gone is still counted: %+v", d)
		}
		// What was lost meanwhile comes again: TCP sends it anew.
		for _, to := range []net.Conn{ends.client, ends.server} {
			_ = to.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
				t.Errorf("a connection that is allowed again does not go on: %v", err)
			}
		}
	}
}

// TestTakenUp: connection tracking forgets everything after a deny, and takes the server for the client that speaks first: what the client then sends
// is none of its answers. A connection that is allowed goes on.
func TestTakenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t, "")
	l80, l81 := b.listen(80), b.listen(81)
	for family := range 2 {
		ends, stays := b.connect(l80, family, 80), b.connect(l81, family, 81)
		b.write(np("only81", "x", "{podSelector: {matchLabels: {name: p1}}, ingress: [{ports: [{port: 81}]}]}"))
		b.has("x/only81", true)
		var err error
		b.c.Nodes[1].NS.Do(func() { err = netlink.ConntrackTableFlush(netlink.ConntrackTable) })
		if err != nil {
			t.Fatal(err)
		}
		heard(ends.server, ends.client, waits)
		if heard(ends.client, ends.server, waits) {
			t.Errorf("family %d: the client of a connection that is denied is heard once its server has spoken", family)
		}
		if !heard(stays.server, stays.client, patience) || !heard(stays.client, stays.server, patience) {
			t.Errorf("family %d: a connection that is allowed ended", family)
		}
		b.write("")
		b.has("x/only81", false)
	}
}

// TestNeverOpen: a file that is wrong or gone, a daemon that ends, one that starts anew, and somebody who flushes the table open nothing that
// stays open, and neither does a pod of which nothing is known.
func TestNeverOpen(t *testing.T) {
	t.Parallel()
	deny := np("nothing", "x", "{podSelector: {}}")
	b := newBench(t, deny)
	b.listen(80)
	closed := func(when string) {
		t.Helper()
		for family := range 2 {
			if c, err := b.dial(family, 80, waits); err == nil {
				c.Close()
				t.Errorf("%s: open over %v", when, b.c.Nodes[1].PodAddrs[family])
			}
		}
	}
	closed("in force")
	good, err := os.ReadFile(b.file)
	if err != nil {
		t.Fatal(err)
	}
	b.writeWhole("pods: [\n")
	b.eventually("a wrong file is told", func(s Status) bool { return strings.Contains(s.Problem, "not YAML") })
	closed("a wrong file")
	if err := os.Remove(b.file); err != nil {
		t.Fatal(err)
	}
	b.eventually("a file that is gone is told", func(s Status) bool { return strings.Contains(s.Problem, "no such file") })
	closed("no file")
	b.writeWhole(string(good))
	b.has("x/nothing", true)
	b.stop()
	closed("no daemon")
	b.start()
	closed("a new daemon")
	b.flushed()
	closed("somebody flushed the ruleset")
	// Open, and not for the pod that is listed no more.
	b.writeWhole(strings.Replace(strings.Replace(string(good), deny, "", 1), "name: p1, namespace: x, labels: {name: p1}, addresses: [\""+b.c.Nodes[1].PodAddrs[0].String()+"\", ", "name: p1, namespace: x, labels: {name: p1}, addresses: [", 1))
	b.has("x/nothing", false)
	if c, err := b.dial(1, 80, patience); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	if c, err := b.dial(0, 80, waits); err == nil {
		c.Close()
		t.Error("a pod's address of which nothing is known is reached")
	}
	b.eventually("the unknown are counted", func(s Status) bool {
		return slices.ContainsFunc(s.Counts, func(c Count) bool { return c.Tier == "unknown" && c.Packets > 0 })
	})
	answers, err := b.m.Explain(b.c.Nodes[0].PodAddrs[0].String(), b.c.Nodes[1].PodAddrs[0].String(), "80")
	if err != nil || len(answers) != 1 || answers[0].Allowed || !slices.ContainsFunc(answers[0].Ends, func(e policy.ExplainedSide) bool {
		return e.Tier == "unknown" && e.Direction == "ingress" && !e.Allowed
	}) {
		t.Errorf("a pod that is not listed is explained as %+v, %v", answers, err)
	}
}

// flushed has somebody flush the ruleset, again and again, while packets come that are denied. Where the kernel has tables that nobody else may
// flush, not one passes, and nothing has to be put back.
func (b *bench) flushed() {
	t := b.t
	t.Helper()
	ns := b.c.Nodes[1].NS
	if !b.host.Keeps(nft.Family, nft.Name) {
		ns.MustRun(t, "nft", "flush", "ruleset")
		nettest.Eventually(t, patience, func() error {
			if b.host.Repairs() == 0 {
				return errors.New("the table is not put back")
			}
			return nil
		})
		return
	}
	var server net.PacketConn
	var err error
	b.c.Nodes[1].Pod.Do(func() { server, err = net.ListenPacket("udp", ":99") })
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		var socks []net.Conn
		b.c.Nodes[0].Pod.Do(func() {
			for _, a := range b.c.Nodes[1].PodAddrs {
				if c, err := net.Dial("udp", netip.AddrPortFrom(a, 99).String()); err == nil {
					socks = append(socks, c)
				}
			}
		})
		for {
			for _, c := range socks {
				if _, err := c.Write([]byte{1}); err == nil {
					sent++
				}
			}
			select {
			case <-stop:
				for _, c := range socks {
					c.Close()
				}
				done <- sent
				return
			default:
			}
		}
	}()
	for range 50 {
		ns.MustRun(t, "nft", "flush", "ruleset")
	}
	if out, err := ns.Run("nft", "delete", "table", "inet", nft.Name); err == nil {
		t.Errorf("somebody else deleted the table: %s", out)
	}
	close(stop)
	sent := <-done
	if err := server.SetReadDeadline(time.Now().Add(waits)); err != nil {
		t.Fatal(err)
	}
	if _, from, err := server.ReadFrom(make([]byte, 8)); err == nil {
		t.Errorf("a packet from %v passed while the ruleset was flushed", from)
	}
	if n := b.host.Repairs(); n != 0 || sent == 0 {
		t.Errorf("%d repairs, %d packets sent", n, sent)
	}
	t.Logf("%d packets sent while the ruleset was flushed 50 times, none passed", sent)
}
