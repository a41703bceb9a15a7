package tun

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/internal/kernel"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

// openOffloadIn opens an offload port inside ns and sets its device up.
func openOffloadIn(t testing.TB, ns *nettest.NS, cfg Config, queues, mtu int) packet.Port {
	t.Helper()
	nettest.RequireKernel(t, kernel.TUN)
	var p packet.Port
	var err error
	ns.Do(func() { p, err = OpenOffload(cfg, queues) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := ns.Netlink().LinkByName(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Netlink().LinkSetMTU(l, mtu); err != nil {
		t.Fatal(err)
	}
	if err := ns.LinkUp(cfg.Name); err != nil {
		t.Fatal(err)
	}
	return p
}

// gsoTap is the kernel's side of a device, super-packets included: an AF_PACKET socket with a
// virtio header in front of every packet.
type gsoTap struct {
	fd   int
	to   unix.SockaddrLinklayer
	buf  []byte
	rest [][]byte // cut from the last super-packet, not yet read
}

func tapGSO(t testing.TB, ns *nettest.NS, name string) *gsoTap {
	t.Helper()
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	l, err := ns.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	w := &gsoTap{buf: make([]byte, 1<<17), to: unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}}
	ns.Do(func() { w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(w.fd) })
	for _, err := range []error{
		unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}),
		unix.Bind(w.fd, &w.to),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// writeWire lets the kernel send a packet, whole or super, out of the device.
func (w *gsoTap) writeWire(p wire) error {
	w.to.Protocol = 0x0008 // ETH_P_IP in network order
	if p.data[0]>>4 == 6 {
		w.to.Protocol = 0xdd86
	}
	// The kernel wants to know how much of the packet is headers.
	_, h := headerLengths(p.data)
	p.v.headers = h
	return unix.Sendto(w.fd, p.frame(), 0, &w.to)
}

func (w *gsoTap) write(p []byte) error { return w.writeWire(wire{data: p}) }

// readWire returns the next packet that came into the kernel.
func (w *gsoTap) readWire() (wire, error) {
	for {
		n, from, err := unix.Recvfrom(w.fd, w.buf, 0)
		if err != nil {
			return wire{}, fmt.Errorf("no packet came into the kernel: %w", err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
			return unframe(w.buf[:n]), nil
		}
	}
}

// read returns the next plain packet that came into the kernel.
func (w *gsoTap) read() ([]byte, error) {
	if len(w.rest) == 0 {
		p, err := w.readWire()
		if err != nil {
			return nil, err
		}
		w.rest = p.cut(0)
	}
	p := w.rest[0]
	w.rest = w.rest[1:]
	return p, nil
}

func TestOffloadConformance(t *testing.T) {
	nettest.RequireKernel(t, kernel.TUN)
	ns := nettest.New(t)
	packettest.Port(t, func(t *testing.T) (packet.Port, packettest.Far) {
		p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU+100)
		w := tapGSO(t, ns, "weft0")
		src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
		return p, packettest.Far{
			MTU: testMTU, Write: w.write, Read: w.read,
			Oversize: packettest.UDP(src, dst, testMTU, 0), OversizeDrop: packet.Truncated,
		}
	})
}

// TestOffloadFeatures: what every kernel since 2.6.27 has is on; of the rest the port says something.
func TestOffloadFeatures(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	f := p.(packet.Features).Features()
	for _, name := range []string{"csum", "tso4", "tso6", "tso-ecn"} {
		if f[name] != "on" {
			t.Errorf("%s: %q", name, f[name])
		}
	}
	if f["uso4"] == "" || f["uso4"] != f["uso6"] || len(f) != 6 {
		t.Errorf("%v", f)
	}
	p.(*offload).refused(unix.VIRTIO_NET_HDR_GSO_TCPV6)
	g := p.(packet.Features).Features()
	if g["tso6"] == "on" || g["tso4"] != "on" || f["tso6"] != "on" {
		t.Errorf("after a refusal: %v", g)
	}
}

// TestOffloadRecvFromKernel: super-packets that went through the kernel come out of Recv as the
// oracle cuts them.
func TestOffloadRecvFromKernel(t *testing.T) {
	for _, mtu := range []int{576, 1280, 1450, 9000} {
		ns := nettest.New(t)
		// The device's own MTU is larger: some of the packets are cut to ours.
		p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: mtu}, 1, mtu+2000)
		w := tapGSO(t, ns, "weft0")
		watch(t, p)
		r := rand.New(rand.NewPCG(uint64(mtu), 7))
		b := packet.NewBatch(packet.BatchSize, mtu+64)
		supers := 0
		for i := range 150 {
			in := randomWire(r, mtu)
			if _, h := headerLengths(in.data); in.v.gso != 0 && (in.v.size < 16 || len(in.data)-h <= in.v.size) {
				continue // more segments than a device may be given (gso_max_segs), or one, which is none
			}
			if in.v.gso != 0 {
				supers++
			}
			want := in.cut(mtu)
			if err := w.writeWire(in); err != nil {
				t.Fatalf("mtu %d: packet %d (%+v, %d bytes): %v", mtu, i, in.v, len(in.data), err)
			}
			for len(want) > 0 {
				if err := p.Queues()[0].Recv(b); err != nil {
					t.Fatalf("mtu %d: packet %d, %d segments missing: %v", mtu, i, len(want), err)
				}
				for k := range b.Packets() {
					got := received(t, &b.Packets()[k])
					if flowOf(got) != flowOf(in.data) {
						continue // the kernel's own: router solicitations
					}
					if len(want) == 0 {
						t.Fatalf("mtu %d: packet %d: a segment too many", mtu, i)
					}
					mustEqual(t, fmt.Sprintf("mtu %d: packet %d (%+v)", mtu, i, in.v), got, want[0])
					want = want[1:]
				}
			}
		}
		if supers < 30 {
			t.Errorf("mtu %d: only %d super-packets", mtu, supers)
		}
	}
}

