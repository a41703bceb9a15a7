package underlay

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// sender is the sending half of a queue: its sockets and the memory of sendmmsg.
type sender struct {
	gate  *wait.Gate
	fds   [2][]int // by family (IPv4, IPv6): the sockets, one source port each
	width int      // messages a system call

	via   [packet.BatchSize]uint8 // which socket packet i leaves by: family*maxSendSockets + socket
	index [packet.BatchSize]uint8 // which packet message i is
	msgs  [packet.BatchSize]mmsghdr
	iovs  [packet.BatchSize]unix.Iovec
	names [packet.BatchSize]name
}

func newSender(batch bool) *sender {
	s := &sender{width: 1}
	if batch {
		s.width = packet.BatchSize
	}
	for i := range s.msgs {
		m := &s.msgs[i]
		m.Iov = &s.iovs[i]
		m.SetIovlen(1)
	}
	return s
}

func (s *sender) add(fd int, v6 bool) {
	family := 0
	if v6 {
		family = 1
	}
	s.fds[family] = append(s.fds[family], fd)
}

// batch is Send.
func (s *sender) batch(b *packet.Batch) error {
	if err := s.gate.Enter(); err != nil {
		return err
	}
	defer s.gate.Leave()
	for packets := b.Packets(); len(packets) > 0; {
		n := min(len(packets), packet.BatchSize)
		if err := s.some(packets[:n]); err != nil {
			return err
		}
		packets = packets[n:]
	}
	return nil
}

// some sends at most packet.BatchSize packets: socket by socket, and in order through each, so that
// a flow keeps its order and a batch costs as many system calls as it has source ports.
func (s *sender) some(packets []packet.Packet) error {
	var used uint32 // set of sockets that have packets; bit = via
	for i := range packets {
		p := &packets[i]
		s.via[i] = noSocket
		if p.Drop != packet.Alive {
			continue
		}
		via, ok := s.pick(p)
		if !ok {
			p.Drop = packet.NoEndpoint
			continue
		}
		s.via[i] = via
		used |= 1 << via
	}
	for via := uint8(0); used != 0; via, used = via+1, used>>1 {
		if used&1 == 0 {
			continue
		}
		n := s.gather(packets, via)
		if err := s.through(s.fds[via/maxSendSockets][via%maxSendSockets], n, packets); err != nil {
			return err
		}
	}
	return nil
}

// noSocket stands in via for a packet that is not sent.
const noSocket = 2 * maxSendSockets

// pick chooses the socket of a packet: by its hop's family, then by its flow.
func (s *sender) pick(p *packet.Packet) (via uint8, ok bool) {
	if p.Hop == nil {
		return 0, false
	}
	addr := p.Hop.Addr.Addr()
	if !addr.IsValid() {
		return 0, false
	}
	family := uint8(0)
	if addr.Is6() && !addr.Is4In6() {
		family = 1
	}
	n := uint32(len(s.fds[family]))
	if n == 0 {
		return 0, false
	}
	return family*maxSendSockets + uint8(p.Flow%n), true
}

// gather makes messages of the packets that leave by via and returns their number.
func (s *sender) gather(packets []packet.Packet, via uint8) (n int) {
	var hop *packet.Hop
	var to *name
	var toLen uint32
	for i := range packets {
		if s.via[i] != via {
			continue
		}
		p := &packets[i]
		if p.Hop != hop { // neighbours mostly go to one peer
			hop, to = p.Hop, &s.names[n]
			toLen = setName(to, hop.Addr)
		}
		s.msgs[n].Name, s.msgs[n].Namelen = (*byte)(unsafe.Pointer(to)), toLen
		s.iovs[n].Base = unsafe.SliceData(p.Bytes())
		s.iovs[n].SetLen(p.Len())
		s.index[n] = uint8(i)
		n++
	}
	return n
}

// through sends the first n messages by fd. A message that the kernel refuses is dropped by name and
// the next ones are sent; a full socket drops all that are left, since waiting for it would hold up
// every other packet of the lane.
func (s *sender) through(fd, n int, packets []packet.Packet) error {
	for i := 0; i < n; {
		sent, errno := sendmmsg(fd, s.msgs[i:min(n, i+s.width)])
		switch errno {
		case 0:
			i += sent
		case unix.EINTR:
		case unix.EAGAIN:
			for ; i < n; i++ {
				packets[s.index[i]].Drop = packet.QueueFull
			}
		case unix.EBADF, unix.ENOTSOCK:
			return fmt.Errorf("underlay: send: %w", errno)
		default:
			packets[s.index[i]].Drop = reason(errno)
			i++
		}
	}
	return nil
}

// reason names why the kernel did not take a message.
func reason(errno unix.Errno) packet.Drop {
	switch errno {
	case unix.EMSGSIZE:
		return packet.TooBig
	case unix.ENOBUFS, unix.ENOMEM:
		return packet.QueueFull
	}
	return packet.Refused
}
