// Package packet is the vocabulary every room of the fast path shares: what a packet is, what
// moves packets (Port, Queue) and what changes them (Stage). It imports only the standard library.
//
// Ownership in one paragraph: a Batch has one owner, the lane. Recv lends it packets that stay
// valid until the next Recv on the same batch; nobody keeps a packet, or a slice of one, past Send.
package packet

import (
	"net"
	"net/netip"
	"time"
)

const (
	// BatchSize is how many slots a lane's batch has. A 64 KB super-packet is 46 segments of a
	// 1500-byte underlay, so one batch takes two; 128 slots of 2 KB still fit a core's L2.
	BatchSize = 128

	// Headroom is the room in front of every slot: AF_XDP gives 256 bytes, and that is enough for
	// Ethernet 14 + IPv6 40 + UDP 8 + sealed 16 + VXLAN 8 + inner Ethernet 14 = 100.
	Headroom = 256

	// Tailroom is the room kept behind every packet, for an AEAD tag.
	Tailroom = 16
)

// Packet is a window onto a buffer, plus what ports and stages learnt about it.
//
//	mem  |<-- headroom -->|<-------- Bytes() -------->|<-- spare -->|
//	     0               off                         end         len(buf)
//
// The zero Packet has no memory; slots of a Batch do.
type Packet struct {
	buf      []byte // what the window looks onto: the slot's own memory, or a borrowed buffer
	mem      []byte // the slot's own memory
	off, end int

	Hop  *Hop           // out: set by route; in: set by a seal stage once authentic, else by route
	From netip.AddrPort // in: outer source, set by Recv; a claim, not a proof
	Flow uint32         // hash of the inner flow, set by route on the way out; 0 = not computed
	Drop Drop           // why this packet is dead; Alive while it is not
	RCO  bool           // in: the sender left the transport checksum to us, and marked it so

	segment uint16 // payload bytes of each part of a super-packet; 0 = none, or not known

	csumStart  int // absolute in buf; meaningful while csum == ChecksumPartial
	csumOffset int
	csum       ChecksumState
	outer      uint8 // bytes of outer headers in front of what Recv has returned
	index      uint8
}

// ChecksumState says what is known about the transport checksum inside a packet.
type ChecksumState uint8

const (
	// ChecksumComplete: the field holds a whole checksum that nobody here has verified.
	ChecksumComplete ChecksumState = iota
	// ChecksumPartial: the field holds the folded pseudo-header sum; the sum over [start, end)
	// is still to be added at start+offset (Linux CHECKSUM_PARTIAL, virtio NEEDS_CSUM).
	ChecksumPartial
	// ChecksumVerified: the kernel has verified the transport checksum. A seal proves who sent a
	// packet, not that its sum was right, and does not count.
	ChecksumVerified
)

// Bytes returns the packet. The slice is valid until the next Recv on its batch.
func (p *Packet) Bytes() []byte { return p.buf[p.off:p.end] }

// Len is len(Bytes()).
func (p *Packet) Len() int { return p.end - p.off }

// Prepend grows the packet by n bytes in front and returns those n bytes, not zeroed. It panics
// beyond the headroom: that is a stage whose Overhead lies.
func (p *Packet) Prepend(n int) []byte {
	p.off -= n
	return p.buf[p.off : p.off+n]
}

// Strip removes n bytes from the front.
func (p *Packet) Strip(n int) { p.off += n }

// Resize sets the length from the current front; data is kept.
func (p *Packet) Resize(n int) {
	_ = p.buf[p.off : p.off+n]
	p.end = p.off + n
}

// Tail returns the packet with its spare capacity, for AEAD in place.
func (p *Packet) Tail() []byte { return p.buf[p.off:p.end:len(p.buf)] }

// Headroom is the free room in front of the packet, in bytes.
func (p *Packet) Headroom() int { return p.off }

// Room is the largest packet the slot's own memory takes behind the full headroom.
func (p *Packet) Room() int { return len(p.mem) - Headroom - Tailroom }

// Reset rewinds to an empty packet behind full headroom in the slot's own memory, forgets all that
// was learnt, and returns the space to receive into (Room bytes; capacity includes the tailroom).
func (p *Packet) Reset() []byte {
	p.buf = p.mem
	p.off, p.end = Headroom, Headroom
	p.Hop, p.From, p.Flow, p.Drop, p.RCO, p.csum = nil, netip.AddrPort{}, 0, Alive, false, ChecksumComplete
	p.segment, p.outer = 0, 0
	return p.buf[Headroom : len(p.buf)-Tailroom : len(p.buf)]
}

