package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// slowSum is RFC 1071 §4.1 in Go: 16-bit words, carries folded at the end.
func slowSum(b []byte, initial uint16) uint16 {
	sum := uint64(initial)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint64(b[i])<<8 | uint64(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint64(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestSumAgainstTheRFC(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 3000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	ones := make([]byte, 3000)
	for i := range ones {
		ones[i] = 0xff
	}
	for _, data := range [][]byte{random, ones, make([]byte, 3000)} {
		for n := range 300 {
			for _, initial := range []uint16{0, 1, 0x00ff, 0xff00, 0xfffe, 0xffff, uint16(r.Uint32())} {
				b := data[n%7:][:n]
				if got, want := Sum(b, initial), slowSum(b, initial); got != want {
					t.Fatalf("Sum(%d bytes, %#x) = %#x, want %#x", n, initial, got, want)
				}
			}
		}
		for _, n := range []int{1399, 1400, 1500, 2999, 3000} {
			if got, want := Sum(data[:n], 0), slowSum(data[:n], 0); got != want {
				t.Fatalf("Sum(%d bytes) = %#x, want %#x", n, got, want)
			}
		}
	}
}

func TestSumChains(t *testing.T) {
	b := []byte{1, 2, 3, 4, 5, 6, 7}
	if got, want := Sum(b[4:], Sum(b[:4], 0)), Sum(b, 0); got != want {
		t.Fatalf("chained %#x, whole %#x", got, want)
	}
}

func TestPseudoSum(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		addrs := make([]byte, 8+24*r.IntN(2))
		for i := range addrs {
			addrs[i] = byte(r.Uint32()) | byte(-r.IntN(2)) // half of them 0xff
		}
		proto, length := uint8(r.Uint32()), r.IntN(65576)
		var rest [8]byte
		binary.BigEndian.PutUint32(rest[:], uint32(length))
		rest[7] = proto
		if got, want := PseudoSum(addrs, proto, length), slowSum(append(addrs, rest[:]...), 0); got != want {
			t.Fatalf("PseudoSum(%x, %d, %d) = %#x, want %#x", addrs, proto, length, got, want)
		}
	}
}

// The IPv4 header in RFC 1071's usual worked example, whose checksum is 0xb861.
func TestPutIPv4Checksum(t *testing.T) {
	b := []byte{
		0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xde, 0xad,
		0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
	}
	PutIPv4Checksum(b)
	if got := binary.BigEndian.Uint16(b[10:]); got != 0xb861 {
		t.Fatalf("checksum %#x, want 0xb861", got)
	}
}

func TestPutChecksumNeverStoresZero(t *testing.T) {
	var field [2]byte
	PutChecksum(field[:], 0xffff)
	if field != [2]byte{0xff, 0xff} {
		t.Fatalf("stored %x", field)
	}
}

func TestFinishPartial(t *testing.T) {
	for _, c := range corpus() {
		if !c.hasChecksum {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			v := mustParse(t, c.bytes)
			start, offset, _ := v.checksumField()
			want := append([]byte(nil), c.bytes...)

			p := NewBatch(1, 2048).Slots()
			copy(p[0].Reset(), c.bytes)
			p[0].Resize(len(c.bytes))
			b := p[0].Bytes()
			binary.BigEndian.PutUint16(b[start+offset:], PseudoSum(v.addrs(), v.proto, len(b)-start))

			if at, off, ok := mustParse(t, b).UnfinishedChecksum(); !ok || at != start || off != offset {
				t.Fatalf("UnfinishedChecksum = %d, %d, %v", at, off, ok)
			}
			p[0].SetPartial(start, offset)
			FinishPartial(&p[0], 0)
			if string(b) != string(want) {
				t.Fatalf("got  %x\nwant %x", b, want)
			}
			if p[0].Checksum() != ChecksumComplete || p[0].Drop != Alive {
				t.Fatalf("state %d, drop %v", p[0].Checksum(), p[0].Drop)
			}
			if _, _, ok := mustParse(t, b).UnfinishedChecksum(); ok {
				t.Fatal("a finished checksum still looks unfinished")
			}
		})
	}
}

func TestFinishPartialOutsideThePacket(t *testing.T) {
	for _, mark := range [][2]int{{20, 16}, {38, 1}, {39, 0}, {40, 0}, {-1, 0}, {0, -1}} {
		p := &NewBatch(1, 256).Slots()[0]
		p.Reset()
		p.Resize(mark[0] + mark[1] + 1)
		p.SetPartial(mark[0], mark[1])
		if FinishPartial(p, 0); p.Drop != BadHeader {
			t.Errorf("mark %v on %d bytes: %v", mark, p.Len(), p.Drop)
		}
	}
}

func TestVerifyTransport(t *testing.T) {
	for _, c := range corpus() {
		t.Run(c.name, func(t *testing.T) {
			v := mustParse(t, c.bytes)
			if got := v.VerifyTransport(); got != c.verifies {
				t.Fatalf("VerifyTransport = %v, want %v", got, c.verifies)
			}
			if !c.verifies {
				return
			}
			last := len(c.bytes) - 1
			c.bytes[last] ^= 0x10
			if mustParse(t, c.bytes).VerifyTransport() {
				t.Fatal("a flipped bit went unnoticed")
			}
		})
	}
}

func TestVerifyTransportUDPWithoutChecksum(t *testing.T) {
	v4 := find(t, "udp4").bytes
	v4[IPv4Header+udpChecksum], v4[IPv4Header+udpChecksum+1] = 0, 0
	if !mustParse(t, v4).VerifyTransport() {
		t.Error("IPv4 UDP may go without a checksum")
	}
	v6 := find(t, "udp6").bytes
	v6[IPv6Header+udpChecksum], v6[IPv6Header+udpChecksum+1] = 0, 0
	if mustParse(t, v6).VerifyTransport() {
		t.Error("IPv6 UDP may not go without a checksum")
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 64, 1400} {
		b.Run(itoa(n), func(b *testing.B) {
			data := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				Sum(data, 0)
			}
		})
	}
}

func BenchmarkUnfinishedChecksum(b *testing.B) {
	for _, name := range []string{"tcp4", "tcp6"} {
		b.Run(name, func(b *testing.B) {
			v := mustParse(b, find(b, name).bytes)
			for b.Loop() {
				v.UnfinishedChecksum()
			}
		})
	}
}
