package underlay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/internal/sock"
	"weft/packet"
)

// rawPeer is a peer whose socket joins datagrams, as another weft node's does.
type rawPeer struct {
	fd   int
	addr netip.AddrPort
}

func newRawPeer(t testing.TB, ns *nettest.NS, at netip.Addr) *rawPeer {
	t.Helper()
	nettest.RequireKernel(t, kernel.UDPSegment, kernel.UDPGRO)
	family := unix.AF_INET
	if at.Is6() {
		family = unix.AF_INET6
	}
	p := &rawPeer{}
	var err error
	ns.Do(func() { p.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p.fd) })
	for _, err := range []error{
		unix.Bind(p.fd, sock.Sockaddr(netip.AddrPortFrom(at, 0))),
		unix.SetsockoptInt(p.fd, unix.SOL_UDP, unix.UDP_GRO, 1),
		unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20),
		unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	name, err := unix.Getsockname(p.fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := name.(type) {
	case *unix.SockaddrInet4:
		p.addr = netip.AddrPortFrom(at, uint16(sa.Port))
	case *unix.SockaddrInet6:
		p.addr = netip.AddrPortFrom(at, uint16(sa.Port))
	}
	return p
}

// send sends data as datagrams of segment bytes behind one UDP_SEGMENT; 0 = as one.
func (p *rawPeer) send(t testing.TB, to netip.AddrPort, data []byte, segment int) {
	t.Helper()
	if err := p.sendTo(to, data, segment); err != nil {
		t.Fatal(err)
	}
}

func (p *rawPeer) sendTo(to netip.AddrPort, data []byte, segment int) error {
	var oob []byte
	if segment > 0 {
		oob = make([]byte, unix.CmsgSpace(2))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(segment))
	}
	if err := unix.Sendmsg(p.fd, data, oob, sock.Sockaddr(to), 0); err != nil {
		return fmt.Errorf("send %d bytes in segments of %d: %w", len(data), segment, err)
	}
	return nil
}

// read returns the next message and the size of the datagrams that the kernel says it is.
func (p *rawPeer) read(t testing.TB) (data []byte, segment int) {
	t.Helper()
	data, oob := make([]byte, 1<<16), make([]byte, 128)
	n, oobn, _, _, err := unix.Recvmsg(p.fd, data, oob, 0)
	if err != nil {
		t.Fatal(err)
	}
	items, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range items {
		if item.Header.Level == unix.SOL_UDP && item.Header.Type == unix.UDP_GRO {
			segment = int(binary.NativeEndian.Uint32(item.Data))
		}
	}
	return data[:n], segment
}

// pattern is n bytes that differ by seed and position.
func pattern(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(seed*31 + i*7 + i>>8)
	}
	return b
}

func offloadConfig(local netip.Addr) Config {
	return Config{Local: []netip.Addr{local}, Port: testPort, Batch: true, Offload: true, SendSockets: 1}
}

