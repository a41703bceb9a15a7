package xdp

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// port is what the inside and the outside port have in common: a device with a program and two sockets a queue.
type port struct {
	device  string
	stop    *wait.Stop
	mem     []*umem // by queue
	program *program
	events  int    // netlink socket that becomes readable when a link changes; -1 = none
	pairs   []pair // by queue

	mu     sync.Mutex
	closed bool
	last   unix.XDPStatistics // of all queues, kept when they close
}

// pair is both halves of one queue of a device.
type pair struct {
	rx *receiver
	tx *sender
}

// start makes a port that holds the memory and nothing else yet.
func (p *port) start(device string, mem []*umem) (err error) {
	p.device, p.mem, p.events = device, mem, -1
	if p.stop, err = wait.NewStop(); err != nil {
		return err
	}
	for _, u := range mem {
		u.retain()
	}
	return nil
}

// open opens two sockets a queue and directs the queues' frames to them. The first queue's receiver also wakes up for
// others.
func (p *port) open(ifindex int, c Config, others ...int) (err error) {
	if p.events, err = linkEvents(); err != nil {
		return err
	}
	events := p.events
	for i, u := range p.mem {
		if i > 0 {
			events, others = -1, nil
		}
		rx, err := openReceiver(u, p.stop, ifindex, i, c, events, others)
		if err != nil {
			return fmt.Errorf("%s: %w", p.device, err)
		}
		p.pairs = append(p.pairs, pair{rx: rx})
		tx, err := openSender(rx, ifindex, i, c)
		if err != nil {
			return fmt.Errorf("%s: %w", p.device, err)
		}
		p.pairs[i].tx = tx
	}
	for i := range p.pairs {
		if err := p.program.serve(i, &p.pairs[i].rx.socket); err != nil {
			return fmt.Errorf("%s: %w", p.device, err)
		}
	}
	return nil
}

// shut does the first half of Close: it detaches the program, so that the device's traffic is the kernel's again,
// wakes and awaits everybody inside the port, and frees the queues. False if the port was closed before.
func (p *port) shut() (first bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, nil
	}
	p.closed, p.last = true, p.sum()
	var errs []error
	if p.program != nil {
		errs = append(errs, p.program.close())
	}
	errs = append(errs, p.stop.Close())
	for _, q := range p.pairs {
		if q.tx != nil {
			errs = append(errs, q.tx.close())
		}
		errs = append(errs, q.rx.close())
	}
	for _, u := range p.mem {
		errs = append(errs, u.release())
	}
	if p.events >= 0 {
		errs = append(errs, unix.Close(p.events))
	}
	return true, errors.Join(errs...)
}

// Statistics is XDP_STATISTICS summed over the queues; after Close, the last.
func (p *port) Statistics() unix.XDPStatistics {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.last
	}
	return p.sum()
}

func (p *port) sum() (total unix.XDPStatistics) {
	for _, q := range p.pairs {
		for _, s := range []*socket{&q.rx.socket, q.sender()} {
			if s == nil {
				continue
			}
			st, err := s.statistics()
			if err != nil {
				continue // the device is gone
			}
			total.Rx_dropped += st.Rx_dropped
			total.Rx_invalid_descs += st.Rx_invalid_descs
			total.Tx_invalid_descs += st.Tx_invalid_descs
			total.Rx_ring_full += st.Rx_ring_full
			total.Rx_fill_ring_empty_descs += st.Rx_fill_ring_empty_descs
			total.Tx_ring_empty_descs += st.Tx_ring_empty_descs
		}
	}
	return total
}

func (q pair) sender() *socket {
	if q.tx == nil {
		return nil
	}
	return &q.tx.socket
}

// KernelDrops says what the kernel dropped before a lane could receive it, and what it refused to send too late to be
// told of a packet.
func (p *port) KernelDrops() map[string]uint64 {
	st := p.Statistics()
	drops := map[string]uint64{
		"xdp-rx-dropped":      st.Rx_dropped, // the fill ring was empty: the lane was too slow
		"xdp-rx-ring-full":    st.Rx_ring_full,
		"xdp-tx-invalid-desc": st.Tx_invalid_descs,
	}
	for _, q := range p.pairs {
		if q.tx != nil {
			drops["xdp-tx-refused"] += q.tx.refused.Load()
		}
	}
	for name, n := range drops {
		if n == 0 {
			delete(drops, name)
		}
	}
	return drops
}

// features says how the port is attached.
func (p *port) features() map[string]string {
	f := map[string]string{"xdp-native": "on", "xdp-zero-copy": "not asked for"}
	if p.program.mode != "native" {
		f["xdp-native"] = p.program.why
	}
	return f
}

// NewBatch makes a batch of frames for the lane that receives from the queue.
func (q pair) NewBatch(n int) *packet.Batch { return q.rx.umem.batch(n) }

// linkEvents opens a netlink socket that gets a message for every link that changes.
func linkEvents() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err != nil {
		return -1, errors.Join(fmt.Errorf("subscribe to link events: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// drain reads and forgets what a socket holds, a pending error included.
func drain(fd int) {
	for range 1 << 10 { // no storm of events keeps a lane here
		_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
		if errno == unix.EAGAIN {
			return
		}
	}
}
