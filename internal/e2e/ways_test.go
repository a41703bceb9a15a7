package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// modesOf are a node's modes in order of preference.
func (c *cluster) modesOf(n *nettest.ClusterNode) []string {
	text := c.mode
	if m := c.modes[n.Name]; m != "" {
		text = m
	}
	return strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune("[], ", r) })
}

// waysOf is what nodes.yaml says of a node's ways.
func (c *cluster) waysOf(n *nettest.ClusterNode) string {
	var ways []string
	port := uint16(4789)
	for _, name := range c.modesOf(n) {
		m := known(name)
		at := m.Port
		if at == 4789 { // the first has it, the next one the port below
			at, port = port, port-1
		}
		for _, w := range m.Ways(at, 0, false) {
			ways = append(ways, fmt.Sprintf("%q", w))
		}
	}
	return strings.Join(ways, ", ")
}

// towards is how a node reaches another one.
func (c *cluster) towards(n, other *nettest.ClusterNode) (p peer) {
	c.t.Helper()
	list := c.peers(n)
	if i := slices.IndexFunc(list, func(p peer) bool { return p.Node == other.Name }); i >= 0 {
		p = list[i]
	}
	return p
}

// TestMixedModes: nodes of different modes are one cluster where what is on the wire is the same, whoever makes it. A node with nothing in
// common is named, with both ways, by all that tell of a node; and it is one of the cluster once it has.
func TestMixedModes(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{Nodes: 4})
	a, b, tap, lone := c.Nodes[0], c.Nodes[1], c.Nodes[2], c.Nodes[3]
	c.told, c.modes = true, map[string]string{b.Name: "tun-gso", tap.Name: "tap", lone.Name: "udp"}
	c.absent[tap.Name], c.absent[lone.Name] = true, true
	c.startAll()
	c.allReach()
	c.absent[tap.Name], c.absent[lone.Name] = false, false
	c.writeNodes()
	c.start(tap)
	c.start(lone)
	c.ready(lone)
	c.eventually("the kernel's VXLAN reaches the TAP", func() error { return errors.Join(ping(a.Pod, tap.PodAddrs[0]), ping(tap.Pod, a.PodAddrs[1])) })

	for _, pair := range []struct {
		on, of         *nettest.ClusterNode
		theirs, ours   string
		takes, carries string
	}{
		{a, lone, "ipudp:8285", "vxlan:4789, frames:4789", "[ipudp:8285]", "vxlan"},
		{lone, b, "vxlan:4789", "ipudp:8285", "[vxlan:4789]", "udp"},
		{b, tap, "frames:4789", "vxlan:4789", "[frames:4789]", "tun-gso"},
	} {
		want := fmt.Sprintf("it takes %s, and mode %s sends %s", pair.theirs, pair.carries, pair.ours)
		c.eventually(pair.on.Name+" names "+pair.of.Name, func() error {
			all, err := c.problems(pair.on)
			if err == nil && !(strings.Contains(all, pair.of.Name+": no way leads to it: ") && strings.Contains(all, want)) {
				err = fmt.Errorf("problems: %s", all)
			}
			return err
		})
		if p := c.towards(pair.on, pair.of); p.Way != "" || !strings.Contains(p.Reason, want) {
			t.Errorf("peers: %+v", p)
		}
		if out, err := nodeDoctor(c, pair.on); err == nil || !strings.Contains(out, want) {
			t.Errorf("doctor: %v\n%s", err, out)
		}
		var why struct {
			Way        string
			Takes      []string
			Candidates []struct{ Way, Mode, State, Reason string }
		}
		if err := c.ask(pair.on, &why, "peers", "--why", pair.of.Name); err != nil || why.Way != "" || fmt.Sprint(why.Takes) != pair.takes ||
			len(why.Candidates) != 1 || why.Candidates[0].Reason != want || why.Candidates[0].State != "unfit" {
			t.Errorf("why: %+v, %v", why, err)
		}
		if ping(pair.on.Pod, pair.of.PodAddrs[0]) == nil {
			t.Errorf("%s reaches %s all the same", pair.on.Name, pair.of.Name)
		}
	}
	if p := c.towards(a, b); p.Way != "vxlan:4789" || p.State != "assumed" {
		t.Errorf("peers: %+v", p)
	}
	if p := c.towards(a, tap); p.Way != "frames:4789" {
		t.Errorf("peers: %+v", p)
	}
	if err := c.ask(a, new(json.RawMessage), "peers", "--why", "nobody"); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("why nobody: %v", err)
	}

	// It changes its mode, and a person writes down that it did: until then it is named itself.
	c.stop(lone, 15)
	c.modes[lone.Name] = "xdp"
	c.start(lone)
	c.eventually("what is written down of it and what it is differ", func() error {
		all, err := c.problems(lone)
		if err == nil && !strings.Contains(all, "the others are told that this node takes ipudp:8285, and it takes vxlan:4789") {
			err = fmt.Errorf("problems: %s", all)
		}
		return err
	})
	c.writeNodes()
	for _, n := range []*nettest.ClusterNode{a, b} {
		for i := range 2 {
			c.eventually("it is one of the cluster", func() error { return errors.Join(ping(n.Pod, lone.PodAddrs[i]), ping(lone.Pod, n.PodAddrs[i])) })
		}
		all, err := c.problems(n)
		if err != nil || strings.Contains(all, lone.Name) {
			t.Errorf("problems: %s, %v", all, err)
		}
	}
}

