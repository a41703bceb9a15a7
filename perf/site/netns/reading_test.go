package netns

import (
	"maps"
	"testing"

	"weft/perf/contender"
)

// TestMovedTwice: what both an AF_XDP socket and the veth count is one packet.
func TestMovedTwice(t *testing.T) {
	before := contender.Drops{Kernel: map[string]uint64{"xdp-rx-dropped": 5}, AtVeth: 7}
	for _, c := range []struct {
		veth, device, atVeth uint64
		want                 map[string]uint64
	}{
		{10, 4, 7 + 10, map[string]uint64{"xdp-rx-dropped": 3, "device": 4}},
		{10, 4, 7 + 12, map[string]uint64{"xdp-rx-dropped": 3, "device": 2}},
		{10, 4, 7 + 2, map[string]uint64{"xdp-rx-dropped": 3, "veth": 8, "device": 4}},
		{1, 0, 7 + 20, map[string]uint64{"xdp-rx-dropped": 3}},
	} {
		now := contender.Drops{Kernel: map[string]uint64{"xdp-rx-dropped": 8}, AtVeth: c.atVeth}
		dropped := map[string]uint64{"veth": c.veth, "device": c.device}
		merge(dropped, now, before)
		if !maps.Equal(dropped, c.want) {
			t.Errorf("%+v: dropped %v", c, dropped)
		}
	}
}
