package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"weft/packet"
)

var (
	own       = [6]byte{0x02, 1, 1, 1, 1, 1} // our station
	broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stray     = [6]byte{0x02, 9, 9, 9, 9, 9} // a station that is no node's own
)

// node is peer n (from 0) of the tests: 192.0.2.(n+2), 10.244.(n+2).0/24, fd00:10:244:(n+2)::/64.
func node(n int) *packet.Hop {
	return &packet.Hop{Peer: packet.Peer{ID: uint32(n), VNI: 1, MAC: [6]byte{0x02, 2, 2, 2, 2, byte(n + 2)}}, Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 2)}), 4789), 1450)}
}

func bridgeTo(peers ...*packet.Hop) *Bridge {
	t := NewTable()
	t.SetStation(own)
	t.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	t.InsertSelf(netip.MustParsePrefix("fd00:10:244:1::/64"))
	for _, h := range peers {
		t.Insert(netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", h.Peer.ID+2)), h)
		t.Insert(netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", h.Peer.ID+2)), h)
		t.InsertPeer(h.Path.Dst.Addr(), h)
		t.InsertStation(h)
	}
	s := NewBridge()
	s.Publish(t)
	return s
}

func eth(dst, src [6]byte, etherType uint16, payload []byte) []byte {
	f := make([]byte, packet.EthernetHeader, packet.EthernetHeader+len(payload))
	packet.PutEthernet(f, dst, src, etherType)
	return append(f, payload...)
}

// arp asks or answers: sender to target.
func arp(sender, target string) []byte {
	b := make([]byte, 28)
	copy(b, []byte{0, 1, 8, 0, 6, 4, 0, 1})
	copy(b[14:], netip.MustParseAddr(sender).AsSlice())
	copy(b[24:], netip.MustParseAddr(target).AsSlice())
	return b
}

// advertisement is an ICMPv6 neighbour advertisement for target.
func advertisement(src, dst, target string) []byte {
	b := ip6(src, dst, 40+24)
	b[6], b[7], b[40] = 58, 255, 136
	copy(b[48:], netip.MustParseAddr(target).AsSlice())
	return b
}

// test frames from and to nobody in particular.
const experimental = 0x88b5 // IEEE 802: local experimental EtherType 1

func present(b *packet.Batch, from netip.Addr, frames ...[]byte) {
	for i, f := range frames {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), f))
		p.From = netip.AddrPortFrom(from, 50000)
	}
	b.SetLen(len(frames))
}

func (s *Bridge) heard(t *testing.T, from *packet.Hop, frame []byte) packet.Drop {
	t.Helper()
	b := packet.NewBatch(1, 2000)
	present(b, from.Path.Dst.Addr(), frame)
	s.In(b)
	return b.Packets()[0].Drop
}

