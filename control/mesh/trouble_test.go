package mesh

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/control"
)

// TestPartition: a cluster that is cut into 3 and 2 goes on on both sides. A node that joins the larger one gets a prefix; one that joins the
// smaller one waits, and is told for whom. When the parts meet again all agree, and nobody has changed.
func TestPartition(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		before := map[string][]netip.Prefix{}
		for _, node := range nodes {
			before[node.name] = node.state().Self.Prefixes
		}
		f, g := n.newNode(t, "f", 6, "198.18.0.1"), n.newNode(t, "g", 7, "198.18.0.5")
		n.part(append(addrs(nodes[:3]...), f.addr), append(addrs(nodes[3:]...), g.addr))
		f.start()
		g.start()
		until(t, 2*time.Minute, "f has a prefix", func() bool { return len(f.state().Self.Prefixes) == 2 }, show([]*simNode{f}))
		until(t, 2*time.Minute, "g is told what it waits for", func() bool {
			return problem(g.state(), "", "3 of 6 nodes are heard, and 4 are needed") && problem(g.state(), "", "start a, b, c")
		}, show([]*simNode{g}))
		for _, node := range nodes {
			if s := node.state(); len(s.Nodes) < 4 || !slices.Equal(s.Self.Prefixes, before[node.name]) {
				t.Errorf("%s has %v and %d nodes while the cluster is cut", node.name, s.Self.Prefixes, len(s.Nodes))
			}
		}
		until(t, 3*time.Minute, "who is not heard is named", func() bool {
			return problem(nodes[0].state(), "d", "it has not been heard since") && problem(nodes[3].state(), "a", "`weft forget a` frees them now")
		}, show(nodes))
		n.heal()
		all := append(slices.Clone(nodes), f, g)
		took := until(t, time.Minute, "all agree", func() bool { return agree(all) }, show(all))
		t.Logf("all agree %v after the parts can reach each other", took)
		for _, node := range nodes {
			if s := node.state(); !slices.Equal(s.Self.Prefixes, before[node.name]) {
				t.Errorf("%s has %v, and had %v", node.name, s.Self.Prefixes, before[node.name])
			}
		}
		until(t, time.Minute, "nobody has problems", func() bool {
			return !slices.ContainsFunc(all, func(n *simNode) bool { return len(n.state().Problems) > 0 })
		}, show(all))
	})
}

// TestOnePrefixTwice: two clusters that each believed to be all there is have given one prefix twice. When they meet, who had it keeps it, pods
// of the younger one get addresses of another, all of it is named, and the next start ends it.
func TestOnePrefixTwice(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		small := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22")} // four nodes' prefixes
		var nodes []*simNode
		for i, name := range []string{"a", "b"} {
			node := n.newNode(t, name, i+1)
			node.set.Network = small
			nodes = append(nodes, node)
		}
		a, b := nodes[0], nodes[1]
		a.start()
		until(t, time.Minute, "a has a prefix", func() bool { return len(a.state().Self.Prefixes) == 1 }, show(nodes))
		// b is told to want a's.
		m, err := remember(b.set.StateDir)
		if err != nil {
			t.Fatal(err)
		}
		double := a.state().Self.Prefixes[0]
		m.Claims, m.Born, m.Heard = []claim{{Prefix: double, Stamp: 9}}, 9, time.Now()
		if err := m.save(); err != nil {
			t.Fatal(err)
		}
		b.start()
		until(t, time.Minute, "b has the same", func() bool { return slices.Equal(b.state().Self.Prefixes, []netip.Prefix{double}) }, show(nodes))
		c := n.newNode(t, "c", 3, "198.18.0.1", "198.18.0.2")
		c.set.Network = small
		nodes = append(nodes, c.start())
		until(t, time.Minute, "b has another prefix besides, and all name it", func() bool {
			own := b.state().Self.Prefixes
			return len(own) == 2 && own[0] != double && own[1] == double && problem(b.state(), "b", "is node a's by an elder claim") && problem(a.state(), "b", "overlaps") &&
				slices.Equal(a.state().Self.Prefixes, []netip.Prefix{double}) && len(c.state().Self.Prefixes) == 1
		}, show(nodes))
		other := b.state().Self.Prefixes[0]
		for _, node := range []*simNode{a, c} {
			node := node
			until(t, time.Minute, "others have b at its other prefix", func() bool {
				at, ok := control.Find(node.state().Nodes, "b")
				return ok && slices.Equal(node.state().Nodes[at].Prefixes, []netip.Prefix{other})
			}, show(nodes))
		}
		b.stop()
		b.start()
		until(t, time.Minute, "b is without the contested one", func() bool {
			return slices.Equal(b.state().Self.Prefixes, []netip.Prefix{other}) && len(a.state().Problems) == 0 && len(b.state().Problems) == 0
		}, show(nodes))
	})
}

