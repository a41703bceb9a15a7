package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"weft/packet"
)

// segmenter says which GSO types a device takes, and is told when it does not keep to that.
type segmenter interface {
	maySend(gso uint8) bool
	refused(gso uint8)
}

// gather writes batches to a device, runs of packets of one flow as one packet with one writev:
//
//	iovec 0  virtio header: NEEDS_CSUM, GSO type and size
//	      1  the first packet, its headers those of the whole
//	      2  payload of the second
//	      …
//
// Order is kept within a flow, not between flows. One lane owns it.
type gather struct {
	dev  vectors
	mtu  int
	port segmenter

	packets []packet.Packet // of the batch under way
	next    []int32         // next[i] is the packet behind packet i in its group
	groups  [maxGroups]group
	tags    [maxGroups]uint64 // of the groups' flows
	open    int               // groups[:open], oldest first
	segment segment           // the packet being looked at

	iovs [maxVectors]unix.Iovec
	head [vnetHeader]byte
	dead unix.Errno // the device is gone

	cutter packet.Cutter
	piece  []byte // what cutter makes; mtu bytes
}

func newGather(dev vectors, mtu int, port segmenter) *gather {
	return &gather{dev: dev, mtu: mtu, port: port, next: make([]int32, packet.BatchSize), piece: make([]byte, mtu)}
}

// send writes every living packet of b, or sets its Drop. The error number is that of a dead device.
func (w *gather) send(b *packet.Batch) unix.Errno {
	w.packets = b.Packets()
	if len(w.next) < len(w.packets) {
		w.next = make([]int32, len(w.packets)) // once: a lane's batch keeps its size
	}
	w.open, w.dead = 0, 0
	for i := range w.packets {
		if w.packets[i].Drop == packet.Alive {
			w.add(i)
		}
	}
	for i := range w.groups[:w.open] {
		w.write(&w.groups[i])
	}
	w.packets = nil
	return w.dead
}

// add puts packet i into a group, or writes it after what its flow has waiting.
func (w *gather) add(i int) {
	p := &w.packets[i]
	b, s := p.Bytes(), &w.segment
	s.classify(p, b, w.mtu)
	if s.kind == mergeable && w.port.maySend(s.gso()) {
		w.merge(i, p, s, b)
		return
	}
	switch s.kind {
	case foreign:
	case unknown:
		for k := 0; k < w.open; {
			if w.groups[k].flow.sameHosts(&s.flow) {
				w.flush(k)
			} else {
				k++
			}
		}
	default:
		if k := w.find(&s.flow); k >= 0 {
			w.flush(k)
		}
	}
	if s.kind == oversize {
		w.super(p, s)
	} else {
		w.single(p)
	}
}

// merge lets packet i continue its flow's group, or begin one.
func (w *gather) merge(i int, p *packet.Packet, s *segment, b []byte) {
	k := w.find(&s.flow)
	if k >= 0 {
		g := &w.groups[k]
		if w.continues(g, p, s, b) {
			w.next[g.last] = int32(i)
			g.join(s, b, i)
			if g.closed(s, b) {
				w.flush(k)
			}
			return
		}
		w.flush(k)
	}
	g := newGroup(s, b, i)
	if g.closed(s, b) {
		w.single(p)
		return
	}
	if w.open == maxGroups {
		w.flush(0)
	}
	w.groups[w.open], w.tags[w.open] = g, s.flow.tag()
	w.open++
}

// continues adds to group.continues that every checksum must be right before it is replaced.
func (w *gather) continues(g *group, p *packet.Packet, s *segment, b []byte) bool {
	head := &w.packets[g.first]
	if !g.continues(s, head.Bytes(), b) {
		return false
	}
	if !g.verified {
		first := segment{flow: g.flow, l4: g.l4, h: g.h}
		if g.verified = first.sound(head); !g.verified {
			return false
		}
	}
	return s.sound(p)
}

// find returns the group of a flow, -1 if none is open.
func (w *gather) find(f *flow) int {
	tag := f.tag()
	for k, t := range w.tags[:w.open] {
		if t == tag && w.groups[k].flow == *f {
			return k
		}
	}
	return -1
}

// flush writes group k and takes it off the list.
func (w *gather) flush(k int) {
	w.write(&w.groups[k])
	copy(w.groups[k:w.open], w.groups[k+1:w.open])
	copy(w.tags[k:w.open], w.tags[k+1:w.open])
	w.open--
}

