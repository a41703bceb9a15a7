package dataplane

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"weft/packet"
)

// Table maps inner prefixes to hops and outer addresses to peers. It is built whole and published
// whole; after that nobody writes to it, so lookups need no lock.
type Table struct {
	prefixes bart.Fast[*packet.Hop]
	peers    map[netip.Addr]*packet.Hop // outer source → peer, for traffic that no seal proves
	size     int

	// For a Bridge.
	mac      [6]byte                 // our own station
	stations map[[6]byte]*packet.Hop // the other nodes' own stations
	hops     []*packet.Hop           // by peer number; nil where there is none
	flood    []*packet.Hop           // each peer once
}

// NewTable makes an empty table: everything is dropped as no-route or unknown-peer.
func NewTable() *Table {
	return &Table{peers: map[netip.Addr]*packet.Hop{}, stations: map[[6]byte]*packet.Hop{}}
}

// Insert routes an inner prefix to a hop.
func (t *Table) Insert(p netip.Prefix, h *packet.Hop) {
	t.prefixes.Insert(p.Masked(), h)
	t.size++
}

// InsertPeer says that outer packets from a come from h.Peer. A peer may have several addresses.
func (t *Table) InsertPeer(a netip.Addr, h *packet.Hop) { t.peers[a.Unmap()] = h }

// InsertStation makes a peer known to a Bridge: its own MAC, and where floods go. Once for each peer.
func (t *Table) InsertStation(h *packet.Hop) {
	if n := int(h.Peer.ID) + 1; n > len(t.hops) {
		t.hops = append(t.hops, make([]*packet.Hop, n-len(t.hops))...)
	}
	t.hops[h.Peer.ID], t.stations[h.Peer.MAC] = h, h
	t.flood = append(t.flood, h)
}

// Clone returns a table of the same content that may be edited and published in t's place.
func (t *Table) Clone() *Table {
	c := &Table{peers: maps.Clone(t.peers), size: t.size, mac: t.mac, stations: maps.Clone(t.stations),
		hops: slices.Clone(t.hops), flood: slices.Clone(t.flood)}
	c.prefixes.Union(&t.prefixes)
	return c
}

// Remove takes out what Insert put in.
func (t *Table) Remove(p netip.Prefix) {
	t.prefixes.Delete(p.Masked())
	t.size--
}

// RemovePeer takes out what InsertPeer put in.
func (t *Table) RemovePeer(a netip.Addr) { delete(t.peers, a.Unmap()) }

// RemoveStation takes out what InsertStation put in. No other peer may have the MAC.
func (t *Table) RemoveStation(h *packet.Hop) {
	delete(t.stations, h.Peer.MAC)
	t.hops[h.Peer.ID] = nil
	t.flood = slices.DeleteFunc(t.flood, func(o *packet.Hop) bool { return o == h })
}

// least is the peer behind the narrowest path now; nil where there is none.
func (t *Table) least() (least *packet.Hop) {
	mtu := 0
	for _, h := range t.flood {
		if m := h.Path.MTU(); least == nil || m < mtu {
			least, mtu = h, m
		}
	}
	return least
}

// Unambiguous says that no two peers have one MAC.
func (t *Table) Unambiguous() bool { return len(t.stations) == len(t.flood) }

// SetStation says which MAC is this node's own.
func (t *Table) SetStation(mac [6]byte) { t.mac = mac }

// hop returns the hop of a peer by its number, nil if there is none.
func (t *Table) hop(peer uint32) *packet.Hop {
	if int(peer) >= len(t.hops) {
		return nil
	}
	return t.hops[peer]
}

// InsertSelf says that this node owns an inner prefix.
func (t *Table) InsertSelf(p netip.Prefix) { t.Insert(p, &self) }

var self = packet.Hop{Peer: packet.Peer{ID: packet.Self}} // immutable: the hop of our own prefixes

// Lookup returns the hop of the longest prefix that holds a.
func (t *Table) Lookup(a netip.Addr) (*packet.Hop, bool) { return t.prefixes.Lookup(a) }

// Len is the number of prefixes.
func (t *Table) Len() int { return t.size }