func TestSendJoinsRuns(t *testing.T) {
	ns := nettest.New(t)
	for _, local := range []netip.Addr{loopback4, loopback6} {
		t.Run(local.String(), func(t *testing.T) {
			far := newRawPeer(t, ns, local)
			p := open(t, ns, offloadConfig(local), 1)
			if got := p.(packet.Features).Features()["udp-gso"]; got != "on" {
				t.Fatalf("udp-gso: %s", got)
			}
			hop, other := hopTo(far.addr), hopTo(far.addr)
			b := packet.NewBatch(packet.BatchSize, 4000)
			sizes, hops := []int{}, []*packet.Hop{}
			add := func(n, size int, h *packet.Hop) {
				for range n {
					sizes, hops = append(sizes, size), append(hops, h)
				}
			}
			add(20, 1400, hop)
			add(1, 900, hop) // ends the run
			add(2, 900, hop)
			add(1, 901, hop) // larger: another run
			add(1, 0, hop)   // empty datagrams cannot be joined
			add(1, 0, hop)
			add(70, 64, hop) // 64 at most in one message
			add(3, 64, other)
			add(18, 3700, hop) // 65487 bytes at most: 17
			var want [][]byte
			for i, size := range sizes {
				want = append(want, pattern(i, size))
				put(b, i, want[i], hops[i], 0)
			}
			if err := p.Queues()[0].Send(b); err != nil {
				t.Fatal(err)
			}
			for i := range b.Packets() {
				if d := b.Packets()[i].Drop; d != packet.Alive {
					t.Fatalf("packet %d: %v", i, d)
				}
			}
			messages := []int{}
			for len(want) > 0 {
				data, segment := far.read(t)
				if segment == 0 {
					segment = len(data)
				}
				count := 0
				for at := 0; at < len(data) || count == 0; at, count = at+segment, count+1 {
					if got := data[at:min(at+segment, len(data))]; !bytes.Equal(got, want[0]) {
						t.Fatalf("%d missing: got %d bytes, want %d, or other content", len(want), len(got), len(want[0]))
					}
					want = want[1:]
				}
				messages = append(messages, count)
			}
			if got, want := fmt.Sprint(messages), "[21 2 1 1 1 64 6 3 17 1]"; got != want {
				t.Errorf("datagrams per message: %s, want %s", got, want)
			}
			if n := testing.AllocsPerRun(20, func() {
				if err := p.Queues()[0].Send(b); err != nil {
					t.Fatal(err)
				}
			}); n != 0 {
				t.Errorf("%v allocations per Send", n)
			}
		})
	}
}

// A socket without checksums refuses UDP_SEGMENT (EINVAL), as some devices and IPsec routes do (EIO).
func TestRefusalToJoinDegradesOnce(t *testing.T) {
	ns := nettest.New(t)
	far := newRawPeer(t, ns, loopback4)
	p := open(t, ns, offloadConfig(loopback4), 1)
	s := p.Queues()[0].(*queue).send
	if err := unix.SetsockoptInt(s.fds[0][0], unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
		t.Fatal(err)
	}
	b, hop := packet.NewBatch(20, 1500), hopTo(far.addr)
	for range 2 {
		for i := range 20 {
			put(b, i, pattern(i, 1000-i/10), hop, 0) // two runs
		}
		if err := p.Queues()[0].Send(b); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if d := b.Packets()[i].Drop; d != packet.Alive {
				t.Errorf("packet %d: %v", i, d)
			}
			if got, segment := far.read(t); segment != 0 || !bytes.Equal(got, pattern(i, 1000-i/10)) {
				t.Fatalf("packet %d: got %d bytes in segments of %d", i, len(got), segment)
			}
		}
		if s.gso {
			t.Error("packets are still joined after the kernel refused that")
		}
		if got := p.(packet.Features).Features()["udp-gso"]; !strings.Contains(got, "invalid argument") {
			t.Errorf("udp-gso: %q does not say why it is off", got)
		}
	}
}

// A run above the path MTU is judged packet by packet, and joining stays on.
func TestOversizeRunIsTooBigPacketByPacket(t *testing.T) {
	ns := nettest.New(t)
	ns.MustRun(t, "ip", "link", "set", "lo", "mtu", "1500")
	far := newRawPeer(t, ns, loopback4)
	p := open(t, ns, offloadConfig(loopback4), 1)
	b, hop := packet.NewBatch(8, 2000), hopTo(far.addr)
	for i, size := range []int{1473, 1473, 1473, 800, 700, 700, 700, 700} {
		put(b, i, pattern(i, size), hop, 0)
	}
	if err := p.Queues()[0].Send(b); err != nil {
		t.Fatal(err)
	}
	for i := range b.Packets() {
		want := packet.Alive
		if i < 3 {
			want = packet.TooBig
		}
		if got := b.Packets()[i].Drop; got != want {
			t.Errorf("packet %d: %v, want %v", i, got, want)
		}
	}
	if got, _ := far.read(t); !bytes.Equal(got, pattern(3, 800)) {
		t.Errorf("got %d bytes, want the 800 behind the large ones", len(got))
	}
	if got, segment := far.read(t); len(got) != 2800 || segment != 700 {
		t.Errorf("got %d bytes in segments of %d, want 4 of 700 joined", len(got), segment)
	}
	if got := p.(packet.Features).Features()["udp-gso"]; got != "on" {
		t.Errorf("udp-gso: %q", got)
	}
}

