// Package lib moves the frames of package xdp's ports by github.com/asavie/xdp v0.3.3 instead of rings of our own. It is
// a baseline to measure by, not a mode to run: every packet is copied in user space once on the way in and once on the
// way out, since the library cannot share memory between two devices.
//
// Only the library's Socket is used. Its Program would take all of the underlay's traffic, and removes whatever XDP
// program a device has. The faults of Socket, and what this package does about each:
//
//   - Frames are used twice. Receive marks a frame free before anybody has read it, so that GetDescs gives it away.
//     Here a frame is copied out and filled again under the same lock that GetDescs needs: no received frame is ever
//     free, and what GetDescs finds are frames for sending.
//   - Receiving and sending share its tables. The two lanes take turns by a mutex.
//   - GetDescs looks at every frame from the first on, at each call: the cost is part of what is measured.
//   - Transmit panics on any error of sendto but EINTR, EAGAIN and EBUSY: a link that is down, a device that is gone, no
//     memory. The frames are in the ring by then; the panic is caught, and flush goes by what sendto says now.
//   - Transmit gives up at EAGAIN and leaves the rest in the ring until somebody calls again. A timer does.
//   - Its indexes are plain loads and stores. That is right only where the processor keeps stores in order (amd64); Open
//     refuses elsewhere.
//   - Close closes the descriptor and leaves four rings mapped, which keep the socket alive and its queue bound as long
//     as the process lives. The mappings are found through its fields and unmapped first.
//   - NewSocket that fails leaves its mappings too, and its errors hide their cause (%v instead of %w): a busy queue is
//     known by its text alone, and tried for a few times only.
//   - Transmit hides the EBUSY that ends it, so one refused frame a call goes uncounted.
//   - need_wakeup is never asked for, the completion ring is read only when asked to, and the send buffer is the
//     kernel's default, which holds some 80 full frames: left as they are.
package lib

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	asavie "github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
	"weft/xdp"
)

const (
	// frameSize holds what xdp's own rings hold at an MTU of 1500.
	frameSize = 2048

	// room is what the slots of a batch have for a frame.
	room = frameSize - packet.Headroom - packet.Tailroom

	// MaxMTU is the largest MTU of a port's device, bytes.
	MaxMTU = room - packet.EthernetHeader

	// bindPatience is how long a busy queue is waited for.
	bindPatience = 3 * time.Second
	bindPause    = 50 * time.Millisecond // a try that fails leaves mappings behind: few tries

	// lingerPause is how long frames lie in the TX ring before the kernel is asked again.
	lingerPause = 5 * time.Millisecond
)

// rings is one Socket. It implements xdp.Rings.
type rings struct {
	fd     int
	wait   *wait.Waiter
	stop   *wait.Stop
	linger *time.Timer

	mu      sync.Mutex
	socket  *asavie.Socket
	sending bool          // between the first Stage and Flush, with the lock held
	free    []asavie.Desc // frames to send from
	staged  []asavie.Desc // its capacity is the rings' size
	refused atomic.Uint64
}

// Open opens the rings of one queue over the library.
func Open(r xdp.Request) (xdp.Rings, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("asavie/xdp orders its memory accesses on amd64 only, this is %s: use mode xdp", runtime.GOARCH)
	}
	if r.Frame > room {
		return nil, fmt.Errorf("frames of %d bytes do not fit %d: lower the MTU to %d or use mode xdp", r.Frame, room, MaxMTU)
	}
	options := &asavie.SocketOptions{
		NumFrames: 2 * r.Size, FrameSize: frameSize,
		FillRingNumDescs: r.Size, CompletionRingNumDescs: r.Size, RxRingNumDescs: r.Size, TxRingNumDescs: r.Size,
	}
	socket, err := open(r, options)
	if err != nil {
		return nil, fmt.Errorf("asavie/xdp: queue %d: %w", r.Queue, err)
	}
	l := &rings{fd: socket.FD(), stop: r.Stop, socket: socket, staged: make([]asavie.Desc, 0, r.Size)}
	if n := socket.Fill(socket.GetDescs(r.Size)); n != r.Size {
		return nil, errors.Join(fmt.Errorf("asavie/xdp: filled %d frames of %d", n, r.Size), l.Close())
	}
	l.wait = r.Stop.Waiter(wait.Readable, append([]int{l.fd}, r.Watch...)...)
	l.linger = time.AfterFunc(time.Hour, l.again)
	l.linger.Stop()
	return l, nil
}

// open makes the socket, and waits for a queue that is busy.
func open(r xdp.Request, options *asavie.SocketOptions) (*asavie.Socket, error) {
	deadline := time.Now().Add(bindPatience)
	for {
		socket, err := asavie.NewSocket(r.Ifindex, r.Queue, options)
		if err == nil {
			return socket, nil
		}
		if !strings.Contains(err.Error(), unix.EBUSY.Error()) || time.Now().After(deadline) {
			if strings.Contains(err.Error(), unix.EBUSY.Error()) {
				err = fmt.Errorf("queue %d: %w: %s", r.Queue, err, xdp.TakenBy(r.Ifindex, r.Queue))
			}
			return nil, err
		}
		time.Sleep(bindPause)
	}
}

