package userspace

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"weft/packet"
)

const (
	// rejectQuote is how much of an offending packet is kept: what an ICMPv6 error may quote
	// within the minimum MTU (RFC 4443 §3.2).
	rejectQuote = packet.MinIPv6MTU

	// rejectQueue bounds the work waiting; rejectRate and rejectBurst bound the answers, as the
	// kernel bounds its own (net.ipv4.icmp_msgs_per_sec, 1000 with bursts of 50).
	rejectQueue = 64
	rejectRate  = 1000
	rejectBurst = 50
)

type oversize struct {
	data [rejectQuote]byte
	n    int
	path *packet.Path
}

// rejecter answers packets that are too large for the tunnel with ICMP, off the lanes: a lane
// leaves a copy and goes on. In normal life the kernel answers first, since weft0 has the tunnel's
// MTU; this is for the time until a changed MTU is repaired, and for peers behind smaller paths.
type rejecter struct {
	free, full chan *oversize
	stop       chan struct{}
	done       chan struct{}
	source     atomic.Pointer[[]netip.Addr] // our own inner addresses
	v4, v6     int                          // raw sockets; -1 = the family is absent

	Answered, Suppressed atomic.Uint64
}

func newRejecter() (*rejecter, error) {
	r := &rejecter{
		free: make(chan *oversize, rejectQueue), full: make(chan *oversize, rejectQueue),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	for range rejectQueue {
		r.free <- &oversize{}
	}
	var err error
	// IPPROTO_RAW: the header is ours (raw(7), and Documentation of IPV6_HDRINCL in ipv6(7)).
	if r.v4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("userspace: open raw socket for ICMP answers: %w: grant CAP_NET_RAW", err)
	}
	if r.v6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		r.v6 = -1 // a kernel without IPv6 has no IPv6 packets to answer
	}
	go r.run()
	return r, nil
}

// Offer leaves a copy of a packet to be answered. It never blocks: what does not fit is counted
// as suppressed, as ICMP errors may be (RFC 1812 §4.3.2.8).
func (r *rejecter) Offer(ip []byte, path *packet.Path) {
	select {
	case o := <-r.free:
		o.n, o.path = copy(o.data[:], ip), path
		r.full <- o // has room for all there are
	default:
		r.Suppressed.Add(1)
	}
}

// SetSource says which inner addresses are ours to answer from.
func (r *rejecter) SetSource(own []netip.Addr) { r.source.Store(&own) }

func (r *rejecter) Close() {
	close(r.stop)
	<-r.done
	unix.Close(r.v4)
	if r.v6 >= 0 {
		unix.Close(r.v6)
	}
}

func (r *rejecter) run() {
	defer close(r.done)
	limit := rate.NewLimiter(rejectRate, rejectBurst)
	for {
		select {
		case <-r.stop:
			return
		case o := <-r.full:
			if limit.Tokens() >= 1 && r.answer(o) { // what is not answered costs nothing
				limit.Allow()
				r.Answered.Add(1)
			} else {
				r.Suppressed.Add(1)
			}
			r.free <- o
		}
	}
}

func (r *rejecter) answer(o *oversize) bool {
	own := r.source.Load()
	if own == nil {
		return false
	}
	want4 := o.n > 0 && o.data[0]>>4 == 4
	for _, src := range *own {
		if src.Is4() != want4 {
			continue
		}
		reply, ok := packet.TooBigReply(o.data[:o.n], src, o.path.MTU()) // the path's as it is known now
		if !ok {
			return false
		}
		if want4 {
			to := &unix.SockaddrInet4{Addr: [4]byte(reply[16:20])}
			return unix.Sendto(r.v4, reply, unix.MSG_DONTWAIT, to) == nil
		}
		to := &unix.SockaddrInet6{Addr: [16]byte(reply[24:40])}
		return r.v6 >= 0 && unix.Sendto(r.v6, reply, unix.MSG_DONTWAIT, to) == nil
	}
	return false
}