// watch closes p when the test has lost patience, so that a lost packet is no hang.
func watch(t testing.TB, p packet.Port) {
	timer := time.AfterFunc(2*patience, func() { p.Close() })
	t.Cleanup(func() { timer.Stop() })
}

// TestOffloadSendToKernel: the kernel takes everything that Send writes, and cut again it is what
// was sent.
func TestOffloadSendToKernel(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: 1550}, 1, 1550)
	w := tapGSO(t, ns, "weft0")
	supers := 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 8))
		in := randomTraffic(r, packet.BatchSize, 1+r.IntN(maxGroups), 1450)
		b := packet.NewBatch(len(in), 1600)
		load(b, in)
		if err := p.Queues()[0].Send(b); err != nil {
			t.Fatal(err)
		}
		missing := 0
		for i := range b.Packets() {
			if d := b.Packets()[i].Drop; d != packet.Alive {
				t.Fatalf("seed %d: packet %d: %v", seed, i, d)
			}
			missing++
		}
		var out []wire
		for missing > 0 {
			got, err := w.readWire()
			if err != nil {
				t.Fatalf("seed %d: %d packets missing: %v", seed, missing, err)
			}
			if got.v.gso != 0 {
				supers++
			}
			missing -= len(got.cut(0))
			out = append(out, got)
		}
		checkJoined(t, fmt.Sprint("seed ", seed), out, in)
	}
	if supers < 100 {
		t.Errorf("only %d super-packets", supers)
	}
	if f := p.(packet.Features).Features(); f["tso4"] != "on" || f["tso6"] != "on" {
		t.Errorf("the port degraded: %v", f)
	}
}

// TestOffloadSuperToKernel: what a far kernel left uncut reaches ours whole, with a size.
func TestOffloadSuperToKernel(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tapGSO(t, ns, "weft0")
	for _, s := range []spec{
		{payload: 60000, flags: packet.TCPFlagACK | packet.TCPFlagPSH, options: timestamps(1)},
		{v6: true, payload: 60000, flags: packet.TCPFlagACK | packet.TCPFlagCWR},
		{udp: true, payload: 30000},
	} {
		in := partial(s.build())
		b := packet.NewBatch(1, 1600)
		load(b, []sending{in})
		b.Packets()[0].SetSegment(1200)
		if err := p.Queues()[0].Send(b); err != nil || b.Packets()[0].Drop != packet.Alive {
			t.Fatalf("%v, %v", err, b.Packets()[0].Drop)
		}
		got, err := w.readWire()
		if err != nil {
			t.Fatal(err)
		}
		if got.v.size != 1200 || got.v.gso == 0 {
			t.Errorf("%+v", got.v)
		}
		mustEqual(t, "super-packet", got.finish(), in.whole)
	}
}

// TestOffloadManyQueues: every queue works, and the kernel spreads flows over them.
func TestOffloadManyQueues(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 3, testMTU)
	w := tapGSO(t, ns, "weft0")
	watch(t, p)
	if n := len(p.Queues()); n != 3 {
		t.Fatalf("%d queues", n)
	}
	const flows = 60
	want := map[string]bool{}
	for i := range flows {
		in := spec{port: uint16(i), payload: 20000, flags: packet.TCPFlagACK}.superOf(1400)
		want[flowOf(in.data)] = true
		if err := w.writeWire(in); err != nil {
			t.Fatal(err)
		}
	}
	type arrival struct {
		queue int
		flow  string
	}
	// One packet of each flow is enough to be reported; the channel holds them all.
	arrivals, done := make(chan arrival, 10*flows*20), make(chan error, 3)
	for i, q := range p.Queues() {
		go func() {
			b := packet.NewBatch(packet.BatchSize, 1500)
			for {
				if err := q.Recv(b); err != nil {
					done <- err
					return
				}
				for k := range b.Packets() {
					arrivals <- arrival{i, flowOf(b.Packets()[k].Bytes())}
				}
			}
		}()
	}
	used := map[int]bool{}
	for len(want) > 0 {
		select {
		case a := <-arrivals:
			if want[a.flow] {
				used[a.queue] = true
			}
			delete(want, a.flow)
		case err := <-done:
			t.Fatalf("%d flows missing: %v", len(want), err)
		}
	}
	if len(used) < 2 {
		t.Errorf("queues used: %v", used)
	}
	for _, q := range p.Queues() { // and every queue sends
		b := packet.NewBatch(40, 1500)
		in := stream(spec{flags: packet.TCPFlagACK}, 40, 1400)
		load(b, in)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for i := range in {
			for {
				var err error
				if got, err = w.read(); err != nil {
					t.Fatal(err)
				}
				if flowOf(got) == flowOf(in[0].whole) {
					break
				}
			}
			mustEqual(t, fmt.Sprint("packet ", i), got, in[i].whole)
		}
	}
}

