package e2e

import (
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestRekeyUnderLoad renews the keys of two nodes every second under 80 % of the load they carry without loss, and follows every packet
// by its number: none is lost, comes twice or is dropped because of the keys. What a queue of the machine loses is counted where it is
// lost, and all that is missing has to be there. With WEFT_TEST_LONG=1 a hundred times, and over more ports.
func TestRekeyUnderLoad(t *testing.T) {
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	modes, rekeys, search, slice := []string{"tun-gso"}, uint64(5), 2*time.Second, 6*time.Second
	if os.Getenv("WEFT_TEST_LONG") != "" {
		modes, rekeys, search, slice = []string{"tun-gso", "xdp", "tun"}, 100, 4*time.Second, 15*time.Second
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := prepare(t, mode, 4, nettest.ClusterOptions{})
			a, b := c.Nodes[0], c.Nodes[1]
			c.ownKeys("aes-128-gcm")
			own := c.encryption
			c.encryption = func(n *nettest.ClusterNode) string { return strings.TrimSuffix(own(n), "}") + ", rekey_after: 1s}" }
			c.launch()
			load := newLoad(t, a, b)
			rate, payload := load.lossFree(search)
			before := c.losses()
			var sum loaded
			var renewed uint64
			for idle := 0; renewed < rekeys; {
				start := [2]uint64{c.handshakes(a), c.handshakes(b)}
				r, err := load.stream(.8*rate, payload, slice)
				if err != nil {
					t.Fatal(err)
				}
				n := min(c.handshakes(a)-start[0], c.handshakes(b)-start[1])
				if idle++; n > 0 {
					idle = 0
				}
				if idle > 5 {
					t.Fatalf("no new keys in %d times %v", idle, slice)
				}
				renewed += n
				sum.Generated += r.Generated
				sum.Delivered += r.Delivered
				sum.Duplicates += r.Duplicates
				sum.add(r.KernelDrops)
				sum.add(r.SendErrors)
			}
			died := minus(c.losses(), before)
			lost := sum.Generated - sum.Delivered
			t.Logf("%d new keys on both sides at %.0f of %.0f packets/s: %d sent, %d lost, %d twice; died: %v, at the ends: %v",
				renewed, .8*rate, rate, sum.Generated, lost, sum.Duplicates, died, sum.KernelDrops)
			if sum.Duplicates > 0 {
				t.Errorf("%d packets came twice", sum.Duplicates)
			}
			// What a busy machine loses in its queues has a name and is not the keys' doing.
			elsewhere := total(sum.KernelDrops)
			for name, n := range died {
				for _, reason := range []string{"no-session", "auth-failed", "replayed", "plain-refused"} {
					if strings.HasSuffix(name, " "+reason) {
						t.Errorf("%s: %d packets", name, n)
					}
				}
				elsewhere += n
			}
			if lost > elsewhere {
				t.Errorf("%d packets are lost and only %d of them are in a counter", lost, elsewhere)
			}
		})
	}
}

// add counts drops by name.
func (l *loaded) add(drops map[string]uint64) {
	if l.KernelDrops == nil {
		l.KernelDrops = map[string]uint64{}
	}
	for name, n := range drops {
		if n > 0 {
			l.KernelDrops[name] += n
		}
	}
}

func total(counts map[string]uint64) (n uint64) {
	for v := range maps.Values(counts) {
		n += v
	}
	return n
}

// handshakes is how many keys a node has had with its first peer, by `weft peers`.
func (c *cluster) handshakes(n *nettest.ClusterNode) uint64 {
	c.t.Helper()
	list := c.peers(n)
	if len(list) == 0 || list[0].Session == nil {
		c.t.Fatalf("%s: %v", n.Name, fmt.Sprint(list))
	}
	return list[0].Session.Handshakes
}
