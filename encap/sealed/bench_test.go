package sealed

import (
	"net/netip"
	"testing"

	"weft/packet"
)

// BenchmarkPacket is what a packet of the largest inner MTU costs: sealed, or opened.
func BenchmarkPacket(b *testing.B) {
	for _, c := range ciphersUnderTest() {
		hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:8473"), 1418)}
		const inner = 1440
		s := mirror(b, c, hop)
		batch := packet.NewBatch(64, 2048)
		fill := func(data []byte) {
			for i := range batch.Slots() {
				p := &batch.Slots()[i]
				p.Resize(copy(p.Reset(), data))
				p.Hop, p.From = hop, hop.Path.Dst
			}
			batch.SetLen(64)
		}
		data := make([]byte, inner)
		b.Run("seal/"+c.String(), func(b *testing.B) {
			b.SetBytes(inner)
			b.ReportAllocs()
			for n := 0; n < b.N; n += 64 {
				fill(data)
				s.Out(batch)
			}
		})
		b.Run("seal-open/"+c.String(), func(b *testing.B) {
			b.SetBytes(inner)
			b.ReportAllocs()
			for n := 0; n < b.N; n += 64 {
				fill(data)
				s.Out(batch)
				s.In(batch)
			}
			if d := batch.Packets()[0].Drop; d != packet.Alive {
				b.Fatal(d)
			}
		})
	}
}
