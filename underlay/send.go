package underlay

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

const (
	// maxRun is how many datagrams one message may become: UDP_MAX_SEGMENTS before Linux 6.9, 128
	// since. 64 KB of an underlay of 1500 bytes are 45.
	maxRun = 64
	// maxRunBytes is the most payload of one message in both families: IPv6's headers count.
	maxRunBytes = 65535 - packet.IPv6Header - packet.UDPHeader

	// noSocket stands in sender.via for a packet that is not sent.
	noSocket = 2 * maxSendSockets
)

// sender is the sending half of a queue: its sockets and the memory of sendmmsg.
type sender struct {
	gate  *wait.Gate
	fds   [2][]int // by family (IPv4, IPv6): the sockets, one source port each
	ports [2][]uint16
	width int  // messages a system call
	gso   bool // join packets behind UDP_SEGMENT

	// refusal is the error after which gso went off, 0 = none. Read by others.
	refusal atomic.Uint32

	via   [packet.BatchSize]uint8      // which socket packet i leaves by: family*maxSendSockets + socket
	order [packet.BatchSize]uint8      // which packet iovec k is
	iovs  [packet.BatchSize]unix.Iovec // packets of one socket, in order
	runs  [packet.BatchSize]run        // which of them message i is
	msgs  [packet.BatchSize]mmsghdr

	names    [packet.BatchSize]name
	controls [packet.BatchSize]control
	alone    mmsghdr // for a packet of a run that was refused
}

// run is the packets of one message: count iovecs from first on, all but the last of equal size.
type run struct{ first, count uint8 }

func newSender(cfg Config) *sender {
	s := &sender{width: 1}
	if cfg.Batch {
		s.width = packet.BatchSize
	}
	return s
}

func (s *sender) add(fd int, port uint16, v6 bool) {
	family := 0
	if v6 {
		family = 1
	}
	s.fds[family] = append(s.fds[family], fd)
	s.ports[family] = append(s.ports[family], port)
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

// pick chooses the socket of a packet: by its hop's family, then by its flow.
func (s *sender) pick(p *packet.Packet) (via uint8, ok bool) {
	addr := p.Hop.Dst().Addr()
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
	size, total := 0, 0 // of the last message: its segments, and all of it
	k := uint8(0)
	for i := range packets {
		if s.via[i] != via {
			continue
		}
		p := &packets[i]
		setIov(&s.iovs[k], p.Bytes())
		s.order[k] = uint8(i)
		if last := n - 1; s.gso && p.Hop == hop && p.Len() <= size && p.Len() > 0 && total+p.Len() <= maxRunBytes &&
			s.runs[last].count < maxRun {
			s.runs[last].count++
			total += p.Len()
			if p.Len() < size { // the last of a run may be shorter
				hop = nil
			}
		} else {
			hop, size, total = p.Hop, p.Len(), p.Len()
			s.runs[n] = run{first: k, count: 1}
			n++
		}
		k++
	}
	hop = nil
	for i := range n {
		s.address(i, packets, &hop)
	}
	return n
}

// address completes message i, whose run is known. hop is that of the message before it.
func (s *sender) address(i int, packets []packet.Packet, hop **packet.Hop) {
	m, r := &s.msgs[i], s.runs[i]
	m.Iov = &s.iovs[r.first]
	m.SetIovlen(int(r.count))
	if h := packets[s.order[r.first]].Hop; h != *hop || i == 0 {
		*hop = h
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), setName(&s.names[i], h.Path.Dst)
	} else { // neighbours mostly go to one peer
		m.Name, m.Namelen = s.msgs[i-1].Name, s.msgs[i-1].Namelen
	}
	m.Control = nil
	m.SetControllen(0)
	if r.count > 1 {
		s.controls[i].setSegment(int(s.iovs[r.first].Len))
		m.Control = &s.controls[i].bytes()[0]
		m.SetControllen(controlSize)
	}
}

// through sends the first n messages by fd. What the kernel refuses is dropped by name and the next
// messages are sent; a full socket drops all that are left, since waiting for it would hold up every
// other packet of the lane.
func (s *sender) through(fd, n int, packets []packet.Packet) error {
	for i := 0; i < n; {
		sent, errno := sendmmsg(fd, s.msgs[i:min(n, i+s.width)])
		switch errno {
		case 0:
			i += sent
		case unix.EINTR:
		case unix.EAGAIN:
			for ; i < n; i++ {
				s.drop(packets, s.runs[i], packet.QueueFull)
			}
		case unix.EBADF, unix.ENOTSOCK:
			return fmt.Errorf("underlay: send: %w", errno)
		default:
			if s.runs[i].count == 1 {
				s.drop(packets, s.runs[i], reason(errno))
			} else if err := s.apart(fd, i, packets, errno); err != nil {
				return err
			}
			i++
		}
	}
	return nil
}

func (s *sender) drop(packets []packet.Packet, r run, why packet.Drop) {
	for _, i := range s.order[r.first : r.first+r.count] {
		packets[i].Drop = why
	}
}

// apart sends the packets of message i one by one after the kernel has refused it as a whole, so
// that each has its own verdict. If those of the run's size go, and the refusal was about joining (EIO: no
// checksum offload on the way, or IPsec; EINVAL: no such option), nothing is joined from now on. A shorter one
// behind them says nothing of that: some kernels refuse a run above the path's MTU as EINVAL, too.
func (s *sender) apart(fd, i int, packets []packet.Packet, refusal unix.Errno) error {
	r, went := s.runs[i], false
	s.alone.Name, s.alone.Namelen = s.msgs[i].Name, s.msgs[i].Namelen
	s.alone.SetIovlen(1)
	for k := r.first; k < r.first+r.count; {
		s.alone.Iov = &s.iovs[k]
		_, errno := sendmmsg(fd, unsafe.Slice(&s.alone, 1))
		switch errno {
		case 0:
			went = went || s.iovs[k].Len == s.iovs[r.first].Len
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			packets[s.order[k]].Drop = packet.QueueFull
		case unix.EBADF, unix.ENOTSOCK:
			return fmt.Errorf("underlay: send: %w", errno)
		default:
			packets[s.order[k]].Drop = reason(errno)
		}
		k++
	}
	if went && (refusal == unix.EIO || refusal == unix.EINVAL) {
		s.gso = false
		s.refusal.Store(uint32(refusal))
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
