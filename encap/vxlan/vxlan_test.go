package vxlan_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weft/encap/vxlan"
	"weft/packet"
	"weft/packet/packettest"
)

const vni = 0xabcdef

var (
	ownMAC  = [6]byte{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
	peerMAC = [6]byte{0x02, 0x66, 0x77, 0x88, 0x99, 0xaa}
	peer    = &packet.Hop{Peer: packet.Peer{VNI: vni, MAC: peerMAC}, Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:4789"), 1450)}
	// loop is a hop whose MAC is our own: what Out makes for it, In accepts.
	loop = &packet.Hop{Peer: packet.Peer{VNI: vni, MAC: ownMAC}, Path: packet.NewPath(netip.Addr{}, peer.Path.Dst, 1450)}
)

func ipStage() packet.Stage {
	return vxlan.New(vxlan.Config{VNI: vni, MAC: ownMAC, Inner: packet.IP, MTU: 1450})
}

func frameStage() packet.Stage {
	return vxlan.New(vxlan.Config{VNI: vni, Inner: packet.Ethernet, MTU: 1450})
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		newStage func() packet.Stage
		layer    packet.Layer
	}{"IP": {ipStage, packet.IP}, "Ethernet": {frameStage, packet.Ethernet}} {
		t.Run(name, func(t *testing.T) {
			packettest.Stage(t, c.newStage, loop, c.layer)
			packettest.Checksums(t, c.newStage, loop, c.layer)
		})
	}
}

// one puts one packet through f and returns it.
func one(data []byte, hop *packet.Hop, f func(*packet.Batch)) *packet.Packet {
	b := packet.NewBatch(1, 65535)
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data))
	p.Hop = hop
	b.SetLen(1)
	f(b)
	return p
}

func udp4(n int) []byte {
	return packettest.UDP(netip.MustParseAddrPort("10.244.1.2:40000"), netip.MustParseAddrPort("10.244.2.3:40001"), n, 1)
}

func udp6(n int) []byte {
	return packettest.UDP(netip.MustParseAddrPort("[fd00:1::2]:40000"), netip.MustParseAddrPort("[fd00:2::3]:40001"), n, 1)
}

// wire builds the VXLAN packet with gopacket.
func wire(vni uint32, dst [6]byte, etherType layers.EthernetType, payload []byte) []byte {
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{},
		&layers.VXLAN{ValidIDFlag: true, VNI: vni},
		&layers.Ethernet{DstMAC: net.HardwareAddr(dst[:]), SrcMAC: net.HardwareAddr(peerMAC[:]), EthernetType: etherType},
		gopacket.Payload(payload))
	if err != nil {
		panic(err)
	}
	return bytes.Clone(buf.Bytes())
}

func TestOutAsGopacketReadsIt(t *testing.T) {
	for name, ip := range map[string][]byte{"IPv4": udp4(100), "IPv6": udp6(100)} {
		t.Run(name, func(t *testing.T) {
			p := one(ip, peer, ipStage().Out)
			if p.Drop != packet.Alive {
				t.Fatal(p.Drop)
			}
			got := gopacket.NewPacket(p.Bytes(), layers.LayerTypeVXLAN, gopacket.Default)
			if e := got.ErrorLayer(); e != nil {
				t.Fatal(e.Error())
			}
			v := got.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
			if !v.ValidIDFlag || v.VNI != vni || v.GBPExtension || v.GBPApplied || v.GBPDontLearn || v.GBPGroupPolicyID != 0 {
				t.Errorf("VXLAN header %+v", v)
			}
			e := got.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if [6]byte(e.DstMAC) != peerMAC || [6]byte(e.SrcMAC) != ownMAC || !bytes.Equal(e.Payload, ip) {
				t.Errorf("Ethernet header %+v", e)
			}
			want := layers.EthernetTypeIPv4
			if ip[0]>>4 == 6 {
				want = layers.EthernetTypeIPv6
			}
			if e.EthernetType != want || got.TransportLayer() == nil {
				t.Errorf("EtherType %v", e.EthernetType)
			}
		})
	}
}

