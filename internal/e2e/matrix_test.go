package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weft/internal/nettest"
)

// rounds is how often a matrix does each thing to each mode.
func rounds() int {
	if os.Getenv("WEFT_TEST_LONG") != "" {
		return 12
	}
	return 1
}

// TestKilledUnderTraffic kills a daemon at random moments while packets pass both ways, and starts it again. Every time traffic comes
// back by itself, every lane adds up at every look, the kernel holds what it held before, nothing has left in clear, and
// nothing is lost any more.
func TestKilledUnderTraffic(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{})
		a, b := c.Nodes[0], c.Nodes[1]
		before := map[string]string{a.Name: kernelObjects(t, a), b.Name: kernelObjects(t, b)}
		flows := []*stream{startStream(t, a.Pod, b.Pod, b.PodAddrs[0]), startStream(t, b.Pod, a.Pod, a.PodAddrs[1])}
		for range rounds() {
			for _, n := range c.Nodes {
				clear := watchClear(t, b, a)
				c.someTraffic(flows)
				c.stop(n, syscall.SIGKILL)
				killed := time.Now()
				c.start(n)
				c.eventually("traffic is back after "+n.Name+" was killed", flowing(flows))
				t.Logf("%s was killed; traffic both ways %v later", n.Name, time.Since(killed).Round(time.Millisecond))
				c.ready(n)
				c.allAddUp()
				if leaked := clear(); len(leaked) > 0 && mode != "host-gw" {
					t.Errorf("overlay packets on the underlay in clear: %v", leaked)
				}
				c.eventually("the kernel of "+n.Name+" holds what it held", func() error { return same(before[n.Name], kernelObjects(t, n)) })
			}
		}
		c.unharmed(flows)
	})
}

// TestFlapsUnderTraffic does to a cluster of three nodes what happens to clusters, in random order while packets pass: links go down and up, peers
// restart, move to another address, leave and come back. Traffic comes back by itself each time, and what the kernel and the
// lanes hold is right.
func TestFlapsUnderTraffic(t *testing.T) {
	each(t, func(t *testing.T, mode string, family int) {
		c := up(t, mode, family, nettest.ClusterOptions{Nodes: 3})
		a, b := c.Nodes[0], c.Nodes[1]
		before := kernelObjects(t, a)
		flows := []*stream{startStream(t, a.Pod, b.Pod, b.PodAddrs[0]), startStream(t, b.Pod, a.Pod, a.PodAddrs[1])}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		dice := rand.New(rand.NewPCG(seed, 0))
		for range rounds() {
			for _, i := range dice.Perm(len(flaps)) {
				c.someTraffic(flows)
				flaps[i].do(c, b)
				done := time.Now()
				c.eventually("traffic is back after "+flaps[i].name, flowing(flows))
				t.Logf("%s; traffic both ways %v later", flaps[i].name, time.Since(done).Round(time.Millisecond))
				c.ready(b)
				c.allAddUp()
			}
		}
		c.eventually("the kernel holds what it held", func() error { return same(before, kernelObjects(t, a)) })
		c.allReach()
		c.unharmed(flows)
	})
}

// flaps are what happens to a node of a cluster that goes on.
var flaps = []struct {
	name string
	do   func(c *cluster, n *nettest.ClusterNode)
}{
	{"its underlay went down and up", func(c *cluster, n *nettest.ClusterNode) {
		script(c, n, "ip link set %[1]s down; ip link set %[1]s up; ip addr replace %[2]s/64 dev %[1]s nodad", n.Iface, n.Underlay[1])
	}},
	{"its peer's underlay went down and up", func(c *cluster, _ *nettest.ClusterNode) {
		n := c.Nodes[0]
		script(c, n, "ip link set %[1]s down; ip link set %[1]s up; ip addr replace %[2]s/64 dev %[1]s nodad", n.Iface, n.Underlay[1])
	}},
	{"the wire was cut and mended", func(c *cluster, _ *nettest.ClusterNode) {
		for _, state := range []string{"down", "up"} {
			c.Fabric.MustRun(c.t, "ip", "link", "set", "port2", state)
		}
	}},
	{"its overlay device went down and up", func(c *cluster, n *nettest.ClusterNode) {
		s, err := c.status(n)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, d := range s.Devices {
			script(c, n, "ip link set %[1]s down; ip link set %[1]s up", d)
		}
	}},
	{"its daemon restarted", func(c *cluster, n *nettest.ClusterNode) {
		c.stop(n, syscall.SIGTERM)
		c.start(n)
	}},
	{"it moved to another address and back", func(c *cluster, n *nettest.ClusterNode) {
		home := n.Underlay
		n.Underlay = []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")}
		if err := n.NS.AddAddrs(n.Iface, netip.PrefixFrom(n.Underlay[0], 24), netip.PrefixFrom(n.Underlay[1], 64)); err != nil {
			c.t.Fatal(err)
		}
		c.writeNodes()
		to := n.PodAddrs[0]
		c.eventually("it is reached at its new address", func() error {
			var peers []struct {
				Node     string         `json:"node"`
				Endpoint netip.AddrPort `json:"endpoint"`
			}
			if err := c.ask(c.Nodes[0], &peers, "peers"); err != nil {
				return err
			}
			for _, p := range peers {
				if p.Node == n.Name && p.Endpoint.Addr() != c.endpoint(n) && p.Endpoint.Addr() != n.Underlay[1] {
					return fmt.Errorf("still at %v", p.Endpoint)
				}
			}
			return ping(c.Nodes[0].Pod, to)
		})
		moved := n.Underlay
		n.Underlay = home
		c.writeNodes()
		c.eventually("it is reached at home", func() error { return ping(c.Nodes[0].Pod, to) })
		for i, length := range []int{24, 64} {
			script(c, n, "ip addr del %v dev %s", netip.PrefixFrom(moved[i], length), n.Iface)
		}
	}},
	{"it left the list and came back", func(c *cluster, n *nettest.ClusterNode) {
		third := c.Nodes[2]
		c.absent[third.Name] = true
		c.writeNodes()
		c.eventually("the third node is unknown", func() error {
			if ping(c.Nodes[0].Pod, third.PodAddrs[0]) == nil {
				return fmt.Errorf("it answers")
			}
			return nil
		})
		c.absent[third.Name] = false
		c.writeNodes()
	}},
}

