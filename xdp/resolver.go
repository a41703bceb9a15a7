package xdp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// resolverTick is how often unanswered neighbours are asked again, and old answers renewed.
	resolverTick = time.Second
	// recomputePause bounds how often route changes make everything be looked up anew.
	recomputePause = 50 * time.Millisecond
	// idleTicks is how long a destination is followed after its last packet.
	idleTicks = 60
	// narrowTicks is how often a path that is narrower than its device is looked at again: nobody says when the kernel forgets that.
	narrowTicks = 10
	// pendingBudget is how many packets the kernel gets to hold while it resolves a neighbour. By default it keeps
	// some 100 (neigh/…/unres_qlen_bytes) and forgets the oldest beyond. One that did not answer gets one a tick.
	pendingBudget = 64
	// listTries is how often a table that changed underneath is read again.
	listTries = 10
)

// adjacency is what to do with packets to a destination, as known now: the next hop's link header, once resolved. Immutable but for the budget.
type adjacency struct {
	template *template // send from the ring with this header; nil: see below
	kernel   bool      // hand to the kernel's stack
	pending  bool      // only while budget lasts: the kernel resolves the neighbour and holds what it is handed
	budget   atomic.Int32
	granted  int32  // what budget began with
	since    uint64 // pending: the last notification that was seen when the kernel was given the task
}

// destination is a tunnel endpoint that packets are sent to. One that they have not been sent to for a while is gone: whoever still has
// it asks for a new one.
type destination struct {
	addr      netip.AddrPort
	raw       rawAddr // for the kernel's socket
	adjacency atomic.Pointer[adjacency]
	used      atomic.Bool // since the last tick
	gone      atomic.Bool

	// the resolver's own
	idle    int
	next    netip.Addr // the neighbour it is reached through; the zero Addr if none
	mtu     int        // that the kernel knows of the path, bytes; 0 = the device's
	age     int        // ticks since it was looked up
	visited bool       // looked up at least once
}

// resolver finds next hops and their link addresses as the kernel's tables have them, and follows every change. It is
// the only writer of adjacencies; the lanes only load them. It asks the kernel to resolve, and to renew, what packets use:
// the kernel does not see those packets and would let the entries go stale.
type resolver struct {
	device  string
	ifindex int
	local   []netip.Addr
	sources *sources
	handle  *netlink.Handle
	events  *nl.NetlinkSocket
	wake    int // eventfd: a new destination, or the end
	closed  atomic.Bool
	stopped chan struct{}
	lost    atomic.Uint64 // packets the kernel held for neighbours that then did not answer

	mu    sync.Mutex
	known map[netip.AddrPort]*destination

	station atomic.Uint64 // the device's MAC, as number reads it

	// the goroutine's own
	mac        [6]byte
	mtu        int
	neighbours map[netip.Addr]neighbour
	seen       uint64 // notifications
	behind     bool   // some were lost
}

type neighbour struct {
	mac   [6]byte
	state int    // NUD_…
	at    uint64 // the notification that said so
}

const nudValid = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE |
	netlink.NUD_PERMANENT | netlink.NUD_NOARP

// number is a MAC as an integer.
func number(mac [6]byte) uint64 {
	return uint64(mac[0])<<40 | uint64(mac[1])<<32 | uint64(mac[2])<<24 | uint64(mac[3])<<16 | uint64(mac[4])<<8 | uint64(mac[5])
}

// foreign says whether a frame is for another station: the kernel, which it would be for without us, takes none of these either (PACKET_OTHERHOST),
// and a device sees them that is promiscuous or on a hub.
func (r *resolver) foreign(frame []byte) bool {
	own := r.station.Load() // 0 = not known
	return own != 0 && len(frame) >= 6 && frame[0]&1 == 0 && number([6]byte(frame)) != own
}

// newResolver starts following the tables of the calling thread's network namespace.
func newResolver(dev device, local []netip.Addr, from *sources) (*resolver, error) {
	r, err := subscribe(dev, local, from)
	if err != nil {
		return nil, err
	}
	go r.run()
	return r, nil
}

