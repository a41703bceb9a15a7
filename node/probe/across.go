package probe

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"go.uber.org/zap"

	"weft/internal/echo"
)

// across is how it stands with packets of one family to other nodes.
type across struct {
	turn    int        // of peers
	suspect netip.Addr // the peer that answers the node and not the probe; invalid = there is none
	lost    int        // packets to it in a row
	text    string     // the verdict
	unclear bool       // packets are lost, and nobody knows why
}

const smallEcho = 64 // bytes

// lookAcross sends a packet from one of the probe's addresses to one of the peers, each in its turn, and says what stops it here; "" = nothing.
func (p *Probe) lookAcross(ctx context.Context, n Node, pairs [][2]netip.Addr, src netip.Addr) string {
	a := p.across[src.Is6()]
	to := a.next(n.Peers, src.Is6())
	if !to.IsValid() {
		*a = across{}
		return ""
	}
	back, err := p.send(ctx, src, to)
	if err != nil || back {
		a.suspect, a.lost, a.text, a.unclear = netip.Addr{}, 0, "", false
		return ""
	}
	// The node's own packet goes the same way, but is not forwarded here.
	if _, err := echo.Ask(ctx, to, smallEcho, 1, wait); err != nil {
		a.suspect, a.lost = netip.Addr{}, 0 // the peer is away
		return a.text
	}
	if a.suspect != to {
		a.suspect, a.lost = to, 0
	}
	if a.lost++; a.lost < enough || ctx.Err() != nil {
		return a.text
	}
	a.text = p.blameAcross(ctx, n, pairs, src, to)
	if a.text == "" && !a.unclear {
		p.log.Warn("a node answers this one, and not what is forwarded here as pods' packets are; what drops them is not found on this node: see the other one's firewall",
			zap.Stringer("peer", to))
	}
	a.unclear = a.text == ""
	return a.text
}

// next is whom the next packet goes to.
func (a *across) next(peers []netip.Addr, v6 bool) netip.Addr {
	for i := range peers {
		if peers[i] == a.suspect {
			return a.suspect
		}
	}
	for range peers {
		a.turn = (a.turn + 1) % len(peers)
		if peers[a.turn].Is6() == v6 {
			return peers[a.turn]
		}
	}
	return netip.Addr{}
}

// blameAcross says what stops packets to a peer, or their answers; "" = that is not known.
func (p *Probe) blameAcross(ctx context.Context, n Node, pairs [][2]netip.Addr, src, to netip.Addr) string {
	what, fam := "IPv4", "ipv4"
	if to.Is6() {
		what, fam = "IPv6", "ipv6"
	}
	what = fmt.Sprintf("%s packets are not forwarded between pods and other nodes: ", what)
	if way, err := p.host.Way(to, netip.Addr{}, ""); err == nil && way.Dev != "" {
		if on, err := p.host.Forwards(way.Dev, to.Is6()); err == nil && !on && fam == "ipv4" {
			return what + fmt.Sprintf("net.ipv4.conf.%s.forwarding is 0, by which they come in: sysctl -w net.ipv4.conf.%[1]s.forwarding=1", way.Dev)
		}
	}
	if err := p.setup(n, pairs, true); err != nil {
		return ""
	}
	rule, err := p.host.TracedDrop(ctx, wait, func() { _, _ = p.send(ctx, src, to) })
	if err := p.setup(n, pairs, false); err != nil {
		p.log.Debug("probe", zap.Error(err))
	}
	switch {
	case rule != "":
		return what + rule + ": let the network's prefixes pass before it, as source and as destination"
	case err != nil:
		return ""
	}
	if tables := p.host.Legacy(); len(tables) > 0 {
		return what + fmt.Sprintf("no rule of nftables drops them, and %s has rules: see `%[1]s -S FORWARD`, and let the network's prefixes pass there, as source and as destination", strings.Join(tables, " and "))
	}
	return ""
}