// message is one that the far side sends: total bytes in datagrams of segment bytes, 0 = one.
type message struct{ total, segment int }

// split is the oracle: what stages must see of a message.
func (m message) split(seed int) (all [][]byte) {
	data := pattern(seed, m.total)
	if m.segment == 0 || m.segment >= m.total {
		return [][]byte{data}
	}
	for at := 0; at < m.total; at += m.segment {
		all = append(all, data[at:min(at+m.segment, m.total)])
	}
	return all
}

// exchange sends messages and holds what Recv makes of them to the oracle.
func exchange(t testing.TB, q packet.Queue, far *rawPeer, to netip.AddrPort, b *packet.Batch, messages []message) {
	t.Helper()
	var want [][]byte
	for i, m := range messages {
		far.send(t, to, pattern(i, m.total), m.segment)
		want = append(want, m.split(i)...)
	}
	for len(want) > 0 {
		if err := q.Recv(b); err != nil {
			t.Fatalf("%v: %d missing: %v", messages, len(want), err)
		}
		if b.Len() == 0 || b.Len() > len(want) {
			t.Fatalf("%v: Recv returned %d packets, %d are missing", messages, b.Len(), len(want))
		}
		for i := range b.Packets() {
			p := &b.Packets()[i]
			switch {
			case p.From != far.addr:
				t.Fatalf("%v: From %v", messages, p.From)
			case p.Drop == packet.Truncated && len(want[0]) > p.Room():
			case p.Drop != packet.Alive:
				t.Fatalf("%v: %d missing: dropped as %v", messages, len(want), p.Drop)
			case !bytes.Equal(p.Bytes(), want[0]):
				t.Fatalf("%v: %d missing: got %d bytes, want %d, or other content", messages, len(want), p.Len(), len(want[0]))
			case p.Headroom() != packet.Headroom || cap(p.Tail())-p.Len() < packet.Tailroom || p.Segment() != 0:
				t.Fatalf("%v: headroom %d, tailroom %d, segment %d", messages, p.Headroom(), cap(p.Tail())-p.Len(), p.Segment())
			}
			want = want[1:]
		}
	}
}

func TestRecvSplitsBursts(t *testing.T) {
	ns := nettest.New(t)
	for _, local := range []netip.Addr{loopback4, loopback6} {
		t.Run(local.String(), func(t *testing.T) {
			far := newRawPeer(t, ns, local)
			p := open(t, ns, offloadConfig(local), 1)
			to := netip.AddrPortFrom(local, testPort)
			if got := p.(packet.Features).Features()["udp-gro"]; got != "on" {
				t.Fatalf("udp-gro: %s", got)
			}
			for _, slots := range []int{packet.BatchSize, 7, 1, 7, 7, 7} {
				b := packet.NewBatch(slots, 1500)
				for _, messages := range [][]message{
					{{1, 0}},
					{{64000, 1400}}, // the first is not expected, the second is
					{{64000, 1400}},
					{{64000, 1400}, {64000, 1400}, {1400, 0}, {64000, 1400}},
					{{3000, 1400}, {0, 0}, {50, 0}, {3000, 1000}, {1450, 0}, {9000, 1500}}, // guesses fail
					{{65487, 1400}, {40000, 0}, {2800, 1400}, {1600, 0}, {1401, 1400}},
					{{100, 0}, {100, 0}, {100, 0}, {100, 0}, {100, 0}, {5000, 0}, {100, 0}},
					{{1280, 20}, {60, 20}, {640, 10}},
					{{64, 1}, {2, 1}},
				} {
					exchange(t, p.Queues()[0], far, to, b, messages)
				}
			}
		})
	}
}

