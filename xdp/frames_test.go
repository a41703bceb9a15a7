package xdp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

var (
	podA4 = netip.MustParseAddrPort("10.244.1.2:1000")
	podB4 = netip.MustParseAddrPort("10.244.2.3:2000")
	podA6 = netip.MustParseAddrPort("[fd00:10:244:1::2]:1000")
	podB6 = netip.MustParseAddrPort("[fd00:10:244:2::3]:2000")
)

// forward moves what one queue has received to the other until want has come by.
func forward(t *testing.T, from, to packet.Queue, b *packet.Batch, hop *packet.Hop, want []byte) {
	t.Helper()
	for {
		if err := from.Recv(b); err != nil {
			t.Fatal(err)
		}
		found := false
		packets := b.Packets()
		for i := range packets {
			packets[i].Hop = hop
			found = found || bytes.Equal(packets[i].Bytes(), want)
		}
		if err := to.Send(b); err != nil {
			t.Fatal(err)
		}
		if found {
			return
		}
	}
}

// TestAnyMemory: batches of a pair's own frames, of ordinary memory, and of another port's frames are all carried, in
// both directions, and no frame changes its owner.
func TestAnyMemory(t *testing.T) {
	for name, batch := range map[string]func(from, to packet.Queue) *packet.Batch{
		"own":      func(from, _ packet.Queue) *packet.Batch { return packettest.NewBatch(from, 4, 0) },
		"ordinary": func(_, _ packet.Queue) *packet.Batch { return packet.NewBatch(4, testMTU+64) },
		"other":    func(_, to packet.Queue) *packet.Batch { return packettest.NewBatch(to, 4, 0) },
	} {
		for _, shared := range []bool{true, false} {
			t.Run(name+map[bool]string{true: "/shared", false: "/apart"}[shared], func(t *testing.T) {
				u := newUnderlay(t)
				var in *Inside
				var out *Outside
				if shared {
					in, out = openBoth(t, u, testConfig())
				} else {
					in, out = openIn(t, u.a, OpenInside, testConfig()), openIn(t, u.a, OpenOutside, testConfig())
				}
				stopAfter(t, in)
				stopAfter(t, out)
				host := sniff(t, u.a, "weft0", true)
				far := datagrams(t, u.b, addrsB[0], testPort)
				hop := hopTo(addrsB[0])
				resolve(t, out, hop)

				inner := packettest.UDP(podA4, podB4, 1000, 1)
				if err := host.write(inner); err != nil {
					t.Fatal(err)
				}
				b := batch(in.Queues()[0], out.Queues()[0])
				forward(t, in.Queues()[0], out.Queues()[0], b, hop, inner)
				for {
					p, _, err := readUDP(far)
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Equal(p, inner) {
						break
					}
				}

				inner = packettest.UDP(podB6, podA6, 1000, 2)
				if _, err := far.WriteToUDPAddrPort(inner, hopTo(addrsA[0]).Path.Dst); err != nil {
					t.Fatal(err)
				}
				back := batch(out.Queues()[0], in.Queues()[0])
				forward(t, out.Queues()[0], in.Queues()[0], back, nil, inner)
				for {
					p, err := host.read()
					if err != nil {
						t.Fatal(err)
					}
					if bytes.Equal(p, inner) {
						break
					}
				}
				both := []*pair{own(in.rings)[0], own(out.rings)[0]}
				settled(t, both)
				if shared {
					audit(t, own(in.rings)[0].umem, both, b, back)
				} else {
					audit(t, own(in.rings)[0].umem, both[:1], b, back)
					audit(t, own(out.rings)[0].umem, both[1:], b, back)
				}
			})
		}
	}
}

