package xdp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/sock"
	"weft/internal/steer"
	"weft/packet"
)

// kernelPath is a UDP socket per address of ours, bound to the tunnel's endpoint. It carries what the ring cannot:
// packets to neighbours not resolved yet, which the kernel holds and sends once they are; destinations behind another
// device; and inwards what the XDP program leaves to the kernel, such as fragments, which arrive here reassembled.
// It also keeps others from binding the endpoint, and the kernel from answering "port unreachable" for it.
type kernelPath struct {
	sockets [2]*sock.Socket // v4, v6; nil = none
	fds     [2]int          // theirs; -1 = none
	port    uint16
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
	for _, a := range local {
		s, err := sock.Listen(netip.AddrPortFrom(a, port), false)
		if err != nil {
			return nil, errors.Join(err, k.close())
		}
		slot := 0
		if a.Is6() {
			slot = 1
		}
		s.Sending()
		k.sockets[slot], k.fds[slot] = s, s.FD()
	}
	return k, nil
}

// steer shares the endpoints with sockets for what is not for lanes, one per address.
func (k *kernelPath) steer(rule steer.Rule) (handshakes []*sock.Conn, err error) {
	for _, s := range k.sockets {
		if s == nil {
			continue
		}
		// Only now: until here a second socket on the endpoint was somebody else's, and an error.
		if err := s.Share(); err != nil {
			return handshakes, err
		}
		c, err := rule.Handshakes(s.Bound(), 1)
		if err != nil {
			return handshakes, err
		}
		handshakes = append(handshakes, c)
	}
	return handshakes, nil
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
	for i, s := range k.sockets {
		if s != nil {
			errs = append(errs, s.Close())
			k.sockets[i], k.fds[i] = nil, -1
		}
	}
	return errors.Join(errs...)
}