// Borrow makes the packet a window [off, end) onto a buffer that is not the slot's own: a datagram
// larger than a slot. The lender keeps buf untouched until the next Recv; Reset returns to the
// slot's own memory. What was learnt of the packet is kept, of its bytes forgotten: they are others.
func (p *Packet) Borrow(buf []byte, off, end int) {
	_ = buf[off:end]
	p.buf, p.off, p.end = buf, off, end
	p.forgetBytes()
}

// Exchange replaces the slot's own memory by mem and returns the old one: how AF_XDP ports move
// frames between rings and slots without a copy. The window becomes [off, end) of mem. What was learnt is kept and forgotten as
// by Borrow.
func (p *Packet) Exchange(mem []byte, off, end int) (old []byte) {
	_ = mem[off:end]
	old = p.mem
	p.mem, p.buf, p.off, p.end = mem, mem, off, end
	p.forgetBytes()
	return old
}

// forgetBytes forgets what was learnt of the bytes in the window.
func (p *Packet) forgetBytes() { p.csum, p.segment, p.outer = ChecksumComplete, 0, 0 }

// Memory returns the slot's own memory.
func (p *Packet) Memory() []byte { return p.mem }

// Checksum returns the state of the transport checksum.
func (p *Packet) Checksum() ChecksumState { return p.csum }

// SetChecksum sets the state to complete or verified.
func (p *Packet) SetChecksum(s ChecksumState) { p.csum = s }

// SetPartial records an unfinished checksum: sum from start, counted from the packet's front, to
// the packet's end and put it at start+offset.
func (p *Packet) SetPartial(start, offset int) {
	p.csum, p.csumStart, p.csumOffset = ChecksumPartial, p.off+start, offset
}

// Partial returns where the unfinished checksum is, relative to the packet's current front.
func (p *Packet) Partial() (start, offset int, ok bool) {
	return p.csumStart - p.off, p.csumOffset, p.csum == ChecksumPartial
}

// SetOuter says that the n bytes in front of the packet are the outer headers it came in.
func (p *Packet) SetOuter(n int) { p.outer = uint8(n) }

// Outer returns these bytes, while no stage has changed the packet; nil where the kernel has taken the headers off.
func (p *Packet) Outer() []byte { return p.buf[p.off-int(p.outer) : p.off] }

// SetIndex numbers a packet within its batch, for those who follow it through a lane; Index returns the number.
func (p *Packet) SetIndex(i int) { p.index = uint8(i) }
func (p *Packet) Index() int     { return int(p.index) }

// SetSegment marks a super-packet: an IP packet above the MTU that a far kernel left uncut (TSO,
// UDP GSO). n is the payload of each of its segments but the last, in bytes.
func (p *Packet) SetSegment(n int) { p.segment = uint16(n) }

// Segment returns what SetSegment was told; 0 = the packet is plain, or its size is not known.
func (p *Packet) Segment() int { return int(p.segment) }

// Batch is the unit every function on the fast path takes. One lane owns it and reuses it for ever.
type Batch struct {
	slots []Packet
	n     int

	// Waited is how long Recv blocked for this batch: a port adds to it, the lane subtracts it
	// from the time Recv took.
	Waited time.Duration
}

// NewBatch makes a batch of n slots, each with Headroom, room bytes and Tailroom, in one arena.
func NewBatch(n, room int) *Batch {
	// A stride that is an odd number of cache lines: equal offsets of neighbouring slots fall
	// into different cache sets.
	stride := (Headroom + room + Tailroom + 63) &^ 63
	if stride/64%2 == 0 {
		stride += 64
	}
	arena := make([]byte, n*stride)
	b := &Batch{slots: make([]Packet, n)}
	for i := range b.slots {
		p := &b.slots[i]
		p.mem = arena[i*stride : i*stride+Headroom+room+Tailroom : i*stride+Headroom+room+Tailroom]
		p.Reset()
	}
	return b
}

// NewBatchOf makes a batch of n slots without memory, for a port that fills them by Exchange.
func NewBatchOf(n int) *Batch { return &Batch{slots: make([]Packet, n)} }

// Packets returns the live packets.
func (b *Batch) Packets() []Packet { return b.slots[:b.n] }

// Slots returns all slots, for a port that receives.
func (b *Batch) Slots() []Packet { return b.slots }

// Len is len(Packets()).
func (b *Batch) Len() int { return b.n }

// SetLen says how many of the slots, from the first, hold packets.
func (b *Batch) SetLen(n int) { b.n = n }

