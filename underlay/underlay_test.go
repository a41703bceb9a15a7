package underlay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/internal/sock"
	"weft/packet"
	"weft/packet/packettest"
)

// patience bounds a wait for something that must happen; it measures nothing.
const patience = nettest.Patience

const testPort = 4789

var (
	loopback4 = netip.MustParseAddr("127.0.0.1")
	loopback6 = netip.MustParseAddr("::1")
)

// open listens inside ns and closes with the test.
func open(t *testing.T, ns *nettest.NS, cfg Config, queues int) packet.Port {
	t.Helper()
	p, err := listen(ns, cfg, queues)
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
	return p
}

func listen(ns *nettest.NS, cfg Config, queues int) (p packet.Port, err error) {
	ns.Do(func() { p, err = Listen(cfg, queues) })
	return p, err
}

// peer is somebody else's UDP socket inside ns.
func peer(t *testing.T, ns *nettest.NS, at netip.Addr) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	var err error
	ns.Do(func() { conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0))) })
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func addrOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func read(t *testing.T, c *net.UDPConn) (data []byte, from netip.AddrPort) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], from
}

func write(t *testing.T, c *net.UDPConn, to netip.AddrPort, data []byte) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(data, to); err != nil {
		t.Fatal(err)
	}
}

// hopTo is a hop to an endpoint.
func hopTo(dst netip.AddrPort) *packet.Hop {
	return &packet.Hop{Path: packet.NewPath(netip.Addr{}, dst, 0)}
}

// put makes packet i of b, on its way to hop.
func put(b *packet.Batch, i int, data []byte, hop *packet.Hop, flow uint32) {
	p := &b.Slots()[i]
	p.Resize(copy(p.Reset(), data))
	p.Hop, p.Flow = hop, flow
	b.SetLen(i + 1)
}

// recvAll receives n packets and returns their bytes.
func recvAll(t *testing.T, q packet.Queue, b *packet.Batch, n int) [][]byte {
	t.Helper()
	var all [][]byte
	for len(all) < n {
		if err := q.Recv(b); err != nil {
			t.Fatalf("%d of %d packets: %v", len(all), n, err)
		}
		for i := range b.Packets() {
			p := &b.Packets()[i]
			if p.Drop != packet.Alive {
				t.Fatalf("received a packet dropped as %v", p.Drop)
			}
			all = append(all, bytes.Clone(p.Bytes()))
		}
	}
	return all
}

func TestPortConformance(t *testing.T) {
	for _, local := range []netip.Addr{loopback4, loopback6} {
		for name, cfg := range map[string]Config{"Single": {}, "Batch": {Batch: true}, "Offload": {Batch: true, Offload: true}} {
			cfg.Local, cfg.Port = []netip.Addr{local}, testPort
			t.Run(name+"/"+local.String(), func(t *testing.T) {
				ns := nettest.New(t)
				packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
					p, err := listen(ns, cfg, 1)
					if err != nil {
						t.Fatal(err)
					}
					far := peer(t, ns, local)
					to := netip.AddrPortFrom(local, testPort)
					buf := make([]byte, 1<<16)
					return p, packettest.Far{
						Hop: hopTo(addrOf(far)), From: local, MTU: 1450,
						Write: func(data []byte) error {
							_, err := far.WriteToUDPAddrPort(data, to)
							return err
						},
						Read: func() ([]byte, error) {
							if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
								return nil, err
							}
							n, err := far.Read(buf)
							return buf[:n], err
						},
					}
				})
			})
		}
	}
}

func TestDatagramsLargerThanASlotAreContiguous(t *testing.T) {
	for _, local := range []netip.Addr{loopback4, loopback6} {
		t.Run(local.String(), func(t *testing.T) {
			ns := nettest.New(t)
			p := open(t, ns, Config{Local: []netip.Addr{local}, Port: testPort, Batch: true}, 1)
			far, to := peer(t, ns, local), netip.AddrPortFrom(local, testPort)
			var want [][]byte
			for i, n := range []int{0, 1, 1499, 1500, 1501, 2000, 9000, 64308, 65507, 3, 65507, 1500} {
				data := bytes.Repeat([]byte{byte(i), byte(i >> 8), 0xa5}, n/3+1)[:n]
				want = append(want, data)
				write(t, far, to, data)
			}
			b := packet.NewBatch(packet.BatchSize, 1500)
			for i, got := range recvAll(t, p.Queues()[0], b, len(want)) {
				if !bytes.Equal(got, want[i]) {
					t.Errorf("datagram %d: %d bytes, want %d, or other content", i, len(got), len(want[i]))
				}
			}
			// A stage may prepend and append to a borrowed packet, too.
			write(t, far, to, want[7])
			if err := p.Queues()[0].Recv(b); err != nil {
				t.Fatal(err)
			}
			big := &b.Packets()[0]
			if big.Headroom() != packet.Headroom || cap(big.Tail())-big.Len() < packet.Tailroom {
				t.Errorf("headroom %d, tailroom %d", big.Headroom(), cap(big.Tail())-big.Len())
			}
			// The next packet in the slot is in the slot's own memory again.
			write(t, far, to, want[1])
			if err := p.Queues()[0].Recv(b); err != nil {
				t.Fatal(err)
			}
			if small := &b.Packets()[0]; &small.Memory()[packet.Headroom] != &small.Bytes()[0] {
				t.Error("the slot still borrows the overflow")
			}
		})
	}
}