// Bursts of the expected size land in the slots: not a byte is copied into place.
func TestExpectedBurstsAreNotCopied(t *testing.T) {
	ns := nettest.New(t)
	far := newRawPeer(t, ns, loopback4)
	p := open(t, ns, offloadConfig(loopback4), 1)
	q, to, b := p.Queues()[0], netip.AddrPortFrom(loopback4, testPort), packet.NewBatch(packet.BatchSize, 1500)
	exchange(t, q, far, to, b, []message{{42000, 1400}})
	r := q.(*queue).recv
	clear(r.areas)
	exchange(t, q, far, to, b, []message{{42000, 1400}, {42000, 1400}})
	if i := bytes.IndexFunc(r.areas, func(c rune) bool { return c != 0 }); i >= 0 {
		t.Errorf("byte %d of the overflow areas was used", i)
	}
	const runs = 20
	data := pattern(0, 14000)
	for range runs + 1 {
		far.send(t, to, data, 1400)
	}
	small := packet.NewBatch(10, 1500) // one burst each
	if n := testing.AllocsPerRun(runs, func() {
		if err := q.Recv(small); err != nil {
			t.Fatal(err)
		}
		if small.Len() != 10 {
			t.Fatalf("%d packets, want a burst of 10", small.Len())
		}
	}); n != 0 {
		t.Errorf("%v allocations per Recv", n)
	}
}

// FuzzBursts sends any sequence of messages, through the kernel, into batches of any shape.
func FuzzBursts(f *testing.F) {
	f.Add(uint8(128), uint16(1500), []byte{250, 0, 0x78, 5, 250, 0, 0x78, 5, 100, 0, 0, 0})
	f.Add(uint8(7), uint16(1500), []byte{0x80, 0xbb, 0x78, 5, 0x80, 0xbb, 0x78, 5, 1, 0, 0, 0})
	f.Add(uint8(1), uint16(100), []byte{0xff, 0x20, 0x80, 0, 0xff, 0xff, 0, 0})
	f.Add(uint8(40), uint16(3000), []byte{0, 0, 0, 0, 0xff, 0x3f, 0xe8, 3, 0xff, 0x3f, 0xe9, 3})
	ns := nettest.New(f)
	far := newRawPeer(f, ns, loopback4)
	var p packet.Port
	var err error
	ns.Do(func() { p, err = Listen(offloadConfig(loopback4), 1) })
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	f.Fuzz(func(t *testing.T, slots uint8, room uint16, program []byte) {
		b := packet.NewBatch(max(1, min(int(slots), packet.BatchSize)), max(1, int(room)))
		var messages []message
		for ; len(program) >= 4 && len(messages) < 16; program = program[4:] {
			m := message{int(binary.LittleEndian.Uint16(program)), int(binary.LittleEndian.Uint16(program[2:]))}
			m.total = min(m.total, 65507)
			if m.segment > 0 { // what the kernel joins
				m.segment = min(m.segment, m.total)
				m.total = min(m.total, maxRun*m.segment)
			}
			messages = append(messages, m)
		}
		watchdog := time.AfterFunc(patience, func() { p.Close() }) // a lost packet is a failure, not a hang
		defer watchdog.Stop()
		exchange(t, p.Queues()[0], far, netip.AddrPortFrom(loopback4, testPort), b, messages)
	})
}

