package trace

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"weft/api"
	"weft/packet"
)

// TestMake: somebody else's decoder reads what was asked for, and makes the same checksums.
func TestMake(t *testing.T) {
	v4 := [2]netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.2.7")}
	v6 := [2]netip.Addr{netip.MustParseAddr("fd00::5"), netip.MustParseAddr("fd00::7")}
	for _, ends := range [][2]netip.Addr{v4, v6} {
		for _, proto := range []uint8{0, packet.ProtoTCP, packet.ProtoUDP} {
			for _, size := range []int{0, 1, 101, 1400} {
				q := Complete(api.PathQuestion{Src: ends[0], Dst: ends[1], Protocol: proto, SPort: 4000, DPort: 53, Size: size})
				b := Make(q)
				if len(b) != size && size >= 64 {
					t.Errorf("%d bytes, want %d", len(b), size)
				}
				first := gopacket.LayerType(layers.LayerTypeIPv4)
				if q.Dst.Is6() {
					first = layers.LayerTypeIPv6
				}
				p := gopacket.NewPacket(b, first, gopacket.Default)
				if p.ErrorLayer() != nil {
					t.Errorf("%+v: %v", q, p.ErrorLayer().Error())
					continue
				}
				for _, l := range p.Layers() {
					if l, ok := l.(interface {
						SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
					}); ok {
						if err := l.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err, wrong := p.VerifyChecksums(); err != nil || len(wrong) > 0 {
					t.Errorf("%+v: checksums %v, %v", q, wrong, err)
				}
				k := ReadKey(b, 0)
				if k.Src != q.Src || k.Dst != q.Dst || k.Protocol != q.Protocol || proto != 0 && (k.SPort != 4000 || k.DPort != 53) || k.Length != len(b) {
					t.Errorf("%+v is read as %+v", q, k)
				}
			}
		}
	}
}