func TestOutDrops(t *testing.T) {
	for name, ip := range map[string][]byte{"nothing": nil, "version 0": make([]byte, 40), "version 5": {0x55}} {
		if p := one(ip, peer, ipStage().Out); p.Drop != packet.NotIP {
			t.Errorf("%s: %v", name, p.Drop)
		}
	}
	if p := one(udp4(10), peer, func(b *packet.Batch) {
		b.Packets()[0].SetPartial(30, 16)
		ipStage().Out(b)
	}); p.Drop != packet.BadHeader {
		t.Errorf("a checksum outside the packet: %v", p.Drop)
	}
	for _, s := range []packet.Stage{ipStage(), frameStage()} {
		for _, f := range []func(*packet.Batch){s.Out, s.In} {
			if p := one(udp4(10), nil, func(b *packet.Batch) {
				b.Packets()[0].Drop = packet.NoRoute
				f(b)
			}); p.Drop != packet.NoRoute || !bytes.Equal(p.Bytes(), udp4(10)) {
				t.Errorf("a dead packet was touched: %v", p.Drop)
			}
		}
	}
}

// inCase is a datagram and what the two kinds of stage make of it.
type inCase struct {
	name         string
	data         []byte
	ip, ethernet packet.Drop
}

func inCases() []inCase {
	flip := func(b []byte, at int, bits byte) []byte {
		b[at] ^= bits
		return b
	}
	ip4 := func() []byte { return wire(vni, ownMAC, layers.EthernetTypeIPv4, udp4(50)) }
	ip6 := func() []byte { return wire(vni, ownMAC, layers.EthernetTypeIPv6, udp6(50)) }
	everybody := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	solicited := [6]byte{0x33, 0x33, 0xff, 0, 0, 1}
	arp := make([]byte, 28)
	cutTotal := udp4(50)
	cutTotal[3] = 19

	return []inCase{
		{"IPv4", ip4(), packet.Alive, packet.Alive},
		{"IPv6", ip6(), packet.Alive, packet.Alive},
		{"every reserved flag set", flip(ip4(), 0, 0xf7), packet.Alive, packet.Alive},
		{"reserved bytes set", flip(flip(flip(ip4(), 1, 0xff), 2, 0xff), 3, 0xff), packet.Alive, packet.Alive},
		{"remote checksum offload bits", flip(flip(ip4(), 1, 0x20), 7, 0x80|17), packet.Alive, packet.Alive},
		{"no VNI flag", flip(ip4(), 0, 0x08), packet.BadHeader, packet.BadHeader},
		{"VNI 0", wire(0, ownMAC, layers.EthernetTypeIPv4, udp4(50)), packet.WrongVNI, packet.WrongVNI},
		{"VNI high bit", flip(ip4(), 4, 0x80), packet.WrongVNI, packet.WrongVNI},
		{"VNI low bit", flip(ip4(), 6, 0x01), packet.WrongVNI, packet.WrongVNI},
		{"another station", flip(ip4(), 8+5, 1), packet.WrongMAC, packet.Alive},
		{"a group", wire(vni, solicited, layers.EthernetTypeIPv6, udp6(50)), packet.WrongMAC, packet.Alive},
		{"everybody", wire(vni, everybody, layers.EthernetTypeIPv4, udp4(50)), packet.WrongMAC, packet.Alive},
		{"ARP for everybody", wire(vni, everybody, layers.EthernetTypeARP, arp), packet.NotIP, packet.Alive},
		{"VLAN tag", wire(vni, ownMAC, layers.EthernetTypeDot1Q, append([]byte{0, 5, 8, 0}, udp4(50)...)), packet.NotIP, packet.Alive},
		{"IPv6 called IPv4", wire(vni, ownMAC, layers.EthernetTypeIPv4, udp6(50)), packet.BadHeader, packet.Alive},
		{"IPv4 called IPv6", wire(vni, ownMAC, layers.EthernetTypeIPv6, udp4(50)), packet.BadHeader, packet.Alive},
		{"version 0", wire(vni, ownMAC, layers.EthernetTypeIPv4, make([]byte, 60)), packet.BadHeader, packet.Alive},
		{"IHL 4", flip(ip4(), 22, 1), packet.BadHeader, packet.Alive},
		{"total length below the header", wire(vni, ownMAC, layers.EthernetTypeIPv4, cutTotal), packet.BadHeader, packet.Alive},
		{"IP longer than the frame", flip(ip4(), 22+2, 1), packet.TooShort, packet.Alive},
		{"no payload", ip4()[:22], packet.TooShort, packet.Alive},
		{"no Ethernet header", ip4()[:21], packet.TooShort, packet.TooShort},
	}
}

