package xdp

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// lingerPause is how long frames lie in the TX ring before the kernel is asked again, when it could not take them.
const lingerPause = 5 * time.Millisecond

// sender is the sending half of a queue: a TX ring and the completion ring that returns its frames. As many frames
// circulate as either ring has entries, so neither overflows: when the device is slow the free list runs empty, and
// packets are dropped by name.
type sender struct {
	stop       *wait.Stop
	socket     socket
	umem       *umem
	tx         ring[unix.XDPDesc]
	completion ring[uint64]
	free       []uint64 // frames to give for sent ones

	// What the kernel could not take (its socket buffer is full, or the device is busy) stays in the TX ring. The
	// next Send tries again; if none comes, this timer does.
	linger  *time.Timer
	mu      sync.Mutex    // held while the timer's function uses the socket
	down    atomic.Bool   // the link was down at the last attempt
	refused atomic.Uint64 // frames the device refused that were of an earlier batch
}

// openSender opens the second socket of a (device, queue); r is the first.
func openSender(r *receiver, q Request) (s *sender, err error) {
	s = &sender{stop: q.Stop, umem: r.umem}
	if s.socket, err = newSocket(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	n := uint32(q.Size)
	if err = s.socket.size(n, unix.XDP_TX_RING); err != nil {
		return s, err
	}
	if s.tx, err = mapRing[unix.XDPDesc](s.socket.fd, unix.XDP_PGOFF_TX_RING, s.socket.offsets.Tx, n); err != nil {
		return s, err
	}
	// The completion ring was created with the receiver's socket and is the queue's.
	if s.completion, err = mapRing[uint64](r.socket.fd, unix.XDP_UMEM_PGOFF_COMPLETION_RING, r.socket.offsets.Cr, n); err != nil {
		return s, err
	}
	s.free = s.umem.draw(int(n))
	// In copy mode every frame in flight is charged to the socket's send buffer. Without CAP_NET_ADMIN the kernel's
	// default holds some 80 full frames, and the rest waits in the ring.
	_ = unix.SetsockoptInt(s.socket.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, int(n)*int(s.umem.size+1024))
	// Kernels before 6.17 send at most 32 frames a call; flush calls again.
	_ = unix.SetsockoptInt(s.socket.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, int(min(n, txBudget)))
	if err = s.socket.bind(q.Ifindex, q.Queue, r.socket.fd); err != nil {
		return s, err
	}
	s.linger = time.AfterFunc(time.Hour, s.again)
	s.linger.Stop()
	return s, nil
}

// stage puts a packet into the TX ring; its slot gets a free frame instead.
func (s *sender) stage(p *packet.Packet, header int) []byte {
	if len(s.free) == 0 && !s.reclaim() {
		p.Drop = packet.QueueFull
		return nil
	}
	spare := s.free[len(s.free)-1]
	data, mem, offset := p.Bytes(), p.Memory(), p.Headroom()
	if frame, ok := s.umem.owner(mem); ok && offset >= header && len(data) > 0 && &data[0] == &mem[offset] {
		s.free = s.free[:len(s.free)-1]
		p.Exchange(s.umem.frame(spare), packet.Headroom, packet.Headroom+min(len(data), int(s.umem.size)-packet.Headroom))
		start := offset - header
		s.tx.put(unix.XDPDesc{Addr: frame + uint64(start), Len: uint32(header + len(data))})
		return mem[start : offset+len(data)]
	}
	// The packet lies in ordinary memory, or in another port's: copy it.
	room := s.umem.frame(spare)[packet.Headroom-header:]
	if header+len(data) > len(room) || header > packet.Headroom {
		p.Drop = packet.TooBig
		return nil
	}
	s.free = s.free[:len(s.free)-1]
	copy(room[header:], data)
	s.tx.put(unix.XDPDesc{Addr: spare + uint64(packet.Headroom-header), Len: uint32(header + len(data))})
	return room[:header+len(data)]
}

// reclaim moves the completed frames to the free list. False if none is free.
func (s *sender) reclaim() bool {
	n := s.completion.ready(uint32(len(s.completion.entries)))
	for range n {
		s.free = append(s.free, s.completion.take()&^(s.umem.size-1))
	}
	if n > 0 {
		s.completion.release()
	}
	return len(s.free) > 0
}

// flush sends what is staged. Frames that the device refused are counted on packets of b. An error means that the
// device is gone.
func (s *sender) flush(b *packet.Batch) error {
	s.tx.submit()
	if !s.tx.needWakeup() {
		return nil
	}
	refused, errno := s.transmit()
	if refused > 0 {
		s.charge(b, refused)
	}
	if errno != 0 {
		return fmt.Errorf("xdp: send: %w: the device is gone", errno)
	}
	return nil
}

// transmit asks the kernel to send until the TX ring is empty or it will not go on, and returns how many frames the
// device refused. The other errors of sendto:
//
//	EAGAIN           the call's budget is used up, the send buffer is full, or the device is busy
//	EBUSY            the device dropped one frame; the frame completes, the rest waits
//	EINTR            a signal
//	ENOBUFS, ENOMEM  no memory for an skb
//	ENETDOWN         the link is down; the frames wait for it
//	ENXIO, others    the socket is no longer bound: the device is gone
func (s *sender) transmit() (refused int, dead unix.Errno) {
	sent := atomic.LoadUint32(s.tx.consumer)
	for range 2 * len(s.tx.entries) {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(s.socket.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			s.down.Store(false)
			return refused, 0
		case unix.EINTR:
			continue
		case unix.EBUSY:
			refused++
			continue
		case unix.EAGAIN:
			if now := atomic.LoadUint32(s.tx.consumer); now != sent {
				sent = now
				continue
			}
		case unix.ENOBUFS, unix.ENOMEM:
		case unix.ENETDOWN:
			s.down.Store(true)
		default:
			return refused, errno
		}
		break
	}
	s.linger.Reset(lingerPause)
	return refused, 0
}

// again is the timer's function: another attempt for what lies in the TX ring.
func (s *sender) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop.Stopped() {
		return
	}
	refused, _ := s.transmit() // a dead device is the next Send's, or Recv's, to report
	s.refused.Add(uint64(refused))
}

// charge marks n living packets of b as refused. Which of the batch the device dropped the kernel does not say.
func (s *sender) charge(b *packet.Batch, n int) {
	packets := b.Packets()
	for i := range packets {
		if n == 0 {
			return
		}
		if p := &packets[i]; p.Drop == packet.Alive {
			p.Drop = packet.Refused
			n--
		}
	}
	s.refused.Add(uint64(n))
}

func (s *sender) close() error {
	if s.linger != nil {
		s.linger.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.tx.unmap(), s.completion.unmap(), s.socket.close())
}
