package flowcache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"weft/control"
	"weft/internal/nettest"
)

// foreign is a VXLAN packet that is that of a cached flow but for one thing.
type foreign struct {
	name   string
	change func(p *crafted)
}

// crafted is what a packet is made of.
type crafted struct {
	from  netip.Addr // outer source
	tos   byte       // outer
	flags uint32
	vni   uint32
	dmac  [6]byte
	inner []byte // the IP packet
	check bool   // the outer checksum is there
}

// TestForeignPacketsStayTheStacks: what is not of a cached flow, in whatever respect, is not carried by the program that takes headers off:
// another outer source, network, flags, inner MAC, TTL, ECN, fragments, options, connections that begin or end, other ports, lengths that lie.
func TestForeignPacketsStayTheStacks(t *testing.T) {
	r := newRig(t, 0, nettest.ClusterOptions{Nodes: 3, PodMTU: 1430})
	a, b := r.Nodes[0], r.Nodes[1]
	local, remote := netip.AddrPortFrom(a.PodAddrs[0], 10000), netip.AddrPortFrom(b.PodAddrs[0], 20000)
	ca, cb := socket(t, a.Pod, local), socket(t, b.Pod, remote)
	n := uint64(0)
	cached := func() error {
		buf := make([]byte, 2048)
		for range 4 {
			n++
			_, err := ca.WriteToUDPAddrPort(datagram(n, 64), remote)
			if err == nil {
				_, err = read(cb, buf)
			}
			if err == nil {
				_, err = cb.WriteToUDPAddrPort(datagram(n, 64), local)
			}
			if err == nil {
				_, err = read(ca, buf)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		_, err := r.nodes[0].flow(unix.IPPROTO_UDP, local, remote)
		return err
	}
	right := func() *crafted {
		return &crafted{from: b.Underlay[0], flags: 0x08000000, vni: 42, dmac: control.VTEPMAC(a.Name), inner: udp4(remote, local, datagram(1, 64)), tos: 0}
	}
	send := func(p *crafted) {
		t.Helper()
		var err error
		node := b
		if p.from != b.Underlay[0] {
			node = r.Nodes[2]
		}
		node.NS.Do(func() { err = p.send(a.Underlay[0]) })
		if err != nil {
			t.Fatal(err)
		}
	}
	// carried says how many packets were, with one that is right behind what is sent: it shows that the others are refused for what is
	// wrong with them, and tells when they are through. What the kernel tells of meanwhile begins it anew.
	carried := func(what func()) (n uint64) {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			if err := cached(); err != nil {
				return err
			}
			before, err := r.nodes[0].flow(unix.IPPROTO_UDP, local, remote)
			if err != nil {
				return err
			}
			what()
			send(right())
			buf := make([]byte, 2048)
			if _, err := read(ca, buf); err != nil { // whoever carried it
				return err
			}
			after, err := r.nodes[0].flow(unix.IPPROTO_UDP, local, remote)
			if err != nil {
				return err
			}
			if n = after.RxPackets - before.RxPackets; n == 0 || !after.Since.Equal(before.Since) {
				return errors.New("a packet of the flow is not carried")
			}
			return nil
		})
		return n
	}
	if n := carried(func() {}); n != 1 {
		t.Fatalf("%d packets were carried instead of one", n)
	}
	ip := func(at int, v byte) func(*crafted) {
		return func(p *crafted) { p.inner[at] = v; sum4(p.inner) }
	}
	for _, f := range []foreign{
		{"from a stranger", func(p *crafted) { p.from = r.Nodes[2].Underlay[0] }},
		{"of another network", func(p *crafted) { p.vni = 43 }},
		{"with other flags", func(p *crafted) { p.flags = 0x08200000 }},
		{"without a network", func(p *crafted) { p.flags = 0 }},
		{"in a frame for another", func(p *crafted) { p.dmac = control.VTEPMAC("node-x") }},
		{"whose TTL ends", ip(8, 1)},
		{"of TTL 0", ip(8, 0)},
		{"with congestion on the way", func(p *crafted) { p.tos = 3 }},
		{"with ECN outside alone", func(p *crafted) { p.tos = 2 }},
		{"that is a fragment", ip(6, 0x20)},
		{"that is a later fragment", ip(7, 1)},
		{"with options", func(p *crafted) { p.inner[0] = 0x46; sum4(p.inner) }},
		{"of another version", ip(0, 0x65)},
		{"of another protocol", ip(9, unix.IPPROTO_TCP)},
		{"from another pod", ip(15, 99)},
		{"for another pod", ip(19, 99)},
		{"from another port", func(p *crafted) { p.inner[21]++ }},
		{"shorter than it says", ip(3, 255)},
		{"longer than it says", ip(3, 60)},
		{"with a sum outside alone", func(p *crafted) { p.check, p.inner[26], p.inner[27] = true, 0, 0 }},
		{"that ends in its header", func(p *crafted) { p.inner = p.inner[:24] }},
		{"empty", func(p *crafted) { p.inner = nil }},
	} {
		n := carried(func() {
			p := right()
			f.change(p)
			send(p)
		})
		if n != 1 {
			t.Errorf("a packet %s was carried", f.name)
		}
	}
}

// send sends it by a raw socket, from the calling thread's namespace.
func (p *crafted) send(to netip.Addr) error {
	body := binary.BigEndian.AppendUint32(nil, p.flags)
	body = binary.BigEndian.AppendUint32(body, p.vni<<8)
	body = append(append(body, p.dmac[:]...), 2, 0, 0, 0, 0, 1, 8, 0)
	body = append(body, p.inner...)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, int(p.tos)), unix.Bind(fd, &unix.SockaddrInet4{Addr: p.from.As4()}))
	if err != nil {
		return err
	}
	udp := binary.BigEndian.AppendUint16(nil, 55555)
	udp = binary.BigEndian.AppendUint16(udp, 4789)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(body)))
	udp = append(udp, 0, 0)
	udp = append(udp, body...)
	if p.check {
		pseudo := append(append(p.from.AsSlice(), to.AsSlice()...), 0, unix.IPPROTO_UDP, byte(len(udp)>>8), byte(len(udp)))
		binary.BigEndian.PutUint16(udp[6:], ^fold(append(pseudo, udp...)))
	}
	if err := unix.Sendto(fd, udp, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// udp4 is an IPv4 packet of UDP.
func udp4(from, to netip.AddrPort, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	pseudo := append(append([]byte{}, b[12:20]...), 0, unix.IPPROTO_UDP, b[24], b[25])
	binary.BigEndian.PutUint16(b[26:], ^fold(append(pseudo, b[20:]...)))
	sum4(b)
	return b
}

// sum4 makes the check of an IPv4 header right.
func sum4(b []byte) {
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], ^fold(b[:20]))
}

func fold(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		v := uint16(b[i]) << 8
		if i+1 < len(b) {
			v |= uint16(b[i+1])
		}
		sum += uint32(v)
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