// Route is the stage that finds a packet's peer by inner destination on the way out, and checks on
// the way in that the inner source belongs to the peer it came from and the destination to us.
// All lanes of a backend share one Route: it holds nothing but the published table.
type Route struct{ table atomic.Pointer[Table] }

// NewRoute makes the stage with an empty table.
func NewRoute() *Route {
	r := &Route{}
	r.table.Store(NewTable())
	return r
}

// Publish swaps the table; lanes see the new one from their next batch on.
func (r *Route) Publish(t *Table) { r.table.Store(t) }

// Table returns the published table.
func (r *Route) Table() *Table { return r.table.Load() }

func (r *Route) Name() string              { return "route" }
func (r *Route) Overhead() packet.Overhead { return packet.Overhead{} }

// Out sets Hop and Flow, or drops: too-short, bad-header, no-route, too-big.
func (r *Route) Out(b *packet.Batch) {
	t := r.table.Load() // once per batch: a swap never splits one
	var last netip.Addr
	var hop *packet.Hop
	var mtu int
	pkts := b.Packets()
	for i := range pkts {
		p := &pkts[i]
		ip := p.Bytes()
		_, dst, drop := addresses(ip)
		if drop != packet.Alive {
			p.Drop = drop
			continue
		}
		if dst != last || hop == nil { // packets come in runs of one flow
			h, ok := t.prefixes.Lookup(dst)
			if !ok || h.Peer.ID == packet.Self {
				p.Drop, hop = packet.NoRoute, nil
				continue
			}
			last, hop, mtu = dst, h, h.Path.MTU()
		}
		p.Hop = hop
		if len(ip) > mtu {
			p.Drop = packet.TooBig
			continue
		}
		p.Flow = packet.FlowHash(ip)
	}
}

// In sets Hop to the sender, or drops: too-short, bad-header, unknown-peer, wrong-source, not-ours.
// A Hop that a seal stage has set is a proof and stands; otherwise the outer source address, which
// the underlay is trusted with, names the peer.
func (r *Route) In(b *packet.Batch) {
	t := r.table.Load()
	var lastFrom netip.Addr
	var lastPeer *packet.Hop
	var lastSrc, lastDst netip.Addr
	var lastHop *packet.Hop
	pkts := b.Packets()
	for i := range pkts {
		p := &pkts[i]
		src, dst, drop := addresses(p.Bytes())
		if drop != packet.Alive {
			p.Drop = drop
			continue
		}
		if p.Hop == nil {
			if from := p.From.Addr(); from != lastFrom {
				lastFrom, lastPeer = from, t.peers[from]
			}
			if p.Hop = lastPeer; p.Hop == nil {
				p.Drop = packet.UnknownPeer
				continue
			}
		}
		if p.RCO && !p.Hop.Peer.RCO {
			p.Drop = packet.BadHeader // never announced by this peer: not its to use
			continue
		}
		if src == lastSrc && dst == lastDst && p.Hop == lastHop {
			continue
		}
		// Compare peers, not pointers: the table may have been swapped since the seal was opened.
		if h, ok := t.prefixes.Lookup(src); !ok || h.Peer.ID != p.Hop.Peer.ID {
			p.Drop = packet.WrongSource
			continue
		}
		if h, ok := t.prefixes.Lookup(dst); !ok || h.Peer.ID != packet.Self {
			p.Drop = packet.NotOurs
			continue
		}
		lastSrc, lastDst, lastHop = src, dst, p.Hop
	}
}

// addresses reads source and destination of an IPv4 or IPv6 packet, as RFC 791 §3.1 and RFC 8200
// §3 lay them out; nothing else of the header is judged here.
func addresses(ip []byte) (src, dst netip.Addr, drop packet.Drop) {
	if len(ip) < packet.IPv4Header {
		return src, dst, packet.TooShort
	}
	switch ip[0] >> 4 {
	case 4:
		return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), packet.Alive
	case 6:
		if len(ip) < packet.IPv6Header {
			return src, dst, packet.TooShort
		}
		return netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40])), packet.Alive
	}
	return src, dst, packet.BadHeader
}