func TestRefusedMessagesDoNotStopTheBatch(t *testing.T) {
	ns := nettest.New(t)
	ns.MustRun(t, "ip", "link", "set", "lo", "mtu", "1500")
	p := open(t, ns, Config{Local: []netip.Addr{loopback4}, Port: testPort, Batch: true}, 1)
	far := peer(t, ns, loopback4)
	good := hopTo(addrOf(far))
	for _, c := range []struct {
		hop  *packet.Hop
		size int
		want packet.Drop
	}{
		{good, 1473, packet.TooBig}, // 1500 - 20 - 8 = 1472
		{good, 1472, packet.Alive},
		{hopTo(netip.MustParseAddrPort("198.51.100.1:4789")), 100, packet.Refused}, // no route
		{hopTo(netip.MustParseAddrPort("255.255.255.255:4789")), 100, packet.Refused},
		{hopTo(netip.MustParseAddrPort("[2001:db8::1]:4789")), 100, packet.NoEndpoint},
		{&packet.Hop{}, 100, packet.NoEndpoint},
		{nil, 100, packet.NoEndpoint},
	} {
		b := packet.NewBatch(3, 2000)
		put(b, 0, []byte("before"), good, 1)
		put(b, 1, make([]byte, c.size), c.hop, 1)
		put(b, 2, []byte("behind"), good, 1)
		if err := p.Queues()[0].Send(b); err != nil {
			t.Fatal(err)
		}
		if got := b.Packets()[1].Drop; got != c.want {
			t.Errorf("%+v, %d bytes: %v, want %v", c.hop, c.size, got, c.want)
		}
		want := [][]byte{[]byte("before"), []byte("behind")}
		if c.want == packet.Alive {
			want = [][]byte{want[0], make([]byte, c.size), want[1]}
		}
		for _, w := range want {
			if got, _ := read(t, far); !bytes.Equal(got, w) {
				t.Errorf("%+v: the peer got %q, want %q", c.hop, got, w)
			}
		}
	}
}

func TestAPeerThatIsGoneDisturbsNobody(t *testing.T) {
	ns := nettest.New(t)
	p := open(t, ns, Config{Local: []netip.Addr{loopback4}, Port: testPort, Batch: true}, 1)
	alive, gone := peer(t, ns, loopback4), peer(t, ns, loopback4)
	goneHop, aliveHop := hopTo(addrOf(gone)), hopTo(addrOf(alive))
	gone.Close() // from here on the kernel answers with ICMP port unreachable
	q, b := p.Queues()[0], packet.NewBatch(20, 100)
	for range 5 {
		for i := range 10 {
			put(b, 2*i, []byte("gone"), goneHop, 1)
			put(b, 2*i+1, []byte("alive"), aliveHop, 1)
		}
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if got, _ := read(t, alive); string(got) != "alive" {
				t.Fatalf("got %q", got)
			}
		}
	}
	write(t, alive, netip.AddrPortFrom(loopback4, testPort), []byte("hello"))
	if got := recvAll(t, q, b, 1); string(got[0]) != "hello" {
		t.Errorf("got %q", got[0])
	}
}

