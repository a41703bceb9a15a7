package dataplane

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"weft/packet"
)

// everyone is the hop of a frame that all peers must get. A lane that has LaneConfig.Flood makes the copies.
var everyone = packet.Hop{Peer: packet.Peer{ID: packet.Self - 1}} // immutable

// Bridge is the stage that finds a frame's peer by destination MAC, in place of Route where the inside port has Ethernet
// frames. It learns from frames in behind which peer a station is; a group address, broadcast and a station not heard of
// for ten minutes go to everyone. What came from a peer goes inside and never to another peer (split horizon), so that
// peers who all know each other need no spanning tree; its frames die here.
//
// It checks what Route checks, frame by frame: the outer source must be a peer, a node's own MAC must come from that node,
// and where a frame carries IP or ARP, behind VLAN tags too, its source must belong to that peer and its destination to us.
// A frame that fails teaches nothing.
type Bridge struct {
	table atomic.Pointer[Table]
	fdb   fdb
}

// NewBridge makes the stage with an empty table, knowing no station.
func NewBridge() *Bridge {
	s := &Bridge{}
	s.table.Store(NewTable())
	return s
}

// Publish swaps the table; lanes see the new one from their next batch on. Stations stay known.
func (s *Bridge) Publish(t *Table) { s.table.Store(t) }

// Peers are the hops that a flooded frame goes to.
func (s *Bridge) Peers() []*packet.Hop { return s.table.Load().flood }

func (*Bridge) Name() string              { return "bridge" }
func (*Bridge) Overhead() packet.Overhead { return packet.Overhead{} }

// Out sets Hop (everyone, to flood) and Flow, or drops: too-short, reserved-mac, too-big.
func (s *Bridge) Out(b *packet.Batch) {
	t, now := s.table.Load(), now()
	var least *packet.Hop // looked for once a batch, and only where a frame is for everyone
	live := b.Packets()
	for i := range live {
		p := &live[i]
		frame, drop := packet.ParseEthernet(p.Bytes())
		if drop != packet.Alive {
			p.Drop = drop
			continue
		}
		dst := frame.Dst()
		if isReserved(dst) {
			p.Drop = packet.ReservedMAC
			continue
		}
		if src := frame.Src(); src != t.mac && !isGroup(src) {
			s.fdb.forget(src)
		}
		p.Hop = &everyone
		if !isGroup(dst) {
			if peer, known := s.fdb.lookup(dst, now); known {
				if h := t.hop(peer); h != nil {
					p.Hop = h
				}
			}
		}
		narrow := p.Hop
		if narrow == &everyone { // what is for everyone must fit everyone
			if least == nil {
				least = t.least()
			}
			narrow = least
		}
		if narrow != nil && len(frame.Payload()) > narrow.Path.MTU() {
			p.Hop, p.Drop = narrow, packet.TooBig // the hop says which MTU to answer with
			continue
		}
		p.Flow = packet.FlowHash(frame.Payload())
	}
}

// In sets Hop to the sender and learns where the source station is, or drops: too-short, unknown-peer, bad-header,
// wrong-source, reserved-mac, not-ours.
func (s *Bridge) In(b *packet.Batch) {
	t, now := s.table.Load(), now()
	live := b.Packets()
	for i := range live {
		p := &live[i]
		frame, drop := packet.ParseEthernet(p.Bytes())
		if drop != packet.Alive {
			p.Drop = drop
			continue
		}
		if p.Hop == nil { // else a seal has proved it
			if p.Hop = t.peer(p.From.Addr()); p.Hop == nil {
				p.Drop = packet.UnknownPeer
				continue
			}
		}
		if p.RCO && !p.Hop.Peer.RCO {
			p.Drop = packet.BadHeader // never announced by this peer: not its to use
			continue
		}
		if p.Drop = t.judge(frame, p.Hop.Peer.ID); p.Drop == packet.Alive {
			s.fdb.learn(frame.Src(), p.Hop.Peer.ID, now)
		}
	}
}

