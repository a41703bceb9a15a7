package control_test

import (
	"fmt"
	"net/netip"
	"testing"

	"weft/control"
)

// BenchmarkCheck is what one change costs in a cluster of 5,000 nodes with two families.
func BenchmarkCheck(b *testing.B) {
	network := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/32")}
	var nodes []control.Node
	for i := range 5000 {
		nodes = append(nodes, control.Node{
			Name:      fmt.Sprintf("node-%04d", i),
			Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: byte(i >> 8), 7: byte(i)}), 64)},
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		if s, err := control.Check("node-0007", network, nodes, control.State{}, nil); err != nil || len(s.Nodes) != 4999 || len(s.Problems) != 0 {
			b.Fatal(err, len(s.Nodes), s.Problems)
		}
	}
}
