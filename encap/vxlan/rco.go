package vxlan

import (
	"golang.org/x/net/bpf"

	"weft/packet"
)

// Remote checksum offload (draft-herbert-vxlan-rco, Linux drivers/net/vxlan): the sender leaves the
// inner transport checksum unfinished, its field holding the pseudo-header sum, and says where it
// is; the outer UDP checksum protects the packet on the way. Per header:
//
//	0 |       0x08200000: the VNI flag, and 0x00200000 for RCO         |
//	4 |                  VNI                    |U|    start / 2       |
//
// start is where summing begins, counted from the inner Ethernet header: even, at most 254. U says
// that the field is UDP's, 6 bytes further; otherwise it is TCP's, 16 bytes further.
const (
	flagRCO     = 0x00200000
	rcoUDP      = 0x80
	maxRCOStart = 254

	wordRCO = flagRCO << 32

	tcpField, udpField = 16, 6
)

// rcoBits returns what the header must say so that the peer finishes p's checksum; 0 if p has none
// to finish, or none that the header can express.
func rcoBits(p *packet.Packet) uint64 {
	start, offset, ok := p.Partial()
	start += packet.EthernetHeader
	if !ok || start < 0 || start > maxRCOStart || start%2 != 0 {
		return 0
	}
	switch offset {
	case tcpField:
		return wordRCO | uint64(start/2)
	case udpField:
		return wordRCO | rcoUDP | uint64(start/2)
	}
	return 0
}

// takePartial marks an unfinished checksum for the inside port. A header that claims one which the
// packet does not have, there and with the pseudo-header sum in the field, is a lie: finishing it
// would turn a wrong checksum into a right one.
func takePartial(p *packet.Packet, v packet.IPView, header uint64) packet.Drop {
	start, offset, unfinished := v.UnfinishedChecksum()
	if unfinished {
		p.SetPartial(start, offset)
	}
	if header&wordRCO == 0 {
		return packet.Alive
	}
	if !unfinished || rcoBits(p)&0xff != header&0xff {
		return packet.BadHeader
	}
	p.RCO = true
	return packet.Alive
}

// FilterRCO is a socket filter for the tunnel's UDP sockets. It refuses remote checksum offload in a
// datagram without an outer checksum: nothing would have protected the packet on its way. The kernel
// shows a filter the datagram from its UDP header on.
func FilterRCO() ([]bpf.RawInstruction, error) {
	const udpChecksum, flags, rcoInFlags, all = 6, packet.UDPHeader + 1, flagRCO >> 16, 1 << 18
	return bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: udpChecksum, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 2},
		bpf.LoadAbsolute{Off: flags, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: rcoInFlags, SkipTrue: 1},
		bpf.RetConstant{Val: all},
		bpf.RetConstant{Val: 0},
	})
}
