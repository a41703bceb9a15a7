package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, f func(t *testing.T, n *simNet)) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Minute) }) // until nobody waits for an answer any more
		f(t, newSimNet())
	})
}

// five starts nodes a to e that all begin at a and b, and waits until they agree.
func five(t *testing.T, n *simNet, change ...func(*simNode)) []*simNode {
	var nodes []*simNode
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		node := n.newNode(t, name, i+1, "198.18.0.1", "198.18.0.2")
		node.set.Expect = 5
		for _, f := range change {
			f(node)
		}
		nodes = append(nodes, node.start())
	}
	until(t, time.Minute, "five nodes agree", func() bool { return agree(nodes) }, show(nodes))
	return nodes
}

func addrs(nodes ...*simNode) (list []netip.Addr) {
	for _, n := range nodes {
		list = append(list, n.addr)
	}
	return list
}

// TestStart: nodes that begin at once find each other, take a prefix of each family, and agree.
func TestStart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		for _, node := range nodes {
			if s := node.state(); len(s.Problems) > 0 {
				t.Errorf("%s has problems: %v", node.name, s.Problems)
			}
		}
	})
}

// TestFirst: a node that begins at nobody is the first, and others join it one by one.
func TestFirst(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := []*simNode{n.newNode(t, "a", 1).start()}
		for i := range 4 {
			until(t, 20*time.Second, "all agree", func() bool { return agree(nodes) }, show(nodes))
			nodes = append(nodes, n.newNode(t, fmt.Sprint("n", i), i+2, "198.18.0.1").start())
		}
		until(t, 20*time.Second, "all agree", func() bool { return agree(nodes) }, show(nodes))
	})
}

// TestRestart: who starts again has what it had, at once, whether others are there or not.
func TestRestart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, n *simNet) {
		nodes := five(t, n)
		had := nodes[2].state().Self.Prefixes
		nodes[2].stop()
		n.part()
		nodes[2].states = nil
		nodes[2].start()
		until(t, time.Second, "c has its prefixes", func() bool { return slices.Equal(nodes[2].state().Self.Prefixes, had) }, show(nodes))
		n.heal()
		until(t, time.Minute, "five nodes agree", func() bool { return agree(nodes) }, show(nodes))
	})
}
