package egress

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/control"
	"weft/hostnet"
	"weft/internal/nettest"
)

// BenchmarkDerive is what it costs among 5,000 nodes: with every route asked for, and with all known.
func BenchmarkDerive(b *testing.B) {
	near, far := nettest.New(b), nettest.New(b)
	nettest.Pair(b, nettest.End{NS: near, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24")}, nettest.End{NS: far, Dev: "eth0"}, 1500)
	near.MustRun(b, "ip", "route", "add", "default", "via", "192.0.2.254")
	var h *hostnet.Host
	var err error
	near.Do(func() { h, err = hostnet.New(nil) })
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	var peers []control.Node
	for i := range 5000 {
		peers = append(peers, control.Node{Name: fmt.Sprint(i), Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})}})
	}
	self := node("self", "192.0.2.1")
	for _, name := range []string{"cold", "warm"} {
		b.Run(name, func(b *testing.B) {
			f := NewFinder(h, Choice{})
			f.now = func() time.Time { return time.Unix(0, 0) }
			for b.Loop() {
				if name == "cold" {
					f.paths = nil
				}
				if _, err := f.Derive(self, peers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
