package contender

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"weft/internal/ipnet"
	"weft/perf/testbed"
)

// tunnels is the kernel's own tunnel: on every node a device towards each other node, without processes.
type tunnels struct{ mtu int }

func (t tunnels) InnerMTU() int                       { return t.mtu }
func (tunnels) Processes() []*testbed.Process         { return nil }
func (tunnels) Lanes(context.Context) ([]Lane, error) { return nil, nil }
func (tunnels) Drops(context.Context) (Drops, error)  { return Drops{}, nil }

// upIPIP makes IP in IP (RFC 2003) for IPv4 and, since that carries nothing else, IPv6 in IPv4 (RFC 4213) beside it. Both add 20 bytes.
func upIPIP(_ context.Context, env Env, _, _ string) (Overlay, error) {
	t := tunnels{env.Bed.MTU - 20}
	err := towardsEach(env.Bed, func(n, far *testbed.Node, i int) error {
		for k, prefix := range far.Prefixes {
			name := fmt.Sprintf("weft%d-%d", i, k)
			attrs := netlink.LinkAttrs{Name: name, MTU: t.mtu}
			local, remote := net.IP(n.Endpoints[0].AsSlice()), net.IP(far.Endpoints[0].AsSlice())
			var link netlink.Link = &netlink.Iptun{LinkAttrs: attrs, Local: local, Remote: remote, PMtuDisc: 1}
			if prefix.Addr().Is6() {
				link = &netlink.Sittun{LinkAttrs: attrs, Local: local, Remote: remote, PMtuDisc: 1}
			}
			if err := n.Host.Netlink().LinkAdd(link); err != nil {
				return fmt.Errorf("contender: make %s of kind %s: %w", name, link.Type(), err)
			}
			if err := n.Host.SetUp(name); err != nil {
				return err
			}
			if err := n.Host.Route(prefix, name, netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
	return t, err
}

// geneveOverhead is outer IPv4 (20), UDP (8), the Geneve header without options (8) and inner Ethernet (14): RFC 8926.
const geneveOverhead = 50

// upGeneve makes Geneve tunnels.
func upGeneve(_ context.Context, env Env, _, _ string) (Overlay, error) {
	return upEthernet(env.Bed, env.Bed.MTU-geneveOverhead, func(attrs netlink.LinkAttrs, _, far *testbed.Node) netlink.Link {
		return &netlink.Geneve{LinkAttrs: attrs, ID: 1, Remote: net.IP(far.Endpoints[0].AsSlice()), Dport: 6081, UdpCsum: 1}
	})
}

// upEthernet joins the nodes by devices that carry frames to one peer each. The next hop is the peer's underlay address,
// link-local for IPv6, whose MAC behind the tunnel is known for good.
func upEthernet(bed *testbed.Bed, mtu int, device func(attrs netlink.LinkAttrs, n, far *testbed.Node) netlink.Link) (Overlay, error) {
	mac := func(from, to *testbed.Node) net.HardwareAddr {
		return net.HardwareAddr{2, 0, 0, 0, from.Name[0], to.Name[0]}
	}
	err := towardsEach(bed, func(n, far *testbed.Node, i int) error {
		name := fmt.Sprintf("weft%d", i)
		link := device(netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: mac(n, far)}, n, far)
		if err := n.Host.Netlink().LinkAdd(link); err != nil {
			return fmt.Errorf("contender: make %s of kind %s: %w", name, link.Type(), err)
		}
		if err := n.Host.SetUp(name); err != nil {
			return err
		}
		made, err := n.Host.Netlink().LinkByName(name)
		if err != nil {
			return fmt.Errorf("contender: find %s: %w", name, err)
		}
		for k, prefix := range far.Prefixes {
			gateway := net.IP(far.Endpoints[k].AsSlice())
			if prefix.Addr().Is6() { // a global one would have to be on this device's link
				gateway = net.IP{0: 0xfe, 1: 0x80, 15: byte(i + 1)}
			}
			err := errors.Join(
				n.Host.Netlink().NeighSet(&netlink.Neigh{LinkIndex: made.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: mac(far, n)}),
				n.Host.Netlink().RouteAdd(&netlink.Route{
					LinkIndex: made.Attrs().Index, Gw: gateway, Flags: int(netlink.FLAG_ONLINK), Protocol: 87,
					Dst: ipnet.Of(prefix),
				}))
			if err != nil {
				return fmt.Errorf("contender: route %s through %s: %w", prefix, name, err)
			}
		}
		return nil
	})
	return tunnels{mtu}, err
}

// towardsEach calls do for every ordered pair of nodes; i is the far one's place in the list.
func towardsEach(bed *testbed.Bed, do func(n, far *testbed.Node, i int) error) error {
	for _, n := range bed.Nodes {
		for i, far := range bed.Nodes {
			if far == n {
				continue
			}
			if err := do(n, far, i); err != nil {
				return err
			}
		}
	}
	return nil
}