// View makes b the n slots of another batch from the first on, all of them packets. They stay the other's.
func (b *Batch) View(of *Batch, first, n int) {
	b.slots, b.n = of.slots[first:first+n:first+n], n
}

// Compact takes the dead packets out, keeps the order of the living, and counts why they died.
func (b *Batch) Compact(drops *Drops) {
	k := 0
	for i := range b.slots[:b.n] {
		if d := b.slots[i].Drop; d != Alive {
			drops[d]++
			continue
		}
		if k != i {
			b.slots[k], b.slots[i] = b.slots[i], b.slots[k]
		}
		k++
	}
	b.n = k
}

// Queue is one queue of a Port. At most one goroutine receives and one sends at a time.
type Queue interface {
	// Recv blocks until it has put at least one packet into b, or fails. It overwrites what b
	// held. A packet it cannot present (truncated, say) is put there with its Drop set, so that
	// it is counted. After Close it returns net.ErrClosed.
	Recv(b *Batch) error

	// Send takes every packet of b; it sets Drop on those the kernel refused. An error means that
	// the port is dead. It never waits for a slow consumer: what does not fit is dropped by name.
	Send(b *Batch) error
}

// Layer says what a port's packets start with.
type Layer uint8

const (
	IP       Layer = iota // an IPv4 or IPv6 header
	Ethernet              // an Ethernet header
	Tunnel                // the payload of an underlay UDP datagram
)

// Port is a place where packets enter and leave: TUN, TAP, AF_XDP, UDP sockets. Its queues are
// fixed when it opens. Close is idempotent, frees everything the port holds and makes every Recv
// return net.ErrClosed.
type Port interface {
	Name() string
	Layer() Layer
	Queues() []Queue
	Close() error
}

// KernelDrops is implemented by ports that can say how many packets the kernel dropped before the
// port could receive them (socket overflow, device queue), by name. Called off the fast path.
type KernelDrops interface {
	KernelDrops() map[string]uint64
}

// Features is implemented by ports whose abilities depend on the kernel: name → "on" or the reason
// why it is off. Fixed once the port is open, unless a device refuses later.
type Features interface {
	Features() map[string]string
}

// Ringed is implemented by ports that share rings with the kernel. Called off the fast path; nil once the port is closed.
type Ringed interface {
	Rings() []RingCounters
}

// RingCounters is how the rings of one queue of a device are attached, and what the kernel counts there.
type RingCounters struct {
	Device   string
	Queue    int
	Attach   string            // native = in the driver, or generic
	ZeroCopy bool              // the driver itself reads and writes the rings' memory
	Counters map[string]uint64 // all that there are, by name
}

// Handshakes is implemented by outside ports that keep what is not for the lanes (handshakes) on sockets of
// its own, one for each local address. The port closes them.
type Handshakes interface {
	Handshakes() []Conn
}

// Conn is a bound UDP socket, as *net.UDPConn is one, that never waits for room to send in.
type Conn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	// Crowded says whether half of the room to send in is taken: what can be done without should not be sent now.
	Crowded() bool
}

// Batcher is implemented by queues whose batches need memory of their own kind (AF_XDP frames).
type Batcher interface {
	NewBatch(n int) *Batch
}

// OuterHeader is what goes in front of a tunnel packet.
type OuterHeader struct {
	Frame []byte // Ethernet, IP and UDP headers but for lengths, IPv4 identification, sums and source port; immutable. nil = they are the kernel's
	Port  uint16 // source port; 0 = not known
}

// Outward is implemented by queues of outside ports that can say what Send will put in front of a packet with a Hop. Called by
// whoever sends, before it does.
type Outward interface {
	Outer(p *Packet) OuterHeader
}

// Overhead is what a stage adds to a packet, in bytes.
type Overhead struct{ Front, Tail int }

// Total is front and tail together.
func (o Overhead) Total() int { return o.Front + o.Tail }

// Opaque is implemented by a stage whose Out leaves nothing to read of a packet: a cipher. It stands outermost.
type Opaque interface {
	// Added is what Out has added to a packet that it let live: Overhead, or nothing if it let it pass as it was.
	Added(p *Packet) Overhead

	// Undo makes of a packet that Out let live what Out was given. It is for answering one that died behind the stage: called by
	// whoever calls Out, and slow. False if the packet cannot be read any more.
	Undo(p *Packet) bool
}

// Stage is one step on the way out, and its inverse on the way in. It belongs to one lane. It never
// blocks, logs, allocates or counts: it edits packets or sets Drop.
type Stage interface {
	Name() string
	Overhead() Overhead // what Out adds to a packet; an Opaque stage may add nothing to some
	Out(b *Batch)
	In(b *Batch)
}
