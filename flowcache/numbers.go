package flowcache

import (
	"fmt"

	"github.com/cilium/ebpf"

	"weft/backend/status"
	"weft/bpf"
)

// numbers are those by which the programs count what they carry for each peer. A peer that goes gives its number back, which is another one's once no packet
// is under way that may count by it.
type numbers struct {
	most    uint32 // how many there are
	of      map[string]uint32
	waiting []string // peers that have none yet
	unused  uint32   // from here on nobody has had them
	free    []uint32 // nobody has them any more, and what they counted is zero
	retired []uint32 // of peers that are gone, since the last recycle
	told    bool     // that there are too few
}

func newNumbers(most uint32) numbers { return numbers{most: most, of: map[string]uint32{}} }

// number is a peer's, or one by which nothing is counted.
func (n *numbers) number(node string) uint32 {
	if number, ok := n.of[node]; ok {
		return number
	}
	return n.most
}

// follow takes another list of peers. Flows are forgotten before.
func (n *numbers) follow(peers []status.Peer) {
	there := make(map[string]bool, len(peers))
	for i := range peers {
		there[peers[i].Node] = true
	}
	for node, number := range n.of {
		if !there[node] {
			n.retired = append(n.retired, number)
			delete(n.of, node)
		}
	}
	n.waiting = n.waiting[:0]
	for i := range peers {
		if _, ok := n.of[peers[i].Node]; !ok {
			n.waiting = append(n.waiting, peers[i].Node)
		}
	}
	n.give()
}

// give gives numbers to those who wait, as far as there are any.
func (n *numbers) give() {
	for len(n.waiting) > 0 {
		number := n.unused
		switch last := len(n.free) - 1; {
		case last >= 0:
			number, n.free = n.free[last], n.free[:last]
		case n.unused < n.most:
			n.unused++
		default:
			return
		}
		n.of[n.waiting[0]] = number
		n.waiting = n.waiting[1:]
	}
}

// recycle makes the numbers of those who are gone others'. No packet may be under way that was seen before the last follow.
func (n *numbers) recycle(totals *ebpf.Map) error {
	if len(n.retired) > 0 {
		zero := make([]bpf.FlowTotal, ebpf.MustPossibleCPU())
		for i, number := range n.retired {
			if err := totals.Put(number, zero); err != nil {
				n.retired = n.retired[i:]
				return fmt.Errorf("flowcache: count anew: %w", err)
			}
			n.free = append(n.free, number)
		}
		n.retired = n.retired[:0]
	}
	n.give()
	if len(n.waiting) > 0 && !n.told {
		n.told = true
		return fmt.Errorf("flowcache: %d peers of more than %d", len(n.waiting), n.most)
	}
	return nil
}