// write writes a group as one packet. A device that refuses that gets its packets one by one.
func (w *gather) write(g *group) {
	p := &w.packets[g.first]
	if g.n == 1 {
		w.single(p)
		return
	}
	b := p.Bytes()
	var saved [maxHeaders]byte
	copy(saved[:g.h], b)

	v := vnet{
		flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso: gsoType(&g.flow), size: g.size,
		start: g.l4, headers: g.h,
	}
	if g.flow.version == 4 {
		binary.BigEndian.PutUint16(b[ip4Length:], uint16(g.total))
		packet.PutIPv4Checksum(b)
	} else {
		binary.BigEndian.PutUint16(b[ip6Length:], uint16(g.total-packet.IPv6Header))
	}
	s := segment{flow: g.flow}
	v.offset = s.checksumOffset()
	t := b[g.l4:]
	if g.flow.proto == packet.ProtoTCP {
		last := w.packets[g.last].Bytes()
		t[tcpFlags] |= last[g.l4+tcpFlags] & packet.TCPFlagPSH
	} else {
		binary.BigEndian.PutUint16(t[udpLength:], uint16(g.total-g.l4))
	}
	binary.BigEndian.PutUint16(t[v.offset:], s.pseudo(b, g.total-g.l4))

	v.put(&w.head)
	setIovec(&w.iovs[0], w.head[:])
	setIovec(&w.iovs[1], b)
	for k, i := 2, g.first; i != g.last; k++ {
		i = int(w.next[i])
		setIovec(&w.iovs[k], w.packets[i].Bytes()[g.h:])
	}
	errno := w.dev.writev(w.iovs[:g.n+1])
	if errno == 0 {
		return
	}
	copy(b, saved[:g.h])
	if errno == unix.EINVAL {
		// Nothing is wrong with the packets, so it is the offload that the device refuses.
		w.port.refused(v.gso)
	}
	for i := g.first; ; i = int(w.next[i]) {
		if errno == unix.EINVAL {
			w.single(&w.packets[i])
		} else {
			w.failed(&w.packets[i], errno)
		}
		if i == g.last {
			return
		}
	}
}

// single writes one packet as it is.
func (w *gather) single(p *packet.Packet) {
	var v vnet
	if start, offset, partial := p.Partial(); partial {
		if p.Drop = packet.CheckPartial(p, 0); p.Drop != packet.Alive {
			return
		}
		v.flags, v.start, v.offset = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, start, offset
	}
	w.one(p, &v)
}

// super hands the kernel a packet that is above the MTU because a far kernel left the cutting to
// whoever comes last, with the size to cut to.
func (w *gather) super(p *packet.Packet, s *segment) {
	size := p.Segment()
	if s.flow.proto == packet.ProtoTCP {
		if limit := w.mtu - s.h; size == 0 || size > limit {
			size = limit
		}
	}
	if size <= 0 { // a datagram's boundaries cannot be guessed
		p.Drop = packet.TooBig
		return
	}
	if !w.port.maySend(s.gso()) {
		w.cutUp(p, s)
		return
	}
	b := p.Bytes()
	if !s.sound(p) {
		p.Drop = packet.BadChecksum
		return
	}
	binary.BigEndian.PutUint16(b[s.l4+s.checksumOffset():], s.pseudo(b, len(b)-s.l4))
	p.SetPartial(s.l4, s.checksumOffset()) // from now on, if it comes to be dropped
	v := vnet{
		flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, gso: s.gso(), size: size,
		start: s.l4, offset: s.checksumOffset(), headers: s.h,
		congestible: s.flow.proto == packet.ProtoTCP && b[s.l4+tcpFlags]&packet.TCPFlagCWR != 0,
	}
	switch errno := w.put(&v, b); {
	case errno == unix.EINVAL && s.flow.proto == packet.ProtoTCP:
		// The packet is somebody else's making: only where its parts go it is the offload that the device refuses.
		if w.cutUp(p, s); p.Drop == packet.Alive {
			w.port.refused(v.gso)
		}
	case errno != 0:
		w.failed(p, errno)
	}
}

// cutUp writes a TCP super-packet as plain packets, for a device that takes no larger ones.
func (w *gather) cutUp(p *packet.Packet, s *segment) {
	if s.flow.proto != packet.ProtoTCP || !w.cutter.Start(p.Bytes(), w.mtu, p.Checksum() == packet.ChecksumPartial) {
		p.Drop = packet.TooBig
		return
	}
	for more := true; more && p.Drop == packet.Alive; {
		var n int
		n, more = w.cutter.Next(w.piece)
		w.bytes(p, &vnet{}, w.piece[:n])
	}
}

// one writes a packet behind virtio header v.
func (w *gather) one(p *packet.Packet, v *vnet) {
	if p.Len() == 0 {
		p.Drop = packet.TooShort
		return
	}
	w.bytes(p, v, p.Bytes())
}

// bytes writes b behind virtio header v; b is p, or a piece of it.
func (w *gather) bytes(p *packet.Packet, v *vnet, b []byte) {
	if errno := w.put(v, b); errno != 0 {
		w.failed(p, errno)
	}
}

// put writes b behind virtio header v.
func (w *gather) put(v *vnet, b []byte) unix.Errno {
	v.put(&w.head)
	setIovec(&w.iovs[0], w.head[:])
	setIovec(&w.iovs[1], b)
	return w.dev.writev(w.iovs[:2])
}

// failed names the drop of a packet whose write failed.
func (w *gather) failed(p *packet.Packet, errno unix.Errno) {
	switch errno {
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		p.Drop = packet.QueueFull
		return
	case unix.EBADFD, unix.EBADF, unix.ENODEV, unix.ENXIO:
		w.dead = errno
	}
	p.Drop = packet.Refused
}

// gso is the virtio GSO type for packets of this kind.
func (s *segment) gso() uint8 { return gsoType(&s.flow) }

func gsoType(f *flow) uint8 {
	switch {
	case f.proto == packet.ProtoUDP:
		return unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case f.version == 4:
		return unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	return unix.VIRTIO_NET_HDR_GSO_TCPV6
}
