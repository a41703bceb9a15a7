package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// patience bounds a wait for something that must happen; it measures nothing.
const patience = nettest.Patience

const testMTU = 1450

// openIn opens a port inside ns and sets its device up with the given MTU.
func openIn(t *testing.T, ns *nettest.NS, cfg Config, queues, mtu int) packet.Port {
	t.Helper()
	var p packet.Port
	var err error
	ns.Do(func() { p, err = Open(cfg, queues) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	timer := time.AfterFunc(patience, func() { p.Close() }) // a lost packet is a failure, not a hang
	t.Cleanup(func() { timer.Stop() })
	if err := ns.Netlink().LinkSetMTU(linkIn(t, ns, cfg.Name), mtu); err != nil {
		t.Fatal(err)
	}
	if err := ns.LinkUp(cfg.Name); err != nil {
		t.Fatal(err)
	}
	return p
}

func linkIn(t *testing.T, ns *nettest.NS, name string) netlink.Link {
	t.Helper()
	l, err := ns.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wiretap is the kernel's side of a device: what it writes is routed out of the device, what it
// reads has come into the kernel through it.
type wiretap struct {
	fd  int
	to  unix.SockaddrLinklayer
	buf []byte
}

func tap(t *testing.T, ns *nettest.NS, name string) *wiretap {
	t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	w := &wiretap{buf: make([]byte, 1<<16), to: unix.SockaddrLinklayer{Protocol: all, Ifindex: linkIn(t, ns, name).Attrs().Index}}
	var err error
	ns.Do(func() { w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	for _, err := range []error{
		unix.Bind(w.fd, &w.to),
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *wiretap) write(p []byte) error {
	w.to.Protocol = 0x0008 // ETH_P_IP in network order
	if p[0]>>4 == 6 {
		w.to.Protocol = 0xdd86
	}
	return unix.Sendto(w.fd, p, 0, &w.to)
}

func (w *wiretap) read() ([]byte, error) {
	for {
		n, from, err := unix.Recvfrom(w.fd, w.buf, 0)
		if err != nil {
			return nil, fmt.Errorf("no packet came into the kernel: %w", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
			return w.buf[:n], nil
		}
	}
}

func TestPortConformance(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprintf("Queues/%d", queues), func(t *testing.T) {
			packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
				p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, queues, testMTU+100)
				if queues > 1 { // the kernel picks a queue by the flow: leave it one
					for _, q := range p.Queues()[1:] {
						detach(t, q)
					}
				}
				w := tap(t, ns, "weft0")
				src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
				return p, packettest.Far{
					MTU: testMTU, Write: w.write, Read: w.read,
					Oversize: packettest.UDP(src, dst, testMTU, 0), OversizeDrop: packet.Truncated,
				}
			})
		})
	}
}

// detach takes a queue out of the kernel's choice.
func detach(t *testing.T, q packet.Queue) {
	t.Helper()
	ifr, err := unix.NewIfreq("")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_DETACH_QUEUE)
	if err := unix.IoctlIfreq(q.(*plainQueue).fd, unix.TUNSETQUEUE, ifr); err != nil {
		t.Fatal(err)
	}
}

// Sockets of the kernel on this side, this port on the other: what they send comes out of Recv with
// finished checksums, and what is sent back reaches them.
func TestEchoToSockets(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	addAddrs(t, ns, "weft0", "10.244.1.1/16", "fd00:10:244:1::1/48")
	for _, dst := range []string{"10.244.2.2:7", "[fd00:10:244:2::2]:7"} {
		to := netip.MustParseAddrPort(dst)
		var conn *net.UDPConn
		var err error
		ns.Do(func() { conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to)) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, n := range []int{1, 100, testMTU - packettest.IPHeader(to.Addr()) - packet.UDPHeader} {
			want := bytes.Repeat([]byte{byte(n)}, n)
			if _, err := conn.Write(want); err != nil {
				t.Fatal(err)
			}
			echo(t, p.Queues()[0], to)
			got := make([]byte, 1<<16)
			if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			m, err := conn.Read(got)
			if err != nil {
				t.Fatalf("%s, %d bytes: %v", dst, n, err)
			}
			if !bytes.Equal(got[:m], want) {
				t.Errorf("%s: got %d bytes, want %d", dst, m, n)
			}
		}
	}
}

// addAddrs puts addresses on a device and waits until the kernel delivers to them: it installs the
// local route of an IPv6 address from a worker, some time after the address is there.
func addAddrs(t *testing.T, ns *nettest.NS, dev string, addrs ...string) {
	t.Helper()
	prefixes := nettest.Prefixes(addrs...)
	if err := ns.AddAddrs(dev, prefixes...); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); len(prefixes) > 0; {
		routes, err := ns.Netlink().RouteGet(prefixes[0].Addr().AsSlice())
		if err == nil && routes[0].Type == unix.RTN_LOCAL {
			prefixes = prefixes[1:]
		} else if time.Now().After(deadline) {
			t.Fatalf("%v is not local: %v, %v", prefixes[0], routes, err)
		}
	}
}

