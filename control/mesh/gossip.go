package mesh

import (
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/hashicorp/memberlist"
)

// gossip is who is there and the ways to speak to them, and no more: what is said is this package's own. It is memberlist (SWIM) behind
// few words, so that another one can take its place.
type gossip interface {
	// join exchanges all with the node at an address, and with it learns of its members.
	join(at netip.AddrPort) error
	// live returns the members that are heard, but not this node itself.
	live() []member
	// ping asks a member directly, and says whether it has answered. It waits for that, half a second at most.
	ping(m member) bool
	// send tells a member something; it may get lost, unless it is long. It does not wait.
	send(to string, msg []byte)
	// spread tells all members something, in place of what was last spread under the same key.
	spread(key string, msg []byte)
	close()
}

// listener hears what others say. Nothing of it may keep what it is given.
type listener interface {
	heard(msg []byte)
	everything() []byte      // what one who joins is told
	merge(everything []byte) // what others are told so
	changed()                // somebody came or went
}

// member is one node's daemon, from one of its starts to its end.
type member struct {
	name string // among members; see memberName
	id   id
	at   netip.AddrPort
}

// memberName is an identity and a random part: each start of a daemon is another member, so that nothing of an earlier one counts for it.
func memberName(who id, boot []byte) string { return who.String() + "." + hex.EncodeToString(boot) }

func memberOf(n *memberlist.Node) (member, bool) {
	var m member
	who, _, _ := strings.Cut(n.Name, ".")
	a, ok := netip.AddrFromSlice(n.Addr)
	if m.id.UnmarshalText([]byte(who)) != nil || !ok {
		return m, false
	}
	m.name, m.at = n.Name, netip.AddrPortFrom(a.Unmap(), n.Port)
	return m, true
}

// quiet is the log of a library that has no levels: what matters is told by what it leads to.
var quiet = log.New(io.Discard, "", 0)

// mostPacket is how long a packet may be before it is sealed: with that it fits into what IPv6 has to carry (RFC 8200 §5).
const mostPacket = 1280 - 40 - 8 - overhead

// mostSpread is the longest record that is spread by packets, beside what memberlist needs. Longer ones are found by digests.
const mostSpread = mostPacket - 64

// swim is gossip by memberlist.
type swim struct {
	list    *memberlist.Memberlist
	name    string
	under   *transport
	news    memberlist.TransmitLimitedQueue
	hear    listener
	sending chan struct{} // a token for each long message under way
	wg      sync.WaitGroup

	mu      sync.Mutex
	members map[string]*memberlist.Node
}

// sendMost is how many long messages may be under way at once. One more is not sent: digests find out.
const sendMost = 8

// openGossip makes a member of that name. Compression is off: it costs much, and seldom pays.
func openGossip(name string, under *transport, hear listener) (gossip, error) {
	s := &swim{name: name, under: under, hear: hear, sending: make(chan struct{}, sendMost), members: map[string]*memberlist.Node{}}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Delegate, c.Events = name, under, s, s
	c.EnableCompression, c.UDPBufferSize = false, mostPacket
	c.Logger, c.LogOutput = quiet, nil
	s.news = memberlist.TransmitLimitedQueue{RetransmitMult: c.RetransmitMult, NumNodes: s.count}
	var err error
	s.list, err = memberlist.Create(c)
	return s, err
}

func (s *swim) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.members) + 1
}

func (s *swim) join(at netip.AddrPort) error {
	return s.under.joining(at.String(), func() error {
		_, err := s.list.Join([]string{at.String()})
		var all interface{ WrappedErrors() []error } // its own text is three lines
		if errors.As(err, &all) && len(all.WrappedErrors()) > 0 {
			err = all.WrappedErrors()[0]
		}
		return err
	})
}

func (s *swim) live() (list []member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.members {
		if m, ok := memberOf(n); ok {
			list = append(list, m)
		}
	}
	return list
}

func (s *swim) ping(m member) bool {
	_, err := s.list.Ping(m.name, net.UDPAddrFromAddrPort(m.at))
	return err == nil
}

func (s *swim) send(to string, msg []byte) {
	s.mu.Lock()
	n := s.members[to]
	s.mu.Unlock()
	if n == nil {
		return
	}
	if len(msg) <= mostSpread {
		_ = s.list.SendBestEffort(n, msg) // it may get lost
		return
	}
	select {
	case s.sending <- struct{}{}:
	default:
		return
	}
	s.wg.Go(func() {
		_ = s.list.SendReliable(n, msg) // digests find out what did not arrive
		<-s.sending
	})
}

func (s *swim) spread(key string, msg []byte) {
	if len(msg) <= mostSpread {
		s.news.QueueBroadcast(&piece{key, msg})
	}
}

func (s *swim) close() {
	_ = s.list.Shutdown() // sockets that are closed
	s.wg.Wait()
}

// NodeMeta implements memberlist.Delegate: a name says it all.
func (s *swim) NodeMeta(int) []byte { return nil }

// NotifyMsg implements memberlist.Delegate.
func (s *swim) NotifyMsg(msg []byte) { s.hear.heard(msg) }

// GetBroadcasts implements memberlist.Delegate.
func (s *swim) GetBroadcasts(overhead, limit int) [][]byte {
	return s.news.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate. Only who joins gets everything: later digests find what is missing.
func (s *swim) LocalState(join bool) []byte {
	if !join {
		return nil
	}
	return s.hear.everything()
}

// MergeRemoteState implements memberlist.Delegate.
func (s *swim) MergeRemoteState(all []byte, _ bool) { s.hear.merge(all) }

// NotifyJoin implements memberlist.EventDelegate. memberlist reuses the Node for its later states, so a copy is kept.
func (s *swim) NotifyJoin(n *memberlist.Node) { s.note(n.Name, n) }

// NotifyUpdate implements memberlist.EventDelegate.
func (s *swim) NotifyUpdate(n *memberlist.Node) { s.note(n.Name, n) }

// NotifyLeave implements memberlist.EventDelegate.
func (s *swim) NotifyLeave(n *memberlist.Node) { s.note(n.Name, nil) }

func (s *swim) note(name string, n *memberlist.Node) {
	if name == s.name {
		return
	}
	s.mu.Lock()
	if n == nil {
		delete(s.members, name)
	} else {
		kept := *n
		s.members[name] = &kept
	}
	s.mu.Unlock()
	s.hear.changed()
}

// piece is something to spread.
type piece struct {
	key string
	msg []byte
}

// Invalidates implements memberlist.Broadcast.
func (p *piece) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*piece)
	return ok && o.key == p.key
}

// Name implements memberlist.NamedBroadcast.
func (p *piece) Name() string { return p.key }

// Message implements memberlist.Broadcast.
func (p *piece) Message() []byte { return p.msg }

// Finished implements memberlist.Broadcast.
func (p *piece) Finished() {}