func TestBridgeIn(t *testing.T) {
	b, c := node(0), node(1) // frames come from b
	ours4, ours6 := "10.244.1.5", "fd00:10:244:1::5"
	tagged := func(tag uint16, rest ...byte) []byte { return append(binary.BigEndian.AppendUint16(nil, tag), rest...) }
	good4 := ip4("10.244.2.5", ours4, 60)
	for name, tc := range map[string]struct {
		frame []byte
		want  packet.Drop
	}{
		"IPv4":                             {eth(own, b.Peer.MAC, 0x0800, good4), packet.Alive},
		"IPv6":                             {eth(own, b.Peer.MAC, 0x86dd, ip6("fd00:10:244:2::5", ours6, 60)), packet.Alive},
		"from a station behind the peer":   {eth(own, stray, 0x0800, good4), packet.Alive},
		"to a station that is not ours":    {eth(stray, b.Peer.MAC, 0x0800, good4), packet.Alive},
		"another protocol":                 {eth(own, b.Peer.MAC, experimental, []byte{1, 2, 3}), packet.Alive},
		"IPv4 of another peer":             {eth(own, b.Peer.MAC, 0x0800, ip4("10.244.3.5", ours4, 60)), packet.WrongSource},
		"IPv4 of ourselves":                {eth(own, b.Peer.MAC, 0x0800, ip4("10.244.1.6", ours4, 60)), packet.WrongSource},
		"IPv4 of nobody":                   {eth(own, b.Peer.MAC, 0x0800, ip4("203.0.113.1", ours4, 60)), packet.WrongSource},
		"IPv4 through us to elsewhere":     {eth(own, b.Peer.MAC, 0x0800, ip4("10.244.2.5", "203.0.113.1", 60)), packet.NotOurs},
		"IPv4 through us to another peer":  {eth(own, b.Peer.MAC, 0x0800, ip4("10.244.2.5", "10.244.3.5", 60)), packet.NotOurs},
		"IPv4 multicast":                   {eth([6]byte{1, 0, 0x5e, 0, 0, 1}, b.Peer.MAC, 0x0800, ip4("10.244.2.5", "224.0.0.1", 60)), packet.Alive},
		"IPv4 broadcast":                   {eth(broadcast, b.Peer.MAC, 0x0800, ip4("10.244.2.5", "255.255.255.255", 60)), packet.Alive},
		"IPv6 of another peer":             {eth(own, b.Peer.MAC, 0x86dd, ip6("fd00:10:244:3::5", ours6, 60)), packet.WrongSource},
		"IPv6 through us to elsewhere":     {eth(own, b.Peer.MAC, 0x86dd, ip6("fd00:10:244:2::5", "2001:db8::1", 60)), packet.NotOurs},
		"IPv6 link-local solicitation":     {eth([6]byte{0x33, 0x33, 0xff, 0, 0, 1}, b.Peer.MAC, 0x86dd, ip6("fe80::2", "ff02::1:ff00:1", 64)), packet.Alive},
		"IPv6 unspecified":                 {eth([6]byte{0x33, 0x33, 0, 0, 0, 0x16}, b.Peer.MAC, 0x86dd, ip6("::", "ff02::16", 64)), packet.Alive},
		"IPv6 link-local through us":       {eth(own, b.Peer.MAC, 0x86dd, ip6("fe80::2", "2001:db8::1", 60)), packet.NotOurs},
		"advertises its own":               {eth(own, b.Peer.MAC, 0x86dd, advertisement("fe80::2", "fe80::1", "fd00:10:244:2::1")), packet.Alive},
		"advertises a link-local address":  {eth(own, b.Peer.MAC, 0x86dd, advertisement("fe80::2", "fe80::1", "fe80::2")), packet.Alive},
		"advertises another peer's":        {eth(own, b.Peer.MAC, 0x86dd, advertisement("fe80::2", "fe80::1", "fd00:10:244:3::1")), packet.WrongSource},
		"advertises another's as its own":  {eth(own, b.Peer.MAC, 0x86dd, advertisement("fd00:10:244:2::1", "fe80::1", "fd00:10:244:3::1")), packet.WrongSource},
		"ARP":                              {eth(broadcast, b.Peer.MAC, 0x0806, arp("10.244.2.1", "10.244.1.1")), packet.Alive},
		"ARP probe":                        {eth(broadcast, b.Peer.MAC, 0x0806, arp("0.0.0.0", "10.244.2.1")), packet.Alive},
		"ARP for another peer":             {eth(broadcast, b.Peer.MAC, 0x0806, arp("10.244.3.1", "10.244.1.1")), packet.WrongSource},
		"half an ARP packet":               {eth(broadcast, b.Peer.MAC, 0x0806, arp("10.244.2.1", "10.244.1.1")[:27]), packet.TooShort},
		"ARP of another hardware":          {eth(broadcast, b.Peer.MAC, 0x0806, make([]byte, 28)), packet.BadHeader},
		"VLAN 0 hides nothing":             {eth(own, b.Peer.MAC, 0x8100, append(tagged(0, 8, 0), ip4("10.244.3.5", ours4, 60)...)), packet.WrongSource},
		"two tags hide nothing":            {eth(own, b.Peer.MAC, 0x88a8, append(tagged(7, 0x81, 0, 0, 9, 8, 0), ip4("10.244.3.5", ours4, 60)...)), packet.WrongSource},
		"VLAN with its own":                {eth(own, b.Peer.MAC, 0x8100, append(tagged(5, 8, 0), good4...)), packet.Alive},
		"half a tag":                       {eth(own, b.Peer.MAC, 0x8100, []byte{0, 1, 8}), packet.TooShort},
		"our own MAC as source":            {eth(broadcast, own, experimental, nil), packet.WrongSource},
		"another node's MAC as source":     {eth(own, c.Peer.MAC, experimental, nil), packet.WrongSource},
		"a group as source":                {eth(own, [6]byte{3}, experimental, nil), packet.BadHeader},
		"no source":                        {eth(own, [6]byte{}, experimental, nil), packet.BadHeader},
		"spanning tree":                    {eth([6]byte{1, 0x80, 0xc2, 0, 0, 0}, b.Peer.MAC, 0x0026, make([]byte, 38)), packet.ReservedMAC},
		"LLDP":                             {eth([6]byte{1, 0x80, 0xc2, 0, 0, 0x0e}, b.Peer.MAC, 0x88cc, make([]byte, 38)), packet.ReservedMAC},
		"a group beside the reserved ones": {eth([6]byte{1, 0x80, 0xc2, 0, 0, 0x10}, b.Peer.MAC, experimental, nil), packet.Alive},
		"half an Ethernet header":          {make([]byte, 13), packet.TooShort},
		"an IPv4 header cut off":           {eth(own, b.Peer.MAC, 0x0800, good4[:12]), packet.TooShort},
	} {
		t.Run(name, func(t *testing.T) {
			s := bridgeTo(b, c)
			if got := s.heard(t, b, tc.frame); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
			if len(tc.frame) < packet.EthernetHeader {
				return
			}
			// Only what passed teaches.
			peer, known := s.fdb.lookup([6]byte(tc.frame[6:12]), now())
			if known != (tc.want == packet.Alive) || known && peer != b.Peer.ID {
				t.Errorf("the source is known: %v, behind peer %d", known, peer)
			}
		})
	}
	s := bridgeTo(b)
	stranger := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.99:1"), 0)}
	if got := s.heard(t, stranger, eth(own, stray, 0x0800, good4)); got != packet.UnknownPeer {
		t.Errorf("from a stranger: %v", got)
	}
	if _, known := s.fdb.lookup(stray, now()); known {
		t.Error("a stranger taught us a station")
	}
}

