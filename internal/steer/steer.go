// Package steer decides in the kernel which socket of a UDP port gets a datagram: packets of a lane
// always the same lane here, and everything that is not for lanes a socket outside of them.
//
// The sockets share the port by SO_REUSEPORT; a classic BPF program (SO_ATTACH_REUSEPORT_CBPF,
// socket(7)) returns the number of the one to deliver to, in the order in which they were bound.
package steer

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
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

// Aside binds the socket for what is not for lanes, and steers. The lanes' sockets must have been
// bound to the same address and port before, in the order of their queues, and nobody else's; all
// must have SO_REUSEPORT set by now.
func (r Rule) Aside(at netip.AddrPort, lanes int) (*Socket, error) {
	family, level, discover, do := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if at.Addr().Is6() {
		family, level, discover, do = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("steer: open a UDP socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close() // conn has a descriptor of its own
	if at.Addr().Is6() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return nil, fmt.Errorf("steer: set IPV6_V6ONLY: %w", err)
		}
	}
	if err := unix.SetsockoptInt(fd, level, discover, do); err != nil {
		return nil, fmt.Errorf("steer: set IP_MTU_DISCOVER: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return nil, fmt.Errorf("steer: set SO_REUSEPORT: %w", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return nil, fmt.Errorf("steer: bind UDP %v: %w", at, err)
	}
	code, err := bpf.Assemble(r.Program(uint32(lanes)))
	if err != nil {
		return nil, fmt.Errorf("steer: assemble: %w", err)
	}
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &prog); err != nil {
		return nil, fmt.Errorf("steer: attach a program to UDP %v (SO_ATTACH_REUSEPORT_CBPF): %w: Linux 4.5 or newer is needed", at, err)
	}
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("steer: %w", err)
	}
	return &Socket{UDPConn: c.(*net.UDPConn)}, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
