package hostnet

import (
	"fmt"
	"hash/fnv"
	"net"
	"slices"
	"strings"

	"weft/internal/ipnet"
)

// Surroundings is a digest of what a backend's path depends on and does not make itself: the devices that have an address which
// leaves their link (state, MTU, MAC, addresses), those of a backend's name, and whether all that an owner wants is in force.
// Whoever failed once would fail in the same way again while it is what it was. It is 0 where the kernel does not answer.
func (h *Host) Surroundings(owner string) uint64 {
	links, err := dumpLinks(h.rt)
	if err != nil {
		return 0
	}
	table, err := dumpAddrs(h.rt)
	if err != nil {
		return 0
	}
	addrs := map[int][]string{}
	for _, a := range table {
		if ip := ipnet.Addr(a.IP); !ip.IsLinkLocalUnicast() {
			addrs[a.LinkIndex] = append(addrs[a.LinkIndex], fmt.Sprintf("%s %d", a.IPNet, a.Flags))
		}
	}
	var facts []string
	for _, l := range links {
		a := l.Attrs()
		slices.Sort(addrs[a.Index])
		fact := fmt.Sprintf("%s %s %d %s %v %q", a.Name, l.Type(), a.MTU, a.HardwareAddr, a.Flags&net.FlagUp, addrs[a.Index])
		switch {
		case Owned(a.Name):
			facts = append(facts, fact) // its number differs from attempt to attempt, and its carrier comes later
		case strings.HasPrefix(a.Name, LinkPrefix) || len(addrs[a.Index]) == 0:
		default:
			facts = append(facts, fmt.Sprintf("%s %d %v", fact, a.Index, a.OperState))
		}
	}
	slices.Sort(facts)
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%v %q", h.Err(owner) == nil, facts)
	return max(sum.Sum64(), 1)
}
