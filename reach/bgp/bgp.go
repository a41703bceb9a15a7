// Package bgp speaks BGP (RFC 4271) with the other nodes and with routers, by the library gobgp, which nothing else imports.
//
// This node originates its own prefixes, with itself as the next hop, and passes on nothing that it was told. What others tell decides how
// prefixes are reached; whose they are the membership says, and who tells otherwise is refused and named:
//
//   - a node is believed its own prefixes alone, and only with one of its endpoints as next hop;
//   - a router is believed what its import list says: prefixes outside of the cluster, and nodes' prefixes where it is listed for them, then with
//     itself or the owner as next hop;
//   - nobody is believed this node's own prefixes, a part of a node's, or of the networks that this node is in.
//
// Nodes of the cluster are spoken to without being configured (a full mesh), one session for each address family, the node with the lower
// address connecting: two connections at once would end a graceful restart. Sessions announce graceful restart (RFC 4724), so that
// neither side forgets routes while a daemon restarts; those with routers that are watched by BFD (RFC 5880, 5881) do not, for what is
// not heard by BFD is dropped at once, whatever the reason.
package bgp

import (
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/config"
)

// Port is the TCP port of BGP.
const Port = 179

// BFDPort is the UDP port of BFD over a single hop (RFC 5881).
const BFDPort = 3784

// meshMost is how many nodes a full mesh is for; with more it works, and route reflectors are the better way.
const meshMost = 100

// Options are what a Speaker is made from.
type Options struct {
	Config  config.BGP
	Node    string         // this node's name
	Network []netip.Prefix // the overlay's

	// OnLink says by which device an address is reached without a router; an error says why it is not.
	OnLink func(netip.Addr) (device string, err error)
	// Reserved is what this node needs outside of the overlay, networks of its own links among it: no router is believed a part of those. nil = nothing.
	Reserved func() []control.Reserved
	// Held are the routes that the kernel had before this process: next hops by prefix. With any, peers are told that forwarding went on.
	Held map[netip.Prefix][]netip.Addr

	Log *zap.Logger

	// But in tests, these are Port and usual.
	port  uint16
	waits waits
}

// session is a neighbour as it should be.
type session struct {
	remote, local netip.Addr
	as            uint32
	node          string // "" = a router
	v4, v6        bool   // families of prefixes
	passive       bool
	password      string
	most          int // prefixes that it may tell of, in each family
	bfd           bool
	graceful      bool // restart; never with bfd
}

// from is how the peer is called.
func (s *session) from() string { return cmp.Or(s.node, s.remote.String()) }

func (s *session) families() (list []string) {
	if s.v4 {
		list = append(list, "ipv4")
	}
	if s.v6 {
		list = append(list, "ipv6")
	}
	return list
}

// first is the most preferred address of a family.
func first(addrs []netip.Addr, v6 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}

// sessions are the neighbours that a node has for a State, by their address, and what is wrong. passwords are by file.
func (o *Options) sessions(s *control.State, passwords map[string]string) (map[netip.Addr]session, []control.Problem) {
	list := map[netip.Addr]session{}
	var problems []control.Problem
	v4 := slices.ContainsFunc(o.Network, func(p netip.Prefix) bool { return p.Addr().Is4() })
	v6 := slices.ContainsFunc(o.Network, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if o.Config.Mesh {
		if n := len(s.Nodes) + 1; n > meshMost {
			problems = append(problems, control.Problem{Text: "BGP: a full mesh of more than 100 nodes costs every node a session with every other: write bgp.mesh: false, and two route reflectors among bgp.peers"})
		}
		for i := range s.Nodes {
			n := &s.Nodes[i]
			mesh := session{as: o.Config.AS, node: n.Name, password: passwords[o.Config.PasswordFile], most: most(n), graceful: true}
			own4, has4 := first(s.Self.Endpoints, false)
			own6, has6 := first(s.Self.Endpoints, true)
			at4, is4 := first(n.Endpoints, false)
			at6, is6 := first(n.Endpoints, true)
			by4, by6 := has4 && is4, has6 && is6
			if by4 && v4 {
				mesh.remote, mesh.local, mesh.v4, mesh.v6, mesh.passive = at4, own4, true, false, at4.Less(own4)
				list[at4] = mesh
			}
			// IPv4 prefixes go along where there is no IPv4 way: with an IPv6 next hop (RFC 8950).
			if by6 && (v6 || v4 && !by4) {
				mesh.remote, mesh.local, mesh.v4, mesh.v6, mesh.passive = at6, own6, v4 && !by4, v6, at6.Less(own6)
				list[at6] = mesh
			}
		}
	}
	for _, p := range o.Config.Peers {
		if !p.For(o.Node) {
			continue
		}
		name := p.Address.String()
		own, ok := first(s.Self.Endpoints, p.Address.Is6())
		if !ok {
			problems = append(problems, control.Problem{Text: "BGP: this node has no endpoint of the address family of the peer " + name + ": give it one, or choose its nodes with bgp.peers[].nodes"})
			continue
		}
		if have, taken := list[p.Address]; taken {
			problems = append(problems, control.Problem{Node: have.node, Text: "BGP: bgp.peers has this node's own endpoint " + name + ": remove it there, for nodes are peers by themselves, or write bgp.mesh: false"})
			continue
		}
		if slices.Contains(s.Self.Endpoints, p.Address) { // one file for all nodes, the reflector among them
			continue
		}
		r := session{remote: p.Address, local: own, as: p.AS, password: passwords[p.PasswordFile], most: p.MaxPrefixes, bfd: p.BFD, graceful: p.Graceful}
		r.v4, r.v6 = p.Address.Is4(), p.Address.Is6()
		if len(p.Families) > 0 {
			r.v4, r.v6 = slices.Contains(p.Families, "ipv4"), slices.Contains(p.Families, "ipv6")
		}
		list[p.Address] = r
	}
	return list, problems
}

// most is how many prefixes a node may tell of: those that it has and as many again, in steps, for a session ends where it changes.
func most(n *control.Node) int {
	const least = 256
	m := least
	for m < 2*len(n.Prefixes) {
		m *= 2
	}
	return m
}

// routerID is the configured one, else the node's first IPv4 endpoint, else one that its name gives (RFC 6286: any number that no other
// router of the AS has).
func (o *Options) routerID(self *control.Node) netip.Addr {
	if o.Config.RouterID.IsValid() {
		return o.Config.RouterID
	}
	if a, ok := first(self.Endpoints, false); ok {
		return a
	}
	h := sha256.Sum256([]byte("weft bgp " + o.Node))
	return netip.AddrFrom4([4]byte{h[0]%223 + 1, h[1], h[2], h[3]})
}

// sorted returns the sessions in the order of their addresses.
func sorted(sessions map[netip.Addr]session) []session {
	list := make([]session, 0, len(sessions))
	for _, s := range sessions {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b session) int {
		return cmp.Or(strings.Compare(a.node, b.node), a.remote.Compare(b.remote))
	})
	return list
}
