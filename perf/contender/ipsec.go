package contender

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"weft/internal/ipnet"
	"weft/perf/testbed"
)

const (
	// gcm is AES-GCM for ESP (RFC 4106): the key is followed by four bytes of salt, the check value has 16 bytes.
	gcm       = "rfc4106(gcm(aes))"
	gcmKey    = 16 + 4
	gcmTag    = 16
	espHeader = 8 + 8 // SPI and sequence number (RFC 4303), and the explicit part of the nonce
)

// espMTU is the largest inner packet of a tunnel of ESP in IPv4: what is encrypted ends with two bytes of trailer on a multiple of four.
func espMTU(mtu int) int { return (mtu-20-espHeader-gcmTag)/4*4 - 2 }

// security is what one node's kernel is told: IPsec's two databases (RFC 4301).
type security struct {
	states   []netlink.XfrmState
	policies []netlink.XfrmPolicy
}

// upIPsec is the kernel's ESP in tunnel mode, AES-128-GCM with keys made for the run in place of a key exchange: what an IKE daemon leaves
// in the kernel. Packets are routed as without an overlay, and policies take them from there.
func upIPsec(ctx context.Context, env Env, mode, cipher string) (Overlay, error) {
	if _, err := upBare(ctx, env, mode, cipher); err != nil {
		return nil, err
	}
	all, err := associations(env.Bed.Nodes)
	if err != nil {
		return nil, err
	}
	for i, n := range env.Bed.Nodes {
		if err := all[i].install(n.Host.Netlink()); err != nil {
			return nil, fmt.Errorf("contender: IPsec of node %s: %w", n.Name, err)
		}
	}
	return tunnels{espMTU(env.Bed.MTU)}, nil
}

func (s security) install(link *netlink.Handle) error {
	for i := range s.states {
		if err := link.XfrmStateAdd(&s.states[i]); err != nil {
			return fmt.Errorf("add state %s: %w", s.states[i], err)
		}
	}
	for i := range s.policies {
		if err := link.XfrmPolicyAdd(&s.policies[i]); err != nil {
			return fmt.Errorf("add policy %s: %w", s.policies[i], err)
		}
	}
	return nil
}

// associations makes the states of every direction between two nodes, at both ends, and the policies that send the prefixes' packets through
// them and let nothing else in.
func associations(nodes []*testbed.Node) ([]security, error) {
	all := make([]security, len(nodes))
	for i, from := range nodes {
		for j, to := range nodes {
			if i == j {
				continue
			}
			sa, err := association(from, to, 0x1000+i*len(nodes)+j)
			if err != nil {
				return nil, err
			}
			all[i].states, all[j].states = append(all[i].states, sa), append(all[j].states, sa)
			tmpl := netlink.XfrmPolicyTmpl{Src: sa.Src, Dst: sa.Dst, Proto: sa.Proto, Mode: sa.Mode, Reqid: sa.Reqid}
			for k := range from.Prefixes {
				p := netlink.XfrmPolicy{Src: ipnet.Of(from.Prefixes[k]), Dst: ipnet.Of(to.Prefixes[k]), Tmpls: []netlink.XfrmPolicyTmpl{tmpl}}
				p.Dir = netlink.XFRM_DIR_OUT
				all[i].policies = append(all[i].policies, p)
				for _, dir := range []netlink.Dir{netlink.XFRM_DIR_IN, netlink.XFRM_DIR_FWD} {
					p.Dir = dir
					all[j].policies = append(all[j].policies, p)
				}
			}
		}
	}
	return all, nil
}

// association is one direction between two nodes.
func association(from, to *testbed.Node, spi int) (netlink.XfrmState, error) {
	key := make([]byte, gcmKey)
	if _, err := rand.Read(key); err != nil {
		return netlink.XfrmState{}, fmt.Errorf("contender: make a key: %w", err)
	}
	return netlink.XfrmState{
		Src: net.IP(from.Endpoints[0].AsSlice()), Dst: net.IP(to.Endpoints[0].AsSlice()),
		Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Spi: spi, Reqid: 1, ReplayWindow: 32,
		Aead: &netlink.XfrmStateAlgo{Name: gcm, Key: key, ICVLen: 8 * gcmTag},
	}, nil
}