// subscribe makes a resolver that knows the tables as they are now, and does not follow them yet.
func subscribe(dev device, local []netip.Addr, from *sources) (r *resolver, err error) {
	r = &resolver{device: dev.name, ifindex: dev.index, local: local, sources: from, mac: dev.mac, mtu: dev.mtu, wake: -1,
		stopped: make(chan struct{}), known: map[netip.AddrPort]*destination{}}
	r.station.Store(number(dev.mac))
	defer func() {
		if err != nil {
			r.free()
			r = nil
		}
	}()
	if r.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return r, fmt.Errorf("open netlink: %w", err)
	}
	// Subscribed before anything is listed: a change in between is seen twice rather than never.
	r.events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return r, fmt.Errorf("subscribe to routes and neighbours: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return r, fmt.Errorf("eventfd: %w", err)
	}
	return r, r.list()
}

// close stops following. Destinations keep their last adjacency.
func (r *resolver) close() {
	r.closed.Store(true)
	r.signal()
	<-r.stopped
	r.free()
}

// signal wakes the goroutine.
func (r *resolver) signal() {
	_, _ = unix.Write(r.wake, binary.NativeEndian.AppendUint64(nil, 1)) // an eventfd takes it, or is signalled already
}

func (r *resolver) free() {
	if r.handle != nil {
		r.handle.Close()
	}
	if r.events != nil {
		r.events.Close()
	}
	if r.wake >= 0 {
		_ = unix.Close(r.wake)
	}
}

// destination returns the one for addr, and has it looked up if it is new. Off the fast path: queues keep what it
// returns.
func (r *resolver) destination(addr netip.AddrPort) *destination {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.known[addr]
	if d == nil {
		d = &destination{addr: addr, raw: newRawAddr(addr)}
		d.used.Store(true)
		d.adjacency.Store(pendingAdjacency(pendingBudget, 0))
		r.known[addr] = d
		r.signal()
	}
	return d
}

func pendingAdjacency(budget int32, since uint64) *adjacency {
	c := &adjacency{kernel: true, pending: true, granted: budget, since: since}
	c.budget.Store(budget)
	return c
}

func (r *resolver) run() {
	defer close(r.stopped)
	fds := append([]unix.PollFd{{Fd: int32(r.events.GetFd()), Events: unix.POLLIN}, {Fd: int32(r.wake), Events: unix.POLLIN}}, r.sources.pollFds()...)
	nextTick := time.Now().Add(resolverTick)
	var computed time.Time
	dirty := false // routes may have changed
	for {
		deadline := nextTick
		if at := computed.Add(recomputePause); dirty && at.Before(deadline) {
			deadline = at
		}
		// An error of poll is as good as a timeout: everything is looked at again below.
		_, _ = unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds()+1)))
		if r.closed.Load() {
			return
		}
		var count [8]byte
		_, _ = unix.Read(r.wake, count[:])
		again, lost := map[netip.Addr]bool{}, false
		for _, fd := range fds[2:] {
			if fd.Revents != 0 {
				lost = refused(int(fd.Fd), again) || lost
			}
		}
		if lost || len(again) > 0 { // a packet did not arrive there, and the kernel may know more of the path
			r.each(func(d *destination) { d.visited = d.visited && !lost && !again[d.addr.Addr()] })
		}
		if r.follow() {
			dirty = true
		}
		now := time.Now()
		if dirty && now.Sub(computed) >= recomputePause {
			dirty, computed = false, now
			r.each(func(d *destination) { d.visited = false })
		}
		r.each(r.update)
		if !now.Before(nextTick) {
			nextTick = now.Add(resolverTick)
			r.tick()
		}
	}
}

// each calls fn for every destination that is followed.
func (r *resolver) each(fn func(*destination)) {
	r.mu.Lock()
	all := make([]*destination, 0, len(r.known))
	for _, d := range r.known {
		all = append(all, d)
	}
	r.mu.Unlock()
	for _, d := range all {
		fn(d)
	}
}

