package mesh

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"weft/control"
)

// sizes are the meshes that TestScale makes: WEFT_TEST_NODES=10,100 says other ones.
func sizes(t *testing.T) (list []int) {
	text := os.Getenv("WEFT_TEST_NODES")
	switch {
	case text != "":
	case long():
		text = "10,100,300,1000"
	default:
		text = "10"
	}
	for s := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 2 {
			t.Fatalf("WEFT_TEST_NODES: %q is not a number of nodes", s)
		}
		list = append(list, n)
	}
	return list
}

// TestScale starts many nodes at once, in a time of their own and on a network without delay or loss, and logs how long it takes until all know all, and
// what each says then while nothing happens, and when one of them changes:
//
//	WEFT_TEST_LONG=1 go test -count=1 -v -timeout 1h -run TestScale ./control/mesh
func TestScale(t *testing.T) {
	for _, size := range sizes(t) {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			bubble(t, func(t *testing.T, n *simNet) { scale(t, n, size) })
		})
	}
}

func scale(t *testing.T, n *simNet, size int) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	var nodes []*simNode
	for i := range size {
		node := n.newNode(t, fmt.Sprint("n", i), i+1, "198.18.0.1", "198.18.0.2", "198.18.0.3")
		node.set.Expect = size
		node.lastOnly = true
		nodes = append(nodes, node.start())
	}
	all := func(cond func(*simNode) bool) func() bool {
		done := 0 // before that it was so
		return func() bool {
			for done < size && cond(nodes[done]) {
				done++
			}
			return done == size
		}
	}
	first := func() string { return show(nodes[:1])() }
	until(t, 10*time.Minute, "all know all", all(func(n *simNode) bool {
		run := n.running.get()
		if run == nil {
			return false
		}
		run.mu.Lock()
		defer run.mu.Unlock()
		return len(run.book.entries) == size
	}), first)
	known := time.Since(begin)
	until(t, 10*time.Minute, "all have the prefixes of all", all(func(n *simNode) bool {
		s := n.state()
		return len(s.Self.Prefixes) == 2 && len(s.Nodes) == size-1
	}), first)
	ready := time.Since(begin)
	spent := n.sent()

	time.Sleep(2 * time.Minute) // what is left of the start
	const quiet = 2 * time.Minute
	idle := n.sent()
	time.Sleep(quiet)
	idle = n.sent() - idle
	runtime.GC()
	runtime.ReadMemStats(&after)

	change := time.Now()
	other := nodes[size/2]
	other.Source.Announce(control.Node{Name: other.name, Endpoints: []netip.Addr{other.addr, netip.MustParseAddr("198.19.0.1")}})
	until(t, 10*time.Minute, "all know what one says", all(func(n *simNode) bool {
		if n == other {
			return true
		}
		s := n.state()
		at, ok := control.Find(s.Nodes, other.name)
		return ok && len(s.Nodes[at].Endpoints) == 2
	}), first)
	news := time.Since(change)
	t.Logf("%d nodes: all known %.2f s, all prefixes %.2f s after they started at once, %.0f kB sent by each until then; idle %.2f kB/s sent by each; a change is everywhere after %.2f s; %.0f kB of memory each",
		size, known.Seconds(), ready.Seconds(), float64(spent)/float64(size)/1e3, float64(idle)/float64(size)/quiet.Seconds()/1e3, news.Seconds(), float64(after.HeapAlloc-before.HeapAlloc)/float64(size)/1e3)
	for _, p := range nodes[0].state().Problems {
		t.Errorf("a problem of %s: %s", p.Node, p.Text)
	}
}