// TestInsideRefusesWhatIsNotIP: a VLAN tag, which a veth would carry beside the frame, and ARP are dropped by name.
func TestInsideRefusesWhatIsNotIP(t *testing.T) {
	u := newUnderlay(t)
	in := openIn(t, u.a, OpenInside, testConfig())
	stopAfter(t, in)
	raw := sniff(t, u.a, "weft0", false)
	ip := packettest.UDP(podA4, podB4, 10, 1)
	for name, frame := range map[string][]byte{
		"802.1Q": append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 5, 8, 0}, ip...),
		"ARP":    append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6}, make([]byte, 46)...),
	} {
		if err := raw.writeFrame(frame); err != nil {
			t.Fatal(err)
		}
		b := packettest.NewBatch(in.Queues()[0], 1, 0)
		for {
			if err := in.Queues()[0].Recv(b); err != nil {
				t.Fatal(err)
			}
			p := &b.Packets()[0]
			if p.Drop == packet.Alive {
				continue // the kernel's own chatter
			}
			if p.Drop != packet.NotIP || !bytes.Equal(p.Bytes()[12:14], frame[12:14]) {
				t.Errorf("%s: dropped as %v: %x", name, p.Drop, p.Bytes())
			}
			break
		}
	}
}

// TestInsideChecksumsAreFinished: what the host's own stack sends into the interface has whole checksums, and what the
// port sends with a partial one arrives whole.
func TestInsideChecksumsAreFinished(t *testing.T) {
	u := newUnderlay(t)
	in := openIn(t, u.a, OpenInside, testConfig())
	stopAfter(t, in)
	if err := u.a.AddAddrs("weft0", nettest.Prefixes("10.244.1.2/32", "fd00:10:244:1::2/128")...); err != nil {
		t.Fatal(err)
	}
	q := in.Queues()[0]
	b := packettest.NewBatch(q, 1, 0)
	for _, flow := range [][2]netip.AddrPort{{podA4, podB4}, {podA6, podB6}} {
		if err := u.a.AddRoute(netip.PrefixFrom(flow[1].Addr(), flow[1].Addr().BitLen()), netip.Addr{}, "weft0"); err != nil {
			t.Fatal(err)
		}
		conn := datagrams(t, u.a, flow[0].Addr(), flow[0].Port())
		if _, err := conn.WriteToUDPAddrPort(bytes.Repeat([]byte("sum"), 333), flow[1]); err != nil {
			t.Fatal(err)
		}
		for {
			if err := q.Recv(b); err != nil {
				t.Fatal(err)
			}
			v, drop := packet.ParseIP(b.Packets()[0].Bytes())
			if drop != packet.Alive || v.Protocol() != packet.ProtoUDP || v.Dst() != flow[1].Addr() {
				continue
			}
			if !v.VerifyTransport() {
				t.Errorf("%v: the kernel's packet has a wrong checksum: %x", flow[1], v.Bytes()[:64])
			}
			break
		}

		// The answer, unfinished.
		answer := packettest.UDP(flow[1], flow[0], 500, 3)
		p := &b.Slots()[0]
		p.Resize(copy(p.Reset(), answer))
		b.SetLen(1)
		v, _ := packet.ParseIP(p.Bytes())
		start, ok := v.Transport()
		if !ok {
			t.Fatal("no transport")
		}
		header := packet.IPv4Header
		addrs := p.Bytes()[12:20]
		if v.Version() == 6 {
			header, addrs = packet.IPv6Header, p.Bytes()[8:40]
		}
		binary.BigEndian.PutUint16(p.Bytes()[header+6:], packet.PseudoSum(addrs, packet.ProtoUDP, p.Len()-header))
		p.SetPartial(start, 6)
		if err := q.Send(b); err != nil {
			t.Fatal(err)
		}
		// The kernel drops a wrong sum.
		if got, from, err := readUDP(conn); err != nil || from != flow[1] || len(got) != 500 {
			t.Errorf("%d bytes from %v: %v", len(got), from, err)
		}
	}
}

