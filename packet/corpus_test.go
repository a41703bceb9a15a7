package packet

import (
	"encoding/binary"
	"net"
	"strconv"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// sample is one packet made by gopacket, somebody else's code, and what is known of it.
type sample struct {
	name        string
	bytes       []byte
	proto       uint8
	transport   int // offset; 0 = none
	hasChecksum bool
	verifies    bool
}

func itoa(n int) string { return strconv.Itoa(n) }

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Id: 7, Protocol: proto, Flags: layers.IPv4DontFragment,
		SrcIP: net.IP{10, 244, 1, 2}, DstIP: net.IP{10, 244, 2, 3},
	}
}

func ip6(proto layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 64, NextHeader: proto,
		SrcIP: net.ParseIP("fd00:10:244:1::2"), DstIP: net.ParseIP("fd00:10:244:2::3"),
	}
}

func payload(n int) gopacket.Payload {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// serialize fixes lengths and computes every checksum.
func serialize(ls ...gopacket.SerializableLayer) []byte {
	for _, l := range ls {
		network, ok := l.(gopacket.NetworkLayer)
		if !ok {
			continue
		}
		for _, l := range ls {
			if c, ok := l.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				if err := c.SetNetworkLayerForChecksum(network); err != nil {
					panic(err)
				}
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	return append([]byte(nil), buf.Bytes()...)
}

func tcp(flags uint8, options ...layers.TCPOption) *layers.TCP {
	return &layers.TCP{
		SrcPort: 40000, DstPort: 5201, Seq: 0xfffffff0, Ack: 77, Window: 500, Options: options,
		FIN: flags&TCPFlagFIN != 0, SYN: flags&TCPFlagSYN != 0, RST: flags&TCPFlagRST != 0,
		PSH: flags&TCPFlagPSH != 0, ACK: flags&TCPFlagACK != 0, URG: flags&TCPFlagURG != 0,
		ECE: flags&TCPFlagECE != 0, CWR: flags&TCPFlagCWR != 0,
	}
}

func udp() *layers.UDP { return &layers.UDP{SrcPort: 40000, DstPort: 53} }

var timestamps = layers.TCPOption{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: []byte{0, 0, 0, 1, 0, 0, 0, 2}}

// behind6 puts raw extension headers, the last of which names proto, in front of an upper layer.
func behind6(first uint8, ext []byte, upper []byte) []byte {
	b := make([]byte, IPv6Header, IPv6Header+len(ext)+len(upper))
	b[0], b[7], b[6] = 0x60, 64, first
	copy(b[8:], net.ParseIP("fd00:10:244:1::2"))
	copy(b[24:], net.ParseIP("fd00:10:244:2::3"))
	binary.BigEndian.PutUint16(b[4:], uint16(len(ext)+len(upper)))
	return append(append(b, ext...), upper...)
}

func corpus() []sample {
	tcp6 := serialize(ip6(layers.IPProtocolTCP), tcp(TCPFlagACK|TCPFlagPSH), payload(5))
	udp6 := serialize(ip6(layers.IPProtocolUDP), udp(), payload(6))
	options := ip4(layers.IPProtocolTCP)
	options.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	firstFragment := ip4(layers.IPProtocolUDP)
	firstFragment.Flags = layers.IPv4MoreFragments
	laterFragment := ip4(layers.IPProtocolUDP)
	laterFragment.Flags, laterFragment.FragOffset = 0, 100
	return []sample{
		{"tcp4", serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK), payload(33)), ProtoTCP, 20, true, true},
		{"tcp4 timestamps", serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK, timestamps), payload(100)), ProtoTCP, 20, true, true},
		{"tcp4 ip options", serialize(options, tcp(TCPFlagACK), payload(10)), ProtoTCP, 24, true, true},
		{"udp4", serialize(ip4(layers.IPProtocolUDP), udp(), payload(18)), ProtoUDP, 20, true, true},
		{"udp4 empty", serialize(ip4(layers.IPProtocolUDP), udp()), ProtoUDP, 20, true, true},
		{"icmp4", serialize(ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 1, Seq: 2}, payload(9)), ProtoICMP, 20, false, true},
		{"gre4", serialize(ip4(layers.IPProtocolGRE), payload(40)), 47, 20, false, false},
		{"fragment4 first", serialize(firstFragment, payload(64)), ProtoUDP, 0, false, false},
		{"fragment4 later", serialize(laterFragment, payload(64)), ProtoUDP, 0, false, false},
		{"tcp6", tcp6, ProtoTCP, 40, true, true},
		{"udp6", udp6, ProtoUDP, 40, true, true},
		{"icmp6", serialize(ip6(layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, payload(12)), ProtoICMPv6, 40, false, true},
		{"hop-by-hop6", behind6(0, []byte{6, 0, 1, 4, 0, 0, 0, 0}, tcp6[40:]), ProtoTCP, 48, true, true},
		{"options6 twice", behind6(0, []byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, udp6[40:]), ProtoUDP, 64, true, true},
		{"routing6 used up", behind6(43, []byte{6, 0, 4, 0, 0, 0, 0, 0}, tcp6[40:]), ProtoTCP, 48, true, true},
		{"routing6 segments left", behind6(43, []byte{6, 0, 4, 1, 0, 0, 0, 0}, tcp6[40:]), 43, 0, false, false},
		{"fragment6 first", behind6(44, []byte{17, 0, 0, 1, 0, 0, 0, 9}, udp6[40:]), ProtoUDP, 0, false, false},
		{"fragment6 later", behind6(44, []byte{17, 0, 0x10, 0, 0, 0, 0, 9}, udp6[40:]), ProtoUDP, 0, false, false},
		{"no next header6", behind6(59, nil, nil), 59, 40, false, false},
		{"extension cut short6", behind6(0, []byte{6, 9, 0, 0, 0, 0, 0, 0}, nil), 0, 0, false, false},
	}
}

func find(t testing.TB, name string) sample {
	for _, c := range corpus() {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no sample %q", name)
	return sample{}
}

func mustParse(t testing.TB, b []byte) IPView {
	t.Helper()
	v, drop := ParseIP(b)
	if drop != Alive {
		t.Fatalf("ParseIP: %v: %x", drop, b)
	}
	return v
}
