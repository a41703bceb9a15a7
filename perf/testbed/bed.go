// Package testbed builds small networks out of namespaces for the lab, and takes them down again.
//
//	 weftlab-<pid>-<label>-a                         weftlab-<pid>-<label>-b
//	┌───────────────────────────┐                   ┌───────────────────────────┐
//	│ eth0 192.0.2.1            │     underlay      │ eth0 192.0.2.2            │
//	│      2001:db8::1          ├───────────────────┤      2001:db8::2          │
//	│ (weft daemon, weft0, …)   │    a veth pair    │                           │
//	│ weft… 169.254.1.1, fe80::1│                   │ weft…                     │
//	└─────────────┬─────────────┘                   └─────────────┬─────────────┘
//	              │ veth                                          │ veth
//	┌─────────────┴─────────────┐                   ┌─────────────┴─────────────┐
//	│ eth0 10.244.1.10          │                   │ eth0 10.244.2.10          │
//	│      fd00:10:244:1::10    │                   │      fd00:10:244:2::10    │
//	└───────────────────────────┘                   └───────────────────────────┘
//	 weftlab-<pid>-<label>-a-pod                     weftlab-<pid>-<label>-b-pod
//
// With more than two nodes the underlay is a bridge in a namespace of its own,
// weftlab-<pid>-<label>-wire. Queues and offloads are the kernel's defaults.
//
// What makes the prefixes of one node reachable from the other is not the testbed's business: that is the contender
// (package contender). A contender with weft's daemons has them attach the pods, and says so by Attached; AttachPods attaches
// the others in the same way.
package testbed

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft/internal/ipnet"
	"weft/internal/netlab"
)

// Names inside every testbed.
const (
	Underlay   = "eth0" // in a node: its underlay interface
	PodDevice  = "eth0" // in a pod
	wirePrefix = "port" // in the wire's namespace: bridge ports, port0, port1, …
	wireBridge = "wire"
)

// network is the overlay's address space; prefixes of nodes are cut from it.
var network = [...]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// gateway is where a pod sends everything: the node's end of its link, the same in every pod.
var gateway = [...]netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}

// MinMTU6 is the smallest MTU of the underlay with IPv6 inside the overlay. IPv6 needs 1280 bytes (RFC 8200 §5), and the
// most that a contender adds is a hundred; below, the overlay has IPv4 only, for all contenders alike.
const MinMTU6 = 1280 + 100

// Config says what to build.
type Config struct {
	Label  string // distinguishes the testbeds of one process; part of the namespaces' names
	Nodes  int    // 2 to 26
	MTU    int    // of the underlay, bytes
	Layout Layout
	Dir    string // an existing directory for the nodes' files
}

// families is how many address families the overlay has.
func (c Config) families() int {
	if c.MTU < MinMTU6 {
		return 1
	}
	return underlayFamilies()
}

// HasIPv6 says whether this machine's kernel has IPv6 at all. Where it has not, testbeds have IPv4 only.
func HasIPv6() bool { return netlab.HasIPv6() }

// underlayFamilies is how many address families the nodes have.
func underlayFamilies() int {
	if !HasIPv6() {
		return 1
	}
	return len(network)
}

// Bed is a running testbed.
type Bed struct {
	Nodes   []*Node
	MTU     int            // of the underlay, bytes
	Network []netip.Prefix // the overlay's prefixes, IPv4 first; IPv6 from MinMTU6 on, where the kernel has it

	wire  *Namespace // nil with two nodes
	pairs [][2]end   // every veth pair
}

// Node is one machine of the testbed with the one pod behind it.
type Node struct {
	Name      string // a, b, …
	Host, Pod *Namespace
	Dir       string         // the node's own files
	CPUs      []int          // where its processes run; empty = anywhere
	Endpoints []netip.Addr   // underlay addresses, IPv4 first; no IPv6 where the kernel has none
	Prefixes  []netip.Prefix // inner prefixes, of the families of the Network
	PodAddrs  []netip.Addr   // the pod's addresses, likewise

	podLink string // the node's end of the pod's link; "" = not attached yet
}

