package flowcache

import (
	"context"
	"fmt"
	"testing"

	"github.com/cilium/ebpf"

	"weft/backend/status"
	"weft/bpf"
	"weft/internal/kernel"
	"weft/internal/nettest"
)

// TestPeerNumbers: however many peers come and go, each that is there has a number of its own, and what it counts begins at zero.
func TestPeerNumbers(t *testing.T) {
	nettest.RequireKernel(t, kernel.VXLAN)
	c, err := New(Options{Port: 4789, VNI: 42})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	settled := make(chan struct{})
	go func() { defer close(settled); c.settle(ctx) }()
	defer func() {
		cancel()
		<-settled
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	most := int(c.objects.Totals.MaxEntries())
	list := func(round, count int) (peers []status.Peer) {
		peers = append(peers, status.Peer{Node: "stays"})
		for i := range count - 1 {
			peers = append(peers, status.Peer{Node: fmt.Sprintf("%d-%d", round, i)})
		}
		return peers
	}
	var stays uint32
	for round := range 3 {
		peers := list(round, most*3/4)
		c.Follow(Forwarding{Peers: peers})
		nettest.Eventually(t, nettest.Patience, func() error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if !c.open || len(c.numbers.waiting) > 0 {
				return fmt.Errorf("%d peers wait for a number", len(c.numbers.waiting))
			}
			return nil
		})
		seen := map[uint32]bool{}
		for i := range peers {
			number := c.numbers.number(peers[i].Node)
			if seen[number] || int(number) >= most {
				t.Fatalf("round %d: %s has number %d", round, peers[i].Node, number)
			}
			seen[number] = true
		}
		if is := c.numbers.number("stays"); round > 0 && is != stays {
			t.Errorf("a peer that stays had number %d and has %d", stays, is)
		} else {
			stays = is
		}
		c.Count(peers)
		for i := 1; i < len(peers); i++ {
			if peers[i].TxPackets != 0 {
				t.Fatalf("round %d: %s begins with %d packets", round, peers[i].Node, peers[i].TxPackets)
			}
		}
		if counted := uint64(round * ebpf.MustPossibleCPU()); peers[0].TxPackets != counted {
			t.Errorf("round %d: a peer that stays has %d packets, want %d", round, peers[0].TxPackets, counted)
		}
		for number := range seen { // what flows would have counted by now
			if number%16 != 0 && number != stays {
				continue
			}
			total := bpf.FlowTotal{OutPackets: uint64(round + 1)}
			per := make([]bpf.FlowTotal, ebpf.MustPossibleCPU())
			for i := range per {
				per[i] = total
			}
			if err := c.objects.Totals.Put(number, per); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := c.numbers.number("nobody"); int(n) != most {
		t.Errorf("nobody has number %d", n)
	}
}
