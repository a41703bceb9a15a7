// Package vxlan is the stage that carries packets as VXLAN (RFC 7348), the payload of an underlay
// UDP datagram. docs/wire.md draws what it writes and accepts.
package vxlan

import (
	"encoding/binary"

	"weft/packet"
)

// The VXLAN header (RFC 7348 §5), 32 bits a row:
//
//	0 |R|R|R|R|I|R|R|R|            Reserved, 24 bits              |
//	4 |       VXLAN Network Identifier, 24 bits       | Reserved  |
//
// I says that the VNI is valid. The R bits and the reserved fields are written as zero and ignored
// on receipt, but for remote checksum offload between peers that announced it (rco.go).
const (
	flagVNI = 0x08000000 // in the first word

	// The header as one big-endian word of 64 bits.
	wordVNI = flagVNI << 32
	vniBits = 0xffffff
)

// Config is what a VXLAN stage is made from.
type Config struct {
	VNI   uint32       // our network, 24 bits: the only one In accepts
	MAC   [6]byte      // our VTEP MAC, for Inner == packet.IP
	Inner packet.Layer // what the inside port's packets start with: packet.IP or packet.Ethernet

	// MTU is the largest inner IP packet the inside port takes, in bytes; 0 = any. An unfinished
	// checksum of a larger packet is not finished but marked, for a port that cuts such packets.
	MTU int

	// RCO says that the inside port takes packets whose transport checksum is unfinished, so that
	// nobody has to sum them in software: remote checksum offload is sent to peers that announced
	// it, accepted, and sums that a far kernel left unfinished are passed on as they are. For
	// Inner == packet.IP.
	RCO bool
}

// New returns the stage. With Inner == packet.IP it writes and strips the inner Ethernet header;
// with packet.Ethernet the frames come and go whole.
//
// Out needs the packet's Hop, for its VNI and MAC. In drops:
//
//	TooShort   less than the headers, or than the inner IP packet says it is
//	BadHeader  no VNI flag; an inner IP header that contradicts itself or the EtherType
//	WrongVNI   another network's
//	NotIP      (IP) an inner frame that carries neither IPv4 nor IPv6
//	WrongMAC   (IP) an inner frame for another station, or for a group
func New(cfg Config) packet.Stage {
	if cfg.Inner == packet.Ethernet {
		return &frames{cfg}
	}
	return &packets{cfg}
}

// packets is the stage for inside ports that have IP packets.
type packets struct{ cfg Config }

func (*packets) Name() string { return "vxlan" }
func (*packets) Overhead() packet.Overhead {
	return packet.Overhead{Front: packet.VXLANHeader + packet.EthernetHeader}
}

func (s *packets) Out(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		p := &live[i]
		if p.Drop != packet.Alive {
			continue
		}
		etherType := etherTypeOf(p.Bytes())
		if etherType == 0 {
			p.Drop = packet.NotIP
			continue
		}
		var rco uint64
		if s.cfg.RCO && p.Hop.Peer.RCO {
			rco = rcoBits(p)
		}
		if rco == 0 {
			if packet.FinishPartial(p, 0); p.Drop != packet.Alive {
				continue
			}
		}
		h := p.Prepend(packet.VXLANHeader + packet.EthernetHeader)
		putHeader(h, p.Hop.Peer.VNI, rco)
		packet.PutEthernet(h[packet.VXLANHeader:], p.Hop.Peer.MAC, s.cfg.MAC, etherType)
	}
}

func (s *packets) In(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		if p := &live[i]; p.Drop == packet.Alive {
			p.Drop = s.in(p)
		}
	}
}

func (s *packets) in(p *packet.Packet) packet.Drop {
	b := p.Bytes()
	if drop := checkHeader(b, s.cfg.VNI); drop != packet.Alive {
		return drop
	}
	header := binary.BigEndian.Uint64(b)
	frame, drop := packet.ParseEthernet(b[packet.VXLANHeader:])
	if drop != packet.Alive {
		return drop
	}
	// The EtherType first: ARP for everybody is no station's mistake.
	etherType := frame.Type()
	if etherType != packet.EtherTypeIPv4 && etherType != packet.EtherTypeIPv6 {
		return packet.NotIP
	}
	if frame.Dst() != s.cfg.MAC {
		return packet.WrongMAC
	}
	v, drop := parseInner(frame)
	if drop != packet.Alive {
		return drop
	}
	p.Strip(packet.VXLANHeader + packet.EthernetHeader)
	p.Resize(v.Len()) // Ethernet may have padded
	if s.cfg.RCO {
		return takePartial(p, v, header)
	}
	settleChecksum(p, v, 0, s.cfg.MTU)
	return packet.Alive
}

