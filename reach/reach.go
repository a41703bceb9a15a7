// Package reach is the vocabulary of what is learnt, beside the membership, of how the others are reached. The membership says who has which
// prefix; what is here says by which routers its packets get there, and never gives a prefix to anybody.
package reach

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/control"
)

// MaxVia is how many next hops a route has at most.
const MaxVia = 8

// Learnt is all that a routing protocol has told of the world. Whole, and immutable once published.
type Learnt struct {
	Settled bool // all has been told that can be at present; before, what the kernel still has is among Routes
	Drained bool // this node tells of nothing, for somebody wants it so

	Routes      []Route   // sorted by prefix
	Sessions    []Session // sorted by peer
	Refused     []Refused // what was told and is not believed, sorted by prefix, the first of it
	RefusedMore int       // how much more of that there is
	Problems    []control.Problem
}

// Route is how a prefix is reached.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Node   string       `json:"node"`  // whose prefix it is; "" = it is none of the cluster's
	Via    []netip.Addr `json:"via"`   // next hops, all as good as each other, sorted; MaxVia at most
	From   []string     `json:"from"`  // who told of it, sorted: nodes by name, routers by address
	Path   string       `json:"path"`  // the autonomous systems on the way, "" = none
	Stale  bool         `json:"stale"` // who told of it has gone, and is waited for
}

// Session is how it stands with one BGP neighbour.
type Session struct {
	Peer     netip.Addr `json:"peer"`
	Node     string     `json:"node"`     // "" = a router that the configuration names
	AS       uint32     `json:"as"`       // that it should be of
	Local    netip.Addr `json:"local"`    // this node's address
	Families []string   `json:"families"` // ipv4, ipv6: of which prefixes are exchanged
	Passive  bool       `json:"passive"`  // the peer connects

	Up       bool      `json:"up"`
	Phase    string    `json:"phase"`            // idle, connect, active, opensent, openconfirm, established (RFC 4271)
	Reason   string    `json:"reason,omitempty"` // why it is not up, as far as anything is known
	Since    time.Time `json:"since,omitzero"`   // of Up
	RouterID string    `json:"router_id"`        // the peer's; "" = not known

	Told       bool   `json:"told"`       // the peer has told of all that it has (End-of-RIB, RFC 4724)
	Received   uint64 `json:"received"`   // prefixes
	Advertised uint64 `json:"advertised"` // prefixes
	BFD        string `json:"bfd"`        // up, init, down, admin_down (RFC 5880); "" = the peer is not watched by it
	Restarts   bool   `json:"restarts"`   // the peer keeps this node's prefixes while the daemon restarts, and the other way round
}

// Refused is a prefix that a peer told of and that is not believed.
type Refused struct {
	Prefix netip.Prefix `json:"prefix"`
	From   string       `json:"from"` // as in Route
	Via    netip.Addr   `json:"via"`
	Reason string       `json:"reason"`
}

// To returns the route to a prefix, which has to be that very prefix.
func (l *Learnt) To(prefix netip.Prefix) (Route, bool) {
	i, found := slices.BinarySearchFunc(l.Routes, prefix, func(r Route, p netip.Prefix) int { return r.Prefix.Compare(p) })
	if !found {
		return Route{}, false
	}
	return l.Routes[i], true
}

// Why says why there is no route to a prefix of a node's.
func (l *Learnt) Why(n *control.Node, prefix netip.Prefix) string {
	for _, r := range l.Refused {
		if r.Prefix == prefix {
			return fmt.Sprintf("BGP: what %s tells of it is not taken: %s", r.From, r.Reason)
		}
	}
	up := ""
	for _, s := range l.Sessions {
		if s.Node != n.Name {
			continue
		}
		if !s.Up {
			return fmt.Sprintf("BGP: no session with %v: %s", s.Peer, s.Reason)
		}
		up = s.Peer.String()
	}
	switch {
	case up != "" && !l.Settled:
		return fmt.Sprintf("BGP: %s has not told of it yet", up)
	case up != "":
		return fmt.Sprintf("BGP: %s does not tell of it: see `weft bgp peers` there", up)
	}
	return "BGP: nobody tells of it: see `weft bgp peers`"
}

// Equal says whether both are the same, but for what is only counted.
func (l *Learnt) Equal(o *Learnt) bool {
	same := func(a, b Route) bool {
		return a.Prefix == b.Prefix && a.Node == b.Node && a.Path == b.Path && a.Stale == b.Stale && slices.Equal(a.Via, b.Via) && slices.Equal(a.From, b.From)
	}
	sessions := func(a, b Session) bool {
		return a.Peer == b.Peer && a.Node == b.Node && a.Up == b.Up && a.Reason == b.Reason && a.BFD == b.BFD
	}
	return l.Settled == o.Settled && l.Drained == o.Drained && slices.EqualFunc(l.Routes, o.Routes, same) && slices.EqualFunc(l.Sessions, o.Sessions, sessions) &&
		slices.Equal(l.Refused, o.Refused) && l.RefusedMore == o.RefusedMore && slices.Equal(l.Problems, o.Problems)
}