// echo receives until a UDP packet to addr has come and sends that back.
func echo(t *testing.T, q packet.Queue, addr netip.AddrPort) {
	t.Helper()
	b := packet.NewBatch(8, testMTU)
	for {
		if err := q.Recv(b); err != nil {
			t.Fatal(err)
		}
		for i := range b.Packets() {
			ip := b.Packets()[i].Bytes()
			if v, drop := packet.ParseIP(ip); drop != packet.Alive || v.Protocol() != packet.ProtoUDP || v.Dst() != addr.Addr() {
				b.Packets()[i].Drop = packet.NoRoute
				continue
			}
			if !packettest.ValidTransport(ip) {
				t.Fatalf("the kernel left the checksum unfinished: %x", ip)
			}
			src, n := 12, 4
			if ip[0]>>4 == 6 {
				src, n = 8, 16
			}
			swap(ip[src:src+n], ip[src+n:src+2*n])
			l4 := ip[packettest.IPHeader(addr.Addr()):]
			swap(l4[0:2], l4[2:4])
		}
		var drops packet.Drops
		b.Compact(&drops)
		if b.Len() == 0 {
			continue
		}
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		if d := b.Packets()[0].Drop; d != packet.Alive {
			t.Fatalf("dropped: %v", d)
		}
		return
	}
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

func TestRefusedPacketsDoNotStopTheBatch(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tap(t, ns, "weft0")
	good := packettest.UDP(netip.MustParseAddrPort("10.244.2.2:1"), netip.MustParseAddrPort("10.244.1.2:2"), 100, 0)
	b := packet.NewBatch(5, testMTU)
	packets := [][]byte{good, {0xff, 1, 2, 3}, {}, good}
	for i, data := range packets {
		b.Slots()[i].Resize(copy(b.Slots()[i].Reset(), data))
	}
	mark := &b.Slots()[4] // a partial checksum outside the packet
	mark.Resize(copy(mark.Reset(), good))
	mark.SetPartial(5000, 6)
	b.SetLen(5)
	if err := p.Queues()[0].Send(b); err != nil {
		t.Fatal(err)
	}
	for i, want := range []packet.Drop{packet.Alive, packet.BadHeader, packet.BadHeader, packet.Alive, packet.BadHeader} {
		if got := b.Packets()[i].Drop; got != want {
			t.Errorf("packet %d: %v, want %v", i, got, want)
		}
	}
	for range 2 {
		if got, err := w.read(); err != nil || !bytes.Equal(got, good) {
			t.Errorf("the kernel got %x (%v), want %x", got, err, good)
		}
	}

	if err := ns.Netlink().LinkSetDown(linkIn(t, ns, "weft0")); err != nil {
		t.Fatal(err)
	}
	b.SetLen(1)
	if err := p.Queues()[0].Send(b); err != nil {
		t.Fatal(err)
	}
	if got := b.Packets()[0].Drop; got != packet.Refused {
		t.Errorf("device down: %v, want refused", got)
	}
}

// tcpSuper returns a TCP packet with n bytes of payload and right checksums, made by gopacket.
func tcpSuper(t *testing.T, v6 bool, n int) []byte {
	t.Helper()
	tcp := &layers.TCP{SrcPort: 1000, DstPort: 2000, Seq: 1<<32 - 5000, Ack: 7, ACK: true, PSH: true, Window: 500}
	var ip gopacket.SerializableLayer
	if v6 {
		v := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolTCP, HopLimit: 64, SrcIP: net.ParseIP("fd00:10:244:2::2"), DstIP: net.ParseIP("fd00:10:244:1::2")}
		ip, _ = v, tcp.SetNetworkLayerForChecksum(v)
	} else {
		v := &layers.IPv4{Version: 4, TTL: 64, Id: 77, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP, SrcIP: net.ParseIP("10.244.2.2").To4(), DstIP: net.ParseIP("10.244.1.2").To4()}
		ip, _ = v, tcp.SetNetworkLayerForChecksum(v)
	}
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i % 251)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, tcp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSuperPacketsAreCut(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	for _, v6 := range []bool{false, true} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("v6=%v/partial=%v", v6, partial), func(t *testing.T) {
				ns := nettest.New(t)
				p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
				w := tap(t, ns, "weft0")
				const size = 60000
				super := tcpSuper(t, v6, size)
				header := len(super) - size - 20
				b := packet.NewBatch(1, 1<<16)
				s := &b.Slots()[0]
				s.Resize(copy(s.Reset(), super))
				if partial {
					binary.BigEndian.PutUint16(s.Bytes()[header+16:], packettest.PseudoSum(super, size+20))
					s.SetPartial(header, 16)
				}
				b.SetLen(1)
				if err := p.Queues()[0].Send(b); err != nil {
					t.Fatal(err)
				}
				if s.Drop != packet.Alive {
					t.Fatalf("dropped: %v", s.Drop)
				}
				var payload []byte
				for len(payload) < size {
					got, err := w.read()
					if err != nil {
						t.Fatal(err)
					}
					if len(got) > testMTU || !packettest.ValidTransport(got) {
						t.Fatalf("a segment of %d bytes, checksum right: %v", len(got), packettest.ValidTransport(got))
					}
					if seq := binary.BigEndian.Uint32(got[header+4:]); seq+5000 != uint32(len(payload)) {
						t.Fatalf("sequence %d at payload byte %d", seq, len(payload))
					}
					payload = append(payload, got[header+20:]...)
				}
				if !bytes.Equal(payload, super[header+20:]) {
					t.Error("the segments' payload is not the super-packet's")
				}
				if n := testing.AllocsPerRun(10, func() {
					if err := p.Queues()[0].Send(b); err != nil {
						t.Fatal(err)
					}
				}); n != 0 {
					t.Errorf("%v allocations per Send", n)
				}
			})
		}
	}
}

