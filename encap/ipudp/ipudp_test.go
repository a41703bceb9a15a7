package ipudp_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weft/encap/ipudp"
	"weft/packet"
	"weft/packet/packettest"
)

const mtu = 1472

var hop = &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:8285"), mtu)}

func newStage() packet.Stage { return ipudp.New(mtu) }

func TestConformance(t *testing.T) {
	packettest.Stage(t, newStage, hop, packet.IP)
	packettest.Checksums(t, newStage, hop, packet.IP)
}

// one puts one packet through f and returns it.
func one(data []byte, f func(*packet.Batch)) *packet.Packet {
	b := packet.NewBatch(1, 65535)
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data))
	b.SetLen(1)
	f(b)
	return p
}

func udp(src, dst string, n int) []byte {
	return packettest.UDP(netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst), n, 0xc0)
}

func udp4(n int) []byte { return udp("10.244.1.2:40000", "10.244.2.3:53", n) }

func udp6(n int) []byte { return udp("[fd00:10:244:1::2]:40000", "[fd00:10:244:2::3]:53", n) }

// TestAsGopacketReadsIt holds both directions to gopacket's idea of an IP packet.
func TestAsGopacketReadsIt(t *testing.T) {
	for layer, ip := range map[gopacket.LayerType][]byte{
		layers.LayerTypeIPv4: udp("10.244.1.2:40000", "10.244.2.3:40001", 100),
		layers.LayerTypeIPv6: udp("[fd00:10:244:1::2]:40000", "[fd00:10:244:2::3]:40001", 100),
	} {
		p := one(ip, newStage().Out)
		if p.Drop != packet.Alive {
			t.Fatalf("%v: Out: %v", layer, p.Drop)
		}
		got := gopacket.NewPacket(p.Bytes(), layer, gopacket.Default)
		if e := got.ErrorLayer(); e != nil {
			t.Errorf("%v: gopacket: %v", layer, e.Error())
		}
		u, _ := got.TransportLayer().(*layers.UDP)
		if u == nil || u.SrcPort != 40000 || u.DstPort != 40001 || len(u.Payload) != 100 {
			t.Errorf("%v: gopacket reads %v", layer, got)
		}
		if p := one(p.Bytes(), newStage().In); p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), ip) {
			t.Errorf("%v: In: %v: %x", layer, p.Drop, p.Bytes())
		}
	}
}

func TestDrops(t *testing.T) {
	shortened := func(b []byte, n int) []byte { return b[:n] }
	patched := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	for name, c := range map[string]struct {
		data    []byte
		out, in packet.Drop
	}{
		"IPv4":                            {udp4(9), packet.Alive, packet.Alive},
		"IPv6":                            {udp6(9), packet.Alive, packet.Alive},
		"nothing":                         {nil, packet.NotIP, packet.TooShort},
		"version 0":                       {make([]byte, 40), packet.NotIP, packet.NotIP},
		"version 5":                       {patched(udp4(9), 0, 0x55), packet.NotIP, packet.NotIP},
		"half a header":                   {shortened(udp4(9), 10), packet.Alive, packet.TooShort},
		"less than the total length":      {shortened(udp4(9), 30), packet.Alive, packet.TooShort},
		"IHL 4":                           {patched(udp4(9), 0, 0x44), packet.Alive, packet.BadHeader},
		"total length below the header":   {patched(udp4(9), 3, 19), packet.Alive, packet.BadHeader},
		"IPv6 shorter than its payload":   {shortened(udp6(9), 50), packet.Alive, packet.TooShort},
		"IPv6 with half a header":         {shortened(udp6(9), 39), packet.Alive, packet.TooShort},
		"a VXLAN header, by its I flag 8": {[]byte{8, 0, 0, 0, 0, 0, 1, 0}, packet.NotIP, packet.NotIP},
	} {
		if p := one(c.data, newStage().Out); p.Drop != c.out {
			t.Errorf("%s: Out: %v, want %v", name, p.Drop, c.out)
		}
		if p := one(c.data, newStage().In); p.Drop != c.in {
			t.Errorf("%s: In: %v, want %v", name, p.Drop, c.in)
		}
	}
	for _, f := range []func(*packet.Batch){newStage().Out, newStage().In} {
		if p := one(nil, func(b *packet.Batch) {
			b.Packets()[0].Drop = packet.NoRoute
			f(b)
		}); p.Drop != packet.NoRoute {
			t.Errorf("a dead packet was touched: %v", p.Drop)
		}
	}
}

// TestTrailerIsCutOff: bytes behind the packet never reach the inside port.
func TestTrailerIsCutOff(t *testing.T) {
	if p := one(append(udp4(20), "behind"...), newStage().In); p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), udp4(20)) {
		t.Errorf("%v: %x", p.Drop, p.Bytes())
	}
}

// TestWireDocument holds docs/wire.md and the code together.
func TestWireDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```ipudp-vector\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 2 {
		t.Fatalf("%d vectors, want one of each family", len(blocks))
	}
	for i, inner := range [][]byte{udp4(4), udp6(4)} {
		var digits strings.Builder
		for line := range strings.Lines(blocks[i][1]) {
			data, _, _ := strings.Cut(line, ":")
			digits.WriteString(strings.Join(strings.Fields(data), ""))
		}
		vector, err := hex.DecodeString(digits.String())
		if err != nil || !bytes.Equal(vector, inner) {
			t.Fatalf("vector %x (%v), want %x", vector, err, inner)
		}
		if p := one(inner, newStage().Out); !bytes.Equal(p.Bytes(), vector) {
			t.Errorf("Out makes %x\nvector   %x", p.Bytes(), vector)
		}
		if p := one(vector, newStage().In); p.Drop != packet.Alive || !bytes.Equal(p.Bytes(), inner) {
			t.Errorf("In: %v: %x", p.Drop, p.Bytes())
		}
	}
	_, section, found := strings.Cut(string(text), "\n## IP in UDP\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var said []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(section, -1) {
		said = append(said, row[1])
	}
	slices.Sort(said)
	if want := []string{"bad-header", "not-ip", "too-short"}; !found || !slices.Equal(said, want) {
		t.Errorf("the document lists the drops %q, want %q", said, want)
	}
}

// FuzzIn: whatever arrives, In makes an IP packet of it that is no longer than what came, or drops it.
func FuzzIn(f *testing.F) {
	for _, seed := range [][]byte{nil, udp4(0), udp6(0), udp4(60)[:25], append(udp6(8), 1, 2, 3), {0x45}, make([]byte, 20)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 65535 {
			return
		}
		p := one(data, newStage().In)
		if p.Drop != packet.Alive {
			return
		}
		v, drop := packet.ParseIP(p.Bytes())
		if drop != packet.Alive || v.Len() != p.Len() || p.Len() > len(data) {
			t.Errorf("In made %x of %x (%v)", p.Bytes(), data, drop)
		}
	})
}
