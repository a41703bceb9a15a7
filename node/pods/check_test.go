package pods

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"weft/api"
	"weft/internal/nettest"
)

// frame is what a pod may send, and under which name it dies; "" = it does not.
type frame struct {
	name, drop string
	layers     []gopacket.SerializableLayer
}

// forgeries are frames of a pod with this MAC and these addresses, in whose node there is another pod.
func forgeries(mac net.HardwareAddr, own, other []netip.Addr) []frame {
	eth := func(src net.HardwareAddr, kind layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: src, DstMAC: layers.EthernetBroadcast, EthernetType: kind}
	}
	ip4 := func(src netip.Addr, p layers.IPProtocol) gopacket.SerializableLayer {
		return &layers.IPv4{Version: 4, TTL: 64, Protocol: p, SrcIP: src.AsSlice(), DstIP: other[0].AsSlice()}
	}
	ip6 := func(src netip.Addr, p layers.IPProtocol, dst string) *layers.IPv6 {
		return &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: p, SrcIP: src.AsSlice(), DstIP: net.ParseIP(dst)}
	}
	far := netip.MustParseAddr("203.0.113.5")
	link := linkLocal([6]byte(mac))
	arp := func(sender net.HardwareAddr, a netip.Addr) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeARP), &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6,
			ProtAddressSize: 4, Operation: layers.ARPReply, SourceHwAddress: sender, SourceProtAddress: a.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: other[0].AsSlice()}}
	}
	udp := func(src netip.Addr, from, to layers.UDPPort) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv4), ip4(src, layers.IPProtocolUDP), &layers.UDP{SrcPort: from, DstPort: to}, gopacket.Payload("x")}
	}
	icmp := func(kind uint8) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv4), ip4(own[0], layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0)}, gopacket.Payload(make([]byte, 32))}
	}
	icmp6 := func(src netip.Addr, dst string, kind uint8, body ...byte) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv6), ip6(src, layers.IPProtocolICMPv6, dst),
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, gopacket.Payload(append(make([]byte, 4), body...))}
	}
	quote := func(to netip.Addr) []byte { // a packet of the node's, of 1500 bytes, to the tunnel's port
		b := make([]byte, 48)
		b[0], b[9] = 0x45, 17
		copy(b[16:], to.AsSlice())
		if to.Is6() {
			b[0], b[6], b[9] = 0x60, 17, 0
			copy(b[24:], to.AsSlice())
		}
		return b
	}
	tooBig := func(to netip.Addr) []gopacket.SerializableLayer {
		return []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv4), ip4(own[0], layers.IPProtocolICMPv4),
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4), Seq: 600}, gopacket.Payload(quote(to))}
	}
	far6 := netip.MustParseAddr("2001:db8::5")
	hidden := icmp6(link, "ff02::1", 134, make([]byte, 8)...) // behind an extension header, RFC 7113
	hidden = append(append([]gopacket.SerializableLayer{}, hidden[0], ip6(link, layers.IPProtocolIPv6Destination, "ff02::1"),
		gopacket.Payload([]byte{58, 0, 1, 4, 0, 0, 0, 0})), hidden[2:]...)
	tagged := append([]gopacket.SerializableLayer{eth(mac, layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}}, udp(other[0], 1000, 1000)[1:]...)
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	return []frame{
		{"its own", "", udp(own[0], 1000, 1000)},
		{"its own, TCP", "", []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv4), ip4(own[0], layers.IPProtocolTCP), &layers.TCP{SrcPort: 67, DstPort: 4789, SYN: true}}},
		{"another MAC", dropMAC, append([]gopacket.SerializableLayer{eth(stranger, layers.EthernetTypeIPv4)}, udp(own[0], 1000, 1000)[1:]...)},
		{"another pod's address", dropSource, udp(other[0], 1000, 1000)},
		{"with a VLAN tag", dropSource, tagged},
		{"an outside address", dropSource, udp(far, 1000, 1000)},
		{"no address", dropSource, udp(netip.IPv4Unspecified(), 68, 67)},
		{"DHCP service", dropDHCP, udp(own[0], 67, 68)},
		{"to the tunnel", dropOverlay, udp(own[0], 1000, 4789)},
		{"to the sealed tunnel", dropOverlay, udp(own[0], 1000, 8473)},
		{"echo", "", icmp(8)},
		{"redirect", dropRedirect, icmp(5)},
		{"too big, for itself", "", tooBig(own[0])},
		{"too big, for another node", dropTooBig, tooBig(far)},
		{"too big, and not of what", dropTooBig, tooBig(far)[:3]},
		{"port unreachable", "", icmp(3)},
		{"too big for itself, IPv6", "", icmp6(own[1], other[1].String(), 2, quote(own[1])...)},
		{"too big for another node, IPv6", dropTooBig, icmp6(own[1], other[1].String(), 2, quote(far6)...)},
		{"router advertisement of IPv4", dropRouter, icmp(9)},
		{"ARP", "", arp(mac, own[0])},
		{"ARP probe", "", arp(mac, netip.IPv4Unspecified())},
		{"ARP for another pod", dropNeighbor, arp(mac, other[0])},
		{"ARP for another station", dropNeighbor, arp(stranger, own[0])},
		{"spanning tree", dropNotIP, []gopacket.SerializableLayer{eth(mac, 0x8899), gopacket.Payload("loop")}},
		{"echo6", "", icmp6(own[1], other[1].String(), 128)},
		{"another pod's address, IPv6", dropSource, icmp6(other[1], own[1].String(), 128)},
		{"the gateway's link-local address", dropSource, icmp6(gateway6, "ff02::1", 128)},
		{"router advertisement", dropRouter, icmp6(link, "ff02::1", 134, make([]byte, 8)...)},
		{"router advertisement behind options", dropRouter, hidden},
		{"router solicitation", "", icmp6(link, "ff02::2", 133)},
		{"redirect6", dropRedirect, icmp6(link, other[1].String(), 137, make([]byte, 32)...)},
		{"advertises itself", "", icmp6(own[1], "ff02::1", 136, own[1].AsSlice()...)},
		{"advertises its link-local address", "", icmp6(link, "ff02::1", 136, link.AsSlice()...)},
		{"advertises another pod", dropNeighbor, icmp6(own[1], "ff02::1", 136, other[1].AsSlice()...)},
		{"is it taken", "", icmp6(netip.IPv6Unspecified(), "ff02::1:ff00:9", 135, own[1].AsSlice()...)},
		{"from nobody to a pod", dropSource, icmp6(netip.IPv6Unspecified(), other[1].String(), 128)},
		{"DHCPv6 service", dropDHCP, []gopacket.SerializableLayer{eth(mac, layers.EthernetTypeIPv6), ip6(link, layers.IPProtocolUDP, "ff02::1"), &layers.UDP{SrcPort: 547, DstPort: 546}}},
	}
}

