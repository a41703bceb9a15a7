// Package pathmtu finds out, by packets of full size, how much the paths to the peers carry: what no router says where ICMP is filtered on the way, and
// whether it is true where one does (RFC 8899, with the peer's kernel for the other end).
//
// The packets are ICMP echo requests from this node's own inner address to the peer's, through the tunnel, in one piece. Every kernel answers them, so nothing
// of it is on the wire that was not before: Flannel's nodes and older ones are judged as well. Where small ones come back and large ones do not, time and again,
// the path is as wide as the largest that does. Of a peer that answers none nothing is said. Both directions of a path are judged as one, as far as the peer has
// not found out for itself that its own is narrower and sends its answers in pieces.
//
// Hosts and firewalls may let small pings through alone, and one knows no path that carries less than floor: what would be less is told of, and not heeded.
package pathmtu

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/internal/echo"
)

const (
	small  = 64   // bytes: a packet that passes if anything does
	floor4 = 1200 // the least that is believed of a path, bytes of an IPv4 packet inside
	floor6 = 1280 // and of IPv6 (RFC 8200)

	usual = 10 * time.Second // from visit to visit of a peer
	soon  = 5 * time.Second  // where somebody says that its path is narrow
	rate  = 10               // visits a second, at most, of all peers
	look  = time.Second      // for peers that are new, and for paths that are others

	firstWait = 500 * time.Millisecond // for a reply of a peer of which it is not known how long it takes
	leastWait = 100 * time.Millisecond // else, ten times as long as it took, within these
	patience  = 3                      // times that a packet is sent before it counts as lost
	doubt     = 8                      // packets that have to arrive before somebody is refuted: paths may lie beside each other, and packets take one or another
)

// Peer is a peer and what is to be found out.
type Peer struct {
	Node     string
	Endpoint netip.Addr // where packets to it go
	Inner    netip.Addr // its own address in the overlay
	Whole    int        // bytes of the largest inner packet that the path should carry
	Narrowed int        // bytes, where somebody says that it carries no more; 0 = nobody does
	Lied     bool       // somebody who says so is to be refuted by more than one packet
}

// Prober visits the peers. It works in the network namespace of the process.
type Prober struct {
	peers func() []Peer
	found func(p Peer, carries int, at time.Time) // of p, of which Whole and Endpoint are as they were; carries = inner bytes
	ask   func(ctx context.Context, to netip.Addr, length, tries int, wait time.Duration) (echo.Reply, error)
	log   *zap.Logger

	noted sync.Map // endpoints of peers of which it was told that not even the floor passes
}

// New returns a Prober of the peers that a function tells, which hands what it has found out to another.
func New(peers func() []Peer, found func(p Peer, carries int, at time.Time), log *zap.Logger) *Prober {
	return &Prober{peers: peers, found: found, ask: echo.Ask, log: log}
}

// visited is what is known of an earlier visit.
type visited struct {
	due time.Time
	as  Peer
}

// Run visits peers until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	var out sync.WaitGroup
	defer out.Wait()
	var away sync.Map // endpoints of peers that are being visited
	book := map[netip.Addr]visited{}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		peers := p.peers()
		pause := max(look, time.Duration(len(peers))*2*time.Millisecond) // to go through thousands each second would cost
		tick.Reset(pause)
		for _, next := range due(book, peers, int(rate*pause/time.Second), time.Now()) {
			if _, already := away.LoadOrStore(next.Endpoint, true); already {
				continue
			}
			out.Go(func() {
				defer away.Delete(next.Endpoint)
				p.visit(ctx, next)
			})
		}
		p.noted.Range(func(endpoint, _ any) bool {
			if _, there := book[endpoint.(netip.Addr)]; !there { // its node is gone
				p.noted.Delete(endpoint)
			}
			return true
		})
	}
}

// due chooses who is to be visited now, so many at most, and takes note of it.
func due(book map[netip.Addr]visited, peers []Peer, most int, now time.Time) (list []Peer) {
	there := make(map[netip.Addr]bool, len(peers))
	for _, peer := range peers {
		there[peer.Endpoint] = true
		was, known := book[peer.Endpoint]
		if known && was.as == peer && now.Before(was.due) || len(list) == most {
			continue
		}
		wait := usual
		if peer.Narrowed > 0 {
			wait = soon
		}
		book[peer.Endpoint] = visited{now.Add(max(wait, time.Duration(len(peers))*time.Second/rate)), peer}
		list = append(list, peer)
	}
	for endpoint := range book {
		if !there[endpoint] {
			delete(book, endpoint)
		}
	}
	return list
}

// visit finds out how much the path to a peer carries.
func (p *Prober) visit(ctx context.Context, peer Peer) {
	at := time.Now()
	carries, ok := p.measure(ctx, peer)
	if !ok || ctx.Err() != nil {
		return
	}
	if carries < peer.Whole && carries != peer.Narrowed {
		p.log.Warn("packets of full size do not come back from a peer, smaller ones do: raise the MTU on the way, or let routers say that packets are too large (ICMP 3/4, ICMPv6 2)",
			zap.String("peer", peer.Node), zap.Int("mtu", carries))
	}
	p.found(peer, carries, at)
}

// measure returns how large inner packets come back, false where that is not known.
func (p *Prober) measure(ctx context.Context, peer Peer) (carries int, ok bool) {
	first, err := p.ask(ctx, peer.Inner, small, patience, firstWait)
	if err != nil {
		return 0, false
	}
	wait := min(max(10*first.Took, leastWait), firstWait)
	passes := func(length int) bool {
		_, err := p.ask(ctx, peer.Inner, length, patience, wait)
		return err == nil
	}
	if passes(peer.Whole) {
		p.noted.Delete(peer.Endpoint)
		for range peer.refuting() {
			if !passes(peer.Whole) {
				return 0, false // some do and some do not
			}
		}
		return peer.Whole, true
	}
	floor := min(peer.floor(), peer.Whole)
	// Most often it is what somebody says.
	switch n := peer.Narrowed; {
	case n >= floor && n < peer.Whole && passes(n) && !passes(n+1):
		carries = n
	case floor == peer.Whole || !passes(floor):
		if _, told := p.noted.LoadOrStore(peer.Endpoint, true); !told {
			p.log.Warn("small packets come back from a peer and those of the least size that every path carries do not: taken for a limit to the size of pings, and the path for as wide as it was",
				zap.String("peer", peer.Node), zap.Int("bytes", floor))
		}
		return 0, false
	default:
		carries = echo.Largest(floor, peer.Whole, passes)
	}
	// It may have been loss, or a path that is another one by now.
	if passes(peer.Whole) || !passes(carries) {
		return 0, false
	}
	return carries, true
}

// floor is the least that is believed of the path.
func (p Peer) floor() int {
	if p.Inner.Is6() {
		return floor6
	}
	return floor4
}

// refuting is how many more packets have to arrive.
func (p Peer) refuting() int {
	if p.Lied {
		return doubt - 1
	}
	return 0
}
