package e2e

import (
	"fmt"
	"strconv"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

// TestInteropWithLinuxVXLAN joins each VXLAN mode with a Linux vxlan device and moves traffic both
// ways, small, MTU-sized and in bulk. With the far node's transmit offloads on, a veth underlay hands
// over what a network card would have finished: inner checksums that hold only the pseudo-header sum,
// and TCP super-frames as single datagrams of up to 64 KB.
func TestInteropWithLinuxVXLAN(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "ethtool")
	for _, m := range catalog.Modes {
		if kernelForwards(m.Name) || m.Port != 4789 {
			continue // a Linux vxlan device itself, or another format
		}
		for _, family := range []int{4, 6} {
			for _, tx := range []string{"off", "on"} {
				t.Run(fmt.Sprintf("%s/underlay%d/far-tx-%s", m.Name, family, tx), func(t *testing.T) {
					t.Parallel()
					c := upMixed(t, m.Name, map[string]string{"node-b": "vxlan"}, family, nettest.ClusterOptions{})
					a, b := c.Nodes[0], c.Nodes[1]
					b.NS.MustRun(t, "ethtool", "-K", b.Iface, "tx", tx)
					s, err := c.status(a)
					if err != nil {
						t.Fatal(err)
					}
					for i := range a.PodAddrs {
						head := 28
						if i == 1 {
							head = 48
						}
						size := strconv.Itoa(s.InnerMTU - head)
						if err := ping(a.Pod, b.PodAddrs[i], "-M", "do", "-s", size); err != nil {
							t.Error(err)
						}
						if err := ping(b.Pod, a.PodAddrs[i], "-M", "do", "-s", size); err != nil {
							t.Error(err)
						}
						if err := bulk(a.Pod, b.Pod, b.PodAddrs[i], 8<<20); err != nil {
							t.Errorf("weft → Linux: %v", err)
						}
						if err := bulk(b.Pod, a.Pod, a.PodAddrs[i], 8<<20); err != nil {
							t.Errorf("Linux → weft: %v", err)
						}
						if got := flood(t, b.Pod, a.Pod, a.PodAddrs[i], 1000); got != 1000 {
							t.Errorf("Linux → weft: %d of 1000 UDP packets arrived", got)
						}
					}
				})
			}
		}
	}
}
