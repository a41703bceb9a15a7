package dataplane

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"weft/packet"
)

// Table maps inner prefixes to hops and outer addresses to peers. It is built whole and published
// whole; after that nobody writes to it, so lookups need no lock.
type Table struct {
	prefixes trie
	peers    trie // outer source → peer, for traffic that no seal proves

	// For a Bridge.
	mac      [6]byte                 // our own station
	stations map[[6]byte]*packet.Hop // the other nodes' own stations
	hops     []*packet.Hop           // by peer number; nil where there is none
	flood    []*packet.Hop           // each peer once
}

// NewTable makes an empty table: everything is dropped as no-route or unknown-peer.
func NewTable() *Table {
	return &Table{prefixes: newTrie(), peers: newTrie(), stations: map[[6]byte]*packet.Hop{}}
}

// Insert routes an inner prefix to a hop.
func (t *Table) Insert(p netip.Prefix, h *packet.Hop) { t.prefixes.insert(p, h) }

// InsertPeer says that outer packets from a come from h.Peer. A peer may have several addresses.
func (t *Table) InsertPeer(a netip.Addr, h *packet.Hop) { t.peers.insert(outerPrefix(a), h) }

// InsertStation makes a peer known to a Bridge: its own MAC, and where floods go. Once for each peer; a Route needs none.
func (t *Table) InsertStation(h *packet.Hop) {
	if n := int(h.Peer.ID) + 1; n > len(t.hops) {
		t.hops = append(t.hops, make([]*packet.Hop, n-len(t.hops))...)
	}
	t.hops[h.Peer.ID], t.stations[h.Peer.MAC] = h, h
	t.flood = append(t.flood, h)
}

// Clone returns a table of the same content that may be edited and published in t's place. The two share what is not edited, but for what
// is a Bridge's, so that one node among thousands costs what one node costs; t itself must not be edited any more.
func (t *Table) Clone() *Table {
	return &Table{prefixes: t.prefixes.clone(), peers: t.peers.clone(), stations: maps.Clone(t.stations), mac: t.mac,
		hops: slices.Clone(t.hops), flood: slices.Clone(t.flood)}
}

// Remove takes out what Insert put in.
func (t *Table) Remove(p netip.Prefix) { t.prefixes.remove(p) }

// RemovePeer takes out what InsertPeer put in.
func (t *Table) RemovePeer(a netip.Addr) { t.peers.remove(outerPrefix(a)) }

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

// Unambiguous says that no two peers have one MAC, as far as InsertStation was told.
func (t *Table) Unambiguous() bool { return len(t.stations) == len(t.flood) }

// SetStation says which MAC is this node's own.
func (t *Table) SetStation(mac [6]byte) { t.mac = mac }

// peer returns the hop of the peer at an outer address, nil if there is none.
func (t *Table) peer(from netip.Addr) *packet.Hop {
	if !from.IsValid() {
		return nil
	}
	h, _ := t.peers.Lookup(from)
	return h
}

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
func (t *Table) Len() int { return t.prefixes.Size() }

// trie finds the longest prefix. One that is a clone, or has one, is edited by copying the few nodes on the way to the prefix.
type trie struct {
	*bart.Fast[*packet.Hop]
	shared bool
}

func newTrie() trie { return trie{Fast: new(bart.Fast[*packet.Hop])} }

func (t trie) clone() trie { return trie{t.Fast, true} }

func (t *trie) insert(p netip.Prefix, h *packet.Hop) {
	if t.shared {
		t.Fast = t.InsertPersist(p, h)
	} else {
		t.Fast.Insert(p, h)
	}
}

func (t *trie) remove(p netip.Prefix) {
	if t.shared {
		t.Fast = t.DeletePersist(p)
	} else {
		t.Fast.Delete(p)
	}
}

// outerPrefix holds one outer address.
func outerPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}