// What cannot be cut goes to the kernel whole, with the checksum it came with.
func TestOtherOversizePacketsAreWrittenWhole(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tap(t, ns, "weft0")
	damaged := tcpSuper(t, false, 9000)
	damaged[len(damaged)-1] ^= 1
	udp := packettest.UDP(netip.MustParseAddrPort("10.244.2.2:1"), netip.MustParseAddrPort("10.244.1.2:2"), 9000, 0)
	b := packet.NewBatch(2, 1<<16)
	for i, data := range [][]byte{damaged, udp} {
		b.Slots()[i].Resize(copy(b.Slots()[i].Reset(), data))
	}
	b.SetLen(2)
	if err := p.Queues()[0].Send(b); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]byte{damaged, udp} {
		if got, err := w.read(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the kernel got %d bytes (%v), want %d unchanged", len(got), err, len(want))
		}
	}
}

func TestPartialChecksumsAreFinished(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tap(t, ns, "weft0")
	want := packettest.UDP(netip.MustParseAddrPort("[fd00:10:244:2::2]:1"), netip.MustParseAddrPort("[fd00:10:244:1::2]:2"), 300, 0)
	b := packet.NewBatch(1, testMTU)
	s := &b.Slots()[0]
	s.Resize(copy(s.Reset(), want))
	binary.BigEndian.PutUint16(s.Bytes()[packet.IPv6Header+6:], packettest.PseudoSum(want, len(want)-packet.IPv6Header))
	s.SetPartial(packet.IPv6Header, 6)
	b.SetLen(1)
	if err := p.Queues()[0].Send(b); err != nil {
		t.Fatal(err)
	}
	if got, err := w.read(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the kernel got %x (%v), want %x", got, err, want)
	}
}