// Socket is the library's descriptor.
func (l *rings) Socket() int { return l.fd }

// Waiter is what Receive waits with.
func (l *rings) Waiter() *wait.Waiter { return l.wait }

// NewBatch makes a batch of ordinary memory.
func (l *rings) NewBatch(n int) *packet.Batch {
	return packet.NewBatch(n, room)
}

// Receive copies received frames into b.
func (l *rings) Receive(b *packet.Batch) error {
	b.SetLen(0)
	if l.collect(b); b.Len() > 0 {
		return nil
	}
	if err := l.wait.Wait(&b.Waited); err != nil {
		return err
	}
	l.collect(b)
	return nil
}

// collect takes what is there, and fills the same frames again.
func (l *rings) collect(b *packet.Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	slots := b.Slots()
	descs := l.socket.Receive(len(slots))
	for i, d := range descs {
		p, frame := &slots[i], l.socket.GetFrame(d)
		n := copy(p.Reset(), frame)
		p.Resize(n)
		if n < len(frame) {
			p.Drop = packet.Truncated
		}
	}
	l.socket.Fill(descs) // as many as were taken: there is room
	b.SetLen(len(descs))
}

// Stage copies a packet into a frame. From the first one on until Flush the lock is held: the frames are the library's
// own list.
func (l *rings) Stage(p *packet.Packet, header int) []byte {
	if !l.sending {
		l.mu.Lock()
		l.sending = true
		l.socket.Complete(l.socket.NumCompleted())
		l.free = l.socket.GetDescs(l.socket.NumFreeTxSlots())
	}
	if len(l.free) == 0 {
		p.Drop = packet.QueueFull
		return nil
	}
	data := p.Bytes()
	if header+len(data) > frameSize {
		p.Drop = packet.TooBig
		return nil
	}
	d := asavie.Desc{Addr: l.free[0].Addr, Len: uint32(header + len(data))}
	l.free = l.free[1:]
	frame := l.socket.GetFrame(d)
	copy(frame[header:], data)
	l.staged = append(l.staged, d)
	return frame
}

// Flush sends what was staged.
func (l *rings) Flush(b *packet.Batch) error {
	if !l.sending {
		return nil
	}
	defer l.mu.Unlock()
	l.sending = false
	l.transmit()
	l.staged = l.staged[:0]
	refused, err := l.kick()
	packets := b.Packets()
	for i := range packets {
		if p := &packets[i]; refused > 0 && p.Drop == packet.Alive {
			p.Drop = packet.Refused // which of them the kernel does not say
			refused--
		}
	}
	l.refused.Add(uint64(refused))
	return err
}

// transmit is Transmit without its panics.
func (l *rings) transmit() {
	defer func() { _ = recover() }() // kick meets the same error and says it
	l.socket.Transmit(l.staged)
}

// kick has the kernel go on with what Transmit left in the ring. The caller holds the lock.
func (l *rings) kick() (refused int, err error) {
	size := cap(l.staged)
	for left := size - l.socket.NumFreeTxSlots(); left > 0; {
		_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(l.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
		now := size - l.socket.NumFreeTxSlots()
		switch {
		case errno == 0:
			return refused, nil
		case errno == unix.EINTR:
		case errno == unix.EBUSY:
			if refused++; refused > size {
				l.linger.Reset(lingerPause)
				return refused, nil
			}
		case errno == unix.EAGAIN && now < left:
		case errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM || errno == unix.ENETDOWN:
			l.linger.Reset(lingerPause)
			return refused, nil
		default:
			return refused, fmt.Errorf("xdp: send: %w: the device is gone", errno)
		}
		left = now
	}
	return refused, nil
}

// again is the timer's function.
func (l *rings) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop.Stopped() {
		return
	}
	refused, _ := l.kick() // a device that is gone is the next Send's, or Recv's, to report
	l.refused.Add(uint64(refused))
}

// ZeroCopy asks the kernel, which uses a driver's zero-copy where it can.
func (l *rings) ZeroCopy() bool {
	options, err := unix.GetsockoptInt(l.fd, unix.SOL_XDP, unix.XDP_OPTIONS)
	return err == nil && options&unix.XDP_OPTIONS_ZEROCOPY != 0
}

// Refused is how many frames were refused after their Send.
func (l *rings) Refused() uint64 { return l.refused.Load() }

// Statistics is XDP_STATISTICS.
func (l *rings) Statistics() (unix.XDPStatistics, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st, err := l.socket.Stats()
	return st.KernelStats, err
}

// Close frees the queue, which the library's Close does not.
func (l *rings) Close() error {
	if l.linger != nil {
		l.linger.Stop()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(unmap(l.socket, cap(l.staged)), l.socket.Close())
}
