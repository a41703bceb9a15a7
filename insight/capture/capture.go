// Package capture writes what passes a node's lanes as pcapng: packets of AF_XDP never reach tcpdump, and nobody else knows which
// packets died, and why. A Capture is a dataplane.Observer: the lanes put what its filter wants into rings of fixed size, and never
// wait; a goroutine writes them down. What finds its ring full is counted, and told at the end of the file.
package capture

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/backend"
	"weft/dataplane"
	"weft/insight/filter"
	"weft/packet"
)

const (
	// ringSize is the memory of a lane's frames, bytes: 25 ms of 1 Gbit/s with room to spare.
	ringSize = 4 << 20
	// pause is how long the writer sleeps between two looks at the rings.
	pause = 10 * time.Millisecond
	// DefaultSnapLen takes whole packets of any underlay MTU, and the beginning of super-packets.
	DefaultSnapLen = 9216
	// MaxSnapLen is the largest packet.
	MaxSnapLen = 65535 + outerRoom
)

// side is where a frame was seen; each is a pcapng interface.
type side uint8

const (
	inside  side = iota // as the pods' side has it
	outside             // as the underlay has it
	dropped             // where it died
	sides
)

// Options say what a Capture takes.
type Options struct {
	Inside, Outside, Drops bool           // which interfaces; none of them = all
	Filter                 *filter.Filter // nil = everything
	SnapLen                int            // bytes of a frame; 0 = DefaultSnapLen
	Count                  uint64         // ends after so many frames; 0 = never

	Ends    func() backend.Tunnel // our side of the tunnel, asked again and again: it may be reopened
	Node    string                // for the file
	Version string                // of weft
}