// rig is a lane out of a Bridge whose copies can be looked at.
type rig struct {
	*Bridge
	lane     *Lane
	from, to *feed
	hops     []uint32 // peers in the order of sending
}

func (r *rig) Recv(b *packet.Batch) error { return r.from.Recv(b) }

func (r *rig) Send(b *packet.Batch) error {
	for i := range b.Packets() {
		r.hops = append(r.hops, b.Packets()[i].Hop.Peer.ID)
	}
	return r.to.Send(b)
}

func newRig(s *Bridge) *rig {
	r := &rig{Bridge: s, from: &feed{}, to: &feed{}}
	r.lane = NewLane(LaneConfig{Name: "out/0", Direction: Out, Inside: End{Port: "tap", Queue: r}, Forward: s,
		Ways: []Way{{Outside: End{Port: "udp", Queue: r}}}, Room: 2000, Link: packet.EthernetHeader, Flood: s.Peers})
	return r
}

// carry sends one batch of frames and returns the peers they went to.
func (r *rig) carry(t *testing.T, frames ...[]byte) []uint32 {
	t.Helper()
	r.hops, r.to.sent = nil, nil
	r.from.batches, r.from.next = [][][]byte{frames}, 0
	if err := r.lane.Turn(); err != nil {
		t.Fatal(err)
	}
	r.adds(t)
	return r.hops
}

func (r *rig) adds(t *testing.T) LaneStats {
	t.Helper()
	s := r.lane.Stats()
	if d := s.Drops(); s.Received+s.Copied != s.Sent+d.Total() {
		t.Fatalf("received %d + copied %d ≠ sent %d + dropped %v", s.Received, s.Copied, s.Sent, d.Map())
	}
	return s
}

