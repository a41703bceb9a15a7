package nettest

import (
	"errors"
	"fmt"
	"net/netip"

	"weft/internal/ipnet"
)

// ClusterOptions says what Build builds. The zero value is two nodes, MTU 1500, joined by one veth.
type ClusterOptions struct {
	Prefix string // of the namespaces' names; "" = "weft-test"
	Nodes  int    // 0 = 2; at most 250
	MTU    int    // of the underlay, bytes; 0 = 1500
	PodMTU int    // of the pods' veths; 0 = the underlay's, so that pods can send packets that do not fit
	Bridge bool   // join by a bridge in a namespace of its own; always so for more than two nodes
}

// Cluster is a set of nodes with a pod each:
//
//	pod-a [eth0]──veth──[pod0] node-a [eth0]──underlay──[eth0] node-b [pod0]──veth──[eth0] pod-b
//
// Node i (from 1) has 192.0.2.i/24 and 2001:db8::i/64 on eth0, and forwards. Its pod has 10.244.i.10/32 and
// fd00:10:244:i::10/128 with a default route via a link-local gateway, as Calico and weft's `routed` do it.
// Nothing carries pod traffic between the nodes yet: that is what is under test.
type Cluster struct {
	Nodes  []*ClusterNode
	Fabric *NS // holds bridge br0 with ports port1, port2, …; nil where a veth joins two nodes
}

// ClusterNode is one node and its pod.
type ClusterNode struct {
	Name      string // "node-a", "node-b", …; "node-27" beyond z
	NS        *NS
	Pod       *NS
	Underlay  []netip.Addr   // v4, v6, on eth0
	Prefixes  []netip.Prefix // inner prefixes, v4 /24 and v6 /64
	PodAddrs  []netip.Addr   // v4, v6
	Iface     string         // "eth0", the underlay device
	PodDevice string         // "pod0", the node's end of the pod's veth
}

// Network returns the inner prefixes that hold those of all nodes.
func (*Cluster) Network() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
}

// Build makes a cluster; on an error nothing of it is left.
func Build(o ClusterOptions) (c *Cluster, err error) {
	if o.Prefix == "" {
		o.Prefix = testPrefix
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 1 || o.Nodes > 250 {
		return nil, fmt.Errorf("nettest: a cluster of %d nodes: want 1 to 250", o.Nodes)
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	if o.PodMTU == 0 {
		o.PodMTU = o.MTU
	}
	c = &Cluster{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
			c = nil
		}
	}()
	if o.Bridge || o.Nodes > 2 {
		if err := c.addFabric(o); err != nil {
			return c, err
		}
	}
	for i := 1; i <= o.Nodes; i++ {
		if err := c.addNode(i, o); err != nil {
			return c, err
		}
	}
	return c, c.joinUnderlay(o)
}

// Close removes the cluster. Idempotent.
func (c *Cluster) Close() error {
	var errs []error
	for _, n := range c.Nodes {
		for _, ns := range []*NS{n.Pod, n.NS} {
			if ns != nil {
				errs = append(errs, ns.Close())
			}
		}
	}
	if c.Fabric != nil {
		errs = append(errs, c.Fabric.Close())
	}
	return errors.Join(errs...)
}

func (c *Cluster) addFabric(o ClusterOptions) (err error) {
	if c.Fabric, err = Create(o.Prefix); err != nil {
		return err
	}
	return c.Fabric.AddBridge("br0", o.MTU)
}

func (c *Cluster) addNode(i int, o ClusterOptions) (err error) {
	n := &ClusterNode{
		Name: nodeName(i), Iface: "eth0", PodDevice: "pod0",
		Underlay: []netip.Addr{addr("192.0.2.%d", i), addr("2001:db8::%x", i)},
		Prefixes: []netip.Prefix{
			netip.PrefixFrom(addr("10.244.%d.0", i), 24), netip.PrefixFrom(addr("fd00:10:244:%x::", i), 64),
		},
		PodAddrs: []netip.Addr{addr("10.244.%d.10", i), addr("fd00:10:244:%x::10", i)},
	}
	c.Nodes = append(c.Nodes, n)
	if n.NS, err = Create(o.Prefix); err != nil {
		return err
	}
	if n.Pod, err = Create(o.Prefix); err != nil {
		return err
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := n.NS.Sysctl(key, "1"); err != nil {
			return err
		}
	}
	return n.addPod(o.PodMTU)
}

// The gateway every pod sees, on the node's end of its veth.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

func (n *ClusterNode) addPod(mtu int) error {
	err := Join(
		End{NS: n.NS, Dev: n.PodDevice, Addrs: []netip.Prefix{ipnet.Host(gateway4), netip.PrefixFrom(gateway6, 64)}},
		End{NS: n.Pod, Dev: "eth0", Addrs: []netip.Prefix{ipnet.Host(n.PodAddrs[0]), ipnet.Host(n.PodAddrs[1])}}, mtu)
	if err != nil {
		return err
	}
	for i, gw := range []netip.Addr{gateway4, gateway6} {
		if err := n.NS.AddRoute(ipnet.Host(n.PodAddrs[i]), netip.Addr{}, n.PodDevice); err != nil {
			return err
		}
		if err := n.Pod.AddRoute(ipnet.Everything(gw), gw, "eth0"); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) joinUnderlay(o ClusterOptions) error {
	end := func(n *ClusterNode) End {
		return End{NS: n.NS, Dev: n.Iface, Addrs: []netip.Prefix{
			netip.PrefixFrom(n.Underlay[0], 24), netip.PrefixFrom(n.Underlay[1], 64),
		}}
	}
	if c.Fabric == nil {
		if len(c.Nodes) < 2 {
			return c.loneUnderlay(o)
		}
		return Join(end(c.Nodes[0]), end(c.Nodes[1]), o.MTU)
	}
	for i, n := range c.Nodes {
		port := fmt.Sprintf("port%d", i+1)
		if err := Join(end(n), End{NS: c.Fabric, Dev: port}, o.MTU); err != nil {
			return err
		}
		if err := c.Fabric.Enslave(port, "br0"); err != nil {
			return err
		}
	}
	return nil
}

// loneUnderlay gives a single node an eth0 whose other end is in its own pod's namespace, unused.
func (c *Cluster) loneUnderlay(o ClusterOptions) error {
	n := c.Nodes[0]
	return Join(End{NS: n.NS, Dev: n.Iface, Addrs: []netip.Prefix{
		netip.PrefixFrom(n.Underlay[0], 24), netip.PrefixFrom(n.Underlay[1], 64),
	}}, End{NS: n.Pod, Dev: "far0"}, o.MTU)
}

func nodeName(i int) string {
	if i <= 26 {
		return "node-" + string(rune('a'+i-1))
	}
	return fmt.Sprintf("node-%d", i)
}

func addr(format string, i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, i)) }