// send puts a frame on a pod's interface as it is.
func send(t *testing.T, pod *nettest.NS, f frame) {
	t.Helper()
	for i, l := range f.layers {
		var network gopacket.NetworkLayer
		for _, n := range f.layers[:i] {
			if have, ok := n.(gopacket.NetworkLayer); ok {
				network = have
			}
		}
		switch l := l.(type) {
		case *layers.UDP:
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.TCP:
			_ = l.SetNetworkLayerForChecksum(network)
		case *layers.ICMPv6:
			_ = l.SetNetworkLayerForChecksum(network)
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, f.layers...); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	var err error
	pod.Do(func() {
		var fd, index int
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		link, e := pod.Netlink().LinkByName("eth0")
		if e != nil {
			err = e
			return
		}
		index = link.Attrs().Index
		err = unix.Sendto(fd, b.Bytes(), 0, &unix.SockaddrLinklayer{Ifindex: index})
	})
	if err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
}

// TestSpoofCheck: what a pod sends that it is not to dies at its link under its name, and nothing else does; also after a restart and
// where the link was made anew.
func TestSpoofCheck(t *testing.T) {
	nettest.RequireTool(t, "ip")
	for _, style := range []string{Routed, Bridge} {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, style)
			x, y := nettest.New(t), nettest.New(t)
			a, b := r.attach(request(x, "x")), r.attach(request(y, "y"))
			mac, err := net.ParseMAC(a.PodInterface.MAC)
			if err != nil {
				t.Fatal(err)
			}
			own, other := []netip.Addr{a.IPs[0].Address.Addr(), a.IPs[1].Address.Addr()}, []netip.Addr{b.IPs[0].Address.Addr(), b.IPs[1].Address.Addr()}
			drops := func() map[string]uint64 {
				pods, err := r.m.Pods()
				if err != nil {
					t.Fatal(err)
				}
				if len(pods[1].Drops) > 0 {
					t.Fatalf("the other pod's: %v", pods[1].Drops)
				}
				return pods[0].Drops
			}
			for i, f := range forgeries(mac, own, other) {
				before := drops()
				send(t, x, f)
				after := drops()
				for _, name := range checkNames {
					if died := after[name] - before[name]; died != 0 && name != f.drop || died != 1 && name == f.drop {
						t.Errorf("%s: %d more died as %s; want to die as %q", f.name, died, name, f.drop)
					}
				}
				if i == len(forgeries(mac, own, other))/2 {
					r.restart()
					if again := drops(); again[dropSource] != after[dropSource] {
						t.Errorf("a restart began anew to count: %v, then %v", after, again)
					}
				}
			}
			r.host.MustRun(t, "ip", "link", "del", a.HostInterface)
			nettest.Eventually(t, 10*time.Second, func() error { return r.m.tend(true) })
			reach(t, x, other[0])
			send(t, x, frame{layers: forgeries(mac, own, other)[3].layers})
			if got := drops(); got[dropSource] != 1 {
				t.Errorf("a link made anew: %v", got)
			}
			reach(t, x, other[1])
			if err := r.m.Detach(t.Context(), api.DetachRequest{ContainerID: "x", IfName: "eth0", Network: "weft"}); err != nil {
				t.Fatal(err)
			}
			if out := r.host.MustRun(t, "nft", "list", "tables"); strings.Contains(out, a.HostInterface) || !strings.Contains(out, b.HostInterface) {
				t.Errorf("tables:\n%s", out)
			}
		})
	}
}
