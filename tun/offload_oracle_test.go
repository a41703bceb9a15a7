package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/packet"
	"weft/packet/packettest"
)

// The oracle: a splitter and a coalescer that are slow and obvious. They share nothing with the
// real ones but the decoded virtio header.

// wire is one packet as it crosses a device: virtio header and bytes.
type wire struct {
	v    vnet
	data []byte
}

func (w wire) frame() []byte {
	var h [vnetHeader]byte
	w.v.put(&h)
	return append(h[:], w.data...)
}

func unframe(b []byte) wire {
	return wire{parseVnet((*[vnetHeader]byte)(b)), bytes.Clone(b[vnetHeader:])}
}

// headerLengths of a TCP or UDP packet without IPv6 extensions: IP, and IP with transport.
func headerLengths(b []byte) (ip, all int) {
	if ip = packet.IPv6Header; b[0]>>4 == 4 {
		ip = int(b[0]&15) * 4
	}
	if transport(b) == packet.ProtoUDP {
		return ip, ip + 8
	}
	return ip, ip + int(b[ip+12]>>4)*4
}

func transport(b []byte) byte {
	if b[0]>>4 == 4 {
		return b[9]
	}
	return b[6]
}

// pseudoOf is packettest's, for packets with IP options too.
func pseudoOf(b []byte, ip int) uint16 { return packettest.PseudoSum(b, len(b)-ip) }

// complete sets every length and checksum of b to what its bytes call for.
func complete(b []byte) {
	ip, _ := headerLengths(b)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^packettest.Sum(b[:ip], 0))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	field := ip + 16
	if transport(b) == packet.ProtoUDP {
		field = ip + 6
		binary.BigEndian.PutUint16(b[ip+4:], uint16(len(b)-ip))
	}
	b[field], b[field+1] = 0, 0
	sum := ^packettest.Sum(b[ip:], pseudoOf(b, ip))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[field:], sum)
}

// unfinish replaces the checksum by the pseudo-header sum: what CHECKSUM_PARTIAL means.
func unfinish(b []byte) (start, offset int) {
	start, _ = headerLengths(b)
	if offset = 16; transport(b) == packet.ProtoUDP {
		offset = 6
	}
	binary.BigEndian.PutUint16(b[start+offset:], pseudoOf(b, start))
	return start, offset
}

// finish completes the checksum of a packet written with NEEDS_CSUM, as a device would.
func (w wire) finish() []byte {
	b := bytes.Clone(w.data)
	if w.v.partial() {
		sum := ^packettest.Sum(b[w.v.start:], 0)
		if sum == 0 {
			sum = 0xffff
		}
		binary.BigEndian.PutUint16(b[w.v.start+w.v.offset:], sum)
	}
	return b
}

// cut splits a packet by its GSO type and size, as the kernel would on its way out, into whole
// packets with finished checksums. TCP is cut to limit if that is less; 0 = no limit.
func (w wire) cut(limit int) (out [][]byte) {
	if w.v.gso == unix.VIRTIO_NET_HDR_GSO_NONE {
		return [][]byte{w.finish()}
	}
	ip, h := headerLengths(w.data)
	tcp := transport(w.data) == packet.ProtoTCP
	size := w.v.size
	if limit > 0 && tcp && h+size > limit {
		size = limit - h
	}
	payload := w.data[h:]
	for at := 0; at < len(payload); at += size {
		end := min(at+size, len(payload))
		b := append(bytes.Clone(w.data[:h]), payload[at:end]...)
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(at/size))
		}
		if tcp {
			binary.BigEndian.PutUint32(b[ip+4:], binary.BigEndian.Uint32(b[ip+4:])+uint32(at))
			if at > 0 {
				b[ip+13] &^= packet.TCPFlagCWR
			}
			if end < len(payload) {
				b[ip+13] &^= packet.TCPFlagFIN | packet.TCPFlagPSH
			}
		}
		complete(b)
		out = append(out, b)
	}
	return out
}

