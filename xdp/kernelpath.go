package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/steer"
	"weft/packet"
)

// kernelPath is a UDP socket per address of ours, bound to the tunnel's endpoint. It carries what the ring cannot:
// packets to neighbours not resolved yet, which the kernel holds and sends once they are; destinations behind another
// device; and inwards what the XDP program leaves to the kernel, such as fragments, which arrive here reassembled.
// It also keeps others from binding the endpoint, and the kernel from answering "port unreachable" for it.
type kernelPath struct {
	fds  [2]int // v4, v6; -1 = none
	port uint16
}

// rawAddr is a socket address as the kernel reads it.
type rawAddr struct {
	bytes [unix.SizeofSockaddrInet6]byte
	size  uintptr
}

func newRawAddr(a netip.AddrPort) (r rawAddr) {
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(r.bytes[0:], unix.AF_INET)
		binary.BigEndian.PutUint16(r.bytes[2:], a.Port())
		ip := a.Addr().As4()
		copy(r.bytes[4:], ip[:])
		r.size = unix.SizeofSockaddrInet4
		return r
	}
	binary.NativeEndian.PutUint16(r.bytes[0:], unix.AF_INET6)
	binary.BigEndian.PutUint16(r.bytes[2:], a.Port())
	ip := a.Addr().As16()
	copy(r.bytes[8:], ip[:])
	r.size = unix.SizeofSockaddrInet6
	return r
}

func (r *rawAddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(r.bytes[2:])
	if binary.NativeEndian.Uint16(r.bytes[0:]) == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(r.bytes[4:])), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(r.bytes[8:])), port)
}

func openKernelPath(local []netip.Addr, port uint16) (k *kernelPath, err error) {
	k = &kernelPath{fds: [2]int{-1, -1}, port: port}
	defer func() {
		if err != nil {
			k.close()
			k = nil
		}
	}()
	for _, a := range local {
		family, slot := unix.AF_INET, 0
		if a.Is6() {
			family, slot = unix.AF_INET6, 1
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return k, fmt.Errorf("UDP socket: %w", err)
		}
		k.fds[slot] = fd
		if a.Is4() {
			// As in the templates: routers may fragment.
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		} else {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		}
		if err != nil {
			return k, fmt.Errorf("UDP socket options: %w", err)
		}
		endpoint := netip.AddrPortFrom(a, port)
		raw := newRawAddr(endpoint)
		_, _, errno := unix.Syscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&raw.bytes)), raw.size)
		switch {
		case errno == unix.EADDRINUSE:
			return k, fmt.Errorf("bind %s: %w: a kernel vxlan device or another program has this port "+
				"(`ss -lunp`, `ip -d link show type vxlan`): remove it or set network.port", endpoint, errno)
		case errno == unix.EADDRNOTAVAIL:
			return k, fmt.Errorf("bind %s: %w: the node's endpoint must be an address of this host", endpoint, errno)
		case errno != 0:
			return k, fmt.Errorf("bind %s: %w", endpoint, errno)
		}
	}
	return k, nil
}

// steer shares the endpoints with sockets for what is not for lanes, one per address.
func (k *kernelPath) steer(rule steer.Rule, local []netip.Addr, port uint16) (aside []*steer.Socket, err error) {
	for _, a := range local {
		slot := 0
		if a.Is6() {
			slot = 1
		}
		// Only now: until here a second socket on the endpoint was somebody else's, and an error.
		err := unix.SetsockoptInt(k.fds[slot], unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		if err != nil {
			return aside, fmt.Errorf("set SO_REUSEPORT: %w", err)
		}
		c, err := rule.Aside(netip.AddrPortFrom(a, port), 1)
		if err != nil {
			return aside, err
		}
		aside = append(aside, c)
	}
	return aside, nil
}

// send hands a tunnel packet to the kernel's stack, and says why it died if it did.
func (k *kernelPath) send(p *packet.Packet, to *rawAddr) packet.Drop {
	fd := k.fds[0]
	if to.size == unix.SizeofSockaddrInet6 {
		fd = k.fds[1]
	}
	if fd < 0 {
		return packet.NoEndpoint
	}
	data := p.Bytes()
	for {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)),
			unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(&to.bytes)), to.size)
		switch errno {
		case 0:
			return packet.Alive
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
			return packet.QueueFull
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN:
			return packet.Unresolved
		case unix.EMSGSIZE:
			return packet.TooBig
		}
		return packet.Refused
	}
}

// recv fills slots with datagrams that are there, and returns how many.
func (k *kernelPath) recv(slots []packet.Packet) (n int) {
	for _, fd := range k.fds {
		for fd >= 0 && n < len(slots) {
			if !recvfrom(fd, &slots[n]) {
				break
			}
			n++
		}
	}
	return n
}

func recvfrom(fd int, p *packet.Packet) bool {
	room := p.Reset()
	for {
		var from rawAddr
		size := uint32(len(from.bytes))
		// MSG_TRUNC: the datagram's own length is returned, also if it is larger than the room.
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(room))), uintptr(len(room)),
			unix.MSG_DONTWAIT|unix.MSG_TRUNC, uintptr(unsafe.Pointer(&from.bytes)), uintptr(unsafe.Pointer(&size)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return false
		}
		p.Resize(min(int(n), len(room)))
		p.From = from.addrPort()
		if int(n) > len(room) {
			p.Drop = packet.Truncated
		}
		return true
	}
}

func (k *kernelPath) close() error {
	var errs []error
	for i, fd := range k.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
			k.fds[i] = -1
		}
	}
	return errors.Join(errs...)
}