// follow takes in all notifications that are there. True if routes, or the device, may have changed.
func (r *resolver) follow() (dirty bool) {
	fds := []unix.PollFd{{Fd: int32(r.events.GetFd()), Events: unix.POLLIN}}
	for n, _ := unix.Poll(fds, 0); n > 0; n, _ = unix.Poll(fds, 0) {
		if r.receive() {
			dirty = true
		}
	}
	// Only now: what still waited to be read is older than what the tables say.
	if r.behind && r.list() == nil {
		r.behind, dirty = false, true
	}
	return dirty
}

// receive reads notifications. True if routes, or the device, may have changed.
func (r *resolver) receive() (dirty bool) {
	messages, _, err := r.events.Receive()
	if err != nil { // ENOBUFS: more happened than the socket could hold. Whatever it was, it is in the tables.
		r.behind = true
		return false
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			n, err := netlink.NeighDeserialize(m.Data)
			if err == nil {
				r.note(n, m.Header.Type == unix.RTM_DELNEIGH)
			}
		case unix.RTM_NEWLINK:
			l, err := netlink.LinkDeserialize(nil, m.Data)
			if err == nil && l.Attrs().Index == r.ifindex {
				copy(r.mac[:], l.Attrs().HardwareAddr)
				r.station.Store(number(r.mac))
				r.mtu = l.Attrs().MTU
				dirty = true
			}
		default:
			dirty = true
		}
	}
	return dirty
}

// note keeps what the kernel says of a neighbour.
func (r *resolver) note(n *netlink.Neigh, gone bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok || n.LinkIndex != r.ifindex || n.Flags&netlink.NTF_PROXY != 0 {
		return
	}
	addr = addr.Unmap()
	if gone {
		delete(r.neighbours, addr)
		return
	}
	r.seen++
	entry := neighbour{state: n.State, at: r.seen}
	if len(n.HardwareAddr) == len(entry.mac) {
		copy(entry.mac[:], n.HardwareAddr)
	} else {
		entry.state &^= nudValid
	}
	r.neighbours[addr] = entry
}

// list reads the neighbours and the device anew. After an error everything is as it was.
func (r *resolver) list() error {
	old := r.neighbours
	r.neighbours = map[netip.Addr]neighbour{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var entries []netlink.Neigh
		err := error(netlink.ErrDumpInterrupted) // it changed underneath: entries may be missing
		for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < listTries; try++ {
			entries, err = r.handle.NeighList(r.ifindex, family)
		}
		if err != nil {
			r.neighbours = old
			return fmt.Errorf("list the neighbours of %s: %w", r.device, err)
		}
		for i := range entries {
			r.note(&entries[i], false)
		}
	}
	l, err := r.handle.LinkByIndex(r.ifindex)
	if err != nil {
		r.neighbours = old
		return fmt.Errorf("find %s: %w", r.device, err)
	}
	copy(r.mac[:], l.Attrs().HardwareAddr)
	r.station.Store(number(r.mac))
	r.mtu = l.Attrs().MTU
	return nil
}

// update brings a destination's adjacency up to date with the tables.
func (r *resolver) update(d *destination) {
	old := d.adjacency.Load()
	fresh := !d.visited
	if fresh {
		d.visited, d.age = true, 0
		next, mtu, kernel, err := r.route(d.addr.Addr())
		d.next, d.mtu = next, mtu
		switch {
		case err != nil: // no route
			d.adjacency.Store(&adjacency{})
			return
		case kernel:
			if !old.kernel || old.pending {
				d.adjacency.Store(&adjacency{kernel: true})
			}
			return
		}
	}
	if !d.next.IsValid() {
		return
	}
	n, known := r.neighbours[d.next]
	switch {
	case known && n.state&nudValid != 0:
		src, ok := r.source(d.addr.Addr())
		if !ok {
			d.adjacency.Store(&adjacency{})
			return
		}
		mtu := r.mtu
		if d.mtu != 0 {
			mtu = min(mtu, d.mtu)
		}
		t := newTemplate(r.mac, n.mac, src, d.addr, mtu, r.sources)
		if old.template == nil || *old.template != *t {
			d.adjacency.Store(&adjacency{template: t})
		}
	case known && n.state&netlink.NUD_FAILED != 0:
		if old.pending && n.at <= old.since {
			return // it failed before the task was given
		}
		if old.pending {
			r.lost.Add(uint64(old.granted - max(0, old.budget.Load())))
		}
		if old.template != nil || old.kernel {
			d.adjacency.Store(&adjacency{})
		}
	default:
		// Not known yet, or no longer. One that failed stays so until it answers.
		noRoute := fresh && !known && !old.kernel
		if old.template != nil || old.kernel && !old.pending || noRoute {
			d.adjacency.Store(pendingAdjacency(pendingBudget, r.seen))
		}
		if fresh || old.template != nil {
			r.ask(d.next)
		}
	}
}