// PodAddr is the pod's address of a family, 4 or 6, which the Network must have.
func (n *Node) PodAddr(family int) netip.Addr {
	if family == 6 {
		return n.PodAddrs[1]
	}
	return n.PodAddrs[0]
}

// Open builds a testbed. On an error nothing is left.
func Open(c Config) (_ *Bed, err error) {
	if c.Nodes < 2 || c.Nodes > 26 {
		return nil, fmt.Errorf("testbed: %d nodes: give 2 to 26", c.Nodes)
	}
	shares, err := c.Layout.shares(c.Nodes)
	if err != nil {
		return nil, err
	}
	bed := &Bed{MTU: c.MTU, Network: network[:c.families()]}
	defer func() {
		if err != nil {
			err = errors.Join(err, bed.Close())
		}
	}()
	for i := range c.Nodes {
		node, err := openNode(c, i, shares[i])
		if node != nil {
			bed.Nodes = append(bed.Nodes, node)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := bed.connect(c); err != nil {
		return nil, err
	}
	for _, n := range bed.Nodes {
		if err := bed.finish(n); err != nil {
			return nil, err
		}
	}
	if err := bed.introduce(); err != nil {
		return nil, err
	}
	return bed, nil
}

// Close stops what runs in the testbed, the pods' processes first, and removes it. Idempotent.
func (b *Bed) Close() error {
	var errs []error
	all := b.namespaces()
	for _, ns := range all {
		ns.stop()
	}
	errs = append(errs, killStrays(all))
	for _, ns := range all {
		errs = append(errs, ns.close())
	}
	for _, n := range b.Nodes {
		errs = append(errs, os.RemoveAll(n.Dir))
	}
	b.Nodes, b.wire, b.pairs = nil, nil, nil
	return errors.Join(errs...)
}

// namespaces lists those that exist: pods, then nodes, then the wire.
func (b *Bed) namespaces() []*Namespace {
	var all []*Namespace
	for _, n := range b.Nodes {
		all = append(all, n.Pod)
	}
	for _, n := range b.Nodes {
		all = append(all, n.Host)
	}
	return slices.DeleteFunc(append(all, b.wire), func(ns *Namespace) bool { return ns == nil })
}

// Label turns a contender's name into a label.
func Label(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '+' || r == '-' {
			return r
		}
		return '_'
	}, strings.ToLower(name))
}

func openNode(c Config, i int, cpus []int) (*Node, error) {
	name := string(rune('a' + i))
	n := &Node{
		Name: name, CPUs: cpus, Dir: filepath.Join(c.Dir, name),
		Endpoints: []netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)),
		},
		Prefixes: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i+1)),
		},
		PodAddrs: []netip.Addr{
			netip.MustParseAddr(fmt.Sprintf("10.244.%d.10", i+1)),
			netip.MustParseAddr(fmt.Sprintf("fd00:10:244:%x::10", i+1)),
		},
	}
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("testbed: %w", err)
	}
	n.Endpoints = n.Endpoints[:underlayFamilies()]
	n.Prefixes, n.PodAddrs = n.Prefixes[:c.families()], n.PodAddrs[:c.families()]
	label := c.Label + "-" + name
	var err error
	if n.Host, err = newNamespace(label, cpus); err != nil {
		return n, err
	}
	if n.Pod, err = newNamespace(label+"-pod", cpus); err != nil {
		return n, err
	}
	return n, nil
}

// connect joins the nodes: two by a veth pair, more by a bridge.
func (b *Bed) connect(c Config) error {
	if len(b.Nodes) == 2 {
		return b.pair(end{b.Nodes[0].Host, Underlay}, end{b.Nodes[1].Host, Underlay}, b.MTU)
	}
	var err error
	if b.wire, err = newNamespace(c.Label+"-wire", nil); err != nil {
		return err
	}
	if err := b.wire.AddBridge(wireBridge, c.MTU); err != nil {
		return err
	}
	for i, n := range b.Nodes {
		port := fmt.Sprintf("%s%d", wirePrefix, i)
		if err := b.pair(end{n.Host, Underlay}, end{b.wire, port}, b.MTU); err != nil {
			return err
		}
		if err := b.wire.Enslave(port, wireBridge); err != nil {
			return err
		}
	}
	return nil
}