func TestIn(t *testing.T) {
	for _, c := range inCases() {
		t.Run(c.name, func(t *testing.T) {
			if p := one(c.data, nil, ipStage().In); p.Drop != c.ip {
				t.Errorf("IP: %v, want %v", p.Drop, c.ip)
			} else if c.ip == packet.Alive && !bytes.Equal(p.Bytes(), c.data[22:]) {
				t.Errorf("IP: %x", p.Bytes())
			}
			if p := one(c.data, nil, frameStage().In); p.Drop != c.ethernet {
				t.Errorf("Ethernet: %v, want %v", p.Drop, c.ethernet)
			} else if c.ethernet == packet.Alive && !bytes.Equal(p.Bytes(), c.data[8:]) {
				t.Errorf("Ethernet: %x", p.Bytes())
			}
		})
	}
}

func TestInTrimsEthernetPadding(t *testing.T) {
	ip := udp4(2) // 30 bytes, padded to Ethernet's least payload of 46
	padded := append(bytes.Clone(ip), bytes.Repeat([]byte{0xee}, 16)...)
	p := one(wire(vni, ownMAC, layers.EthernetTypeIPv4, padded), nil, ipStage().In)
	if p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), ip) {
		t.Errorf("%v: %x", p.Drop, p.Bytes())
	}
	p = one(wire(vni, ownMAC, layers.EthernetTypeIPv4, padded), nil, frameStage().In)
	if p.Drop != packet.Alive || p.Len() != 14+len(padded) {
		t.Errorf("a frame keeps its padding: %v, %d bytes", p.Drop, p.Len())
	}
}

// unfinish puts the pseudo-header sum alone into the UDP checksum of a packet.
func unfinish(ip []byte) []byte {
	ip = bytes.Clone(ip)
	l4 := packet.IPv4Header
	if ip[0]>>4 == 6 {
		l4 = packet.IPv6Header
	}
	binary.BigEndian.PutUint16(ip[l4+6:], packettest.PseudoSum(ip, len(ip)-l4))
	return ip
}

// What a Linux vxlan device sends over veth with tx offload on.
func TestInFinishesChecksums(t *testing.T) {
	for name, c := range map[string]struct {
		ip        []byte
		etherType layers.EthernetType
	}{"IPv4": {udp4(50), layers.EthernetTypeIPv4}, "IPv6": {udp6(51), layers.EthernetTypeIPv6}} {
		padding := bytes.Repeat([]byte{0xee}, 5) // must not get into the sum
		data := wire(vni, ownMAC, c.etherType, append(unfinish(c.ip), padding...))
		p := one(data, nil, ipStage().In)
		if p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), c.ip) || p.Checksum() != packet.ChecksumComplete {
			t.Errorf("%s: %v, state %d: %x", name, p.Drop, p.Checksum(), p.Bytes())
		}
		p = one(data, nil, frameStage().In)
		if p.Drop != packet.Alive || !bytes.Equal(p.Bytes()[14:14+len(c.ip)], c.ip) {
			t.Errorf("%s in a frame: %v: %x", name, p.Drop, p.Bytes())
		}
	}
}

