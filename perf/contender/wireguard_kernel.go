package contender

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"weft/internal/ipnet"
	"weft/perf/testbed"
)

// upWireguard is the kernel's WireGuard, set up as wg-quick does: wireguard-go's settings on a device of the kernel's.
func upWireguard(_ context.Context, env Env, _, _ string) (Overlay, error) {
	keys := make([]wgtypes.Key, len(env.Bed.Nodes))
	for i := range keys {
		var err error
		if keys[i], err = wgtypes.GeneratePrivateKey(); err != nil {
			return nil, fmt.Errorf("contender: make a key: %w", err)
		}
	}
	t := tunnels{env.Bed.MTU - wireguardOverhead}
	for i, n := range env.Bed.Nodes {
		link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: wireguardDevice, MTU: t.mtu}}
		if err := n.Host.Netlink().LinkAdd(link); err != nil {
			return nil, fmt.Errorf("contender: make %s: %w", wireguardDevice, err)
		}
		if err := n.Host.Do(func() error { return configureWireguard(env.Bed.Nodes, keys, i) }); err != nil {
			return nil, fmt.Errorf("contender: set up %s on node %s: %w", wireguardDevice, n.Name, err)
		}
		if err := n.Host.SetUp(wireguardDevice); err != nil {
			return nil, err
		}
	}
	return t, towardsEach(env.Bed, func(n, far *testbed.Node, _ int) error {
		for _, prefix := range far.Prefixes {
			if err := n.Host.Route(prefix, wireguardDevice, netip.Addr{}); err != nil {
				return err
			}
		}
		return nil
	})
}

// configureWireguard gives a node's device its key, port and peers. It speaks to the namespace it is called in.
func configureWireguard(nodes []*testbed.Node, keys []wgtypes.Key, self int) error {
	client, err := wgctrl.New()
	if err != nil {
		return err
	}
	defer client.Close()
	return client.ConfigureDevice(wireguardDevice, wireguardConfig(nodes, keys, self))
}

// wireguardConfig is what one node is told.
func wireguardConfig(nodes []*testbed.Node, keys []wgtypes.Key, self int) wgtypes.Config {
	port := wireguardPort
	c := wgtypes.Config{PrivateKey: &keys[self], ListenPort: &port}
	for i, n := range nodes {
		if i == self {
			continue
		}
		peer := wgtypes.PeerConfig{
			PublicKey: keys[i].PublicKey(),
			Endpoint:  net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Endpoints[0], wireguardPort)),
		}
		for _, p := range n.Prefixes {
			peer.AllowedIPs = append(peer.AllowedIPs, *ipnet.Of(p))
		}
		c.Peers = append(c.Peers, peer)
	}
	return c
}
