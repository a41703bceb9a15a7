package xdp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"weft/internal/sock"
	"weft/packet"
)

// sourcePorts is how many there are for a family to carry the entropy of the inner flow: RFC 7348 §5.
const sourcePorts = 64

// errorBuffer has room for some errors, bytes. What does not fit, the kernel drops, and leaves an error without an address.
const errorBuffer = 16 << 10

// sources are the ports that outer headers name as theirs, each with a socket of our own. Nothing is sent or received there. But a
// router's word that a packet was too big is the kernel's affair, and it takes it only for a port that somebody has: then it knows
// the path's MTU for ten minutes, as it does for sockets (RFC 1191 §6.3, RFC 8201 §5.2), and says so to the resolver.
type sources struct {
	ports   [2][sourcePorts]uint16 // IPv4, IPv6
	sockets []*sock.Socket
}

// openSources binds the ports in the calling thread's network namespace.
func openSources(local []netip.Addr) (s *sources, err error) {
	s = &sources{}
	for _, a := range local {
		family, level, option := 0, unix.IPPROTO_IP, unix.IP_RECVERR
		if a.Is6() {
			family, level, option = 1, unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		for i := range s.ports[family] {
			c, err := sock.Source(a)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("xdp: %w", err), s.close())
			}
			s.sockets = append(s.sockets, c)
			if err := errors.Join(c.Set(level, option, 1, "IP_RECVERR"), c.Set(unix.SOL_SOCKET, unix.SO_RCVBUF, errorBuffer, "SO_RCVBUF")); err != nil {
				return nil, errors.Join(fmt.Errorf("xdp: %w", err), s.close())
			}
			s.ports[family][i] = c.Bound().Port()
		}
	}
	return s, nil
}

func (s *sources) close() (err error) {
	for _, c := range s.sockets {
		err = errors.Join(err, c.Close())
	}
	return err
}

// of is the port for a flow.
func (s *sources) of(v6 bool, flow uint32) uint16 {
	ports := &s.ports[0]
	if v6 {
		ports = &s.ports[1]
	}
	return ports[(flow^flow>>16)%sourcePorts]
}

// pollFds are the sockets for poll(2), which reports errors unasked.
func (s *sources) pollFds() (fds []unix.PollFd) {
	for _, c := range s.sockets {
		fds = append(fds, unix.PollFd{Fd: int32(c.FD())})
	}
	return fds
}

// refused takes in what a socket has heard of packets that did not arrive, errors of ICMP with the packet's destination in the place of
// an address (IP_RECVERR, ip(7)), and adds these to the list. lost says that there was an error about whose destination nothing is known.
func refused(fd int, to map[netip.Addr]bool) (lost bool) {
	var data [packet.UDPHeader]byte
	var control [512]byte
	for range sourcePorts { // more come with the next poll
		_, _, _, dst, err := unix.Recvmsg(fd, data[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			pending, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // what is still there was not in the queue
			return err == nil && pending != 0
		}
		switch a := dst.(type) {
		case *unix.SockaddrInet4:
			to[netip.AddrFrom4(a.Addr)] = true
		case *unix.SockaddrInet6:
			to[netip.AddrFrom16(a.Addr)] = true
		}
	}
	return false
}
