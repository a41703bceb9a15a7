package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func ownAddr(v IPView) netip.Addr {
	if v.Version() == 4 {
		return netip.MustParseAddr("10.244.1.1")
	}
	return netip.MustParseAddr("fd00:10:244:1::1")
}

// checkReply lets gopacket judge an answer to orig.
func checkReply(t *testing.T, orig IPView, reply []byte, mtu int) {
	t.Helper()
	v := mustParse(t, reply)
	if !v.VerifyTransport() || !v.IPv4ChecksumOK() || v.Dst() != orig.Src() || v.Src() != ownAddr(orig) {
		t.Fatalf("bad answer %x", reply)
	}
	first := gopacket.Decoder(layers.LayerTypeIPv4)
	limit := 576
	if v.Version() == 6 {
		first, limit = layers.LayerTypeIPv6, MinIPv6MTU
	}
	if len(reply) > limit {
		t.Fatalf("answer of %d bytes", len(reply))
	}
	p := gopacket.NewPacket(reply, first, gopacket.NoCopy)
	var told int
	var quote []byte
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		if icmp.TypeCode != layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded) {
			t.Fatalf("type %v", icmp.TypeCode)
		}
		told, quote = int(icmp.Seq), icmp.Payload // gopacket calls the last 16 bits Seq
	} else if icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); ok {
		if icmp.TypeCode != layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0) {
			t.Fatalf("type %v", icmp.TypeCode)
		}
		told, quote = int(binary.BigEndian.Uint32(icmp.Payload)), icmp.Payload[4:]
	} else {
		t.Fatalf("gopacket finds no ICMP in %x", reply)
	}
	if told != mtu {
		t.Fatalf("MTU %d, want %d", told, mtu)
	}
	want := orig.Bytes()
	if len(reply) == limit {
		want = want[:len(quote)]
	}
	if string(quote) != string(want) {
		t.Fatalf("quotes %x\nwant   %x", quote, want)
	}
}

func TestTooBigReply(t *testing.T) {
	for _, name := range []string{"tcp4", "tcp4 ip options", "udp4", "icmp4", "tcp6", "udp6", "icmp6", "hop-by-hop6", "fragment6 first"} {
		t.Run(name, func(t *testing.T) {
			v := mustParse(t, find(t, name).bytes)
			reply, ok := TooBigReply(v.Bytes(), ownAddr(v), 1350)
			if !ok {
				t.Fatal("no answer")
			}
			checkReply(t, v, reply, 1350)
		})
	}
	for _, b := range [][]byte{
		serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK), payload(1440)),
		serialize(ip6(layers.IPProtocolTCP), tcp(TCPFlagACK), payload(1440)),
	} {
		v := mustParse(t, b)
		reply, ok := TooBigReply(b, ownAddr(v), 1400)
		if !ok {
			t.Fatal("no answer")
		}
		checkReply(t, v, reply, 1400)
	}
}

func TestTooBigReplyStaysSilent(t *testing.T) {
	own4, own6 := netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00::1")
	to4 := func(src, dst string) []byte {
		h := ip4(layers.IPProtocolUDP)
		h.SrcIP, h.DstIP = net.ParseIP(src).To4(), net.ParseIP(dst).To4()
		return serialize(h, udp(), payload(10))
	}
	to6 := func(src, dst string) []byte {
		h := ip6(layers.IPProtocolUDP)
		h.SrcIP, h.DstIP = net.ParseIP(src), net.ParseIP(dst)
		return serialize(h, udp(), payload(10))
	}
	icmp4 := func(icmpType uint8) []byte {
		return serialize(ip4(layers.IPProtocolICMPv4), &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(icmpType, 0)}, payload(28))
	}
	icmp6 := func(icmpType uint8) []byte {
		return serialize(ip6(layers.IPProtocolICMPv6), &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(icmpType, 0)}, payload(48))
	}
	noDF := ip4(layers.IPProtocolTCP)
	noDF.Flags = 0
	for _, c := range []struct {
		name string
		orig []byte
		src  netip.Addr
		mtu  int
	}{
		{"no IP packet", []byte{1, 2, 3}, own4, 1400},
		{"no DF", serialize(noDF, tcp(TCPFlagACK), payload(10)), own4, 1400},
		{"later fragment", find(t, "fragment4 later").bytes, own4, 1400},
		{"later fragment, v6", find(t, "fragment6 later").bytes, own6, 1400},
		{"unreachable", icmp4(3), own4, 1400},
		{"source quench", icmp4(4), own4, 1400},
		{"redirect", icmp4(5), own4, 1400},
		{"time exceeded", icmp4(11), own4, 1400},
		{"parameter problem", icmp4(12), own4, 1400},
		{"unreachable, v6", icmp6(1), own6, 1400},
		{"packet too big, v6", icmp6(2), own6, 1400},
		{"unknown error, v6", icmp6(127), own6, 1400},
		{"redirect, v6", icmp6(137), own6, 1400},
		{"hidden upper layer, v6", find(t, "extension cut short6").bytes, own6, 1400},
		{"to a group", to4("10.0.0.1", "224.0.0.5"), own4, 1400},
		{"to everybody", to4("10.0.0.1", "255.255.255.255"), own4, 1400},
		{"to a group, v6", to6("fd00::1", "ff02::1"), own6, 1400},
		{"from a group", to4("239.1.1.1", "10.0.0.1"), own4, 1400},
		{"from nobody", to4("0.0.0.0", "10.0.0.1"), own4, 1400},
		{"from loopback", to4("127.0.0.1", "10.0.0.1"), own4, 1400},
		{"from nobody, v6", to6("::", "fd00::1"), own6, 1400},
		{"other family's source", find(t, "tcp4").bytes, own6, 1400},
		{"other family's source, v6", find(t, "tcp6").bytes, own4, 1400},
		{"mtu 67", find(t, "tcp4").bytes, own4, 67},
		{"mtu 1279, v6", find(t, "tcp6").bytes, own6, 1279},
	} {
		if reply, ok := TooBigReply(c.orig, c.src, c.mtu); ok {
			t.Errorf("%s: answered %x", c.name, reply)
		}
	}
}
