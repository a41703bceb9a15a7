package probe

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft/internal/backoff"
	"weft/internal/echo"
)

// across is how it stands with packets of one family to other nodes.
type across struct {
	turn    int        // of peers
	suspect netip.Addr // the peer that is asked again, since packets to it are lost and it is not known why, or what is known may be over; invalid = none is
	peers   map[netip.Addr]*peer
}

// peer is how it stands with packets to one peer. None is kept of one that is away.
type peer struct {
	answers bool            // the last packet came back
	lost    int             // packets in a row that did not, while it answers the node itself
	again   time.Time       // when it may be looked for anew what stops them
	pause   backoff.Backoff // between two such looks: each puts rules into the kernel, and takes them away
	proven  string          // what stops them on this node; "" = that is not known
	unclear bool            // it was looked for, and not found
}

const (
	smallEcho = 64 // bytes

	recheck  = 6   // of Probe.every: the pause between two looks whether what was found is still what stops packets
	rest     = 2   // of Probe.every: about the first pause between two looks for what stops packets to a peer
	restMost = 200 // and the longest
	named    = 3   // peers, at most, in one sentence
)

// lookAcross sends a packet from one of the probe's addresses to one of the peers, each in its turn. It returns what stops packets on this node, and what
// is lost of which that is not known; "" = nothing.
func (p *Probe) lookAcross(ctx context.Context, n Node, pairs [][2]netip.Addr, src netip.Addr) (proven, unclear string) {
	a := p.across[src.Is6()]
	for addr := range a.peers {
		if !slices.Contains(n.Peers, addr) {
			delete(a.peers, addr)
		}
	}
	if to := a.next(n.Peers, src.Is6()); to.IsValid() {
		p.ask(ctx, a, n, pairs, src, to)
	}
	if is := a.peers[a.suspect]; is != nil {
		proven = is.proven
	}
	return proven, p.unclear(a, src.Is6())
}

// ask sends a packet to one peer, and looks for what stops it where that is due.
func (p *Probe) ask(ctx context.Context, a *across, n Node, pairs [][2]netip.Addr, src, to netip.Addr) {
	back, err := p.send(ctx, src, to)
	if err != nil { // nothing can be said
		clear(a.peers)
	}
	if err != nil || ctx.Err() != nil {
		return
	}
	if back {
		a.peers[to], a.suspect = &peer{answers: true}, netip.Addr{}
		return
	}
	// The node's own packet goes the same way, but is not forwarded here.
	if _, err := echo.Ask(ctx, to, smallEcho, 1, p.wait); err != nil {
		delete(a.peers, to) // it is away
		a.suspect = netip.Addr{}
		return
	}
	is := a.peers[to]
	if is == nil || is.answers {
		is = &peer{pause: backoff.Backoff{First: rest * p.every, Most: restMost * p.every}}
		a.peers[to] = is
	}
	is.lost++
	if is.lost >= enough && !time.Now().Before(is.again) {
		is.proven = p.blameAcross(ctx, n, pairs, src, to)
		if ctx.Err() != nil {
			return
		}
		is.unclear = is.proven == ""
		pause := recheck * p.every // what makes this node not ready is not to be said longer than it is so
		if is.unclear {
			pause = is.pause.Next()
		}
		is.again = time.Now().Add(pause)
	}
	if a.suspect = to; is.unclear {
		a.suspect = netip.Addr{} // the others get their turn
	}
}

// next is whom the next packet goes to.
func (a *across) next(peers []netip.Addr, v6 bool) netip.Addr {
	if slices.Contains(peers, a.suspect) {
		return a.suspect
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
	what := notAcross(to.Is6())
	if way, err := p.host.Way(to, netip.Addr{}, ""); err == nil && way.Dev != "" && to.Is4() {
		if on, err := p.host.Forwards(way.Dev, false); err == nil && !on {
			return what + fmt.Sprintf("net.ipv4.conf.%s.forwarding is 0, by which they come in: sysctl -w net.ipv4.conf.%[1]s.forwarding=1", way.Dev)
		}
	}
	if err := p.setup(n, pairs, true); err != nil {
		return ""
	}
	rule, err := p.host.TracedDrop(ctx, p.wait, func() { _, _ = p.send(ctx, src, to) })
	if err := p.setup(n, pairs, false); err != nil {
		p.log.Debug("probe", zap.Error(err))
	}
	if err != nil || rule == "" {
		return ""
	}
	return what + rule + ": let the network's prefixes pass before it, as source and as destination"
}

func notAcross(v6 bool) string {
	return fmt.Sprintf("%s packets are not forwarded between pods and other nodes: ", map[bool]string{false: "IPv4", true: "IPv6"}[v6])
}

// unclear says which packets are lost for a reason that is not found here. One peer may have its own; where none answers, what this node has of rules that
// cannot be traced is named.
func (p *Probe) unclear(a *across, v6 bool) string {
	var lost []string
	answers := false
	for addr, is := range a.peers {
		answers = answers || is.answers
		if is.unclear {
			lost = append(lost, addr.String())
		}
	}
	if len(lost) == 0 {
		return ""
	}
	legacy := map[bool]string{false: "iptables-legacy", true: "ip6tables-legacy"}[v6]
	if len(lost) > 1 && !answers && slices.Contains(p.host.Legacy(), legacy) {
		return notAcross(v6) + fmt.Sprintf("none of %d peers answers them, no rule of nftables here drops them, and %s has rules: see `%[2]s -S FORWARD`, and let the network's prefixes pass there, as source and as destination", len(lost), legacy)
	}
	slices.Sort(lost)
	more := ""
	if n := len(lost) - named; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("packets that are forwarded as pods' are do not come back from %s%s, which this node's own do; nothing on this node is found to drop them: see the firewall there", strings.Join(lost[:min(named, len(lost))], ", "), more)
}
