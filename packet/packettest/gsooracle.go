package packettest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"weft/packet"
)

// GSO is how a super-packet is to be cut: gso_type of struct virtio_net_hdr.
type GSO uint8

const (
	GSONone  GSO = 0
	GSOTCPv4 GSO = 1
	GSOTCPv6 GSO = 4
	GSOUDP   GSO = 5 // UDP_L4: into datagrams, not into IP fragments
)

const (
	gsoECN         = 0x80 // beside the type: the first segment has CWR
	vnetNeedsCsum  = 1    // of flags
	vnetHeader     = 10
	udpMaxSegments = 64    // the kernel's UDP_GRO_CNT_MAX
	maxSuper       = 65535 // the kernel's GRO keeps the IP packet below 65536 bytes
)

// Super is an IP packet as a device with a virtio network header takes it and gives it: whole, to be
// cut (GSO != GSONone), or with its checksum unfinished.
type Super struct {
	Packet []byte
	GSO    GSO
	Size   int // bytes of payload in each segment but the last, gso_size

	// NeedsChecksum: the field at Start+Offset holds the pseudo-header sum of the whole packet.
	NeedsChecksum bool
	Start, Offset int
}

// ParseVnet reads what is written to, or read from, a device with IFF_VNET_HDR and a header of 10
// bytes, in the machine's byte order as legacy virtio has it. Packet shares b's memory.
//
//	0 | flags | gso_type |  hdr_len 16  | gso_size 16 | csum_start 16 | csum_offset 16 |
func ParseVnet(b []byte) (Super, error) {
	if len(b) < vnetHeader {
		return Super{}, fmt.Errorf("%d bytes are no virtio header", len(b))
	}
	s := Super{
		Packet:        b[vnetHeader:],
		GSO:           GSO(b[1] &^ gsoECN),
		Size:          int(binary.NativeEndian.Uint16(b[4:])),
		NeedsChecksum: b[0]&vnetNeedsCsum != 0,
		Start:         int(binary.NativeEndian.Uint16(b[6:])),
		Offset:        int(binary.NativeEndian.Uint16(b[8:])),
	}
	if hdrLen := int(binary.NativeEndian.Uint16(b[2:])); hdrLen > len(s.Packet) {
		return Super{}, fmt.Errorf("hdr_len %d in a packet of %d bytes", hdrLen, len(s.Packet))
	}
	return s, nil
}

// Vnet is the inverse of ParseVnet: header and packet in new memory.
func (s Super) Vnet() []byte {
	b := make([]byte, vnetHeader, vnetHeader+len(s.Packet))
	if s.NeedsChecksum {
		b[0] = vnetNeedsCsum
		binary.NativeEndian.PutUint16(b[6:], uint16(s.Start))
		binary.NativeEndian.PutUint16(b[8:], uint16(s.Offset))
	}
	if s.GSO != GSONone {
		b[1] = byte(s.GSO)
		if p, err := dissect(s.Packet); err == nil {
			binary.NativeEndian.PutUint16(b[2:], uint16(p.data))
			if p.proto == packet.ProtoTCP && p.flags()&packet.TCPFlagCWR != 0 {
				b[1] |= gsoECN
			}
		}
		binary.NativeEndian.PutUint16(b[4:], uint16(s.Size))
	}
	return append(b, s.Packet...)
}

// SplitOracle cuts a super-packet into the packets that it stands for, as the kernel's
// tcp_gso_segment and __udp_gso_segment do, checksums finished. What is no super-packet comes back
// alone. An error says what is wrong with s; none of s's bytes are changed.
func SplitOracle(s Super) ([][]byte, error) {
	pieces, err := SplitUnfinished(s)
	if s.NeedsChecksum {
		for _, b := range pieces {
			finish(b, s.Start, s.Offset)
		}
	}
	return pieces, err
}

// SplitUnfinished is SplitOracle, but what s leaves unfinished is so in the packets, too: at s.Start+s.Offset is the
// sum of the packet's own pseudo-header.
func SplitUnfinished(s Super) ([][]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if s.GSO == GSONone {
		return [][]byte{bytes.Clone(s.Packet)}, nil
	}
	p, err := dissect(s.Packet)
	if err != nil {
		return nil, err
	}
	payload := p.b[p.data:]
	var pieces [][]byte
	for at := 0; at == 0 || at < len(payload); at += s.Size {
		end := min(at+s.Size, len(payload))
		b := append(bytes.Clone(p.b[:p.data]), payload[at:end]...)
		l4 := b[p.l4:]
		if p.proto == packet.ProtoTCP {
			binary.BigEndian.PutUint32(l4[4:], p.seq()+uint32(at))
			if at > 0 {
				l4[13] &^= packet.TCPFlagCWR
			}
			if end < len(payload) {
				l4[13] &^= packet.TCPFlagFIN | packet.TCPFlagPSH
			}
		}
		setLengths(b, p.l4, p.proto)
		if b[0]>>4 == 4 {
			setID(b, p.id()+uint16(at/s.Size))
		}
		binary.BigEndian.PutUint16(l4[s.Offset:], pseudo(b, p.l4, p.proto))
		pieces = append(pieces, b)
	}
	return pieces, nil
}

