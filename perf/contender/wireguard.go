package contender

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"weft/perf/testbed"
)

const (
	wireguardDevice = "wg0"
	wireguardPort   = 51820
	// wireguardOverhead is what wg-quick leaves room for, so that 1420 of 1500 bytes remain: the outer header
	// of IPv6 (40), UDP (8), and WireGuard's header and tag (32). Over IPv4 20 of them stay unused.
	wireguardOverhead = 80
)

// wireguardGo is golang.zx2c4.com/wireguard, one process a node.
type wireguardGo struct {
	processes []*testbed.Process
	mtu       int
}

// upWireguardGo does what wg-quick does: a process that makes the device, keys and peers set over its
// interface, the device up, and a route for each peer's prefixes.
func upWireguardGo(ctx context.Context, env Env, _, _ string) (Overlay, error) {
	w := &wireguardGo{mtu: env.Bed.MTU - wireguardOverhead}
	keys := make([]*ecdh.PrivateKey, len(env.Bed.Nodes))
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, fmt.Errorf("contender: make a key: %w", err)
		}
	}
	for i, n := range env.Bed.Nodes {
		settings := filepath.Join(n.Dir, "wireguard.conf")
		if err := os.WriteFile(settings, []byte(wireguardSettings(env.Bed.Nodes, keys, i)), 0o600); err != nil {
			return nil, fmt.Errorf("contender: %w", err)
		}
		p, err := n.Host.StartReady(ctx, "wireguard-go-"+n.Name, filepath.Join(n.Dir, "wireguard-go.log"), env.Weft, "lab", "wireguard-go",
			"--device", wireguardDevice, "--mtu", strconv.Itoa(w.mtu), "--settings", settings)
		if err != nil {
			return nil, err
		}
		w.processes = append(w.processes, p)
		if err := n.Host.SetUp(wireguardDevice); err != nil {
			return nil, err
		}
		for _, far := range env.Bed.Nodes {
			if far == n {
				continue
			}
			for _, prefix := range far.Prefixes {
				if err := n.Host.Route(prefix, wireguardDevice, netip.Addr{}); err != nil {
					return nil, err
				}
			}
		}
	}
	return w, nil
}

// wireguardSettings are those of one node, in the form of https://www.wireguard.com/xplatform. The underlay
// is IPv4, as everyone's.
func wireguardSettings(nodes []*testbed.Node, keys []*ecdh.PrivateKey, self int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%x\nlisten_port=%d\n", keys[self].Bytes(), wireguardPort)
	for i, n := range nodes {
		if i == self {
			continue
		}
		fmt.Fprintf(&b, "public_key=%x\nendpoint=%s\n", keys[i].PublicKey().Bytes(), netip.AddrPortFrom(n.Endpoints[0], wireguardPort))
		for _, p := range n.Prefixes {
			fmt.Fprintf(&b, "allowed_ip=%s\n", p)
		}
	}
	return b.String()
}

func (w *wireguardGo) InnerMTU() int                       { return w.mtu }
func (w *wireguardGo) Processes() []*testbed.Process       { return w.processes }
func (*wireguardGo) Lanes(context.Context) ([]Lane, error) { return nil, nil }
func (*wireguardGo) Drops(context.Context) (Drops, error)  { return Drops{}, nil }