func TestInMarksSuperFrames(t *testing.T) {
	for name, c := range map[string]struct {
		ip        []byte
		etherType layers.EthernetType
		start     int
	}{"IPv4": {udp4(20000), layers.EthernetTypeIPv4, 20}, "IPv6": {udp6(20000), layers.EthernetTypeIPv6, 40}} {
		data := wire(vni, ownMAC, c.etherType, unfinish(c.ip))
		p := one(data, nil, ipStage().In)
		if start, offset, ok := p.Partial(); p.Drop != packet.Alive || !ok || start != c.start || offset != 6 {
			t.Errorf("%s: %v, partial %d+%d %v", name, p.Drop, start, offset, ok)
		}
		p = one(data, nil, frameStage().In)
		if start, offset, ok := p.Partial(); p.Drop != packet.Alive || !ok || start != 14+c.start || offset != 6 {
			t.Errorf("%s in a frame: %v, partial %d+%d %v", name, p.Drop, start, offset, ok)
		}
		anySize := vxlan.New(vxlan.Config{VNI: vni, MAC: ownMAC, Inner: packet.IP})
		p = one(data, nil, anySize.In)
		if _, _, ok := p.Partial(); ok || !bytes.Equal(p.Bytes(), c.ip) {
			t.Errorf("%s without an MTU is not finished", name)
		}
	}
}

func TestInLeavesNoChecksumAlone(t *testing.T) {
	ip := udp4(50)
	ip[26], ip[27] = 0, 0
	p := one(wire(vni, ownMAC, layers.EthernetTypeIPv4, ip), nil, ipStage().In)
	if p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), ip) {
		t.Errorf("%v: %x", p.Drop, p.Bytes())
	}
}

// FuzzIn: In never panics, never grows a packet, and what it lets through as IP is IP.
func FuzzIn(f *testing.F) {
	f.Add(wire(vni, ownMAC, layers.EthernetTypeIPv4, udp4(50)))
	f.Add(wire(vni, ownMAC, layers.EthernetTypeIPv6, udp6(50)))
	f.Add(wire(vni, ownMAC, layers.EthernetTypeIPv4, unfinish(udp4(20))))
	f.Add(wire(vni, ownMAC, layers.EthernetTypeIPv6, unfinish(udp6(1500))))
	f.Add(wire(vni, ownMAC, layers.EthernetTypeARP, make([]byte, 46)))
	ip, frame := ipStage(), frameStage()
	b := packet.NewBatch(1, 65535)
	in := func(s packet.Stage, data []byte) *packet.Packet {
		p := &b.Slots()[0]
		p.Resize(copy(p.Reset(), data))
		b.SetLen(1)
		s.In(b)
		return p
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 65535 {
			return
		}
		if p := in(ip, data); p.Drop == packet.Alive {
			v, drop := packet.ParseIP(p.Bytes())
			if drop != packet.Alive || v.Len() != p.Len() || p.Len()+22 > len(data) {
				t.Fatalf("let through %x", p.Bytes())
			}
			if start, offset, ok := p.Partial(); ok && start+offset+2 > p.Len() {
				t.Fatalf("partial at %d+%d of %d", start, offset, p.Len())
			}
		}
		if p := in(frame, data); p.Drop == packet.Alive && p.Len()+8 != len(data) {
			t.Fatalf("%d bytes became a frame of %d", len(data), p.Len())
		}
	})
}

func BenchmarkOut(b *testing.B) { bench(b, udp4(1400), true) }

func BenchmarkIn(b *testing.B) { bench(b, udp4(1400), false) }

// BenchmarkInUnfinished has a checksum to finish in every packet.
func BenchmarkInUnfinished(b *testing.B) { bench(b, unfinish(udp4(1400)), false) }

// bench reports the time of one packet in a full batch.
func bench(b *testing.B, ip []byte, out bool) {
	s := ipStage()
	batch := packet.NewBatch(packet.BatchSize, 2048)
	data := wire(vni, ownMAC, layers.EthernetTypeIPv4, ip)
	for i := range batch.Slots() {
		p := &batch.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.Hop = peer
	}
	batch.SetLen(packet.BatchSize)
	field := ip[26:28]
	for b.Loop() {
		live := batch.Packets()
		for i := range live {
			p := &live[i]
			if out {
				p.Strip(22)
				continue
			}
			copy(p.Bytes()[22+26:], field)
		}
		if out {
			s.Out(batch)
			continue
		}
		s.In(batch)
		for i := range live {
			live[i].Prepend(22)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packet.BatchSize, "ns/packet")
}