// FuzzControl reads any bytes as what the kernel might say of a message.
func FuzzControl(f *testing.F) {
	var good control
	good.Level, good.Type = unix.SOL_UDP, unix.UDP_GRO
	good.SetLen(unix.SizeofCmsghdr + 4)
	binary.NativeEndian.PutUint32(good.data[:], 1400)
	f.Add(good.bytes()[:], controlSize)
	f.Add(good.bytes()[:unix.SizeofCmsghdr], unix.SizeofCmsghdr)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		var c control
		raw = raw[:copy(c.bytes()[:], raw)]
		n = max(0, min(n, len(raw)))
		want := 0
		if items, err := unix.ParseSocketControlMessage(raw[:n]); err == nil && len(items) > 0 {
			if i := items[0]; i.Header.Level == unix.SOL_UDP && i.Header.Type == unix.UDP_GRO && len(i.Data) >= 4 {
				want = int(int32(binary.NativeEndian.Uint32(i.Data)))
			}
		}
		if got := c.segment(n); got != want {
			t.Errorf("% x, %d bytes: segment %d, x/sys says %d", raw, n, got, want)
		}
	})
}

// vxlanLength is what encap/vxlan says of a datagram, for IPv4 only.
func vxlanLength(b []byte) int {
	const front = packet.VXLANHeader + packet.EthernetHeader
	if len(b) < front+packet.IPv4Header || b[front]>>4 != 4 {
		return 0
	}
	return front + int(binary.BigEndian.Uint16(b[front+2:]))
}

// A Linux vxlan device over veth passes an inner UDP super-packet on as one datagram, and the
// receiving kernel calls the inner segment size the size of datagrams. It must stay one packet.
func TestInnerSuperPacketOfAKernelVXLANDevice(t *testing.T) {
	nettest.RequireKernel(t, kernel.VXLAN)
	near, kernel := nettest.New(t), nettest.New(t)
	nettest.Pair(t,
		nettest.End{NS: near, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24")},
		nettest.End{NS: kernel, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24")}, 1500)
	local := netip.MustParseAddr("192.0.2.1")
	device := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vx0", MTU: 1450, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}},
		VxlanId:   1, Port: testPort, SrcAddr: net.ParseIP("192.0.2.2"), Group: local.AsSlice(), Learning: false, UDPCSum: true,
	}
	if err := kernel.Netlink().LinkAdd(device); err != nil {
		t.Fatal(err)
	}
	if err := kernel.AddAddrs("vx0", nettest.Prefixes("10.244.2.1/16")...); err != nil {
		t.Fatal(err)
	}
	if err := kernel.LinkUp("vx0"); err != nil {
		t.Fatal(err)
	}
	kernel.MustRun(t, "ip", "neigh", "add", "10.244.1.1", "lladdr", "02:00:00:00:00:01", "dev", "vx0", "nud", "permanent")

	cfg := offloadConfig(local)
	cfg.Length = vxlanLength
	p := open(t, near, cfg, 1)
	far := newRawPeer(t, kernel, netip.MustParseAddr("10.244.2.1"))
	to := netip.MustParseAddrPort("10.244.1.1:7")
	const segment, headers = 1000, packet.VXLANHeader + packet.EthernetHeader + packet.IPv4Header + packet.UDPHeader
	b := packet.NewBatch(packet.BatchSize, 1500)
	// The second time the socket has seen segment sizes.
	for round := range 2 {
		for i, total := range []int{100, 20_000, 1000, 60_000, 1300} {
			data := pattern(i, total)
			far.send(t, to, data, segment*min(1, total/2000))
			wantSegment := 0
			if total >= 2000 {
				wantSegment = segment
			}
			for found := false; !found; {
				if err := p.Queues()[0].Recv(b); err != nil {
					t.Fatal(err)
				}
				for k := range b.Packets() {
					pk := &b.Packets()[k]
					if pk.Drop != packet.Alive || vxlanLength(pk.Bytes()) != pk.Len() || pk.Bytes()[headers-packet.UDPHeader-packet.IPv4Header+9] != packet.ProtoUDP {
						continue // router solicitations and the like
					}
					found = true
					if !bytes.Equal(pk.Bytes()[headers:], data) {
						t.Errorf("round %d: %d bytes inside, want %d, or other content", round, pk.Len()-headers, total)
					}
					if got := pk.Segment(); got != wantSegment {
						t.Errorf("round %d, %d bytes: segment %d, want %d", round, total, got, wantSegment)
					}
				}
			}
		}
	}
}