func script(c *cluster, n *nettest.ClusterNode, format string, args ...any) {
	c.t.Helper()
	n.NS.MustRun(c.t, "sh", "-ec", fmt.Sprintf(format, args...))
}

// stream is numbered UDP packets from one pod to another for as long as the test runs, some hundred a second.
type stream struct {
	sent, received, refused atomic.Uint64
	pause                   atomic.Bool // nothing is sent
}

func startStream(t *testing.T, from, to *nettest.NS, addr netip.Addr) *stream {
	t.Helper()
	s := &stream{}
	var l *net.UDPConn
	var err error
	to.Do(func() { l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	ended := from.Go(func() error {
		conn, err := net.DialUDP("udp", nil, l.LocalAddr().(*net.UDPAddr))
		if err != nil {
			return err
		}
		defer conn.Close()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return nil
			case <-tick.C:
			}
			if s.pause.Load() {
				continue
			}
			var b [64]byte
			binary.BigEndian.PutUint64(b[:], s.sent.Load())
			if _, err := conn.Write(b[:]); err != nil { // unreachable meanwhile: that is what is under test
				s.refused.Add(1)
				continue
			}
			s.sent.Add(1)
		}
	})
	go func() {
		buf := make([]byte, 100)
		for {
			if _, err := l.Read(buf); err != nil {
				return
			}
			s.received.Add(1)
		}
	}()
	t.Cleanup(func() {
		close(stop)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		l.Close()
	})
	return s
}

// someTraffic waits until a random number of packets has arrived: a moment that nothing is in step with.
func (c *cluster) someTraffic(flows []*stream) {
	c.t.Helper()
	from, n := flows[0].received.Load(), uint64(1+rand.IntN(60))
	c.eventually("some packets pass", func() error {
		if got := flows[0].received.Load() - from; got < n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

// flowing says, from now on, whether packets of every stream have arrived.
func flowing(flows []*stream) func() error {
	var from []uint64
	for _, f := range flows {
		from = append(from, f.received.Load())
	}
	return func() error {
		for i, f := range flows {
			if got := f.received.Load() - from[i]; got < 20 {
				return fmt.Errorf("stream %d: %d packets since", i, got)
			}
		}
		return nil
	}
}

// allAddUp looks at every lane of every node.
func (c *cluster) allAddUp() {
	c.t.Helper()
	for _, n := range c.Nodes {
		for _, l := range c.lanes(n) {
			if l.Received+l.Copied != l.Sent+l.dead() {
				c.t.Errorf("%s %s: received %d, copied %d, sent %d, drops %v", n.Name, l.Name, l.Received, l.Copied, l.Sent, l.drops())
			}
		}
	}
}

// unharmed expects that nothing is lost now, and says what was.
func (c *cluster) unharmed(flows []*stream) {
	c.t.Helper()
	a, b := c.Nodes[0], c.Nodes[1]
	const n = 2000
	if got := flood(c.t, a.Pod, b.Pod, b.PodAddrs[0], n); got != n {
		c.t.Errorf("%d of %d paced packets arrive after all that", got, n)
	}
	c.allAddUp()
	for i, f := range flows {
		c.t.Logf("stream %d: %d sent, %d arrived, %d refused at once", i, f.sent.Load(), f.received.Load(), f.refused.Load())
	}
}

// kernelObjects lists what weft has in a node's kernel: routes, rules, addresses (the kernel's own link-local ones differ with each
// device), devices.
func kernelObjects(t *testing.T, n *nettest.ClusterNode) string {
	t.Helper()
	return n.NS.MustRun(t, "sh", "-ec", strings.Join([]string{
		"ip -4 route show table all proto 87", "ip -6 route show table all proto 87", "ip -4 rule", "ip -6 rule",
		"ip -o addr | grep -o 'weft.* inet.*/[0-9]*' | grep -v fe80: || true", "ls /sys/class/net",
	}, ";"))
}

func same(want, have string) error {
	lines := func(text string) map[string]bool {
		set := map[string]bool{}
		for l := range strings.Lines(text) {
			set[strings.TrimSpace(l)] = true
		}
		return set
	}
	w, h := lines(want), lines(have)
	for l := range w {
		if !h[l] {
			return fmt.Errorf("lacks %q", l)
		}
	}
	for l := range h {
		if !w[l] {
			return fmt.Errorf("has %q besides", l)
		}
	}
	return nil
}
