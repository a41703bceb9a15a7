package dataplane

import (
	"net/netip"
	"sync/atomic"

	"weft/packet"
)

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
				lastFrom, lastPeer = from, t.peer(from)
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