// TestNameTwice: a node with the name of one that is there gets no prefix, and is told where that is; the others notice nothing.
func TestNameTwice(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		second := n.newNode(t, "c", 9, "198.18.0.1").start()
		until(t, time.Minute, "the second c is told", func() bool {
			return problem(second.state(), "", "a node at 198.18.0.3 is heard that has the name c too: set another node.name") && len(second.state().Self.Prefixes) == 0
		}, show([]*simNode{second}))
		time.Sleep(time.Minute)
		if !agree(nodes) || len(second.state().Self.Prefixes) != 0 {
			t.Errorf("the five do not agree any more: %s", show(nodes)())
		}
	})
}

// TestReinstalled: a node that lost its disk takes the place of what it was, also where it comes back before anybody has missed it.
func TestReinstalled(t *testing.T) {
	t.Parallel()
	for _, away := range []time.Duration{0, 5 * time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T, n *simNet) {
				nodes := five(t, n)
				c := nodes[2]
				had := c.state().Self.Prefixes
				c.stop()
				time.Sleep(away)
				if err := os.Remove(filepath.Join(c.set.StateDir, MemoryFile)); err != nil {
					t.Fatal(err)
				}
				c.states = nil
				c.start()
				until(t, time.Minute, "c has what it had", func() bool { return slices.Equal(c.state().Self.Prefixes, had) && agree(nodes) }, show(nodes))
				until(t, time.Minute, "nobody has problems", func() bool {
					return !slices.ContainsFunc(nodes, func(n *simNode) bool { return len(n.state().Problems) > 0 })
				}, show(nodes))
			})
		})
	}
}

// TestForget: what a node had that is gone stays its own for long (here 15 minutes), or until somebody says that it is gone. One that comes back claims anew.
func TestForget(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n, func(n *simNode) { n.set.Forget = 15 * time.Minute })
		d, e := nodes[3], nodes[4]
		if err := nodes[0].Forget("d"); err == nil || !contains(err.Error(), "is heard at 198.18.0.4") {
			t.Errorf("forget a node that is there: %v", err)
		}
		if err := nodes[0].Forget("x"); err == nil || !contains(err.Error(), "no node x is known") {
			t.Errorf("forget a node that is not: %v", err)
		}
		d.stop()
		e.stop()
		until(t, time.Minute, "d is missed", func() bool { return nodes[0].Forget("d") == nil }, show(nodes))
		gone := func(name string) func() bool {
			return func() bool {
				return !slices.ContainsFunc(nodes[:3], func(n *simNode) bool { _, there := control.Find(n.state().Nodes, name); return there })
			}
		}
		until(t, time.Minute, "d is forgotten everywhere", gone("d"), show(nodes))
		if gone("e")() {
			t.Error("e is forgotten too")
		}
		until(t, 20*time.Minute, "e is forgotten", gone("e"), show(nodes))
		d.start()
		e.start()
		until(t, 2*time.Minute, "both are back", func() bool { return agree(nodes) }, show(nodes))
	})
}