// startAll writes nodes.yaml and starts a daemon on every node that is in it.
func (c *cluster) startAll() {
	c.t.Helper()
	c.writeNodes()
	c.t.Cleanup(func() {
		for name, p := range c.daemons {
			p.Kill()
			if c.t.Failed() {
				c.t.Logf("daemon %s:\n%s", name, p.Output())
			}
		}
	})
	for _, n := range c.Nodes {
		if !c.absent[n.Name] {
			c.start(n)
		}
	}
	for _, n := range c.Nodes {
		if !c.absent[n.Name] {
			c.ready(n)
		}
	}
}

// crossing is what has been seen on a node's underlay: pairs of addresses that VXLAN went between, and overlay packets without.
type crossing struct{ vxlan, direct []string }

var outerLine = regexp.MustCompile(`^\d\S* IP6? (\S+?)(?:\.\d+)? > (\S+?)(\.4789)?: `)

// watchWire has tcpdump say what passes a node's underlay, of VXLAN and of the overlay itself.
func watchWire(t *testing.T, c *cluster, n *nettest.ClusterNode) func() crossing {
	t.Helper()
	p := n.NS.MustStart(t, "tcpdump", "-n", "-l", "--immediate-mode", "-tt", "-i", n.Iface, "udp port 4789 or net 10.244.0.0/16 or net fd00:10:244::/48")
	t.Cleanup(p.Kill)
	c.eventually("tcpdump listens", func() error {
		if !strings.Contains(p.Output(), "listening on") {
			return errors.New(p.Output())
		}
		return nil
	})
	return func() (seen crossing) {
		for line := range strings.Lines(p.Output()) {
			m := outerLine.FindStringSubmatch(line)
			switch {
			case m == nil: // what is inside
			case strings.Contains(line, "VXLAN"):
				seen.vxlan = append(seen.vxlan, m[1]+" "+m[2])
			default:
				seen.direct = append(seen.direct, m[1]+" "+m[2])
			}
		}
		return seen
	}
}

