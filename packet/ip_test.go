package packet

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestParseIP(t *testing.T) {
	for _, c := range corpus() {
		t.Run(c.name, func(t *testing.T) {
			padded := append(append([]byte(nil), c.bytes...), 0xee, 0xee, 0xee)
			v := mustParse(t, padded)
			if v.Len() != len(c.bytes) || string(v.Bytes()) != string(c.bytes) {
				t.Errorf("length %d, want %d", v.Len(), len(c.bytes))
			}
			at, ok := v.Transport()
			if ok != (c.transport != 0) || ok && at != c.transport {
				t.Errorf("Transport = %d, %v, want %d", at, ok, c.transport)
			}
			if v.Protocol() != c.proto {
				t.Errorf("Protocol = %d, want %d", v.Protocol(), c.proto)
			}
			src, dst := "10.244.1.2", "10.244.2.3"
			if v.Version() == 6 {
				src, dst = "fd00:10:244:1::2", "fd00:10:244:2::3"
			}
			if v.Src() != netip.MustParseAddr(src) || v.Dst() != netip.MustParseAddr(dst) {
				t.Errorf("addresses %v, %v", v.Src(), v.Dst())
			}
			if a, ok := SrcAddr(c.bytes); !ok || a != v.Src() {
				t.Errorf("SrcAddr = %v, %v", a, ok)
			}
			if a, ok := DstAddr(c.bytes); !ok || a != v.Dst() {
				t.Errorf("DstAddr = %v, %v", a, ok)
			}
		})
	}
}

func TestParseIPFragments(t *testing.T) {
	for _, c := range []struct {
		name   string
		offset int
	}{{"fragment4 first", 0}, {"fragment4 later", 800}, {"fragment6 first", 0}, {"fragment6 later", 0x1000}} {
		offset, ok := mustParse(t, find(t, c.name).bytes).Fragment()
		if !ok || offset != c.offset {
			t.Errorf("%s: Fragment = %d, %v, want %d", c.name, offset, ok, c.offset)
		}
	}
	if _, ok := mustParse(t, find(t, "tcp4").bytes).Fragment(); ok {
		t.Error("tcp4 is no fragment")
	}
	if !mustParse(t, find(t, "tcp4").bytes).DontFragment() || mustParse(t, find(t, "fragment4 first").bytes).DontFragment() {
		t.Error("DF misread")
	}
}

func TestParseIPRefuses(t *testing.T) {
	edit := func(name string, at int, value byte) []byte {
		b := find(t, name).bytes
		b[at] = value
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		want Drop
	}{
		{"nothing", nil, TooShort},
		{"version 0", make([]byte, 64), NotIP},
		{"version 5", edit("tcp4", 0, 0x55), NotIP},
		{"IHL 4", edit("tcp4", 0, 0x44), BadHeader},
		{"total length below the header", edit("udp4", 3, 19), BadHeader},
		{"IHL beyond the total length", edit("udp4 empty", 0, 0x4f), BadHeader},
		{"total length beyond the bytes", edit("udp4", 2, 0x10), TooShort},
		{"payload length beyond the bytes", edit("udp6", 4, 0x10), TooShort},
	} {
		if _, got := ParseIP(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestParseIPTruncated(t *testing.T) {
	for _, c := range corpus() {
		for n := range c.bytes {
			if _, got := ParseIP(c.bytes[:n]); got != TooShort {
				t.Fatalf("%s cut to %d bytes: %v", c.name, n, got)
			}
		}
	}
}

func TestExtensionWalkIsBounded(t *testing.T) {
	var chain []byte
	for range maxExtensions {
		chain = append(chain, extDestOptions, 0, 1, 4, 0, 0, 0, 0)
	}
	upper := find(t, "udp6").bytes[40:]
	allowed := append([]byte(nil), chain...)
	allowed[len(allowed)-8] = ProtoUDP
	if at, ok := mustParse(t, behind6(extDestOptions, allowed, upper)).Transport(); !ok || at != 40+8*maxExtensions {
		t.Errorf("%d extension headers: %d, %v", maxExtensions, at, ok)
	}
	longer := append(append([]byte(nil), chain...), ProtoUDP, 0, 1, 4, 0, 0, 0, 0)
	if _, ok := mustParse(t, behind6(extDestOptions, longer, upper)).Transport(); ok {
		t.Error("one more was walked too")
	}
}

func TestEthernet(t *testing.T) {
	b := make([]byte, 20)
	dst, src := [6]byte{1, 2, 3, 4, 5, 6}, [6]byte{7, 8, 9, 10, 11, 12}
	PutEthernet(b, dst, src, EtherTypeIPv6)
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.NoCopy)
	eth, ok := p.LinkLayer().(*layers.Ethernet)
	if !ok || [6]byte(eth.DstMAC) != dst || [6]byte(eth.SrcMAC) != src || eth.EthernetType != layers.EthernetTypeIPv6 {
		t.Fatalf("gopacket reads %v", p)
	}
	e, drop := ParseEthernet(b)
	if drop != Alive || e.Dst() != dst || e.Src() != src || e.Type() != EtherTypeIPv6 || len(e.Payload()) != 6 {
		t.Fatalf("%v %x", drop, e)
	}
	if _, drop := ParseEthernet(b[:13]); drop != TooShort {
		t.Fatalf("13 bytes: %v", drop)
	}
}

// FuzzParseIP calls everything a view offers on whatever parses.
func FuzzParseIP(f *testing.F) {
	for _, c := range corpus() {
		f.Add(c.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		hash := FlowHash(b)
		if hash == 0 {
			t.Fatal("FlowHash is 0")
		}
		v, drop := ParseIP(b)
		if drop != Alive {
			return
		}
		if v.Len() > len(b) || v.Len() < IPv4Header {
			t.Fatalf("length %d of %d bytes", v.Len(), len(b))
		}
		if src, ok := SrcAddr(b); !ok || src != v.Src() {
			t.Fatal("SrcAddr differs")
		}
		if dst, ok := DstAddr(b); !ok || dst != v.Dst() {
			t.Fatal("DstAddr differs")
		}
		if at, ok := v.Transport(); ok {
			if at < IPv4Header || at > v.Len() {
				t.Fatalf("transport at %d of %d", at, v.Len())
			}
			useTransport(v.Bytes()[at:])
		}
		v.Fragment()
		v.DontFragment()
		v.Protocol()
		v.IPv4ChecksumOK()
		v.VerifyTransport()
		v.UnfinishedChecksum()
		if reply, ok := TooBigReply(b, ownAddr(v), 1400); ok {
			checkReply(t, v, reply, 1400)
		}
		if FlowHash(v.Bytes()) != hash {
			t.Fatal("padding changes the flow hash")
		}
	})
}

func useTransport(b []byte) {
	if s := TCPView(b); s.Valid() {
		s.Seq()
		s.Flags()
	}
}

func BenchmarkParseIP(b *testing.B) {
	for _, name := range []string{"tcp4", "tcp6", "hop-by-hop6"} {
		b.Run(name, func(b *testing.B) {
			data := find(b, name).bytes
			for b.Loop() {
				ParseIP(data)
			}
		})
	}
}

func BenchmarkDstAddr(b *testing.B) {
	for _, name := range []string{"tcp4", "tcp6"} {
		b.Run(name, func(b *testing.B) {
			data := find(b, name).bytes
			for b.Loop() {
				DstAddr(data)
			}
		})
	}
}
