package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// Half is a testbed of which one node is on this host, and the others are on others.
type Half struct {
	Label   string
	Dir     string // an existing directory for the node's files
	Self    int    // which of Nodes this host has
	Nodes   []Far
	Network []netip.Prefix // of which each node has a part
	CPUs    []int          // where the node's processes run; empty = anywhere
}

// Far is a node as the others know it.
type Far struct {
	Name      string
	Endpoints []netip.Addr   // underlay addresses
	Prefixes  []netip.Prefix // inner prefixes, a /24 or a /64
}

// OpenHalf makes the namespaces of this host's node and its pod, with the pod's addresses, and joins them to nothing: the underlay is the
// contender's to reach. On an error nothing is left.
func OpenHalf(h Half) (_ *Bed, err error) {
	bed := &Bed{Network: h.Network}
	defer func() {
		if err != nil {
			err = errors.Join(err, bed.Close())
		}
	}()
	for i, far := range h.Nodes {
		n := &Node{Name: far.Name, Endpoints: far.Endpoints, Prefixes: far.Prefixes}
		for _, p := range far.Prefixes {
			b := p.Addr().AsSlice()
			b[len(b)-1] = 10
			a, _ := netip.AddrFromSlice(b)
			n.PodAddrs = append(n.PodAddrs, a)
		}
		bed.Nodes = append(bed.Nodes, n)
		if i != h.Self {
			continue
		}
		n.Dir, n.CPUs = filepath.Join(h.Dir, "node"), h.CPUs
		if err := os.MkdirAll(n.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("testbed: %w", err)
		}
		if n.Host, err = newNamespace(h.Label, h.CPUs); err != nil {
			return nil, err
		}
		if n.Pod, err = newNamespace(h.Label+"-pod", h.CPUs); err != nil {
			return nil, err
		}
		forward := [...]string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}
		for k := range h.Network {
			if err := n.Host.Sysctl(forward[k], "1"); err != nil {
				return nil, err
			}
		}
	}
	return bed, nil
}

// Here are the nodes that this machine has: all but in half a testbed.
func (b *Bed) Here() []*Node {
	var here []*Node
	for _, n := range b.Nodes {
		if n.Host != nil {
			here = append(here, n)
		}
	}
	return here
}
