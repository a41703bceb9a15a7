package filter

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"weft/packet"
)

// ip makes an IP packet between two addresses, with ports.
func ip(src, dst string, proto uint8, sport, dport uint16) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	transport := make([]byte, 20)
	binary.BigEndian.PutUint16(transport[0:], sport)
	binary.BigEndian.PutUint16(transport[2:], dport)
	if s.Is4() {
		h := make([]byte, 20, 40)
		h[0], h[9] = 0x45, proto
		binary.BigEndian.PutUint16(h[2:], 40)
		copy(h[12:], s.AsSlice())
		copy(h[16:], d.AsSlice())
		return append(h, transport...)
	}
	h := make([]byte, 40, 60)
	h[0], h[6] = 0x60, proto
	binary.BigEndian.PutUint16(h[4:], 20)
	copy(h[8:], s.AsSlice())
	copy(h[24:], d.AsSlice())
	return append(h, transport...)
}

func frame(etherType uint16, payload []byte) []byte {
	b := make([]byte, 14, 14+len(payload))
	packet.PutEthernet(b, [6]byte{1}, [6]byte{2}, etherType)
	return append(b, payload...)
}

func TestMatch(t *testing.T) {
	tcp4 := Look(ip("10.0.1.5", "10.0.2.7", 6, 40000, 80), packet.IP, packet.Alive)
	udp6 := Look(ip("fd00::5", "fd00:1::7", 17, 53, 40000), packet.IP, packet.NoRoute)
	arp := Look(frame(packet.EtherTypeARP, make([]byte, 28)), packet.Ethernet, packet.Alive)
	framed := Look(frame(packet.EtherTypeIPv4, ip("10.0.1.5", "10.0.2.7", 1, 0, 0)), packet.Ethernet, packet.WrongMAC)
	tunnel := Look(ip("192.0.2.1", "192.0.2.2", 17, 50000, 4789), packet.IP, packet.Alive)
	tunnel.Add(frame(packet.EtherTypeIPv4, ip("10.0.1.5", "10.0.2.7", 6, 40000, 80)), packet.Ethernet)
	odd := Look([]byte{0xff, 1, 2}, packet.IP, packet.NotIP)
	views := map[string]*View{"tcp4": &tcp4, "udp6": &udp6, "arp": &arp, "framed": &framed, "tunnel": &tunnel, "odd": &odd}

	for expr, want := range map[string]string{
		"":                                     "tcp4 udp6 arp framed tunnel odd",
		"host 10.0.1.5":                        "tcp4 framed tunnel",
		"src host 10.0.2.7":                    "",
		"dst 10.0.2.7":                         "tcp4 framed tunnel",
		"src 10.0.1.0/24 and tcp":              "tcp4 tunnel",
		"net 10.0.0.0/8":                       "tcp4 framed tunnel",
		"net fd00:1::/64":                      "udp6",
		"fd00::5":                              "udp6",
		"src net fd00:1::/64":                  "",
		"port 80":                              "tcp4 tunnel",
		"tcp port 80":                          "tcp4 tunnel",
		"udp port 80":                          "tunnel", // UDP outside, port 80 inside
		"src port 80":                          "",
		"dst port 70-90 or src port 50-60":     "tcp4 udp6 tunnel",
		"udp dst port 4789":                    "tunnel",
		"proto 17":                             "udp6 tunnel",
		"proto icmp":                           "framed",
		"icmp || arp":                          "arp framed",
		"ip6":                                  "udp6",
		"not ip and not ip6":                   "arp odd",
		"drop":                                 "udp6 framed odd",
		"drop no-route":                        "udp6",
		"!drop":                                "tcp4 arp tunnel",
		"drop and (host 10.0.1.5 or ip6)":      "udp6 framed",
		"(drop not-ip) or tcp and not port 80": "odd",
		"not (drop or tcp)":                    "arp",
		"host ::ffff:10.0.1.5":                 "tcp4 framed tunnel",
	} {
		f, err := Parse(expr)
		if err != nil {
			t.Errorf("%q: %v", expr, err)
			continue
		}
		if f.String() != expr {
			t.Errorf("%q became %q", expr, f)
		}
		for name, v := range views {
			if got, want := f.Match(v), strings.Contains(" "+want+" ", " "+name+" "); got != want {
				t.Errorf("%q matches %s: %v, want %v", expr, name, got, want)
			}
		}
		if n := testing.AllocsPerRun(10, func() {
			for _, v := range []*View{&tcp4, &udp6, &tunnel} {
				f.Match(v)
			}
		}); n != 0 {
			t.Errorf("%q: %v allocations", expr, n)
		}
	}
}

func TestFragmentsHaveNoPorts(t *testing.T) {
	b := ip("10.0.1.5", "10.0.2.7", 17, 1, 80)
	binary.BigEndian.PutUint16(b[6:], 100) // an offset: what is there is payload
	v := Look(b, packet.IP, packet.Alive)
	f, err := Parse("port 80")
	if err != nil || f.Match(&v) {
		t.Errorf("a later fragment matches by its payload (%v)", err)
	}
}

func TestErrorsNameTheRemedy(t *testing.T) {
	for expr, says := range map[string]string{
		"host":                    "write an IPv4 or IPv6 address",
		"host example.org":        "write an IPv4 or IPv6 address",
		"net 10.0.0.0":            "write a prefix",
		"10.0.0.0/33":             "write a prefix",
		"port http":               "write a number from 0 to 65535",
		"port 9-3":                "write a number from 0 to 65535",
		"port 65536":              "write a number from 0 to 65535",
		"proto 256":               "write a number from 0 to 255",
		"drop nonsense":           "no such reason",
		"src tcp":                 "behind src or dst",
		"tcp and":                 "ends where a condition should be",
		"tcp or or udp":           `"or" is no condition`,
		"(tcp":                    "not closed",
		"tcp)":                    `")" has no place here`,
		"ether":                   "is no condition",
		"not":                     "ends where",
		"drop alive":              "no such reason",
		strings.Repeat("(", 200):  "too deep",
		strings.Repeat("x", 5000): "at most 4096",
	} {
		if _, err := Parse(expr); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", expr, err, says)
		}
	}
}

// FuzzParse: no text and no frame makes the filter panic, and "not" is the opposite.
func FuzzParse(f *testing.F) {
	for _, expr := range []string{"host 10.0.0.1", "src net fd00::/64 and tcp port 1-5", "!(drop no-route||arp)", "proto 6 not ip6", "dst ::1 or 1.2.3.4/8"} {
		f.Add(expr, ip("10.0.1.5", "10.0.2.7", 6, 40000, 80), uint8(0))
		f.Add(expr, frame(packet.EtherTypeIPv6, ip("fd00::5", "fd00:1::7", 17, 53, 40000)), uint8(4))
	}
	f.Fuzz(func(t *testing.T, expr string, b []byte, drop uint8) {
		filter, err := Parse(expr)
		if err != nil || filter == nil {
			return
		}
		opposite, err := Parse("not (" + expr + ")")
		for _, layer := range []packet.Layer{packet.IP, packet.Ethernet, packet.Tunnel} {
			v := Look(b, layer, packet.Drop(drop)%packet.NumDrops)
			v.Add(b, packet.IP)
			got := filter.Match(&v)
			if err == nil && opposite.Match(&v) == got {
				t.Errorf("%q and its opposite both say %v", expr, got)
			}
		}
	})
}
