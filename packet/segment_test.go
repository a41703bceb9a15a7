package packet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// super is a TCP packet as its sender means it: gopacket's layers and the payload. What Cutter
// makes of it is compared with what gopacket makes of each piece.
type super struct {
	v4   *layers.IPv4
	v6   *layers.IPv6
	tcp  layers.TCP
	data []byte
}

func (s *super) packet() []byte {
	t := s.tcp
	if s.v4 != nil {
		ip := *s.v4
		return serialize(&ip, &t, gopacket.Payload(s.data))
	}
	ip := *s.v6
	return serialize(&ip, &t, gopacket.Payload(s.data))
}

// cut is the oracle: the pieces of at most mtu bytes, each built anew.
func (s *super) cut(mtu int) (pieces [][]byte) {
	empty := *s
	empty.data = nil
	mss := mtu - len(empty.packet())
	for at := 0; at == 0 || at < len(s.data); at += mss {
		end := min(at+mss, len(s.data))
		piece := super{tcp: s.tcp, data: s.data[at:end]}
		piece.tcp.Seq += uint32(at)
		piece.tcp.CWR = s.tcp.CWR && at == 0
		piece.tcp.FIN = s.tcp.FIN && end == len(s.data)
		piece.tcp.PSH = s.tcp.PSH && end == len(s.data)
		if s.v4 != nil {
			ip := *s.v4
			ip.Id += uint16(at / mss)
			piece.v4 = &ip
		} else {
			piece.v6 = s.v6
		}
		pieces = append(pieces, piece.packet())
	}
	return pieces
}

func randomSuper(r *rand.Rand) *super {
	s := &super{data: make([]byte, 1+r.IntN(65000))}
	if r.IntN(8) == 0 {
		s.data = s.data[:r.IntN(min(3, len(s.data)+1))]
	}
	for i := range s.data {
		s.data[i] = byte(r.Uint32())
	}
	s.tcp = *tcp(TCPFlagACK)
	s.tcp.Seq, s.tcp.Ack, s.tcp.Window = r.Uint32(), r.Uint32(), uint16(r.Uint32())
	s.tcp.FIN, s.tcp.PSH, s.tcp.ECE, s.tcp.CWR = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	if r.IntN(2) == 0 {
		s.tcp.Options = []layers.TCPOption{timestamps}
	}
	if r.IntN(2) == 0 {
		s.v4 = ip4(layers.IPProtocolTCP)
		s.v4.Id, s.v4.TOS, s.v4.TTL = uint16(r.Uint32()), uint8(r.Uint32()), uint8(1+r.IntN(255))
		if r.IntN(4) == 0 {
			s.v4.Options = []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
		}
	} else {
		s.v6 = ip6(layers.IPProtocolTCP)
		s.v6.TrafficClass, s.v6.FlowLabel = uint8(r.Uint32()), r.Uint32()&0xfffff
	}
	return s
}

// cutAll runs a Cutter to its end.
func cutAll(t testing.TB, ip []byte, mtu int, partial bool) (pieces [][]byte) {
	t.Helper()
	var c Cutter
	if !c.Start(ip, mtu, partial) {
		t.Fatalf("Start refuses %d bytes for MTU %d", len(ip), mtu)
	}
	for more := true; more; {
		dst := make([]byte, mtu)
		var n int
		n, more = c.Next(dst)
		pieces = append(pieces, dst[:n])
	}
	return pieces
}

func TestCutterAgainstGopacket(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 300 {
		s := randomSuper(r)
		mtu := 576 + r.IntN(9000-576)
		whole := s.packet()
		partial := r.IntN(2) == 0
		if partial {
			v := mustParse(t, whole)
			start, offset, _ := v.checksumField()
			PutChecksum(whole[start+offset:], ^PseudoSum(v.addrs(), ProtoTCP, len(whole)-start))
		}
		before := bytes.Clone(whole)
		got, want := cutAll(t, append(whole, 0xee, 0xee), mtu, partial), s.cut(mtu)
		if !bytes.Equal(whole, before) {
			t.Fatalf("round %d: the super-packet was changed", i)
		}
		if len(got) != len(want) {
			t.Fatalf("round %d: %d packets, want %d", i, len(got), len(want))
		}
		for k := range got {
			if !bytes.Equal(got[k], want[k]) {
				t.Fatalf("round %d, packet %d of %d:\ngot  %x\nwant %x", i, k, len(got), got[k][:60], want[k][:60])
			}
		}
	}
}