// check says what of s would make the kernel refuse it, or compute wrong checksums.
func (s Super) check() error {
	if s.NeedsChecksum {
		if s.Start+s.Offset+2 > len(s.Packet) {
			return fmt.Errorf("checksum at %d+%d in a packet of %d bytes", s.Start, s.Offset, len(s.Packet))
		}
		p, err := dissect(s.Packet)
		if err != nil {
			return fmt.Errorf("unfinished checksum in what is no whole TCP or UDP packet: %w", err)
		}
		if s.Start != p.l4 || s.Offset != p.checksumOffset() {
			return fmt.Errorf("checksum at %d+%d, the header has it at %d+%d", s.Start, s.Offset, p.l4, p.checksumOffset())
		}
		if got, want := binary.BigEndian.Uint16(s.Packet[s.Start+s.Offset:]), pseudo(s.Packet, p.l4, p.proto); got != want {
			return fmt.Errorf("checksum field %#04x, the pseudo-header sums to %#04x", got, want)
		}
	}
	if s.GSO == GSONone {
		return nil
	}
	if !s.NeedsChecksum {
		return errors.New("a super-packet without an unfinished checksum")
	}
	p, err := dissect(s.Packet)
	if err != nil {
		return err
	}
	want := GSOUDP
	if p.proto == packet.ProtoTCP {
		want = GSOTCPv4
		if p.version == 6 {
			want = GSOTCPv6
		}
	}
	if s.GSO != want {
		return fmt.Errorf("gso_type %d, the packet needs %d", s.GSO, want)
	}
	if s.Size < 1 {
		return fmt.Errorf("gso_size %d", s.Size)
	}
	return nil
}

// CoalesceLegal judges what a port made of the packets in: every super-packet of out, cut again, must
// give packets of in unchanged and, flow by flow, in their order; and each must be one that the
// kernel's GRO would have made. Nothing may be lost or doubled.
//
// Packets of one flow share addresses, protocol and ports; fragments and packets without ports,
// addresses and protocol. Different flows may pass each other. The IPv4 identification of packets
// with DF that were merged is not compared, since it means nothing (RFC 6864 §4.1).
func CoalesceLegal(in [][]byte, out []Super) error {
	waiting := map[string][][]byte{}
	for _, b := range in {
		key := flowKey(b)
		waiting[key] = append(waiting[key], b)
	}
	for i, s := range out {
		pieces, err := SplitOracle(s)
		if err != nil {
			return fmt.Errorf("output %d: %w", i, err)
		}
		if s.GSO != GSONone && len(pieces) < 2 {
			return fmt.Errorf("output %d: a super-packet of one segment", i)
		}
		key := flowKey(pieces[0])
		flow := waiting[key]
		if len(flow) < len(pieces) {
			return fmt.Errorf("output %d: %d packets of a flow (%x) that has only %d left", i, len(pieces), key, len(flow))
		}
		group := flow[:len(pieces)]
		waiting[key] = flow[len(pieces):]
		for k, piece := range pieces {
			want := group[k]
			if len(pieces) > 1 {
				piece, want = withoutID(piece), withoutID(want)
			}
			if !bytes.Equal(piece, want) {
				return fmt.Errorf("output %d, segment %d of %d:\nis    %x\nwas   %x", i, k, len(pieces), pieces[k], group[k])
			}
		}
		for k := 1; k < len(group); k++ {
			if err := joins(group[:k], group[k]); err != nil {
				return fmt.Errorf("output %d: segment %d may not join those before it: %w", i, k, err)
			}
		}
	}
	for key, flow := range waiting {
		if len(flow) > 0 {
			return fmt.Errorf("%d packets of flow %x never came out", len(flow), key)
		}
	}
	return nil
}

// CoalesceOracle merges as the kernel's GRO would if it held every flow until in is over. A port need
// not merge as much; what CoalesceLegal refuses, it must not.
func CoalesceOracle(in [][]byte) (out []Super) {
	groups := map[string][][]byte{}
	var held []string // keys of groups, in the order they opened
	flush := func(key string) {
		if group := groups[key]; group != nil {
			out = append(out, merge(group))
			delete(groups, key)
		}
	}
	for _, b := range in {
		key := flowKey(b)
		if group := groups[key]; group != nil && joins(group, b) == nil {
			groups[key] = append(group, b)
			continue
		}
		flush(key)
		groups[key] = [][]byte{b}
		held = append(held, key)
	}
	for _, key := range held {
		flush(key)
	}
	return out
}