// local is our address of a family.
func local(e *backend.Tunnel, v6 bool) netip.Addr {
	for _, a := range e.Local {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Summary is what became of a Capture.
type Summary struct {
	Frames uint64 // written
	Lost   uint64 // wanted, but the writer was behind: not in the file
}

// Capture is one capture under way.
type Capture struct {
	o     Options
	want  [sides]bool
	layer packet.Layer // what the inside port's packets begin with: an IP or an Ethernet header
	ends  atomic.Pointer[backend.Tunnel]

	mu    sync.Mutex                         // of additions to lanes
	lanes atomic.Pointer[map[string]*laneOf] // by Point.Lane; a new map for every addition
}

// laneOf is what a Capture has of one lane; the lane's goroutine alone touches scratch and view.
type laneOf struct {
	name    string
	ring    *ring
	scratch [outerRoom]byte
	view    filter.View // of the packet at hand: here, since the filter's methods would have it allocated
	steps   []string    // names of the steps
}

// New makes a Capture; Run makes it write.
func New(o Options) *Capture {
	if o.SnapLen <= 0 || o.SnapLen > MaxSnapLen {
		o.SnapLen = DefaultSnapLen
	}
	c := &Capture{o: o, want: [sides]bool{inside: o.Inside, outside: o.Outside, dropped: o.Drops}}
	if c.want == [sides]bool{} {
		c.want = [sides]bool{true, true, true}
	}
	c.lanes.Store(&map[string]*laneOf{})
	c.look()
	if c.ends.Load().Ethernet {
		c.layer = packet.Ethernet
	}
	return c
}

// look asks where the tunnel ends.
func (c *Capture) look() {
	e := c.o.Ends()
	c.ends.Store(&e)
}

// lane returns a lane's own part. It is made when the lane is first seen, which allocates; a path that is reopened has lanes of the
// same names.
func (c *Capture) lane(at *dataplane.Point) *laneOf { return c.laneNamed(at.Lane, at.Rows, ringSize) }

func (c *Capture) laneNamed(name string, steps, size int) *laneOf {
	if l := (*c.lanes.Load())[name]; l != nil {
		return l
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l := &laneOf{name: name, ring: newRing(size), steps: make([]string, steps)}
	lanes := map[string]*laneOf{name: l}
	for name, other := range *c.lanes.Load() {
		lanes[name] = other
	}
	c.lanes.Store(&lanes)
	return l
}

// Observe takes copies of what is wanted behind one step of a lane. It implements dataplane.Observer.
func (c *Capture) Observe(at *dataplane.Point, b *packet.Batch) {
	here, seen := inside, false // what the living are recorded as
	switch {
	case at.Wire:
		here, seen = outside, c.want[outside]
	case at.Inside:
		here, seen = inside, c.want[inside]
	}
	if !seen && !c.want[dropped] {
		return
	}
	var l *laneOf
	var now int64
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		if p.Drop == packet.Alive && !seen || p.Drop != packet.Alive && !c.want[dropped] {
			continue
		}
		if l == nil {
			l, now = c.lane(at), time.Now().UnixNano()
			if l.steps[at.Row] == "" { // once, before the first record that says so
				l.steps[at.Row] = at.Name
			}
		}
		r := record{time: now, side: here, drop: p.Drop, step: uint8(at.Row), in: at.Direction == dataplane.In}
		inner := at.Inner
		if p.Drop != packet.Alive {
			r.side, inner = dropped, at.Dead
		}
		if inner >= 0 {
			c.takeInner(l, &r, p, inner)
		} else {
			c.takeOuter(l, &r, p, at)
		}
	}
}

// forwarding stands for a lane where the kernel forwards packets.
const (
	forwarding     = "policy"
	forwardingRing = 256 << 10 // bytes
	maxWhys        = 255       // reasons that are told apart
)

// Denied records an IP packet that a network policy denied; length is that of the packet, of which ip may be the beginning. One goroutine
// calls it.
func (c *Capture) Denied(in bool, ip []byte, length int, why string) {
	if !c.want[dropped] || len(ip) == 0 {
		return
	}
	l := c.laneNamed(forwarding, maxWhys+1, forwardingRing)
	step := slices.IndexFunc(l.steps[:maxWhys], func(s string) bool { return s == why || s == "" })
	if step < 0 {
		step, why = maxWhys, "by a policy"
	}
	if l.steps[step] == "" { // before the first record that says so
		l.steps[step] = why
	}
	l.view = filter.Look(packet.Whole(ip), packet.IP, packet.PolicyDenied)
	if !c.o.Filter.Match(&l.view) {
		return
	}
	head := l.scratch[:packet.EthernetHeader]
	t := uint16(packet.EtherTypeIPv4)
	if ip[0]>>4 == 6 {
		t = packet.EtherTypeIPv6
	}
	packet.PutEthernet(head, [6]byte{}, [6]byte{}, t)
	r := record{time: time.Now().UnixNano(), side: dropped, drop: packet.PolicyDenied, step: uint8(step), in: in, length: len(head) + length}
	l.ring.put(&r, head, ip, min(len(head)+len(ip), c.o.SnapLen))
}

// takeInner records a packet as the pods' side has it. inner is where its IP header is.
func (c *Capture) takeInner(l *laneOf, r *record, p *packet.Packet, inner int) {
	b := p.Bytes()
	if c.layer == packet.Ethernet {
		inner -= packet.EthernetHeader
	}
	if inner < 0 || inner > len(b) {
		inner = 0 // too short for what should be in front: all there is
	}
	b = b[inner:]
	l.view = filter.Look(b, c.layer, p.Drop)
	if !c.o.Filter.Match(&l.view) {
		return
	}
	var head []byte
	if t := etherType(b); c.layer == packet.IP && t != 0 { // what is no IP packet died as the frame that it was
		head = l.scratch[:packet.EthernetHeader]
		packet.PutEthernet(head, [6]byte{}, [6]byte{}, t)
	}
	c.put(l, r, head, b)
}

// takeOuter records a tunnel packet behind outer headers: those it came in, where they are still there, those that the port will put
// in front, or made up ones.
func (c *Capture) takeOuter(l *laneOf, r *record, p *packet.Packet, at *dataplane.Point) {
	b := p.Bytes()
	if at.Direction == dataplane.In && !p.From.IsValid() { // died before the port had taken the real ones off
		l.view = filter.Look(b, packet.Ethernet, p.Drop)
		if c.o.Filter.Match(&l.view) {
			c.put(l, r, nil, b)
		}
		return
	}
	var head []byte
	if at.Direction == dataplane.In && at.Wire {
		head = p.Outer()
	}
	if r.made = len(head) == 0; r.made {
		head = c.makeOuter(l.scratch[:], p, at)
		fit(head, 0) // an empty datagram: the filter looks at headers
	}
	l.view = filter.Look(head, packet.Ethernet, p.Drop)
	if data, layer, ok := insideOf(b); ok {
		l.view.Add(data, layer)
	}
	if !c.o.Filter.Match(&l.view) {
		return
	}
	if r.made {
		fit(head, len(b))
	}
	c.put(l, r, head, b)
}

// makeOuter writes outer headers but for what fit does.
func (c *Capture) makeOuter(room []byte, p *packet.Packet, at *dataplane.Point) []byte {
	var o packet.OuterHeader
	if at.Outer != nil {
		o = at.Outer.Outer(p)
	}
	if o.Frame != nil {
		n := copy(room, o.Frame)
		binary.BigEndian.PutUint16(room[n-packet.UDPHeader:], o.Port)
		return room[:n]
	}
	src, dst := c.addresses(p, at.Direction, o.Port)
	return room[:putOuter(room, src, dst)]
}

// put puts a frame of two parts into the lane's ring.
func (c *Capture) put(l *laneOf, r *record, head, body []byte) {
	r.length = len(head) + len(body)
	l.ring.put(r, head, body, min(r.length, c.o.SnapLen))
}

// addresses returns the outer source and destination of a tunnel packet; port is the source port of one that goes out.
func (c *Capture) addresses(p *packet.Packet, d dataplane.Direction, port uint16) (src, dst netip.AddrPort) {
	e := c.ends.Load()
	if d == dataplane.In {
		from := p.From.Addr().Unmap()
		port := e.Port
		if b := p.Bytes(); e.PlainPort != 0 && len(b) > 0 && b[0] == 0x08 {
			port = e.PlainPort
		}
		return netip.AddrPortFrom(from, p.From.Port()), netip.AddrPortFrom(local(e, from.Is6()), port)
	}
	if to := p.Hop.Dst(); to.IsValid() {
		dst = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	}
	return netip.AddrPortFrom(local(e, dst.Addr().Is6()), port), dst
}

// Run writes to w until ctx ends, the count is reached or w fails. flush is called after each group of blocks. The lanes must show c
// their packets meanwhile, and no longer when Run has been told to end and the last is to be written.
func (c *Capture) Run(ctx context.Context, w io.Writer, flush func() error) (Summary, error) {
	out, err := newWriter(w, c)
	if err == nil {
		err = out.flush(flush)
	}
	if err != nil {
		return Summary{}, fmt.Errorf("capture: %w", err)
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true // and a last look
		case <-tick.C:
		}
		c.look()
		full, err := out.drain()
		if err == nil {
			err = out.flush(flush)
		}
		if err != nil {
			return out.summary(), fmt.Errorf("capture: %w", err)
		}
		ended = ended || full
	}
	if err := out.end(); err != nil {
		return out.summary(), fmt.Errorf("capture: %w", err)
	}
	return out.summary(), out.flush(flush)
}

// lost is what found the rings full, by side.
func (c *Capture) lost(s side) (n uint64) {
	for _, l := range *c.lanes.Load() {
		n += l.ring.lost[s].Load()
	}
	return n
}