func TestRemovedDeviceIsAPortError(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	q, w := p.Queues()[0], tap(t, ns, "weft0")
	first, result := make(chan struct{}), make(chan error, 1)
	go func() {
		b := packet.NewBatch(1, testMTU)
		err := q.Recv(b)
		close(first)
		for err == nil {
			err = q.Recv(b)
		}
		result <- err
	}()
	src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
	if err := w.write(packettest.UDP(src, dst, 1, 0)); err != nil {
		t.Fatal(err)
	}
	<-first
	if err := ns.Netlink().LinkDel(linkIn(t, ns, "weft0")); err != nil {
		t.Fatal(err)
	}
	if err := <-result; errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "weft0") {
		t.Errorf("Recv: %v, want an error about the device", err)
	}
	b := packet.NewBatch(1, testMTU)
	b.Slots()[0].Resize(copy(b.Slots()[0].Reset(), packettest.UDP(dst, src, 1, 0)))
	b.SetLen(1)
	if err := q.Send(b); !errors.Is(err, unix.EBADFD) {
		t.Errorf("Send: %v, want EBADFD", err)
	}
}

func TestCloseRemovesTheDevice(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	for _, queues := range []int{1, 3} {
		p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, queues, testMTU)
		if n := len(p.Queues()); n != queues {
			t.Errorf("%d queues, want %d", n, queues)
		}
		for _, q := range p.Queues() {
			if flags, err := unix.FcntlInt(uintptr(q.(*plainQueue).fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("descriptor flags %#x (%v): a child process would keep the device", flags, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := ns.Netlink().LinkByName("weft0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("after Close: %v, want no device", err)
		}
	}
}

func TestQueueOverflowIsCounted(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	p := openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tap(t, ns, "weft0")
	drops := func() int { return int(p.(packet.KernelDrops).KernelDrops()["tun-queue"]) }
	src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
	data, sent := packettest.UDP(src, dst, 100, 0), 0
	for drops() == 0 {
		if sent > 100_000 {
			t.Fatal("the device's queue never overflows")
		}
		for range 100 {
			if err := w.write(data); err != nil && !errors.Is(err, unix.ENOBUFS) { // the queue's answer
				t.Fatal(err)
			}
			sent++
		}
	}
	b, received := packet.NewBatch(packet.BatchSize, testMTU), 0
	for received < sent-drops() {
		if err := p.Queues()[0].Recv(b); err != nil {
			t.Fatalf("sent %d, received %d, dropped %d: %v", sent, received, drops(), err)
		}
		for i := range b.Packets() {
			if bytes.Equal(b.Packets()[i].Bytes(), data) {
				received++
			}
		}
	}
	if received+drops() != sent {
		t.Errorf("sent %d, received %d, dropped %d", sent, received, drops())
	}
	before := drops()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if drops() != before {
		t.Errorf("Close changed the count from %d to %d", before, drops())
	}
}

func TestOpenRefusesWhatCannotWork(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	openIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	if err := ns.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "weft1"}}); err != nil {
		t.Fatal(err)
	}
	before := names(t, ns)
	for _, c := range []struct {
		cfg    Config
		queues int
		want   string
	}{
		{Config{MTU: testMTU}, 1, "use 1 to 15 bytes"},
		{Config{Name: "weft567890123456", MTU: testMTU}, 1, "use 1 to 15 bytes"},
		{Config{Name: "weft2"}, 1, "MTU 0"},
		{Config{Name: "weft2", MTU: testMTU}, 0, "0 queues"},
		{Config{Name: "weft0", MTU: testMTU}, 1, "another process has the device"},
		{Config{Name: "weft0", MTU: testMTU}, 2, "ip link del"},
		{Config{Name: "weft1", MTU: testMTU}, 1, "ip link del"},
	} {
		var p packet.Port
		var err error
		ns.Do(func() { p, err = Open(c.cfg, c.queues) })
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "tun: ") {
			t.Errorf("%+v, %d queues: %v, want an error with %q", c.cfg, c.queues, err, c.want)
		}
	}
	if after := names(t, ns); !slices.Equal(before, after) {
		t.Errorf("devices before %v, after %v", before, after)
	}
}

func names(t *testing.T, ns *nettest.NS) (all []string) {
	t.Helper()
	links, err := ns.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		all = append(all, l.Attrs().Name)
	}
	return all
}