// joins says why next may not be merged behind group, whose members have been: the rules of
// inet_gro_receive, ipv6_gro_receive, tcp_gro_receive, udp_gro_receive_segment and skb_gro_receive
// (Linux 6.18). nil: it may.
func joins(group [][]byte, next []byte) error {
	head, err := dissect(group[0])
	if err != nil {
		return fmt.Errorf("the first: %w", err)
	}
	last, err := dissect(group[len(group)-1])
	if err != nil {
		return fmt.Errorf("the last: %w", err)
	}
	p, err := dissect(next)
	if err != nil {
		return err
	}
	for _, p := range []dissected{head, p} {
		if err := p.mergeable(); err != nil {
			return err
		}
	}
	if !bytes.Equal(head.constant(), p.constant()) {
		return errors.New("a header field differs")
	}

	size, payload := len(head.b)-head.data, len(p.b)-p.data
	before := 0
	for _, b := range group {
		before += len(b) - head.data
	}
	switch {
	case payload == 0:
		return errors.New("no payload")
	case payload > size:
		return fmt.Errorf("%d bytes of payload behind %d", payload, size)
	case len(last.b)-last.data < size:
		return errors.New("a shorter segment may only be the last")
	case head.data+before+payload > maxSuper:
		return errors.New("together too long")
	}

	if p.version == 4 {
		// The second packet decides, with DF, whether the identification stays or counts.
		second := next
		if len(group) > 1 {
			second = group[1]
		}
		want := head.id() + uint16(len(group))
		if p.dontFragment() && binary.BigEndian.Uint16(second[4:]) == head.id() {
			want = head.id()
		}
		if p.id() != want {
			return fmt.Errorf("identification %d, not %d", p.id(), want)
		}
	}

	if p.proto == packet.ProtoUDP {
		if len(group) >= udpMaxSegments {
			return fmt.Errorf("more than %d datagrams", udpMaxSegments)
		}
		return nil
	}
	if p.flags()&packet.TCPFlagCWR != 0 {
		return errors.New("CWR behind the first segment")
	}
	if last.flags()&(packet.TCPFlagFIN|packet.TCPFlagPSH) != 0 {
		return errors.New("PSH or FIN ends a group")
	}
	if want := head.seq() + uint32(before); p.seq() != want {
		return fmt.Errorf("sequence number %d, not %d", p.seq(), want)
	}
	return nil
}

// merge makes the super-packet of a group whose members join.
func merge(group [][]byte) Super {
	if len(group) == 1 {
		return Super{Packet: bytes.Clone(group[0])}
	}
	p, err := dissect(group[0])
	if err != nil {
		panic(err) // joins has dissected it before
	}
	b := bytes.Clone(group[0])
	for _, next := range group[1:] {
		b = append(b, next[p.data:]...)
	}
	s := Super{Packet: b, GSO: GSOUDP, Size: len(group[0]) - p.data, NeedsChecksum: true, Start: p.l4, Offset: p.checksumOffset()}
	if p.proto == packet.ProtoTCP {
		s.GSO = GSOTCPv4
		if p.version == 6 {
			s.GSO = GSOTCPv6
		}
		last := group[len(group)-1]
		b[p.l4+13] |= last[p.l4+13] & (packet.TCPFlagFIN | packet.TCPFlagPSH)
	}
	setLengths(b, p.l4, p.proto)
	if p.version == 4 {
		setID(b, p.id()) // for the header checksum
	}
	binary.BigEndian.PutUint16(b[s.Start+s.Offset:], pseudo(b, p.l4, p.proto))
	return s
}

// dissected is a whole TCP or UDP packet and where its parts are.
type dissected struct {
	b       []byte
	version int
	proto   uint8
	l4      int // where the TCP or UDP header starts
	data    int // where the payload starts
}

func dissect(b []byte) (dissected, error) {
	v, drop := packet.ParseIP(b)
	if drop != packet.Alive {
		return dissected{}, fmt.Errorf("no IP packet: %v", drop)
	}
	l4, ok := v.Transport()
	if !ok || v.Len() != len(b) {
		return dissected{}, errors.New("a fragment, padded, or no transport header")
	}
	p := dissected{b: b, version: v.Version(), proto: v.Protocol(), l4: l4}
	switch p.proto {
	case packet.ProtoTCP:
		if !packet.TCPView(b[l4:]).Valid() {
			return dissected{}, errors.New("a broken TCP header")
		}
		p.data = l4 + packet.TCPView(b[l4:]).HeaderLen()
	case packet.ProtoUDP:
		if len(b) < l4+packet.UDPHeader || int(binary.BigEndian.Uint16(b[l4+4:])) != len(b)-l4 {
			return dissected{}, errors.New("a broken UDP header")
		}
		p.data = l4 + packet.UDPHeader
	default:
		return dissected{}, fmt.Errorf("protocol %d", p.proto)
	}
	return p, nil
}

