package xdp

import (
	"errors"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// Rings moves frames between one queue of a device and a lane of each direction. The port makes frames of packets and
// packets of frames; Rings knows neither. One goroutine receives, another sends.
type Rings interface {
	packet.Batcher

	// Socket is the descriptor of the socket that receives.
	Socket() int

	// Waiter is what Receive waits with. The port is inside it while it calls Receive. Its descriptor 0 is Socket,
	// then Request.Watch follows.
	Waiter() *wait.Waiter

	// Receive puts received frames into b, each as a window on the whole frame. If there are none it waits, once: b
	// may be empty then.
	Receive(b *packet.Batch) error

	// Stage puts a living packet into line for sending, with header bytes of room in front, and returns the frame for
	// the caller to write the header into. Nil if the packet died: no frame is free, or it is larger than a frame.
	// The packet's contents are gone then; its length is kept.
	Stage(p *packet.Packet, header int) []byte

	// Flush sends what was staged of b, and sets Drop on what the device refused.
	Flush(b *packet.Batch) error

	// ZeroCopy says whether the driver reads and writes the rings' memory itself.
	ZeroCopy() bool

	// Refused is how many frames the device refused so late that no packet could be told.
	Refused() uint64

	// Statistics is XDP_STATISTICS.
	Statistics() (unix.XDPStatistics, error)

	// Close frees the queue. Nobody is inside, and nobody comes any more.
	Close() error
}

// Request says which rings are wanted.
type Request struct {
	Ifindex, Queue int
	Size           int // entries of a ring, a power of two
	Frame          int // largest Ethernet frame, bytes
	Stop           *wait.Stop
	Watch          []int // descriptors that end a wait too; -1 = none
}

// pair is the rings of our own: two sockets over a shared UMEM.
type pair struct {
	rx   *receiver
	tx   *sender
	umem *umem
}

// openPair opens the rings of one (device, queue).
func openPair(u *umem, r Request) (p *pair, err error) {
	p = &pair{umem: u}
	u.retain()
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
			p = nil
		}
	}()
	if p.rx, err = openReceiver(u, r); err != nil {
		return p, err
	}
	p.tx, err = openSender(p.rx, r)
	return p, err
}

func (p *pair) NewBatch(n int) *packet.Batch { return p.umem.batch(n) }

func (p *pair) Socket() int { return p.rx.socket.fd }

func (p *pair) Waiter() *wait.Waiter { return p.rx.wait }

func (p *pair) Receive(b *packet.Batch) error { return p.rx.receive(b) }

func (p *pair) Stage(k *packet.Packet, header int) []byte { return p.tx.stage(k, header) }

func (p *pair) Flush(b *packet.Batch) error { return p.tx.flush(b) }

func (p *pair) ZeroCopy() bool { return p.umem.zeroCopy }

func (p *pair) Refused() uint64 { return p.tx.refused.Load() }

func (p *pair) Statistics() (unix.XDPStatistics, error) {
	received, err := p.rx.socket.statistics()
	if err != nil {
		return received, err
	}
	sent, err := p.tx.socket.statistics()
	received.Tx_invalid_descs, received.Tx_ring_empty_descs = sent.Tx_invalid_descs, sent.Tx_ring_empty_descs
	return received, err
}

func (p *pair) Close() error {
	var errs []error
	if p.tx != nil {
		errs = append(errs, p.tx.close())
	}
	if p.rx != nil {
		errs = append(errs, p.rx.close())
	}
	return errors.Join(append(errs, p.umem.release())...)
}