// flowOf names what a packet belongs to; packets whose flow cannot be told have one of their own.
func flowOf(b []byte) string {
	if len(b) < 20 || b[0]>>4 != 4 && b[0]>>4 != 6 || b[0]>>4 == 6 && len(b) < 48 {
		return fmt.Sprintf("%x", b)
	}
	if b[0]>>4 == 4 {
		ip := int(b[0]&15) * 4
		if len(b) < ip+8 {
			return fmt.Sprintf("%x", b)
		}
		return fmt.Sprintf("4 %x %x %x", b[9], b[12:20], b[ip:ip+4])
	}
	return fmt.Sprintf("6 %x %x %x", b[6], b[8:40], b[40:44])
}

// intact says whether all lengths and checksums of a plain TCP or UDP packet are right.
func intact(b []byte) bool {
	c := bytes.Clone(b)
	complete(c)
	return bytes.Equal(b, c)
}

// mayHead says whether b may be the first of several: what the kernel's GRO holds, and of that only
// TCP with ACK or ACK|PSH.
func mayHead(b []byte) bool {
	if len(b) < 28 {
		return false
	}
	switch b[0] >> 4 {
	case 4:
		if b[0] != 0x45 || b[6]&0xbf != 0 || b[7] != 0 || int(binary.BigEndian.Uint16(b[2:])) != len(b) {
			return false
		}
	case 6:
		if len(b) < 48 || int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
			return false
		}
	default:
		return false
	}
	ip := 20
	if b[0]>>4 == 6 {
		ip = 40
	}
	switch transport(b) {
	case packet.ProtoUDP:
		return len(b) > ip+8 && int(binary.BigEndian.Uint16(b[ip+4:])) == len(b)-ip &&
			binary.BigEndian.Uint16(b[ip+6:]) != 0 && intact(b)
	case packet.ProtoTCP:
		if len(b) < ip+20 || b[ip+12]>>4 < 5 {
			return false
		}
		_, h := headerLengths(b)
		flags := b[ip+13]
		return h < len(b) && (flags == packet.TCPFlagACK || flags == packet.TCPFlagACK|packet.TCPFlagPSH) && intact(b)
	}
	return false
}

// mayFollow says whether the kernel's GRO would append b to run, packets of one flow that it has
// put together: net/ipv4/af_inet.c inet_gro_receive, net/ipv6/ip6_offload.c ipv6_gro_receive,
// net/ipv4/tcp_offload.c tcp_gro_receive, net/ipv4/udp_offload.c udp_gro_receive_segment.
func mayFollow(run [][]byte, b []byte) bool {
	first, last := run[0], run[len(run)-1]
	ip, h := headerLengths(first)
	_, hb := headerLengths(b)
	total := len(first)
	for _, r := range run[1:] {
		total += len(r) - h
	}
	payload, size := len(b)-hb, len(first)-h
	switch {
	case h != hb, payload > size, len(last)-h < size, total+payload > 65535:
		return false
	}
	if b[0]>>4 == 4 {
		if b[1] != first[1] || b[8] != first[8] || b[6] != first[6] {
			return false
		}
		id0, id := binary.BigEndian.Uint16(first[4:]), binary.BigEndian.Uint16(b[4:])
		fixed := b[6]&0x40 != 0 && id == id0
		if len(run) > 1 {
			fixed = fixed && binary.BigEndian.Uint16(run[1][4:]) == id0
		}
		counting := id == id0+uint16(len(run)) && (len(run) == 1 || binary.BigEndian.Uint16(run[1][4:]) != id0)
		if !fixed && !counting {
			return false
		}
	} else if !bytes.Equal(b[:4], first[:4]) || b[7] != first[7] {
		return false
	}
	if transport(b) == packet.ProtoUDP {
		return len(run) < 64
	}
	seq := binary.BigEndian.Uint32(first[ip+4:]) + uint32(total-h)
	return binary.BigEndian.Uint32(b[ip+4:]) == seq &&
		last[ip+13]&packet.TCPFlagPSH == 0 &&
		bytes.Equal(b[ip+8:ip+13], first[ip+8:ip+13]) && // acknowledgment, offset
		bytes.Equal(b[ip+14:ip+16], first[ip+14:ip+16]) && // window
		bytes.Equal(b[ip+18:hb], first[ip+18:h]) // urgent pointer, options
}