// TestStationsAreLearnt: the first frame to a station goes to everyone, the second to its peer alone; a station that moves
// is followed with its first frame from the new place, and one that turns up on our own side is forgotten.
func TestStationsAreLearnt(t *testing.T) {
	a, b, c := node(0), node(1), node(2)
	r := newRig(bridgeTo(a, b, c))
	to := eth(stray, own, experimental, []byte("to the stray one"))
	from := eth(own, stray, experimental, []byte("from the stray one"))

	if got := r.carry(t, to); len(got) != 3 {
		t.Errorf("unknown station: went to %v, want everyone", got)
	}
	for _, at := range []*packet.Hop{b, c, a} {
		if d := r.heard(t, at, from); d != packet.Alive {
			t.Fatal(d)
		}
		before := r.adds(t).Copied
		if got := r.carry(t, to, to); !slices.Equal(got, []uint32{at.Peer.ID, at.Peer.ID}) {
			t.Errorf("a station behind %d: went to %v", at.Peer.ID, got)
		}
		if s := r.adds(t); s.Copied != before {
			t.Errorf("%d copies for a known station", s.Copied-before)
		}
	}
	r.carry(t, eth(broadcast, stray, experimental, nil)) // it speaks on our side
	if got := r.carry(t, to); len(got) != 3 {
		t.Errorf("a station that left its peer: went to %v, want everyone", got)
	}

	// A peer that leaves the cluster takes its stations along.
	r.heard(t, c, from)
	r.Publish(bridgeTo(a, b).table.Load())
	if got := r.carry(t, to); !slices.Equal(got, []uint32{0, 1}) {
		t.Errorf("a station behind a peer that left: went to %v, want everyone who is left", got)
	}
}