// TestCrossSubnet: two subnets with a router between. Within a subnet packets go as they are, between them in VXLAN, and only so; a node that
// moves from one to the other is followed.
func TestCrossSubnet(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "tcpdump")
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{Nodes: 3})
	a, b, far := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.told, c.dual, c.modes = true, true, map[string]string{}
	for _, n := range c.Nodes {
		c.modes[n.Name] = "[host-gw, vxlan]"
	}
	for key, value := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		if err := c.Fabric.Sysctl(key, value); err != nil {
			t.Fatal(err)
		}
	}
	c.Fabric.MustRun(t, "sh", "-ec", `ip link add br1 type bridge; ip link set br1 up
ip addr add 192.0.2.254/24 dev br0; ip addr add 198.51.100.254/24 dev br1
ip addr add 2001:db8::254/64 dev br0 nodad; ip addr add 2001:db8:1::254/64 dev br1 nodad`)
	for i, n := range c.Nodes {
		n.NS.MustRun(t, "sh", "-ec", "ip route replace default via 192.0.2.254; ip -6 route replace default via 2001:db8::254")
		if n == far {
			c.move(n, i+1)
		}
	}
	c.startAll()
	c.allReach()

	check := func(within, across [2]*nettest.ClusterNode) {
		t.Helper()
		c.eventually("all are reached by the right way", func() error {
			if p := c.towards(within[0], within[1]); p.Way != "direct" {
				return fmt.Errorf("within: %+v", p)
			}
			if p := c.towards(across[0], across[1]); p.Way != "vxlan:4789" || !strings.Contains(p.Reason, "behind the router") {
				return fmt.Errorf("across: %+v", p)
			}
			return nil
		})
		seen := watchWire(t, c, within[0])
		for _, pair := range [][2]*nettest.ClusterNode{within, across} {
			for i := range 2 {
				for _, way := range [][2]*nettest.ClusterNode{pair, {pair[1], pair[0]}} {
					c.eventually("it is reached", func() error { return ping(way[0].Pod, way[1].PodAddrs[i], "-c", "3", "-i", "0.05") })
				}
			}
		}
		direct := func(n *nettest.ClusterNode) func(string) bool {
			return func(pair string) bool {
				for _, addr := range strings.Fields(pair) {
					for _, prefix := range n.Prefixes {
						if at, err := netip.ParseAddr(addr); err == nil && prefix.Contains(at) {
							return true
						}
					}
				}
				return false
			}
		}
		tunnelled := func(n *nettest.ClusterNode) func(string) bool {
			return func(pair string) bool {
				return strings.Contains(pair, n.Underlay[0].String()) || strings.Contains(pair, n.Underlay[1].String())
			}
		}
		c.eventually("both are captured", func() error {
			if s := seen(); !slices.ContainsFunc(s.direct, direct(within[1])) || across[0] == within[0] && !slices.ContainsFunc(s.vxlan, tunnelled(across[1])) {
				return fmt.Errorf("captured %+v", s)
			}
			return nil
		})
		s := seen()
		if slices.ContainsFunc(s.vxlan, tunnelled(within[1])) || across[0] == within[0] && slices.ContainsFunc(s.direct, direct(across[1])) {
			t.Errorf("VXLAN within the subnet, or none across: %+v", s)
		}
		t.Logf("%s's underlay: %d packets of VXLAN, %d as they are", within[0].Name, len(s.vxlan), len(s.direct))
	}
	check([2]*nettest.ClusterNode{a, b}, [2]*nettest.ClusterNode{a, far})

	// One moves to the other subnet.
	flows := []*stream{startStream(t, a.Pod, b.Pod, b.PodAddrs[0]), startStream(t, far.Pod, b.Pod, b.PodAddrs[0])}
	c.someTraffic(flows)
	c.move(b, 2)
	moved := time.Now()
	c.writeNodes()
	c.eventually("traffic is back", flowing(flows))
	t.Logf("%s moved to the other subnet; traffic from both subnets %v later", b.Name, time.Since(moved).Round(time.Millisecond))
	check([2]*nettest.ClusterNode{far, b}, [2]*nettest.ClusterNode{a, b})
	for _, n := range c.Nodes {
		c.ready(n)
	}
	var why struct {
		Way     string
		Changes []struct{ From, To, Reason string }
	}
	if err := c.ask(a, &why, "peers", "--why", b.Name); err != nil || why.Way != "vxlan:4789" || len(why.Changes) == 0 ||
		!strings.Contains(why.Changes[len(why.Changes)-1].Reason, "direct is unfit: ") {
		t.Errorf("why: %+v, %v", why, err)
	}
	out, _ := a.NS.Run(weft, "peers", "--why", b.Name, "--socket", c.path(a, "sock"))
	t.Logf("weft peers --why %s:\n%s", b.Name, out)
	c.allReach()
}

// move puts a node, whose port on the fabric has a number, into the other subnet, with addresses of that.
func (c *cluster) move(n *nettest.ClusterNode, port int) {
	c.t.Helper()
	c.Fabric.MustRun(c.t, "ip", "link", "set", fmt.Sprintf("port%d", port), "master", "br1")
	n.Underlay = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("198.51.100.%d", port)), netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%d", port))}
	n.NS.MustRun(c.t, "sh", "-ec", fmt.Sprintf(`ip addr add %[2]v/24 dev %[1]s; ip addr add %[3]v/64 dev %[1]s nodad
ip addr del 192.0.2.%[4]d/24 dev %[1]s; ip addr del 2001:db8::%[4]d/64 dev %[1]s
ip route replace default via 198.51.100.254; ip -6 route replace default via 2001:db8:1::254`, n.Iface, n.Underlay[0], n.Underlay[1], port))
}