func TestCutterRefuses(t *testing.T) {
	large := func(flags uint8) []byte {
		return serialize(ip4(layers.IPProtocolTCP), tcp(flags), payload(5000))
	}
	fragment := ip4(layers.IPProtocolTCP)
	fragment.Flags = layers.IPv4MoreFragments
	damaged := large(TCPFlagACK)
	damaged[3000] ^= 4
	damagedHeader := large(TCPFlagACK)
	damagedHeader[8] ^= 4
	shortTCP := large(TCPFlagACK)
	shortTCP[20+12] = 0x40
	for _, c := range []struct {
		name    string
		ip      []byte
		mtu     int
		partial bool
	}{
		{"nothing", nil, 1400, true},
		{"UDP", serialize(ip4(layers.IPProtocolUDP), udp(), payload(5000)), 1400, true},
		{"fragment", serialize(fragment, tcp(TCPFlagACK), payload(5000)), 1400, true},
		{"SYN", large(TCPFlagSYN), 1400, true},
		{"RST", large(TCPFlagRST | TCPFlagACK), 1400, true},
		{"URG", large(TCPFlagURG | TCPFlagACK), 1400, true},
		{"data offset 4", shortTCP, 1400, true},
		{"no room for payload", large(TCPFlagACK), 40, true},
		{"wrong TCP checksum", damaged, 1400, false},
		{"wrong IPv4 checksum", damagedHeader, 1400, true},
		{"truncated", large(TCPFlagACK)[:3000], 1400, true},
	} {
		if new(Cutter).Start(c.ip, c.mtu, c.partial) {
			t.Errorf("%s: accepted", c.name)
		}
	}
	if !new(Cutter).Start(large(TCPFlagACK), 41, false) {
		t.Error("one byte a packet is refused")
	}
}

// FuzzCutter: whatever Start accepts, Next cuts into packets that fit, are whole, verify, and whose
// payloads are together the super-packet's.
func FuzzCutter(f *testing.F) {
	f.Add(serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK|TCPFlagPSH, timestamps), payload(90)), uint16(92), true)
	f.Add(serialize(ip6(layers.IPProtocolTCP), tcp(TCPFlagACK|TCPFlagFIN), payload(60)), uint16(91), false)
	f.Add(find(f, "hop-by-hop6").bytes, uint16(80), true)
	f.Fuzz(func(t *testing.T, ip []byte, mtu uint16, partial bool) {
		var c Cutter
		if len(ip) > 2048 || !c.Start(ip, int(mtu), partial) {
			return
		}
		v := mustParse(t, ip)
		at, _ := v.Transport()
		want := payloadOf(v.Bytes()[at:])
		var got []byte
		dst := make([]byte, mtu)
		for more := true; more; {
			var n int
			n, more = c.Next(dst)
			piece := mustParse(t, dst[:n])
			if piece.Len() != n || n > int(mtu) || !piece.IPv4ChecksumOK() || !piece.VerifyTransport() {
				t.Fatalf("bad piece %x", dst[:n])
			}
			data := payloadOf(dst[at:n])
			if len(data) == 0 && len(want) > 0 {
				t.Fatal("an empty piece")
			}
			got = append(got, data...)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("payload %x, want %x", got, want)
		}
	})
}

func TestCutterDoesNotAllocate(t *testing.T) {
	ip := serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK), payload(60000))
	dst := make([]byte, 1450)
	var c Cutter
	if n := testing.AllocsPerRun(10, func() {
		c.Start(ip, 1450, false)
		for more := true; more; {
			_, more = c.Next(dst)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCutter(b *testing.B) {
	for _, partial := range []bool{true, false} {
		b.Run(fmt.Sprintf("partial=%v", partial), func(b *testing.B) {
			ip := serialize(ip4(layers.IPProtocolTCP), tcp(TCPFlagACK), payload(64000))
			dst := make([]byte, 1450)
			var c Cutter
			pieces := 0
			b.SetBytes(int64(len(ip)))
			for b.Loop() {
				c.Start(ip, 1450, partial)
				for more := true; more; pieces++ {
					_, more = c.Next(dst)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(pieces), "ns/packet")
		})
	}
}

// payloadOf is what follows the header of a TCP segment.
func payloadOf(segment []byte) []byte { return segment[TCPView(segment).HeaderLen():] }