func TestFlood(t *testing.T) {
	a, b, c := node(0), node(1), node(2)
	r := newRig(bridgeTo(a, b, c))
	hello := eth(broadcast, own, 0x0806, arp("10.244.1.1", "10.244.2.1"))
	if got := r.carry(t, hello); !slices.Equal(got, []uint32{0, 1, 2}) {
		t.Errorf("broadcast went to %v", got)
	}
	for _, f := range r.to.sent {
		if !bytes.Equal(f, hello) {
			t.Errorf("a copy is %x, want %x", f, hello)
		}
	}
	s := r.adds(t)
	if s.Received != 1 || s.Copied != 2 || s.Sent != 3 {
		t.Errorf("received %d, copied %d, sent %d", s.Received, s.Copied, s.Sent)
	}
	for _, id := range []int{0, 1, 2} {
		if p := r.lane.Peers(); p[id].Packets != 1 || p[id].Bytes != 28 {
			t.Errorf("peer %d was charged %+v", id, p[id])
		}
	}
	// More copies than a batch takes, and known stations among them: what is for one station keeps its order.
	r.heard(t, a, eth(own, stray, experimental, nil))
	frames := slices.Repeat([][]byte{hello, eth(stray, own, experimental, nil)}, packet.BatchSize/2)
	r.carry(t, frames...)
	if n := len(r.to.sent); n != packet.BatchSize/2*4 {
		t.Errorf("%d frames were sent", n)
	}
	for frame, drop := range map[*[]byte]packet.Drop{
		ptr(eth([6]byte{1, 0x80, 0xc2, 0, 0, 0}, own, 0x0026, make([]byte, 38))): packet.ReservedMAC,
		ptr(eth(broadcast, own, experimental, make([]byte, 1451))):               packet.TooBig,
		ptr(eth(stray, own, experimental, make([]byte, 1451))):                   packet.TooBig,
		ptr(make([]byte, 13)): packet.TooShort,
	} {
		before := r.adds(t)
		if got := r.carry(t, *frame); len(got) != 0 {
			t.Errorf("%v went to %v", drop, got)
		}
		was, is := before.Drops(), r.adds(t)
		if d := is.Drops(); d[drop] != was[drop]+1 {
			t.Errorf("drops are %v, want one more %v", d.Map(), drop)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestFloodWithoutPeers(t *testing.T) {
	r := newRig(bridgeTo())
	if got := r.carry(t, eth(broadcast, own, experimental, make([]byte, 9000-14)[:1900])); len(got) != 0 {
		t.Errorf("went to %v", got)
	}
	s := r.adds(t)
	if d := s.Drops(); d[packet.NoRoute] != 1 {
		t.Errorf("drops %v", d.Map())
	}
}

// TestFloodIsBounded: a storm in a large cluster ends at the limit, by name, and whatever was flooded reached everyone.
func TestFloodIsBounded(t *testing.T) {
	peers := make([]*packet.Hop, 200)
	for i := range peers {
		peers[i] = &packet.Hop{Peer: packet.Peer{ID: uint32(i), MAC: [6]byte{2, 3, 4, 5, 6, byte(i)}}, Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 1), 1450)}
	}
	table := NewTable()
	table.SetStation(own)
	for _, h := range peers {
		table.InsertStation(h)
	}
	s := NewBridge()
	s.Publish(table)
	r := newRig(s)
	storm := slices.Repeat([][]byte{eth(broadcast, own, experimental, []byte{1})}, packet.BatchSize)
	got := r.carry(t, storm...)
	stats := r.adds(t)
	d := stats.Drops()
	if stats.Copied > maxCopies || d[packet.FloodLimit] == 0 || stats.Copied+uint64(len(peers)) < maxCopies {
		t.Errorf("%d copies, drops %v; the limit is %d", stats.Copied, d.Map(), maxCopies)
	}
	count := map[uint32]int{}
	for _, peer := range got {
		count[peer]++
	}
	for _, h := range peers {
		if want := packet.BatchSize - int(d[packet.FloodLimit]); count[h.Peer.ID] != want {
			t.Fatalf("peer %d got %d of %d frames", h.Peer.ID, count[h.Peer.ID], want)
		}
	}
}

// TestFloodWhenThePortDies: copies and originals die with the port, by name, and the lane ends.
func TestFloodWhenThePortDies(t *testing.T) {
	r := newRig(bridgeTo(node(0), node(1), node(2)))
	r.to.sendErr = errDry
	hello := eth(broadcast, own, experimental, nil)
	r.from.batches = [][][]byte{{hello, hello}}
	if err := r.lane.Turn(); err != errDry {
		t.Errorf("Turn: %v", err)
	}
	s := r.adds(t)
	if d := s.Drops(); d[packet.Refused] != 6 || s.Sent != 0 {
		t.Errorf("sent %d, drops %v", s.Sent, d.Map())
	}
}

func TestBridgeAllocatesNothing(t *testing.T) {
	s := bridgeTo(node(0), node(1), node(2))
	b, from := packet.NewBatch(4, 2000), node(0).Path.Dst.Addr()
	in := [][]byte{
		eth(own, node(0).Peer.MAC, 0x0800, ip4("10.244.2.5", "10.244.1.5", 60)),
		eth(broadcast, stray, 0x0806, arp("10.244.2.1", "10.244.1.1")),
		eth(own, stray, 0x86dd, advertisement("fe80::2", "fe80::1", "fd00:10:244:2::1")),
	}
	if n := testing.AllocsPerRun(100, func() {
		present(b, from, in...)
		s.In(b)
	}); n != 0 {
		t.Errorf("In: %v allocations", n)
	}
	q := &loop{frames: [][]byte{
		eth(node(0).Peer.MAC, own, 0x0800, ip4("10.244.1.5", "10.244.2.5", 60)),
		eth(broadcast, own, 0x0806, arp("10.244.1.1", "10.244.2.1")),
	}}
	l := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: q}, Forward: s,
		Ways: []Way{{Outside: End{Queue: q}}}, Room: 2000, Link: packet.EthernetHeader, Flood: s.Peers})
	if n := testing.AllocsPerRun(100, func() {
		if err := l.Turn(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a turn that floods: %v allocations", n)
	}
}

// loop presents the same frames again and again, and takes everything.
type loop struct{ frames [][]byte }

func (q *loop) Recv(b *packet.Batch) error { present(b, netip.Addr{}, q.frames...); return nil }
func (q *loop) Send(*packet.Batch) error   { return nil }

func TestStationsAge(t *testing.T) {
	f := &fdb{}
	f.learn(stray, 3, time.Hour)
	for at, want := range map[time.Duration]bool{
		time.Hour: true, time.Hour + ageing - time.Second: true, time.Hour + ageing: false, 2 * time.Hour: false,
	} {
		if _, known := f.lookup(stray, at); known != want {
			t.Errorf("after %v: known %v", at-time.Hour, known)
		}
	}
	f.learn(stray, 3, time.Hour+ageing-time.Second) // heard again
	if _, known := f.lookup(stray, time.Hour+ageing); !known {
		t.Error("a station that goes on speaking is forgotten")
	}
}

// TestStationsAreBounded: inventing stations makes nothing grow, and what was heard last stays known.
func TestStationsAreBounded(t *testing.T) {
	f := &fdb{}
	mac := func(i int) [6]byte {
		var m [6]byte
		binary.BigEndian.PutUint32(m[2:], uint32(i))
		m[0] = 2
		return m
	}
	const n = 4 * fdbSets * fdbWays
	for i := range n {
		f.learn(mac(i), uint32(i), time.Duration(i)*time.Millisecond)
		if peer, known := f.lookup(mac(i), time.Duration(i)*time.Millisecond); !known || peer != uint32(i) {
			t.Fatalf("station %d is not known", i)
		}
	}
	known := 0
	for i := range n {
		if _, ok := f.lookup(mac(i), n*time.Millisecond); ok {
			known++
		}
	}
	if full := fdbSets * fdbWays; known > full || known < full*3/4 {
		t.Errorf("%d stations known of %d that fit", known, full)
	}
	used := 0 // real nodes are spread as well
	g := &fdb{}
	for i := range 5000 {
		g.learn(mac(i*7919), 1, 0)
	}
	for i := range 5000 {
		if _, ok := g.lookup(mac(i*7919), 0); ok {
			used++
		}
	}
	if used < 4750 {
		t.Errorf("%d of 5000 stations found room", used)
	}
}

// TestFDBIsSafe: whoever reads while others write gets a peer that the station really was behind, or none.
func TestFDBIsSafe(t *testing.T) {
	f := &fdb{}
	mac := func(i int) [6]byte { return [6]byte{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		writers.Go(func() {
			for i := range 40000 {
				f.learn(mac(i), uint32(i), time.Duration(i)*time.Millisecond)
				if i%5 == 0 {
					f.forget(mac(i - 1))
				}
			}
		})
		readers.Go(func() {
			for i := 0; ; i = (i + 7) % 40000 {
				select {
				case <-stop:
					return
				default:
				}
				if peer, ok := f.lookup(mac(i), 0); ok && peer != uint32(i) {
					t.Errorf("station %d is said to be behind %d", i, peer)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

// FuzzBridgeIn: any bytes of a peer are dropped or are a frame that judge passes, and never change.
func FuzzBridgeIn(f *testing.F) {
	b := node(0)
	for _, seed := range [][]byte{
		nil, make([]byte, 14), eth(own, b.Peer.MAC, 0x0800, ip4("10.244.2.5", "10.244.1.5", 60)),
		eth(own, b.Peer.MAC, 0x86dd, advertisement("fe80::2", "fe80::1", "fd00:10:244:2::1")),
		eth(broadcast, stray, 0x0806, arp("10.244.2.1", "10.244.1.1")),
		eth(own, b.Peer.MAC, 0x88a8, append([]byte{0, 1, 0x81, 0, 0, 9, 8, 0}, ip4("10.244.2.5", "10.244.1.5", 60)...)),
	} {
		f.Add(seed)
	}
	s, batch := bridgeTo(b, node(1)), packet.NewBatch(1, 65535)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 65535 {
			return
		}
		present(batch, b.Path.Dst.Addr(), data)
		s.In(batch)
		p := &batch.Packets()[0]
		if !bytes.Equal(p.Bytes(), data) {
			t.Error("the frame was changed")
		}
		if p.Drop != packet.Alive {
			return
		}
		frame := packet.EthernetView(data)
		if frame.Type() != 0x0800 && frame.Type() != 0x86dd {
			return
		}
		src, _ := packet.SrcAddr(frame.Payload())
		if h, ok := s.table.Load().Lookup(src); (!ok || h.Peer.ID != b.Peer.ID) && !src.IsLinkLocalUnicast() && !(src.Is6() && src.IsUnspecified()) {
			t.Errorf("a packet of %v came in from the peer with 10.244.2.0/24", src)
		}
	})
}
