package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/api"
	"weft/control"
	"weft/internal/echo"
)

const (
	atATime   = 32                     // peers
	echoTries = 3                      // the first packet may wait for a neighbour, or be lost to a handshake
	echoWait  = 500 * time.Millisecond // for each
	smallEcho = 64                     // bytes
)

// peers asks every peer's own inner address for echo replies through the tunnel, small ones and ones as large as the tunnel carries,
// and finds out about those that give none. It needs nothing of the peers but their kernel. Of nodes
// it takes what endpoints a peer has besides the one that packets go to.
func peers(ctx context.Context, s api.Status, list []api.Peer, nodes []api.Node, err error) []Finding {
	const name = "peers"
	switch {
	case err != nil:
		return []Finding{{name, Wrong, err.Error(), "use a daemon and a command of one version"}}
	}
	list = slices.DeleteFunc(slices.Clone(list), func(p api.Peer) bool { return !p.Reached() }) // the problems say why
	if len(list) == 0 {
		return []Finding{{name, OK, "none can be reached, or there are none", ""}}
	}
	found := make([]Finding, len(list))
	turns := make(chan struct{}, atATime)
	var all sync.WaitGroup
	for i, p := range list {
		all.Go(func() {
			turns <- struct{}{}
			found[i] = visit(ctx, s, p, besides(p, nodes))
			<-turns
		})
	}
	all.Wait()
	found = slices.DeleteFunc(found, func(f Finding) bool { return f.Level == OK })
	if len(found) == 0 {
		return []Finding{{name, OK, fmt.Sprintf("all %d answer through the tunnel, also packets of %d bytes", len(list), s.InnerMTU), ""}}
	}
	return found
}

// narrow names the peers to which packets have to be smaller than elsewhere, and who says so.
func narrow(s api.Status, list []api.Peer) (found []Finding) {
	for _, p := range list {
		if less := s.InnerMTU - p.MTU; p.Reached() && p.MTU > 0 && less > 0 {
			found = append(found, Finding{"peer " + p.Node, Note, fmt.Sprintf("packets of at most %d bytes, not %d: the path to %v carries %d bytes and not %d, by %s",
				p.MTU, s.InnerMTU, p.Endpoint.Addr(), s.UnderlayMTU-less, s.UnderlayMTU, cmp.Or(p.Narrowed, "a route or a device")),
				fmt.Sprintf("nothing to do, pods are told; `ip route get %v` may say where it is from", p.Endpoint.Addr())})
		}
	}
	return found
}

// besides are a peer's endpoints but for the one that packets go to.
func besides(p api.Peer, nodes []api.Node) []netip.Addr {
	i := slices.IndexFunc(nodes, func(n api.Node) bool { return n.Name == p.Node })
	if i < 0 {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(nodes[i].Endpoints), func(a netip.Addr) bool { return a == p.Endpoint.Addr() })
}

// visit finds out how it stands with one peer.
func visit(ctx context.Context, s api.Status, p api.Peer, others []netip.Addr) Finding {
	name := "peer " + p.Node
	to, ok := innerAddress(s, p)
	if !ok {
		return Finding{name, Note, "has no prefix of an IP version that this node has one of", ""}
	}
	first, err := echo.Ask(ctx, to, smallEcho, echoTries, echoWait)
	switch {
	case errors.Is(err, echo.ErrSilent):
		return silent(ctx, name, p, others)
	case err != nil:
		return Finding{name, Note, err.Error(), "run it as root"}
	}
	// Now it is known how long an answer takes.
	wait := min(max(10*first.Took, 100*time.Millisecond), echoWait)
	large, err := echo.Ask(ctx, to, p.MTU, echoTries, wait)
	switch {
	case err == nil && large.Fragment > 0:
		return Finding{name, Wrong, fmt.Sprintf("its own packets are cut into pieces of at most %d bytes, ours have up to %d: the MTUs differ", large.Fragment, p.MTU),
			fmt.Sprintf("give the underlay interfaces of both nodes, or node.mtu, one value; here the underlay's is %d", s.UnderlayMTU)}
	case err == nil:
		return Finding{Level: OK}
	case !errors.Is(err, echo.ErrSilent):
		return Finding{name, Note, err.Error(), ""}
	}
	passes := echo.Largest(smallEcho, p.MTU, func(length int) bool {
		_, err := echo.Ask(ctx, to, length, 2, wait)
		return err == nil
	})
	under := s.UnderlayMTU - (p.MTU - passes)
	return Finding{name, Wrong, fmt.Sprintf("packets above %d bytes do not come back through the tunnel, %d should: the underlay towards %v carries %d bytes, not %d",
		passes, p.MTU, p.Endpoint.Addr(), under, s.UnderlayMTU),
		fmt.Sprintf("raise the MTU of the peer's interface or of the link, or set node.mtu: %d on all nodes", under)}
}

// innerAddress is the address of its own that a peer has inside: the first of a prefix of a family we have too.
func innerAddress(s api.Status, p api.Peer) (netip.Addr, bool) {
	for _, theirs := range p.Prefixes {
		for _, ours := range s.Prefixes {
			if theirs.Addr().Is4() == ours.Addr().Is4() {
				return control.HostAddr(theirs), true
			}
		}
	}
	return netip.Addr{}, false
}

// silent says why a peer does not answer through the tunnel, as far as it can be told from here.
func silent(ctx context.Context, name string, p api.Peer, others []netip.Addr) Finding {
	at := p.Endpoint.Addr()
	answers := func(a netip.Addr) bool {
		_, err := echo.Ask(ctx, a, smallEcho, echoTries, echoWait)
		return err == nil
	}
	if !answers(at) {
		tried := fmt.Sprint(at)
		for _, a := range others {
			if answers(a) {
				return Finding{name, Wrong, fmt.Sprintf("answers at %v, but neither through the tunnel nor at %v, which packets go to", a, at),
					fmt.Sprintf("put %v first among the endpoints of %s, or mend the way to %v: `ip route get %v`", a, p.Node, at, at)}
			}
			tried += fmt.Sprintf(", %v", a)
		}
		return Finding{name, Wrong, fmt.Sprintf("answers neither through the tunnel nor at %v", tried),
			fmt.Sprintf("see whether it runs, and whether `ip route get %v` is the way", at)}
	}
	port := p.Endpoint.Port()
	switch {
	case port == 0: // a mode without a tunnel
		return Finding{name, Wrong, fmt.Sprintf("answers at %v, but not at its inner address", at),
			fmt.Sprintf("see `weft status` on %s, and whether a firewall drops packets of the overlay's prefixes", p.Node)}
	case refuses(ctx, p.Endpoint, echoWait):
		return Finding{name, Wrong, fmt.Sprintf("answers at %v, but refuses UDP port %d", at, port),
			fmt.Sprintf("start its daemon, with this node's mode and port; or its firewall rejects UDP port %d", port)}
	}
	return Finding{name, Wrong, fmt.Sprintf("answers at %v, but nothing comes back through the tunnel: UDP port %d is dropped on the way there or back, or it does not take this node for one of its own", at, port),
		fmt.Sprintf("let UDP port %d in on both nodes and through what is between them; see `weft status` and `weft stages` on %s", port, p.Node)}
}