// barrier says whether b is an IP packet of which flow cannot be told, so that it may not be
// overtaken by anything between its hosts.
func barrier(b []byte) bool {
	if len(b) < 20 || b[0]>>4 != 4 && b[0]>>4 != 6 || b[0]>>4 == 6 && len(b) < 40 {
		return false
	}
	ip := 40
	if b[0]>>4 == 4 {
		h := bytes.Clone(b[:20])
		if b[0] != 0x45 || b[6]&0xbf != 0 || b[7] != 0 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || packettest.Sum(h, 0) != 0xffff {
			return true
		}
		ip = 20
	} else if int(binary.BigEndian.Uint16(b[4:]))+40 != len(b) {
		return true
	}
	switch transport(b) {
	case packet.ProtoUDP:
		return len(b) < ip+8
	case packet.ProtoTCP:
		if len(b) < ip+20 {
			return true
		}
		_, h := headerLengths(b)
		return h < ip+20 || h > len(b)
	}
	return true
}

func hosts(b []byte) string {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return "4" + string(b[12:20])
	case len(b) >= 40 && b[0]>>4 == 6:
		return "6" + string(b[8:40])
	}
	return ""
}

// join puts packets (finished ones) together as far as rules allow: lists of indices, by flow in
// order.
func join(packets [][]byte) map[string][][]int {
	runs := map[string][][]int{}
	ended := map[string]int{} // by hosts: runs that began before this packet take no more
	for i, b := range packets {
		f := flowOf(b)
		list := runs[f]
		if barrier(b) {
			ended[hosts(b)] = i
		}
		if n := len(list); n > 0 && list[n-1][0] >= ended[hosts(b)] {
			var run [][]byte
			for _, k := range list[n-1] {
				run = append(run, packets[k])
			}
			if mayHead(run[0]) && mayHead(b) && mayFollow(run, b) {
				list[n-1] = append(list[n-1], i)
				continue
			}
		}
		runs[f] = append(list, []int{i})
	}
	return runs
}

// fakeDevice is a device in memory. It takes GSO types by mask.
type fakeDevice struct {
	in      [][]byte // frames to read
	out     []wire
	refuses func(wire) unix.Errno
	off     uint32 // bit 1<<gso: not supported
	told    []uint8
}

func (d *fakeDevice) readv(iovs []unix.Iovec) (int, unix.Errno) {
	if len(d.in) == 0 {
		return 0, unix.EAGAIN
	}
	frame := d.in[0]
	d.in = d.in[1:]
	n := 0
	for _, v := range iovs {
		n += copy(unsafeBytes(v), frame[n:])
	}
	return n, 0
}

func (d *fakeDevice) writev(iovs []unix.Iovec) unix.Errno {
	if len(iovs) > maxVectors {
		return unix.EINVAL
	}
	total := 0
	for _, v := range iovs {
		total += int(v.Len)
	}
	frame := make([]byte, 0, total)
	for _, v := range iovs {
		frame = append(frame, unsafeBytes(v)...)
	}
	w := wire{parseVnet((*[vnetHeader]byte)(frame)), frame[vnetHeader:]}
	if d.refuses != nil {
		if errno := d.refuses(w); errno != 0 {
			return errno
		}
	}
	d.out = append(d.out, w)
	return 0
}

