package packet

import (
	"encoding/binary"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

func TestFlowHash(t *testing.T) {
	for _, name := range []string{"tcp4", "udp4", "tcp6", "udp6", "hop-by-hop6"} {
		t.Run(name, func(t *testing.T) {
			b := find(t, name).bytes
			v := mustParse(t, b)
			at, _ := v.Transport()
			h := FlowHash(b)
			if h == 0 || h == 1 {
				t.Fatalf("hash %d", h)
			}
			differs := func(what string, at int) {
				b[at] ^= 1
				if FlowHash(b) == h {
					t.Errorf("%s does not count", what)
				}
				b[at] ^= 1
			}
			same := func(what string, at int) {
				b[at] ^= 1
				if FlowHash(b) != h {
					t.Errorf("%s counts", what)
				}
				b[at] ^= 1
			}
			addrs := v.addrs()
			for i := range addrs {
				differs("address byte "+itoa(i), at0(b, addrs)+i)
			}
			for i := range 4 {
				differs("port byte "+itoa(i), at+i)
			}
			same("what follows the ports", at+6)
			if v.Version() == 6 {
				same("the flow label", 3)
			} else {
				same("the identification", 5)
			}
		})
	}
}

// at0 is where inside is in b.
func at0(b, inside []byte) int { return cap(b) - cap(inside) }

func TestFlowHashOfFragments(t *testing.T) {
	first, later := ip4(layers.IPProtocolUDP), ip4(layers.IPProtocolUDP)
	first.Flags, later.Flags, later.FragOffset = layers.IPv4MoreFragments, 0, 3
	a := FlowHash(serialize(first, payload(24)))
	b := FlowHash(serialize(later, payload(9)))
	if a != b {
		t.Errorf("fragments of one datagram part: %#x, %#x", a, b)
	}
	c, d := find(t, "fragment6 first").bytes, find(t, "fragment6 later").bytes
	if FlowHash(c) != FlowHash(d) {
		t.Error("IPv6 fragments of one datagram part")
	}
}

// TestFlowHashSpreads: 64 K connections that differ in one port only, into 16 sockets and into 1024.
// The bounds are 5 standard deviations of a binomial spread around the mean; the input is fixed.
func TestFlowHashSpreads(t *testing.T) {
	for _, name := range []string{"tcp4", "tcp6"} {
		b := find(t, name).bytes
		at, _ := mustParse(t, b).Transport()
		few, many := [16]int{}, [1024]int{}
		for port := range 1 << 16 {
			binary.BigEndian.PutUint16(b[at:], uint16(port))
			h := FlowHash(b)
			few[h%16]++
			many[h>>22]++
		}
		for i, n := range few {
			if n < 4096-310 || n > 4096+310 {
				t.Errorf("%s: bucket %d of 16 has %d", name, i, n)
			}
		}
		for i, n := range many {
			if n < 64-45 || n > 64+45 {
				t.Errorf("%s: bucket %d of 1024 has %d", name, i, n)
			}
		}
	}
}

func TestHeaderViewsDoNotAllocate(t *testing.T) {
	for _, c := range corpus() {
		if n := testing.AllocsPerRun(100, func() {
			v, _ := ParseIP(c.bytes)
			v.Src()
			v.Dst()
			v.FlowHash()
			v.UnfinishedChecksum()
			v.VerifyTransport()
		}); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func BenchmarkFlowHash(b *testing.B) {
	for _, name := range []string{"tcp4", "tcp6"} {
		b.Run(name, func(b *testing.B) {
			data := find(b, name).bytes
			for b.Loop() {
				FlowHash(data)
			}
		})
	}
}