func TestSourcePorts(t *testing.T) {
	ns := nettest.New(t)
	const sockets, flows, rounds = 8, 64, 4
	p := open(t, ns, Config{Local: []netip.Addr{loopback4}, Port: testPort, Batch: true, SendSockets: sockets, Offload: true}, 1)
	far := peer(t, ns, loopback4)
	hop := hopTo(addrOf(far))
	b := packet.NewBatch(packet.BatchSize, 100)
	ports := map[uint16]bool{}
	portOf := map[byte]uint16{}
	next := map[byte]byte{}
	for round := range byte(rounds) {
		for i := range packet.BatchSize { // two packets of every flow, far apart
			flow := byte(i % flows)
			put(b, i, []byte{flow, 2*round + byte(i/flows)}, hop, uint32(flow)*2654435761)
		}
		if err := p.Queues()[0].Send(b); err != nil {
			t.Fatal(err)
		}
		for range packet.BatchSize {
			data, from := read(t, far)
			flow, seq := data[0], data[1]
			if seq != next[flow] {
				t.Fatalf("flow %d: packet %d before packet %d", flow, seq, next[flow])
			}
			next[flow]++
			if known, ok := portOf[flow]; ok && known != from.Port() {
				t.Fatalf("flow %d moved from port %d to %d", flow, known, from.Port())
			}
			portOf[flow] = from.Port()
			ports[from.Port()] = true
			if from.Port() < sock.FirstSourcePort || from.Addr() != loopback4 {
				t.Fatalf("sent from %v", from)
			}
		}
	}
	if len(ports) != sockets {
		t.Errorf("%d flows left from %d ports, want %d", flows, len(ports), sockets)
	}
}

func TestBothFamiliesInOneBatch(t *testing.T) {
	ns := nettest.New(t)
	p := open(t, ns, Config{Local: []netip.Addr{loopback4, loopback6}, Port: testPort, Batch: true}, 1)
	q, b := p.Queues()[0], packet.NewBatch(packet.BatchSize, 100)
	far := map[netip.Addr]*net.UDPConn{loopback4: peer(t, ns, loopback4), loopback6: peer(t, ns, loopback6)}
	hops := []*packet.Hop{
		hopTo(addrOf(far[loopback4])),
		hopTo(addrOf(far[loopback6])),
		hopTo(netip.AddrPortFrom(netip.AddrFrom16(loopback4.As16()), addrOf(far[loopback4]).Port())), // ::ffff:127.0.0.1
	}
	for i := range 30 {
		put(b, i, []byte{byte(i)}, hops[i%3], 1)
	}
	if err := q.Send(b); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if got, _ := read(t, far[hops[i%3].Path.Dst.Addr().Unmap()]); got[0] != byte(i) {
			t.Fatalf("got packet %d, want %d", got[0], i)
		}
	}
	// Neither family starves the other.
	for range 200 {
		for local, conn := range far {
			write(t, conn, netip.AddrPortFrom(local, testPort), []byte{1})
		}
	}
	seen := map[netip.Addr]int{}
	for seen[loopback4]+seen[loopback6] < 400 {
		if err := q.Recv(b); err != nil {
			t.Fatalf("%v: %v", seen, err)
		}
		for i := range b.Packets() {
			from := b.Packets()[i].From
			if from != addrOf(far[from.Addr()]) {
				t.Fatalf("From %v", from)
			}
			seen[from.Addr()]++
		}
	}
	if seen[loopback4] != 200 || seen[loopback6] != 200 {
		t.Errorf("received %v", seen)
	}
}

func TestPortInUse(t *testing.T) {
	wantRemedy := func(t *testing.T, err error) {
		t.Helper()
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), " in this network namespace: stop that, or set network.port") {
			t.Errorf("error %v does not name the likely cause", err)
		}
	}
	for _, queues := range []int{1, 2} {
		t.Run("AnotherWeft", func(t *testing.T) {
			ns := nettest.New(t)
			cfg := Config{Local: []netip.Addr{loopback4, loopback6}, Port: testPort, Batch: true}
			first := open(t, ns, cfg, queues)
			_, err := listen(ns, cfg, queues)
			wantRemedy(t, err)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			open(t, ns, cfg, queues) // what failed has left nothing behind
		})
		t.Run("KernelVXLAN", func(t *testing.T) {
			nettest.RequireKernel(t, kernel.VXLAN)
			ns := nettest.New(t)
			vxlan := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx0", Flags: net.FlagUp}, VxlanId: 1, Port: testPort}
			if err := ns.Netlink().LinkAdd(vxlan); err != nil {
				t.Fatal(err)
			}
			if err := ns.Netlink().LinkSetUp(vxlan); err != nil {
				t.Fatal(err)
			}
			_, err := listen(ns, Config{Local: []netip.Addr{loopback4}, Port: testPort}, queues)
			wantRemedy(t, err)
		})
	}
}