// TestStrangers: who has another password, or a clock a year ahead, is named on both sides, and harms nobody.
func TestStrangers(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		other := n.newNode(t, "x", 21, "198.18.0.1")
		other.set.Secrets = password(2)
		other.start()
		early := n.newNode(t, "y", 22, "198.18.0.1")
		early.set.clock = func() time.Time { return time.Now().AddDate(1, 0, 0) }
		early.start()
		both := []*simNode{nodes[0], other, early}
		until(t, time.Minute, "all is named", func() bool {
			a := nodes[0].state()
			return problem(a, "", "198.18.0.21 speaks to the mesh and is not taken: it has another password") &&
				problem(a, "", "198.18.0.22 speaks to the mesh and is not taken: its clock is 366 days ahead") &&
				problem(other.state(), "", "another password") &&
				problem(early.state(), "", "its clock is 366 days behind")
		}, show(both))
		if !agree(nodes) || len(other.state().Self.Prefixes)+len(early.state().Self.Prefixes) > 0 {
			t.Errorf("a stranger is taken, or harms: %s", show(nodes)())
		}
		other.stop()
		early.stop()
		until(t, 5*time.Minute, "they are no problem any more", func() bool { return len(nodes[0].state().Problems) == 0 }, show(both))
	})
}

// TestDays: when the day changes nothing happens, also where clocks differ by hours.
func TestDays(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		var nodes []*simNode
		var past atomic.Int64 // what the nodes' clocks are ahead by
		for i, off := range []time.Duration{0, -10 * time.Hour, 11 * time.Hour} {
			node := n.newNode(t, string(rune('a'+i)), i+1, "198.18.0.1")
			node.set.clock = func() time.Time { return time.Now().Add(off + time.Duration(past.Load())) }
			nodes = append(nodes, node.start())
		}
		until(t, time.Minute, "all agree", func() bool { return agree(nodes) }, show(nodes))
		for range 10 {
			past.Add(int64(5 * time.Hour))
			time.Sleep(10 * time.Second) // who is not understood is refused at once
			for _, node := range nodes {
				if s := node.state(); len(s.Problems) > 0 || !agree(nodes) {
					t.Fatal(show(nodes)())
				}
			}
		}
	})
}

// TestRotation: while a password is replaced node by node, nobody is lost.
func TestRotation(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		before, after := Secret{1}, Secret{2}
		for _, step := range [][]Secret{{before, after}, {after, before}, {after}} {
			for _, node := range nodes {
				node.stop()
				node.set.Secrets = func() ([]Secret, error) { return step, nil }
				node.states = nil
				node.start()
				until(t, time.Minute, "all agree", func() bool { return agree(nodes) }, show(nodes))
				for _, node := range nodes {
					for _, p := range node.state().Problems {
						t.Errorf("%s: %v", node.name, p)
					}
				}
			}
			time.Sleep(15 * time.Second) // whoever is not taken is missed by now
			if !agree(nodes) {
				t.Fatal(show(nodes)())
			}
		}
	})
}

// TestReplay: packets that were recorded, and are sent again later, change nothing.
func TestReplay(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		var mu sync.Mutex
		var packets [][]byte
		n.tap = func(p []byte, _ string) {
			mu.Lock()
			defer mu.Unlock()
			if len(packets) < 5000 {
				packets = append(packets, slices.Clone(p))
			}
		}
		nodes := five(t, n)
		time.Sleep(10 * time.Second)
		stranger := n.listen(netip.MustParseAddrPort("198.18.9.9:4786"))
		nodes[2].Source.Announce(control.Node{Name: "c", Endpoints: []netip.Addr{nodes[2].addr, netip.MustParseAddr("198.18.0.33")}})
		until(t, time.Minute, "c has another address", func() bool { return agree(nodes) && len(nodes[2].state().Self.Endpoints) == 2 }, show(nodes))
		mu.Lock()
		recorded := slices.Clone(packets)
		mu.Unlock()
		for _, p := range recorded {
			for _, node := range nodes {
				_, _ = stranger.WriteTo(p, fmt.Sprintf("%v:4786", node.addr))
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		if at, ok := control.Find(nodes[0].state().Nodes, "c"); !agree(nodes) || !ok || len(nodes[0].state().Nodes[at].Endpoints) != 2 {
			t.Errorf("%d packets that were sent again changed something: %s", len(recorded), show(nodes)())
		}
	})
}