// judge says whether a peer may send us a frame.
func (t *Table) judge(frame packet.EthernetView, peer uint32) packet.Drop {
	src := frame.Src()
	switch owner := t.stations[src]; {
	case isGroup(src) || src == [6]byte{}:
		return packet.BadHeader // IEEE 802.3 §3.2.3: a source is one station
	case src == t.mac, owner != nil && owner.Peer.ID != peer:
		return packet.WrongSource
	case isReserved(frame.Dst()):
		return packet.ReservedMAC
	}
	etherType, payload := frame.Type(), frame.Payload()
	// A tag hides nothing: Linux takes VLAN 0 for no tag (IEEE 802.1Q §6.9.1), and others may be asked for by the inside.
	for etherType == etherTypeVLAN || etherType == etherTypeQinQ {
		if len(payload) < 4 {
			return packet.TooShort
		}
		etherType, payload = binary.BigEndian.Uint16(payload[2:]), payload[4:]
	}
	switch etherType {
	case packet.EtherTypeIPv4, packet.EtherTypeIPv6:
		return t.judgeIP(payload, peer)
	case packet.EtherTypeARP:
		return t.judgeARP(payload, peer)
	}
	return packet.Alive
}

// EtherTypes of VLAN tags (IEEE 802.1Q): customer and service.
const (
	etherTypeVLAN = 0x8100
	etherTypeQinQ = 0x88a8
)

// judgeIP checks both addresses of an IP packet. IPv6 link-local ones are each neighbour's own affair (no router forwards them,
// RFC 4291 §2.5.6), but no neighbour may advertise another's address as its own.
func (t *Table) judgeIP(ip []byte, peer uint32) packet.Drop {
	v, drop := packet.ParseIP(ip)
	if drop != packet.Alive {
		return drop
	}
	src, dst := v.Src(), v.Dst()
	onLink := src.Is6() && (src.IsLinkLocalUnicast() || src.IsUnspecified())
	if !onLink && !t.owns(peer, src) {
		return packet.WrongSource
	}
	if target, is := advertised(v); is && !target.IsLinkLocalUnicast() && !t.owns(peer, target) {
		return packet.WrongSource
	}
	if dst.IsMulticast() || dst.IsLinkLocalUnicast() || dst == broadcast4 || t.owns(packet.Self, dst) {
		return packet.Alive
	}
	return packet.NotOurs
}

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// advertised returns the address that a neighbour advertisement speaks for (RFC 4861 §4.4):
//
//	0 | Type = 136 | Code | Checksum |  4 | R S O, reserved |  8 | Target address, 16 bytes |
func advertised(v packet.IPView) (target netip.Addr, is bool) {
	const icmpv6, advertisement = 58, 136
	at, ok := v.Transport()
	if v.Version() != 6 || v.Protocol() != icmpv6 || !ok {
		return target, false
	}
	b := v.Bytes()[at:]
	if len(b) < 24 || b[0] != advertisement {
		return target, false
	}
	return netip.AddrFrom16([16]byte(b[8:])), true
}

// judgeARP checks the sender's address of an ARP packet for IPv4 over Ethernet (RFC 826); 0.0.0.0 asks whether anybody has
// an address (RFC 5227 §2.1.1) and claims none.
//
//	0 | hardware = 1 | protocol = 0x0800 |  4 | 6 | 4 | operation |
//	8 | sender MAC, 6 | sender IP, 4 | target MAC, 6 | target IP, 4 |
func (t *Table) judgeARP(b []byte, peer uint32) packet.Drop {
	if len(b) < 28 {
		return packet.TooShort
	}
	if binary.BigEndian.Uint64(b)>>16 != 0x0001_0800_0604 {
		return packet.BadHeader
	}
	if sender := netip.AddrFrom4([4]byte(b[14:])); !sender.IsUnspecified() && !t.owns(peer, sender) {
		return packet.WrongSource
	}
	return packet.Alive
}

// owns says whether an inner address belongs to a peer, or with packet.Self to us.
func (t *Table) owns(peer uint32, a netip.Addr) bool {
	h, ok := t.prefixes.Lookup(a)
	return ok && h.Peer.ID == peer
}

// isGroup says whether a MAC names many stations: multicast and broadcast.
func isGroup(mac [6]byte) bool { return mac[0]&1 != 0 }

// isReserved says whether a MAC is one of 01:80:C2:00:00:00 to 0F, which no bridge forwards (IEEE 802.1D §7.12.6): spanning
// tree, LACP, LLDP and other talk between neighbouring devices.
func isReserved(mac [6]byte) bool {
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && mac[3] == 0 && mac[4] == 0 && mac[5]&0xf0 == 0
}
