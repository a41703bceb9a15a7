package xdp

import (
	"bytes"
	"strings"
	"testing"

	"weft/packet/packettest"
)

// TestZeroCopyApart: memory that a driver receives into is not shared with a veth; packets are copied between the two.
// A veth has no zero-copy, so the underlay's memory is only marked as such here; that veths say so is tested too.
func TestZeroCopyApart(t *testing.T) {
	u := newUnderlay(t)
	c := testConfig()
	shared, err := c.own(2, 1514)
	if err != nil {
		t.Fatal(err)
	}
	var made []*pair
	c.Rings = func(r Request) (Rings, error) {
		rings, err := shared(r)
		if err == nil {
			p := rings.(*pair)
			if p.rx.socket.zeroCopy() {
				t.Error("a veth does zero-copy: this test needs no marking any more")
			}
			p.umem.zeroCopy = true
			made = append(made, p)
		}
		return rings, err
	}
	in, out := openBoth(t, u, c)
	stopAfter(t, in)
	stopAfter(t, out)
	if len(made) != 2 || made[0].umem == made[1].umem {
		t.Fatal("the sides share memory that a driver keeps to itself")
	}
	host, far, hop := sniff(t, u.a, "weft0", true), datagrams(t, u.b, addrsB[0], testPort), hopTo(addrsB[0])
	resolve(t, out, hop)
	inner := packettest.UDP(podA4, podB4, 700, 1)
	if err := host.write(inner); err != nil {
		t.Fatal(err)
	}
	b := packettest.NewBatch(in.Queues()[0], 4, 0)
	forward(t, in.Queues()[0], out.Queues()[0], b, hop, inner)
	for {
		p, _, err := readUDP(far)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(p, inner) {
			break
		}
	}
	for _, p := range made {
		settled(t, []*pair{p})
		audit(t, p.umem, []*pair{p}, b)
	}
}

// TestZeroCopySaid: the port says that the device has none.
func TestZeroCopySaid(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	if f := out.Features()["xdp-zero-copy"]; !strings.Contains(f, "eth0 has none") {
		t.Errorf("xdp-zero-copy: %q", f)
	}
}