func (p dissected) seq() uint32        { return binary.BigEndian.Uint32(p.b[p.l4+4:]) }
func (p dissected) flags() uint8       { return p.b[p.l4+13] }
func (p dissected) id() uint16         { return binary.BigEndian.Uint16(p.b[4:]) }
func (p dissected) dontFragment() bool { return p.b[6]&0x40 != 0 }

func (p dissected) checksumOffset() int {
	if p.proto == packet.ProtoTCP {
		return 16
	}
	return 6
}

// mergeable says why a packet can be no part of a super-packet, first or later.
func (p dissected) mergeable() error {
	if p.version == 4 {
		if p.b[0] != 0x45 {
			return errors.New("IP options")
		}
		if Sum(p.b[:packet.IPv4Header], 0) != 0xffff {
			return errors.New("a wrong IPv4 checksum")
		}
	}
	if p.proto == packet.ProtoUDP && p.b[p.l4+6] == 0 && p.b[p.l4+7] == 0 {
		return errors.New("UDP without a checksum")
	}
	if Sum(p.b[p.l4:], pseudo(p.b, p.l4, p.proto)) != 0xffff {
		return errors.New("a wrong checksum")
	}
	if p.proto == packet.ProtoTCP && p.flags()&(packet.TCPFlagSYN|packet.TCPFlagRST|packet.TCPFlagURG) != 0 {
		return errors.New("SYN, RST or URG")
	}
	return nil
}

// constant is the headers with all that may differ inside a group set to zero: lengths, checksums,
// identification, sequence number, and the flags that have rules of their own.
func (p dissected) constant() []byte {
	h := bytes.Clone(p.b[:p.data])
	l4 := h[p.l4:]
	if p.version == 4 {
		clear(h[2:6])
		clear(h[10:12])
	} else {
		clear(h[4:6])
	}
	if p.proto == packet.ProtoTCP {
		clear(l4[4:8])
		l4[13] &^= packet.TCPFlagCWR | packet.TCPFlagFIN | packet.TCPFlagPSH
		clear(l4[16:18])
	} else {
		clear(l4[4:8])
	}
	return h
}

// flowKey names the flow of a packet for CoalesceLegal.
func flowKey(b []byte) string {
	v, drop := packet.ParseIP(b)
	if drop != packet.Alive {
		return string(b)
	}
	key := v.Src().String() + ">" + v.Dst().String() + fmt.Sprintf("/%d", v.Protocol())
	l4, ok := v.Transport()
	if ok && (v.Protocol() == packet.ProtoTCP || v.Protocol() == packet.ProtoUDP) && v.Len() >= l4+4 {
		key += fmt.Sprintf("/%x", v.Bytes()[l4:l4+4])
	}
	return key
}

// withoutID returns a copy of a packet whose IPv4 identification means nothing with it, and the
// header checksum that covers it, set to zero; other packets as they are.
func withoutID(b []byte) []byte {
	if b[0]>>4 != 4 || b[6]&0x40 == 0 {
		return b
	}
	b = bytes.Clone(b)
	clear(b[4:6])
	clear(b[10:12])
	return b
}

// setLengths writes the length of b into its IP and UDP headers.
func setLengths(b []byte, l4 int, proto uint8) {
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-packet.IPv6Header))
	}
	if proto == packet.ProtoUDP {
		binary.BigEndian.PutUint16(b[l4+4:], uint16(len(b)-l4))
	}
}

// setID writes the IPv4 identification and computes the header checksum.
func setID(b []byte, id uint16) {
	binary.BigEndian.PutUint16(b[4:], id)
	clear(b[10:12])
	binary.BigEndian.PutUint16(b[10:], ^Sum(b[:int(b[0]&0x0f)*4], 0))
}

// pseudo is the folded sum of the pseudo-header of b, whose upper layer proto starts at l4.
func pseudo(b []byte, l4 int, proto uint8) uint16 {
	var addrs []byte
	if b[0]>>4 == 4 {
		addrs = b[12:20]
	} else {
		addrs = b[8:40]
	}
	var rest [8]byte
	binary.BigEndian.PutUint32(rest[:], uint32(len(b)-l4))
	rest[7] = proto
	return Sum(rest[:], Sum(addrs, 0))
}

// finish completes a checksum whose field holds the pseudo-header sum.
func finish(b []byte, start, offset int) {
	sum := ^Sum(b[start:], 0)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[start+offset:], sum)
}
