package xdp

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"weft/internal/wait"
	"weft/packet"
)

// port is what the inside and the outside port have in common: a device with a program, and rings for each queue.
type port struct {
	device  string
	stop    *wait.Stop
	program *program
	events  int // netlink socket that becomes readable when a link changes; -1 = none
	rings   []Rings

	mu     sync.Mutex
	closed bool
	last   unix.XDPStatistics // of all queues, kept when they close
}

// start makes a port that holds nothing yet.
func (p *port) start(device string) (err error) {
	p.device, p.events = device, -1
	p.stop, err = wait.NewStop()
	return err
}

// open opens the rings of n queues and directs the queues' frames to them. The first one also wakes up for link events
// and for others.
func (p *port) open(n, ifindex, frame int, c Config, open opener, others ...int) (err error) {
	if p.events, err = linkEvents(); err != nil {
		return err
	}
	for i := range n {
		r := Request{Ifindex: ifindex, Queue: i, Size: c.ring(), Frame: frame, Stop: p.stop, Watch: []int{-1}}
		if i == 0 {
			r.Watch = append([]int{p.events}, others...)
		}
		rings, err := open(r)
		if err != nil {
			return fmt.Errorf("%s: %w", p.device, err)
		}
		p.rings = append(p.rings, rings)
		if err := p.program.serve(i, rings.Socket()); err != nil {
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
	for _, r := range p.rings {
		errs = append(errs, r.Close())
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

// Rings is XDP_STATISTICS queue by queue. It implements packet.Ringed.
func (p *port) Rings() (all []packet.RingCounters) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	for i, r := range p.rings {
		st, err := r.Statistics()
		if err != nil {
			continue // the device is gone
		}
		all = append(all, packet.RingCounters{Device: p.device, Queue: i, Attach: p.program.mode, ZeroCopy: r.ZeroCopy(),
			Counters: map[string]uint64{"rx-dropped": st.Rx_dropped, "rx-ring-full": st.Rx_ring_full, "rx-invalid-descs": st.Rx_invalid_descs,
				"fill-ring-empty": st.Rx_fill_ring_empty_descs, "tx-invalid-descs": st.Tx_invalid_descs, "tx-ring-empty": st.Tx_ring_empty_descs}})
	}
	return all
}

func (p *port) sum() (total unix.XDPStatistics) {
	for _, r := range p.rings {
		st, err := r.Statistics()
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
	return total
}

// drops says what the kernel dropped before a lane could receive it, and what it refused to send too late to be told of
// a packet. The names begin with prefix.
func (p *port) drops(prefix string) map[string]uint64 {
	st := p.Statistics()
	counts := map[string]uint64{
		"rx-dropped":      st.Rx_dropped, // the fill ring was empty: the lane was too slow
		"rx-ring-full":    st.Rx_ring_full,
		"tx-invalid-desc": st.Tx_invalid_descs,
	}
	for _, r := range p.rings {
		counts["tx-refused"] += r.Refused()
	}
	named := map[string]uint64{}
	for name, n := range counts {
		if n > 0 {
			named[prefix+name] = n
		}
	}
	return named
}

// features says how the port is attached.
func (p *port) features() map[string]string {
	f := map[string]string{"xdp-native": "on", "xdp-zero-copy": "on"}
	for _, r := range p.rings {
		if !r.ZeroCopy() {
			f["xdp-zero-copy"] = "the driver of " + p.device + " has none"
		}
	}
	if p.program.mode != "native" {
		f["xdp-native"] = p.program.why
	}
	return f
}

// queue is what the queues of both ports have in common.
type queue struct {
	Rings
	wait *wait.Waiter // the rings'
	send *wait.Gate
}

func (p *port) queue(i int) queue {
	return queue{Rings: p.rings[i], wait: p.rings[i].Waiter(), send: p.stop.Gate()}
}

// bound returns an error if the queue's device is gone. The kernel unbinds the socket then, but wakes nobody who polls
// it: any link event is a reason to look.
func (p *port) bound(r Rings) error {
	drain(p.events)
	if _, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(r.Socket()), 0, 0, unix.MSG_DONTWAIT, 0, 0); errno == unix.ENXIO {
		return fmt.Errorf("xdp: receive from %s: %w: the device is gone", p.device, errno)
	}
	return nil
}

// receive is Rings.Receive until there is something, or a wait has ended for another reason than a link event.
func (q *queue) receive(p *port, b *packet.Batch) error {
	for {
		if err := q.Receive(b); err != nil || b.Len() > 0 {
			q.wait.Found(b.Len())
			return err
		}
		if !q.wait.Ready(events) {
			return nil
		}
		if err := p.bound(q.Rings); err != nil {
			return err
		}
	}
}

// events is the place of the link events among a Waiter's descriptors.
const events = 1

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
