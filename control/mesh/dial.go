package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"weft/internal/backoff"
)

// Pauses between attempts to reach the members to begin with. They go on for ever, for the two halves of a cluster that was cut meet by them.
const (
	dialFirst = 250 * time.Millisecond
	dialMost  = 10 * time.Second
)

// resync is when after it has reached somebody a node asks again: what a thousand nodes that start at once say early is heard by few.
var resync = []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second}

// dial reaches for the members to begin with that are not heard, and for one node of those that have gone silent, as long as ctx lasts.
func (s *session) dial(ctx context.Context) {
	again := backoff.Backoff{First: dialFirst, Most: dialMost}
	more := resync
	for {
		g, at := s.meeting()
		if g != nil {
			s.reach(ctx, g, at)
		}
		pause := again.Next()
		if g != nil && len(g.live()) > 0 && len(more) > 0 {
			pause, more = more[0], more[1:]
			if !backoff.Sleep(ctx, pause) {
				return
			}
			if live := g.live(); len(live) > 0 {
				_ = g.join(live[mrand.IntN(len(live))].at) // it is one more chance
			}
			continue
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// meeting is where this node is a member; nil = nowhere yet.
func (s *session) meeting() (gossip, netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gossip, s.at
}

// reach tries everybody to begin with who is not heard, and one who has gone silent.
func (s *session) reach(ctx context.Context, g gossip, own netip.AddrPort) {
	heard := func(at netip.AddrPort) bool {
		return slices.ContainsFunc(g.live(), func(m member) bool { return m.at == at })
	}
	others, reached, wrong := 0, false, map[string]string{}
	for _, host := range s.set.Join {
		all, err := resolve(ctx, host, s.set.Port)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wrong[host], others = reason(err), others+1
			continue
		}
		if slices.Contains(all, own) {
			continue
		}
		others++
		for _, at := range all {
			if heard(at) {
				err = nil
				break
			}
			if err = g.join(at); err == nil {
				break
			}
		}
		if err != nil {
			wrong[host] = reason(err)
		} else {
			reached = true
		}
	}
	s.mu.Lock()
	s.unreached = wrong
	s.reached = s.reached || reached || others == 0
	var silent []netip.AddrPort
	for who, e := range s.book.entries {
		if who != s.own && !e.live {
			silent = append(silent, e.Gossip)
		}
	}
	s.mu.Unlock()
	if len(silent) > 0 {
		if at := silent[mrand.IntN(len(silent))]; at != own && !heard(at) && g.join(at) == nil {
			s.mu.Lock()
			s.reached = true
			s.mu.Unlock()
		}
	}
	s.wake()
}

// resolve returns the addresses of HOST or HOST:PORT.
func resolve(ctx context.Context, host string, port uint16) (list []netip.AddrPort, err error) {
	name := host
	if h, p, err := net.SplitHostPort(host); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return nil, err
		}
		name, port = h, uint16(n)
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), port)}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for _, a := range addrs {
		list = append(list, netip.AddrPortFrom(a.Unmap(), port))
	}
	return list, err
}

// reason says why somebody was not reached, as people want to hear it.
func reason(err error) string {
	var clock clockError
	var unknown *net.DNSError
	switch {
	case errors.As(err, &clock):
		return clock.Error()
	case errors.Is(err, errPassword):
		return "it has another password"
	case errors.Is(err, errDenied):
		return "it did not take this node's greeting: see its status"
	case errors.As(err, &unknown):
		return fmt.Sprintf("the name is not known (%v)", unknown.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there"
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer"
	}
	return err.Error()
}

// askEvery is how often members are asked directly, while there is something to claim; askMost is how many at once.
const (
	askEvery = 500 * time.Millisecond
	askMost  = 32
)

// ask finds out who is there by this node's own ear, as long as it has something to claim: the majority that it needs is of those who answer it. Who has
// answered just now is not asked again.
func (s *session) ask(ctx context.Context) {
	for backoff.Sleep(ctx, askEvery) {
		s.mu.Lock()
		g, needed := s.gossip, s.waiting != "" || len(s.held) > 0
		answered := maps.Clone(s.answered)
		s.mu.Unlock()
		if g == nil || !needed {
			continue
		}
		var wg sync.WaitGroup
		tokens := make(chan struct{}, askMost)
		for _, m := range g.live() {
			if time.Since(answered[m.id]) < answerTime/2 {
				continue
			}
			tokens <- struct{}{}
			wg.Go(func() {
				defer func() { <-tokens }()
				if g.ping(m) {
					s.mu.Lock()
					s.answered[m.id] = time.Now()
					s.mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
}