// route asks the kernel how it would send to addr: through which neighbour on our device and how large packets, with what it has learnt
// of the path, or in a way that only the kernel can (another device, ourselves, a neighbour of the other address family).
func (r *resolver) route(addr netip.Addr) (next netip.Addr, mtu int, kernel bool, err error) {
	var options netlink.RouteGetOptions
	if src, ok := r.source(addr); ok {
		options.SrcAddr = src.AsSlice()
	}
	routes, err := r.handle.RouteGetWithOptions(addr.AsSlice(), &options)
	if err != nil {
		return netip.Addr{}, 0, false, err
	}
	if len(routes) == 0 {
		return netip.Addr{}, 0, false, unix.ENETUNREACH
	}
	route := routes[0]
	switch {
	case route.Type == unix.RTN_UNREACHABLE || route.Type == unix.RTN_BLACKHOLE || route.Type == unix.RTN_PROHIBIT:
		return netip.Addr{}, 0, false, unix.ENETUNREACH
	case route.Type != unix.RTN_UNICAST || route.LinkIndex != r.ifindex || route.Via != nil || route.Encap != nil:
		return netip.Addr{}, 0, true, nil
	case route.Gw == nil:
		return addr, route.MTU, false, nil
	}
	gw, _ := netip.AddrFromSlice(route.Gw)
	return gw.Unmap(), route.MTU, false, nil
}

// source is our own address of the destination's family.
func (r *resolver) source(dst netip.Addr) (netip.Addr, bool) {
	for _, a := range r.local {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// tick asks for what is used and not known, or not known for certain, and lets go of what is not used.
func (r *resolver) tick() {
	r.each(func(d *destination) {
		if d.used.Swap(false) {
			d.idle = 0
		} else if d.idle++; d.idle >= idleTicks {
			r.forget(d)
			return
		}
		if d.age++; d.mtu != 0 && d.age >= narrowTicks {
			d.visited = false
		}
		c := d.adjacency.Load()
		if d.idle > 0 {
			return
		}
		if !d.next.IsValid() {
			if c.template == nil && !c.kernel {
				d.visited = false // no route: look again, in case an event was missed
			}
			return
		}
		switch n, ok := r.neighbours[d.next]; {
		case ok && n.state&netlink.NUD_FAILED != 0:
			// A packet of its own makes the kernel solicit from the right source address.
			d.adjacency.Store(pendingAdjacency(1, r.seen))
		case !ok || n.state == netlink.NUD_NONE || n.state&netlink.NUD_STALE != 0:
			// A stale entry that is used is probed, as it would be if the kernel saw the packets.
			r.ask(d.next)
		}
	})
}

// forget lets go of a destination. Lanes that have it send one more batch by its last adjacency at most.
func (r *resolver) forget(d *destination) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.gone.Store(true)
	delete(r.known, d.addr)
}

// ask makes the kernel resolve or probe a neighbour, as if it had a packet for it.
func (r *resolver) ask(addr netip.Addr) {
	err := r.handle.NeighSet(&netlink.Neigh{LinkIndex: r.ifindex, IP: net.IP(addr.AsSlice()), Flags: netlink.NTF_USE})
	if errors.Is(err, unix.ENODEV) {
		return // the device is gone, which Recv reports
	}
}