func TestOffloadRemovedDeviceIsAPortError(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	result := make(chan error, 1)
	go func() {
		b := packet.NewBatch(8, testMTU)
		for {
			if err := p.Queues()[0].Recv(b); err != nil {
				result <- err
				return
			}
		}
	}()
	l, err := ns.Netlink().LinkByName("weft0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Netlink().LinkDel(l); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-result:
		if !bytes.Contains([]byte(err.Error()), []byte("weft0")) {
			t.Errorf("Recv: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Recv does not notice")
	}
	b := packet.NewBatch(40, 1500)
	load(b, stream(spec{flags: packet.TCPFlagACK}, 40, 1400))
	if err := p.Queues()[0].Send(b); err == nil {
		t.Error("Send does not notice")
	}
	for i := range b.Packets() {
		if b.Packets()[i].Drop != packet.Refused {
			t.Fatalf("packet %d: %v", i, b.Packets()[i].Drop)
		}
	}
}

// TestOffloadRefusesWhatCannotWork: and a refusal leaves no descriptor behind, nor closes a
// stranger's.
func TestOffloadRefusesWhatCannotWork(t *testing.T) {
	ns := nettest.New(t)
	openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	before := descriptors(t)
	for _, c := range []struct {
		cfg    Config
		queues int
		want   string
	}{
		{Config{MTU: testMTU}, 1, "use 1 to 15 bytes"},
		{Config{Name: "weft567890123456", MTU: testMTU}, 1, "use 1 to 15 bytes"},
		{Config{Name: "weft1"}, 1, "MTU 0"},
		{Config{Name: "weft1", MTU: testMTU}, 0, "0 queues"},
		{Config{Name: "weft0", MTU: testMTU}, 1, "another process has the device"},
		{Config{Name: "weft0", MTU: testMTU}, 2, "ip link del"},
		{Config{Name: "lo", MTU: testMTU}, 1, "ip link del"},
	} {
		var err error
		ns.Do(func() { _, err = OpenOffload(c.cfg, c.queues) })
		if err == nil || !strings.HasPrefix(err.Error(), "tun: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v, %d queues: %v, want an error with %q", c.cfg, c.queues, err, c.want)
		}
	}
	if after := descriptors(t); !slices.Equal(before, after) {
		t.Errorf("descriptors before %v, after %v", before, after)
	}
}

// descriptors says what this process has open on devices and events.
func descriptors(t *testing.T) (all []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (e.Name() == "0" || strings.Contains(to, "tun") || strings.Contains(to, "eventfd")) {
			all = append(all, e.Name()+" "+to)
		}
	}
	slices.Sort(all)
	return all
}

// TestOffloadQueueOutlastsATick: what a busy sender makes before a lane gets its turn is not lost.
func TestOffloadQueueOutlastsATick(t *testing.T) {
	ns := nettest.New(t)
	p := openOffloadIn(t, ns, Config{Name: "weft0", MTU: testMTU}, 1, testMTU)
	w := tapGSO(t, ns, "weft0")
	watch(t, p)
	src, dst := netip.MustParseAddrPort("10.244.1.2:1"), netip.MustParseAddrPort("10.244.2.2:2")
	data := packettest.UDP(src, dst, 22, 0)
	const tick = 4 * 400 // 4 ms at 400,000 packets a second
	for range tick {
		if err := w.write(data); err != nil {
			t.Fatal(err)
		}
	}
	if drops := p.(packet.KernelDrops).KernelDrops()["tun-queue"]; drops != 0 {
		t.Fatalf("%d of %d packets dropped", drops, tick)
	}
	b := packet.NewBatch(packet.BatchSize, testMTU)
	for got := 0; got < tick; {
		if err := p.Queues()[0].Recv(b); err != nil {
			t.Fatalf("%d of %d packets: %v", got, tick, err)
		}
		for i := range b.Packets() {
			if bytes.Equal(b.Packets()[i].Bytes(), data) {
				got++
			}
		}
	}
}
