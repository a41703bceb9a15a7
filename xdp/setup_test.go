package xdp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
)

const (
	testPort = 4789
	testMTU  = 1450
	patience = nettest.Patience // only a broken port gets there
)

var (
	addrsA = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	addrsB = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}
)

// testSources are ports without sockets, for headers alone.
var testSources = sources{ports: [2][sourcePorts]uint16{{50001, 50002, 50003}, {50011, 50012, 50013}}}

// underlay is two namespaces joined by a veth: a, where ports open on eth0, and b, the far side.
type underlay struct{ a, b *nettest.NS }

func newUnderlay(t testing.TB) underlay {
	nettest.RequireKernel(t, kernel.AFXDP, kernel.Veth)
	u := underlay{nettest.New(t), nettest.New(t)}
	for _, ns := range []*nettest.NS{u.a, u.b} {
		// Link-local addresses serve at once: neighbour discovery needs them.
		if err := ns.Sysctl("ipv6/conf/default/accept_dad", "0"); err != nil {
			t.Fatal(err)
		}
	}
	nettest.Pair(t,
		nettest.End{NS: u.a, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: u.b, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, 1500)
	return u
}

func testConfig() Config {
	return Config{Inside: "weft0", InnerMTU: testMTU, Device: "eth0", Local: addrsA, Port: testPort}
}

// openIn opens a port inside a namespace; the test's end closes it.
func openIn[P packet.Port](t testing.TB, ns *nettest.NS, open func(Config) (P, error), c Config) P {
	t.Helper()
	var p P
	var err error
	ns.Do(func() { p, err = open(c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// datagrams is a UDP socket of the kernel's in a namespace.
func datagrams(t testing.TB, ns *nettest.NS, addr netip.Addr, port uint16) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Do(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port))) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// frames is an AF_PACKET socket on a device.
type frames struct {
	file *os.File
	dev  int
}

// sniff opens one that sees what the device receives, from the network header on (cooked) or whole.
func sniff(t testing.TB, ns *nettest.NS, dev string, cooked bool) *frames {
	t.Helper()
	kind := unix.SOCK_RAW
	if cooked {
		kind = unix.SOCK_DGRAM
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	f := &frames{}
	var fd int
	var err error
	ns.Do(func() {
		if fd, err = unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return
		}
		var l netlink.Link
		if l, err = netlink.LinkByName(dev); err == nil {
			f.dev = l.Attrs().Index
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: f.dev})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for option, v := range map[int]int{unix.SO_RCVBUFFORCE: 8 << 20, unix.SO_SNDBUFFORCE: 8 << 20} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		t.Fatal(err)
	}
	f.file = os.NewFile(uintptr(fd), "packet")
	t.Cleanup(func() { f.file.Close() })
	return f
}

// write sends an IP packet out of the device.
func (f *frames) write(p []byte) error {
	protocol := uint16(unix.ETH_P_IP)
	if p[0]>>4 == 6 {
		protocol = unix.ETH_P_IPV6
	}
	return f.send(p, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: f.dev, Halen: 6})
}

// writeFrame sends a whole frame out of the device.
func (f *frames) writeFrame(p []byte) error {
	return f.send(p, &unix.SockaddrLinklayer{Ifindex: f.dev, Halen: 6})
}

func (f *frames) send(p []byte, to unix.Sockaddr) error {
	raw, err := f.file.SyscallConn() // fails once the file is closed, when its number may be somebody else's
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { serr = unix.Sendto(int(fd), p, 0, to) })
	return errors.Join(err, serr)
}

func (f *frames) read() ([]byte, error) {
	buf := make([]byte, 1<<16)
	if err := f.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	n, err := f.file.Read(buf)
	return buf[:n], err
}

// readUDP is the next datagram of a socket.
func readUDP(c *net.UDPConn) ([]byte, netip.AddrPort, error) {
	buf := make([]byte, 1<<16)
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, netip.AddrPort{}, err
	}
	n, from, err := c.ReadFromUDPAddrPort(buf)
	return buf[:n], from, err
}

// until waits for a condition, which must come true.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// loadBatch fills a batch with copies of one packet.
func loadBatch(b *packet.Batch, n int, data []byte, hop *packet.Hop) {
	for i := range n {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.Hop, p.Flow = hop, uint32(i)
	}
	b.SetLen(n)
}

func hopTo(a netip.Addr) *packet.Hop {
	return &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(a, testPort), 0)}
}

// resolve waits until the way to a hop is known, so that no packet takes the kernel's path.
func resolve(t testing.TB, o *Outside, hop *packet.Hop) {
	t.Helper()
	d := o.resolver.destination(hop.Path.Dst)
	until(t, "the way to "+hop.Path.Dst.String(), func() bool { c := d.adjacency.Load(); return c != nil && c.template != nil })
}

// openBoth opens both ports in a's namespace.
func openBoth(t testing.TB, u underlay, c Config) (*Inside, *Outside) {
	t.Helper()
	var in *Inside
	var out *Outside
	var err error
	u.a.Do(func() { in, out, err = OpenPair(c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range []packet.Port{in, out} {
			if err := p.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})
	return in, out
}

// stopAfter closes a port when the test has lost its patience, so that a lost packet is a failure and not a hang.
func stopAfter(t testing.TB, p packet.Port) (stop func() bool) {
	timer := time.AfterFunc(patience, func() { p.Close() })
	t.Cleanup(func() { timer.Stop() })
	return timer.Stop
}

func macOf(t testing.TB, ns *nettest.NS, dev string) (mac [6]byte) {
	t.Helper()
	l, err := ns.Netlink().LinkByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	copy(mac[:], l.Attrs().HardwareAddr)
	return mac
}