func TestListenRefusesWhatCannotWork(t *testing.T) {
	ns := nettest.New(t)
	one := []netip.Addr{loopback4}
	for _, c := range []struct {
		cfg    Config
		queues int
		want   string
	}{
		{Config{Port: 1}, 1, "no local address"},
		{Config{Local: one}, 1, "port 0"},
		{Config{Local: one, Port: 1}, 0, "0 queues"},
		{Config{Local: one, Port: 1, Offload: true}, 1, "Offload without Batch"},
		{Config{Local: one, Port: 1, SendSockets: 17}, 1, "17 sending sockets"},
		{Config{Local: one, Port: 1, SendSockets: -1}, 1, "-1 sending sockets"},
		{Config{Local: []netip.Addr{{}}, Port: 1}, 1, "unicast"},
		{Config{Local: []netip.Addr{netip.IPv6Unspecified()}, Port: 1}, 1, "unicast"},
		{Config{Local: []netip.Addr{netip.MustParseAddr("fe80::1")}, Port: 1}, 1, "link-local"},
		{Config{Local: []netip.Addr{loopback4, netip.MustParseAddr("127.0.0.2")}, Port: 1}, 1, "one family"},
		{Config{Local: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Port: 1}, 1, "no interface of this network namespace has the address"},
		{Config{Local: []netip.Addr{netip.MustParseAddr("2001:db8::9")}, Port: 1}, 1, "no interface of this network namespace has the address"},
	} {
		p, err := listen(ns, c.cfg, c.queues)
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "underlay: ") {
			t.Errorf("%+v, %d queues: %v, want an error with %q", c.cfg, c.queues, err, c.want)
		}
	}
}

// Everything the peer sent was either received or is in KernelDrops.
func TestOverflowIsCounted(t *testing.T) {
	ns := nettest.New(t)
	p := open(t, ns, Config{Local: []netip.Addr{loopback4}, Port: testPort, Batch: true}, 1)
	far, to := peer(t, ns, loopback4), netip.AddrPortFrom(loopback4, testPort)
	drops := func() int { return int(p.(packet.KernelDrops).KernelDrops()["socket-overflow"]) }
	if n := drops(); n != 0 {
		t.Fatalf("%d drops before anything was sent", n)
	}
	sent, data := 0, make([]byte, 1400)
	for drops() == 0 {
		if sent > 1_000_000 {
			t.Fatal("the socket's buffer never overflows")
		}
		for range 100 {
			write(t, far, to, data)
			sent++
		}
	}
	b := packet.NewBatch(packet.BatchSize, 1500)
	received := len(recvAll(t, p.Queues()[0], b, sent-drops()))
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

func TestQueuesShareThePort(t *testing.T) {
	ns := nettest.New(t)
	const queues, peers, each = 3, 32, 50
	p := open(t, ns, Config{Local: []netip.Addr{loopback4}, Port: testPort, Batch: true}, queues)
	if n := len(p.Queues()); n != queues {
		t.Fatalf("%d queues", n)
	}
	var lanes sync.WaitGroup
	var total, busy atomic.Int64
	done := make(chan struct{})
	for _, q := range p.Queues() {
		lanes.Go(func() {
			b, mine := packet.NewBatch(packet.BatchSize, 1500), 0
			for {
				if err := q.Recv(b); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					if mine > 0 {
						busy.Add(1)
					}
					return
				}
				mine += b.Len()
				if total.Add(int64(b.Len())) == peers*each {
					close(done)
				}
			}
		})
	}
	for range peers { // each from another source port
		far := peer(t, ns, loopback4)
		for range each {
			write(t, far, netip.AddrPortFrom(loopback4, testPort), []byte("x"))
		}
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Errorf("received %d of %d", total.Load(), peers*each)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	lanes.Wait()
	if busy.Load() < 2 {
		t.Errorf("%d source ports met only %d of %d queues", peers, busy.Load(), queues)
	}
}

func TestFeaturesSayWhenBuffersAreSmall(t *testing.T) {
	ns := nettest.New(t)
	cfg := Config{Local: []netip.Addr{loopback4}, Port: testPort}
	check := func(t *testing.T, p packet.Port, on bool) {
		t.Helper()
		for name, state := range p.(packet.Features).Features() {
			if (state == "on") != on {
				t.Errorf("%s: %q", name, state)
			}
			if !on && !strings.Contains(state, "CAP_NET_ADMIN") {
				t.Errorf("%s: %q names no remedy", name, state)
			}
		}
	}
	check(t, open(t, ns, cfg, 1), true)
	cfg.Port++
	var p packet.Port
	err := <-ns.Go(func() (err error) { // on a thread that ends with it
		runtime.LockOSThread()
		if err := dropNetAdmin(); err != nil {
			return err
		}
		p, err = Listen(cfg, 1)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	check(t, p, false)
}

// dropNetAdmin takes CAP_NET_ADMIN from the calling thread.
func dropNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &data[0])
}
