package probe

import (
	"testing"
	"time"
)

// TestSuperPackets: the kernel cuts super-packets into the datagrams they were made of, none lost, none twice, of whatever
// size and family.
func TestSuperPackets(t *testing.T) {
	h := newHosts(t, 1500)
	for _, c := range []struct {
		size   float64
		family float64
	}{{64, 4}, {64, 6}, {1360, 4}, {1500, 6}} {
		target := h.v4
		if c.family == 6 {
			target = h.v6
		}
		r, err := h.run(Spec{Test: "udp-stream", Target: target, Duration: 300 * time.Millisecond,
			Params: Params{"size": c.size, "rate": 2e7, "gso": 1}})
		if err != nil {
			t.Fatal(err)
		}
		if lost := r.Generated - r.Delivered - r.KernelDrops[socketOverflow]; lost != 0 || r.Delivered == 0 || r.Duplicates+r.Reordered > 0 || len(r.SendErrors) > 0 {
			t.Errorf("%+v: %+v", c, r)
		}
		if want := r.Delivered * uint64(r.Payload); r.Bytes != want {
			t.Errorf("%+v: %d bytes in %d datagrams of %d", c, r.Bytes, r.Delivered, r.Payload)
		}
	}
}

// TestSegmentBounds: a super-packet is no longer than a datagram may be.
func TestSegmentBounds(t *testing.T) {
	h := newHosts(t, 9000)
	r, err := h.run(Spec{Test: "udp-stream", Duration: 200 * time.Millisecond, Params: Params{"size": 9000, "gso": 1}})
	if err != nil || r.Delivered == 0 || len(r.SendErrors) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
