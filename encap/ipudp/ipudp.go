// Package ipudp is the stage that carries IP packets as the payload of UDP datagrams, without any header between:
// what Flannel's udp backend has on the wire. docs/wire.md draws it.
package ipudp

import "weft/packet"

// New returns the stage. mtu is the largest inner IP packet the inside port takes, in bytes; 0 = any. An unfinished
// checksum of a larger packet is not finished but marked, for a port that cuts such packets.
//
// Out drops NotIP (neither IPv4 nor IPv6 by its first four bits), In besides TooShort (less than an IP header, or than
// the length in it) and BadHeader (an IP header that contradicts itself).
func New(mtu int) packet.Stage { return &stage{mtu} }

type stage struct{ mtu int }

func (*stage) Name() string              { return "ipudp" }
func (*stage) Overhead() packet.Overhead { return packet.Overhead{} }

func (*stage) Out(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		p := &live[i]
		switch {
		case p.Drop != packet.Alive:
		case !isIP(p.Bytes()):
			p.Drop = packet.NotIP
		default:
			packet.FinishPartial(p, 0)
		}
	}
}

func (s *stage) In(b *packet.Batch) {
	live := b.Packets()
	for i := range live {
		if p := &live[i]; p.Drop == packet.Alive {
			p.Drop = s.in(p)
		}
	}
}

func (s *stage) in(p *packet.Packet) packet.Drop {
	b := p.Bytes()
	if len(b) > 0 && !isIP(b) {
		return packet.NotIP
	}
	v, drop := packet.ParseIP(b)
	if drop != packet.Alive {
		return drop
	}
	p.Resize(v.Len()) // the datagram may be longer: nothing behind the packet is anybody's
	// A peer whose kernel left a checksum to a device that never finished it: the field holds the pseudo-header sum.
	start, offset, unfinished := v.UnfinishedChecksum()
	switch {
	case !unfinished:
	case s.mtu > 0 && v.Len() > s.mtu:
		p.SetPartial(start, offset)
	default:
		packet.FinishChecksum(v.Bytes(), start, offset)
		p.SetChecksum(packet.ChecksumComplete)
	}
	return packet.Alive
}

// isIP judges by the version, which is all that tells the two families apart on this wire.
func isIP(b []byte) bool { return len(b) > 0 && (b[0]>>4 == 4 || b[0]>>4 == 6) }