// frames is the stage for inside ports that have Ethernet frames.
type frames struct{ cfg Config }

func (*frames) Name() string              { return "vxlan" }
func (*frames) Overhead() packet.Overhead { return packet.Overhead{Front: packet.VXLANHeader} }

func (*frames) Out(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		p := &live[i]
		if p.Drop != packet.Alive {
			continue
		}
		packet.FinishPartial(p, packet.EthernetHeader)
		if p.Drop != packet.Alive {
			continue
		}
		putHeader(p.Prepend(packet.VXLANHeader), p.Hop.Peer.VNI, 0)
	}
}

func (s *frames) In(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		if p := &live[i]; p.Drop == packet.Alive {
			p.Drop = s.in(p)
		}
	}
}

func (s *frames) in(p *packet.Packet) packet.Drop {
	b := p.Bytes()
	if drop := checkHeader(b, s.cfg.VNI); drop != packet.Alive {
		return drop
	}
	frame, drop := packet.ParseEthernet(b[packet.VXLANHeader:])
	if drop != packet.Alive {
		return drop
	}
	p.Strip(packet.VXLANHeader)
	// A frame is carried whatever is in it; only a whole IP packet can have a checksum to finish.
	if v, drop := parseInner(frame); drop == packet.Alive {
		settleChecksum(p, v, packet.EthernetHeader, s.cfg.MTU)
	}
	return packet.Alive
}

// putHeader writes the VXLAN header; rco is 0 or rcoBits'.
func putHeader(h []byte, vni uint32, rco uint64) {
	binary.BigEndian.PutUint64(h, wordVNI|uint64(vni&vniBits)<<8|rco)
}

// checkHeader judges the VXLAN header.
func checkHeader(b []byte, vni uint32) packet.Drop {
	if len(b) < packet.VXLANHeader {
		return packet.TooShort
	}
	h := binary.BigEndian.Uint64(b)
	if h&wordVNI == 0 {
		return packet.BadHeader
	}
	if uint32(h>>8)&vniBits != vni {
		return packet.WrongVNI
	}
	return packet.Alive
}

// etherTypeOf returns the EtherType of an IP packet by its version, 0 if it is none.
func etherTypeOf(ip []byte) uint16 {
	if len(ip) == 0 {
		return 0
	}
	switch ip[0] >> 4 {
	case 4:
		return packet.EtherTypeIPv4
	case 6:
		return packet.EtherTypeIPv6
	}
	return 0
}

// parseInner parses the IP packet in a frame: NotIP by the EtherType, BadHeader if the IP version
// is another one.
func parseInner(frame packet.EthernetView) (packet.IPView, packet.Drop) {
	etherType := frame.Type()
	if etherType != packet.EtherTypeIPv4 && etherType != packet.EtherTypeIPv6 {
		return packet.IPView{}, packet.NotIP
	}
	b := frame.Payload()
	if len(b) == 0 {
		return packet.IPView{}, packet.TooShort
	}
	if etherTypeOf(b) != etherType {
		return packet.IPView{}, packet.BadHeader
	}
	return packet.ParseIP(b)
}

// settleChecksum deals with a transport checksum that the sender left to a device which never
// finished it: the field holds the pseudo-header sum alone. v is the IP packet that starts front
// bytes into p. A packet above the MTU is a super-frame that the inside port has to cut, and whose
// checksums it has to make; the rest is finished here.
func settleChecksum(p *packet.Packet, v packet.IPView, front, mtu int) {
	start, offset, unfinished := v.UnfinishedChecksum()
	if !unfinished {
		return
	}
	if mtu > 0 && v.Len() > mtu {
		p.SetPartial(front+start, offset)
		return
	}
	packet.FinishChecksum(v.Bytes(), start, offset)
	p.SetChecksum(packet.ChecksumComplete)
}
