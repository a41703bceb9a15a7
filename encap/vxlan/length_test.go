package vxlan_test

import (
	"testing"

	"github.com/gopacket/gopacket/layers"

	"weft/encap/vxlan"
)

func TestLength(t *testing.T) {
	const front = 8 + 14
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	for _, n := range []int{0, 1, 100, 1400, 60_000} {
		for etherType, ip := range map[layers.EthernetType][]byte{
			layers.EthernetTypeIPv4: udp4(n),
			layers.EthernetTypeIPv6: udp6(n),
		} {
			d, want := wire(1, mac, etherType, ip), front+len(ip) // the Ethernet padding does not count
			if got := vxlan.Length(d); got != want {
				t.Errorf("%v, %d bytes: Length says %d", etherType, want, got)
			}
			if got := vxlan.Length(d[:min(len(d), 62)]); got != want {
				t.Errorf("%v, %d bytes: Length says %d from the first 62", etherType, want, got)
			}
			for cut := range front + 20 {
				if got := vxlan.Length(d[:cut]); got != 0 {
					t.Errorf("Length says %d from %d bytes", got, cut)
				}
			}
		}
	}
	for name, d := range map[string][]byte{
		"ARP":                  wire(1, mac, layers.EthernetTypeARP, make([]byte, 28)),
		"IPv6 said to be IPv4": wire(1, mac, layers.EthernetTypeIPv4, udp6(100)),
	} {
		if got := vxlan.Length(d); got != 0 {
			t.Errorf("%s: Length says %d", name, got)
		}
	}
}
