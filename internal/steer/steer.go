// Package steer decides in the kernel which socket of a UDP port gets a datagram: packets of a lane
// always the same lane here, and everything that is not for lanes a socket outside of them.
//
// The sockets share the port by SO_REUSEPORT; a classic BPF program (SO_ATTACH_REUSEPORT_CBPF,
// socket(7)) returns the number of the one to deliver to, in the order in which they were bound.
package steer

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"

	"weft/internal/sock"
	"weft/packet"
)

// Rule says which datagrams are for lanes.
type Rule struct {
	Type byte   // their first byte
	Lane uint32 // offset of the byte that holds the sender's lane
}

// Program returns lane modulo lanes for lanes' datagrams, and lanes for others. What is too short to
// say ends the program, as BPF has it, with 0.
//
//	0  A = datagram[0]
//	1  A == Type ? go on : to 5
//	2  A = datagram[Lane]
//	3  A %= lanes
//	4  return A
//	5  return lanes
func (r Rule) Program(lanes uint32) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(r.Type), SkipFalse: 3},
		bpf.LoadAbsolute{Off: r.Lane, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: lanes},
		bpf.RetA{},
		bpf.RetConstant{Val: lanes},
	}
}

// Handshakes binds the socket for what is not for lanes, and steers. The lanes' sockets must have been
// bound to the same address and port before, in the order of their queues, and nobody else's; all
// must be shared by now.
func (r Rule) Handshakes(at netip.AddrPort, lanes int) (*sock.Conn, error) {
	code, err := bpf.Assemble(r.Program(uint32(lanes)))
	if err != nil {
		return nil, fmt.Errorf("steer: assemble: %w", err)
	}
	s, err := sock.Listen(at, true)
	if err != nil {
		return nil, fmt.Errorf("steer: %w", err)
	}
	if err := s.Steer(code); err != nil {
		return nil, errors.Join(fmt.Errorf("steer: %w", err), s.Close())
	}
	c, err := s.Conn()
	if err != nil {
		return nil, fmt.Errorf("steer: %w", err)
	}
	return c, nil
}

// Conns are sockets as packet.Handshakes has them.
func Conns(sockets []*sock.Conn) []packet.Conn {
	list := make([]packet.Conn, len(sockets))
	for i, s := range sockets {
		list[i] = s
	}
	return list
}

// AddOverflow adds to a port's drops what died at its sockets, where there are any.
func AddOverflow(drops map[string]uint64, sockets []*sock.Conn) {
	for _, s := range sockets {
		drops["handshake-overflow"] += s.Overflow()
	}
}