// pair makes a veth pair and sets both ends up.
func (b *Bed) pair(x, y end, mtu int) error {
	if err := netlab.Join(netlab.End{NS: x.ns.NS, Dev: x.name}, netlab.End{NS: y.ns.NS, Dev: y.name}, mtu); err != nil {
		return err
	}
	b.pairs = append(b.pairs, [2]end{x, y})
	return nil
}

// finish gives a connected node its addresses, has it forward, and steers its receive work.
func (b *Bed) finish(n *Node) error {
	forward, bits := [...]string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}, [...]int{24, 64}
	for i, addr := range n.Endpoints {
		if err := n.Host.Sysctl(forward[i], "1"); err != nil {
			return err
		}
		if err := n.Host.AddAddrs(Underlay, netip.PrefixFrom(addr, bits[i])); err != nil {
			return err
		}
	}
	return n.Host.steer(Underlay, n.CPUs)
}

// AttachPods attaches the pods that no contender's daemon has attached (Attached), with links of mtu bytes: as weft's daemon
// does it in the style routed, so that all contenders have the same pods.
func (b *Bed) AttachPods(mtu int) error {
	for _, n := range b.Here() {
		if n.podLink != "" {
			continue
		}
		if err := b.attach(n, mtu); err != nil {
			return err
		}
	}
	return nil
}

// podLink is the node's end of a pod's link, where the testbed makes it.
const podLink = "pod0"

// attach gives a node's pod its link. The pod's address is a host prefix and its gateway is link-local, as Calico has it.
func (b *Bed) attach(n *Node, mtu int) error {
	if err := b.pair(end{n.Host, podLink}, end{n.Pod, PodDevice}, mtu); err != nil {
		return err
	}
	for i, addr := range n.PodAddrs {
		if err := n.Host.AddAddrs(podLink, ipnet.Host(gateway[i])); err != nil {
			return err
		}
		if err := n.Pod.AddAddrs(PodDevice, ipnet.Host(addr)); err != nil {
			return err
		}
		if err := n.Host.Route(ipnet.Host(addr), podLink, netip.Addr{}); err != nil {
			return err
		}
		if err := n.Pod.Route(ipnet.Host(gateway[i]), PodDevice, netip.Addr{}); err != nil {
			return err
		}
		if err := n.Pod.Route(ipnet.Everything(gateway[i]), PodDevice, gateway[i]); err != nil {
			return err
		}
		if err := n.Host.AddNeighbour(podLink, addr, n.Pod.NS, PodDevice); err != nil {
			return err
		}
		if err := n.Pod.AddNeighbour(PodDevice, gateway[i], n.Host.NS, podLink); err != nil {
			return err
		}
	}
	return n.steerPod(podLink)
}

// Attached says that a daemon has attached a node's pod, by a veth pair whose end on the node is link.
func (b *Bed) Attached(n *Node, link string) error {
	b.pairs = append(b.pairs, [2]end{{n.Host, link}, {n.Pod, PodDevice}})
	return n.steerPod(link)
}

func (n *Node) steerPod(link string) error {
	n.podLink = link
	return errors.Join(n.Host.steer(link, n.CPUs), n.Pod.steer(PodDevice, n.CPUs))
}

// introduce makes the nodes know each other for good, as they know their pods: the lab counts packets, and under overload a
// lost ARP request could not be told from a lost packet.
func (b *Bed) introduce() error {
	for _, n := range b.Nodes {
		for _, far := range b.Nodes {
			if far == n {
				continue
			}
			for _, addr := range far.Endpoints {
				if err := n.Host.AddNeighbour(Underlay, addr, far.Host.NS, Underlay); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