// TestLargeFrames: an MTU of 3.4 KB is carried in chunks of 4 KB; a larger one is refused with the limit.
func TestLargeFrames(t *testing.T) {
	u := underlay{nettest.New(t), nettest.New(t)}
	nettest.Pair(t,
		nettest.End{NS: u.a, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: u.b, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, 3400)
	c := testConfig()
	c.InnerMTU = 3350
	in, out := openBoth(t, u, c)
	stopAfter(t, in)
	stopAfter(t, out)
	if in.Features()["xdp-native"] != "on" || out.Features()["xdp-native"] != "on" {
		t.Errorf("%v %v", in.Features(), out.Features())
	}
	host := sniff(t, u.a, "weft0", true)
	far := datagrams(t, u.b, addrsB[0], testPort)
	hop := hopTo(addrsB[0])
	resolve(t, out, hop)
	inner := packettest.UDP(podA4, podB4, 3350-28, 1)
	if err := host.write(inner); err != nil {
		t.Fatal(err)
	}
	forward(t, in.Queues()[0], out.Queues()[0], packettest.NewBatch(in.Queues()[0], 4, 0), hop, inner)
	for {
		p, _, err := readUDP(far)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(p, inner) {
			break
		}
	}

	for _, ns := range []*nettest.NS{u.a, u.b} {
		ns.MustRun(t, "ip", "link", "add", "big0", "mtu", "9000", "type", "veth", "peer", "name", "big1", "mtu", "9000")
	}
	c.Device = "big0"
	var err error
	u.a.Do(func() { _, err = OpenOutside(c) })
	if err == nil || !strings.Contains(err.Error(), "lower the MTU to") {
		t.Errorf("error %v", err)
	}
}

// TestQueues: every queue of a device with several is served, by a lane of its own.
func TestQueues(t *testing.T) {
	u := underlay{nettest.New(t), nettest.New(t)}
	u.a.MustRun(t, "ip", "link", "add", "eth0", "numrxqueues", "2", "numtxqueues", "2", "type", "veth",
		"peer", "name", "eth0", "netns", u.b.Name(), "numrxqueues", "2", "numtxqueues", "2")
	for i, ns := range []*nettest.NS{u.a, u.b} {
		if err := ns.LinkUp("eth0"); err != nil {
			t.Fatal(err)
		}
		if err := ns.AddAddrs("eth0", netip.PrefixFrom([]netip.Addr{addrsA[0], addrsB[0]}[i], 24), netip.PrefixFrom([]netip.Addr{addrsA[1], addrsB[1]}[i], 64)); err != nil {
			t.Fatal(err)
		}
	}
	c := testConfig()
	c.Queues = 4 // the device has the last word
	in, out := openBoth(t, u, c)
	stopAfter(t, in)
	stopAfter(t, out)
	if len(in.Queues()) != 2 || len(out.Queues()) != 2 {
		t.Fatalf("%d and %d queues, want 2 and 2", len(in.Queues()), len(out.Queues()))
	}
	if f := out.Features()["xdp-all-queues"]; !strings.Contains(f, "2 receive queues") {
		t.Errorf("xdp-all-queues: %q", f)
	}
	// Flows from many ports spread over both queues; each arrives in one of them.
	seen := make(chan int)
	for i, q := range out.Queues() {
		go func() {
			b := packettest.NewBatch(q, 8, 0)
			for q.Recv(b) == nil {
				seen <- i
			}
		}()
	}
	var got [2]int
	for port := uint16(30000); got[0] == 0 || got[1] == 0; port++ {
		far := datagrams(t, u.b, addrsB[0], port)
		if _, err := far.WriteToUDPAddrPort([]byte("flow"), hopTo(addrsA[0]).Path.Dst); err != nil {
			t.Fatal(err)
		}
		far.Close()
		got[<-seen]++
		if port == 30100 {
			t.Fatalf("100 flows all came by one queue: %v", got)
		}
	}
	go func() {
		for range seen { // what else arrives while the port closes
		}
	}()
}

// TestFrameMask: descriptors outside a frame are noticed.
func TestFrameMask(t *testing.T) {
	u, err := newUMEM(4, smallFrame)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		addr   uint64
		length uint32
		ok     bool
	}{
		{256, 64, true}, {smallFrame, smallFrame, true}, {3*smallFrame + 256, smallFrame - 256, true},
		{256, smallFrame - 255, false}, {4 * smallFrame, 1, false}, {1 << 63, 1, false}, {smallFrame - 1, 2, false},
	} {
		if _, _, ok := u.split(test.addr, test.length); ok != test.ok {
			t.Errorf("address %#x, length %d: ok is %v", test.addr, test.length, ok)
		}
	}
}

// TestRingSizes: sizes that rings cannot have are refused before anything is made.
func TestRingSizes(t *testing.T) {
	for _, n := range []int{100, 64, 1 << 16, -2048} {
		c := testConfig()
		c.RingSize = n
		if err := c.check(); err == nil {
			t.Errorf("ring size %d was accepted", n)
		}
	}
}