func (d *fakeDevice) maySend(gso uint8) bool { return d.off&(1<<gso) == 0 }
func (d *fakeDevice) refused(gso uint8) {
	d.off |= 1 << gso
	d.told = append(d.told, gso)
}

// spec describes a packet for build.
type spec struct {
	v6, udp        bool
	host           byte // last byte of the source address
	port           uint16
	payload        int
	seq, ack       uint32
	window         uint16
	flags          uint8
	options        []byte // TCP, a multiple of 4
	id             uint16
	noDF           bool
	tos, ttl       byte
	label          uint32 // IPv6 flow label
	fragment       bool
	ipOptions      bool
	seed           byte // of the payload
	noUDPChecksum  bool
	badChecksum    bool
	badIPChecksum  bool
	payloadContent []byte // instead of the pattern
}

// build makes a whole packet, checksums right unless the spec says otherwise.
func (s spec) build() []byte {
	var b []byte
	proto := byte(packet.ProtoTCP)
	if s.udp {
		proto = packet.ProtoUDP
	}
	if s.ttl == 0 {
		s.ttl = 64
	}
	if s.v6 {
		b = make([]byte, 40)
		binary.BigEndian.PutUint32(b, 6<<28|uint32(s.tos)<<20|s.label)
		b[6], b[7] = proto, s.ttl
		copy(b[8:], []byte{0xfd, 15: 1})
		b[23] = s.host
		copy(b[24:], []byte{0xfd, 15: 2})
	} else {
		b = make([]byte, 20, 64)
		b[0], b[1], b[8], b[9] = 0x45, s.tos, s.ttl, proto
		binary.BigEndian.PutUint16(b[4:], s.id)
		if !s.noDF {
			b[6] = 0x40
		}
		if s.fragment {
			b[6] = 0x20
		}
		copy(b[12:], []byte{10, 1, 0, s.host, 10, 2, 0, 1})
		if s.ipOptions {
			b[0] = 0x46
			b = append(b, 1, 1, 1, 0)
		}
	}
	ip := len(b)
	l4 := make([]byte, 8)
	if !s.udp {
		l4 = make([]byte, 20)
		binary.BigEndian.PutUint32(l4[4:], s.seq)
		binary.BigEndian.PutUint32(l4[8:], s.ack)
		l4[12], l4[13] = byte((20+len(s.options))/4)<<4, s.flags
		binary.BigEndian.PutUint16(l4[14:], s.window)
		l4 = append(l4, s.options...)
	}
	binary.BigEndian.PutUint16(l4, 1000+s.port)
	binary.BigEndian.PutUint16(l4[2:], 2000)
	b = append(b, l4...)
	if s.payloadContent != nil {
		b = append(b, s.payloadContent...)
	} else {
		for i := range s.payload {
			b = append(b, s.seed+byte(i)+byte(i>>8))
		}
	}
	complete(b)
	if s.noUDPChecksum {
		b[ip+6], b[ip+7] = 0, 0
	}
	if s.badChecksum {
		b[len(b)-1] ^= 0x55
	}
	if s.badIPChecksum {
		b[10] ^= 0x55
	}
	return b
}

// superOf makes one super-packet of s, as a kernel hands it over.
func (s spec) superOf(size int) wire {
	b := s.build()
	start, offset := unfinish(b)
	v := vnet{flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, size: size, start: start, offset: offset,
		headers: 1} // of no meaning: nobody may trust it
	switch {
	case s.udp:
		v.gso = unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case s.v6:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		v.gso = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	return wire{v, b}
}

func mustEqual(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		n := 0
		for n < len(got) && n < len(want) && got[n] == want[n] {
			n++
		}
		t.Fatalf("%s: %d bytes, want %d; they differ from byte %d:\n got %x\nwant %x", what, len(got), len(want), n, head(got), head(want))
	}
}

func head(b []byte) []byte { return b[:min(len(b), 96)] }

func unsafeBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }
