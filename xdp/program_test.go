package xdp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// TestObjectIsFresh: the committed object was made from the committed source.
func TestObjectIsFresh(t *testing.T) {
	source, err := os.ReadFile("bpf/xdp.c")
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := os.ReadFile("bpf/xdp.c.sha256")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(source)
	if have, _, _ := strings.Cut(string(recorded), " "); have != hex.EncodeToString(sum[:]) {
		t.Error("bpf/xdp.c has changed since the object was made from it: run `go generate ./xdp/bpf` (needs clang and libbpf-dev)")
	}
}

// TestUnderlayStaysTheKernels: everything but the tunnel's own datagrams reaches the kernel as if the port were not there.
func TestUnderlayStaysTheKernels(t *testing.T) {
	nettest.RequireTool(t, "ping")
	for name, attach := range map[string]Attach{"native": Native, "generic": Generic} {
		t.Run(name, func(t *testing.T) {
			u := newUnderlay(t)
			c := testConfig()
			c.Attach = attach
			openIn(t, u.a, OpenOutside, c)
			if err := u.a.AddAddrs("eth0", nettest.Prefixes("192.0.2.11/24", "2001:db8::11/64")...); err != nil {
				t.Fatal(err)
			}

			// ARP, ND, ICMP, and ICMP that is fragmented.
			for _, a := range addrsA {
				u.b.MustRun(t, "ping", "-n", "-c", "2", "-W", "5", a.String())
				u.b.MustRun(t, "ping", "-n", "-c", "1", "-W", "5", "-s", "4000", a.String())
			}
			// Other UDP ports; the tunnel's port at an address that is not the tunnel's.
			for _, at := range []string{"192.0.2.1:4790", "[2001:db8::1]:4790", "192.0.2.11:4789", "[2001:db8::11]:4789"} {
				to := netip.MustParseAddrPort(at)
				from := addrsB[0]
				if to.Addr().Is6() {
					from = addrsB[1]
				}
				here := datagrams(t, u.a, to.Addr(), to.Port())
				if _, err := datagrams(t, u.b, from, 0).WriteToUDPAddrPort([]byte("other"), to); err != nil {
					t.Fatal(err)
				}
				if p, _, err := readUDP(here); err != nil || string(p) != "other" {
					t.Errorf("%v: %q, %v", to, p, err)
				}
			}
			// TCP, as ssh would.
			for _, a := range addrsA {
				tcpEcho(t, u, a)
			}
		})
	}
}

// tcpEcho sends some data from b to a and back.
func tcpEcho(t *testing.T, u underlay, at netip.Addr) {
	t.Helper()
	var l net.Listener
	var conn net.Conn
	var err error
	u.a.Do(func() { l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			c.Close()
		}
	}()
	u.b.Do(func() { conn, err = net.DialTimeout("tcp", l.Addr().String(), patience) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("echo"), 10_000)
	go func() {
		_, _ = conn.Write(want)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: %d bytes came back of %d: %v", at, len(got), len(want), err)
	}
}

// TestLeftToTheKernel: datagrams of the tunnel that the program leaves to the kernel arrive all the same.
func TestLeftToTheKernel(t *testing.T) {
	u := newUnderlay(t)
	out := openIn(t, u.a, OpenOutside, testConfig())
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 8, 0)
	receive := func(what string, want []byte, from netip.Addr) {
		t.Helper()
		guard := stopAfter(t, out)
		defer guard()
		if err := q.Recv(b); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if b.Len() != 1 || !bytes.Equal(b.Packets()[0].Bytes(), want) || b.Packets()[0].From.Addr() != from {
			t.Fatalf("%s: %d packets, the first %d bytes from %v", what, b.Len(), b.Packets()[0].Len(), b.Packets()[0].From)
		}
	}
	// Fragments, which only the kernel can put together. eth0 of b sends smaller ones than a's MTU.
	u.b.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1300")
	u.b.MustRun(t, "sysctl", "-q", "-w", "net.ipv6.conf.eth0.mtu=1300")
	data := bytes.Repeat([]byte{7}, 1400)
	for i := range addrsA {
		far := datagrams(t, u.b, addrsB[i], 0)
		raw, err := far.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var serr error
		err = raw.Control(func(fd uintptr) {
			if i == 0 {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
		})
		if err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		if _, err := far.WriteToUDPAddrPort(data, hopTo(addrsA[i]).Path.Dst); err != nil {
			t.Fatal(err)
		}
		receive("fragments", data, addrsB[i])
	}
	// An IPv4 header with three no-operations; an IPv6 header with padding in a destination options header.
	for i, option := range []struct {
		level, name int
		value       string
	}{{unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x00"}, {unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"}} {
		far := datagrams(t, u.b, addrsB[i], 0)
		raw, err := far.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var serr error
		err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptString(int(fd), option.level, option.name, option.value) })
		if err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		if _, err := far.WriteToUDPAddrPort([]byte("options"), hopTo(addrsA[i]).Path.Dst); err != nil {
			t.Fatal(err)
		}
		receive("options", []byte("options"), addrsB[i])
	}
}

// TestVerifyUDP: where sums are verified a wrong one is dropped by name, and a missing one only in IPv6.
func TestVerifyUDP(t *testing.T) {
	u := newUnderlay(t)
	c := testConfig()
	c.VerifyUDP = true
	out := openIn(t, u.a, OpenOutside, c)
	q := out.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	mac := macOf(t, u.a, "eth0")
	wire := sniff(t, u.b, "eth0", false)
	for _, test := range []struct {
		name  string
		i     int
		spoil func(frame []byte, udp int)
		want  packet.Drop
	}{
		{"right v4", 0, func([]byte, int) {}, packet.Alive},
		{"right v6", 1, func([]byte, int) {}, packet.Alive},
		{"none v4", 0, func(f []byte, udp int) { f[udp+6], f[udp+7] = 0, 0 }, packet.Alive},
		{"none v6", 1, func(f []byte, udp int) { f[udp+6], f[udp+7] = 0, 0 }, packet.BadChecksum},
		{"wrong v4", 0, func(f []byte, udp int) { f[len(f)-1] ^= 1 }, packet.BadChecksum},
		{"wrong v6", 1, func(f []byte, udp int) { f[len(f)-1] ^= 1 }, packet.BadChecksum},
		{"wrong IPv4 header", 0, func(f []byte, udp int) { f[14+8]-- }, packet.BadChecksum},
		{"UDP length too long", 0, func(f []byte, udp int) { binary.BigEndian.PutUint16(f[udp+4:], 500) }, packet.BadHeader},
		{"UDP length too short", 1, func(f []byte, udp int) { binary.BigEndian.PutUint16(f[udp+4:], 7) }, packet.BadHeader},
		{"IP length beyond the frame", 0, func(f []byte, udp int) { binary.BigEndian.PutUint16(f[16:], 500) }, packet.TooShort},
		{"padding", 0, func([]byte, int) {}, packet.Alive},
		{"another station", 0, func(f []byte, _ int) { f[5] ^= 1 }, packet.WrongMAC},
		{"another station v6", 1, func(f []byte, _ int) { f[0] ^= 4 }, packet.WrongMAC},
		{"all stations", 0, func(f []byte, _ int) { copy(f, "\xff\xff\xff\xff\xff\xff") }, packet.Alive},
	} {
		data := []byte("payload of a datagram")
		tmpl := newTemplate([6]byte{2}, mac, addrsB[test.i], hopTo(addrsA[test.i]).Path.Dst, 1500, &testSources)
		frame := make([]byte, tmpl.length+len(data))
		copy(frame[tmpl.length:], data)
		tmpl.write(frame, 99)
		test.spoil(frame, tmpl.length-packet.UDPHeader)
		if test.name == "padding" {
			frame = append(frame, make([]byte, 40)...)
		}
		guard := stopAfter(t, out)
		if err := wire.writeFrame(frame); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if err := q.Recv(b); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		guard()
		p := &b.Packets()[0]
		if p.Drop != test.want {
			t.Errorf("%s: dropped as %v, want %v", test.name, p.Drop, test.want)
		}
		if test.want == packet.Alive && !bytes.Equal(p.Bytes(), data) {
			t.Errorf("%s: %q", test.name, p.Bytes())
		}
	}
	// The station is that of the device now.
	u.a.MustRun(t, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
	now := []byte{2, 0, 0, 0, 0, 0x77}
	until(t, "the new MAC to be known", func() bool { return out.resolver.foreign(mac[:]) && !out.resolver.foreign(now) })
}
