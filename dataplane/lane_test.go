package dataplane

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"weft/packet"
)

// feed is a queue that presents one batch per Recv until it runs dry.
type feed struct {
	batches [][][]byte
	drops   map[int]packet.Drop // by index in the batch: packets Recv itself could not present
	sent    [][]byte
	refuse  map[int]packet.Drop // by index in Send: packets the kernel would refuse
	sendErr error
	next    int
}

var (
	errDry = errors.New("dry")
	outer  = netip.MustParseAddrPort("192.0.2.9:50000") // the outer source of all that feed presents
)

func (f *feed) Recv(b *packet.Batch) error {
	if f.next == len(f.batches) {
		return errDry
	}
	for i, data := range f.batches[f.next] {
		p := &b.Slots()[i]
		n := copy(p.Reset(), data)
		p.Resize(n)
		p.Drop, p.From = f.drops[i], outer
	}
	b.SetLen(len(f.batches[f.next]))
	f.next++
	return nil
}

func (f *feed) Send(b *packet.Batch) error {
	if f.sendErr != nil {
		return f.sendErr
	}
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if p.Drop = f.refuse[i]; p.Drop == packet.Alive {
			f.sent = append(f.sent, append([]byte(nil), p.Bytes()...))
		}
	}
	return nil
}

// ip4 builds a minimal IPv4 packet of n bytes.
func ip4(src, dst string, n int) []byte {
	b := make([]byte, n)
	b[0], b[2], b[3], b[8], b[9] = 0x45, byte(n>>8), byte(n), 64, 17
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	return b
}

func ip6(src, dst string, n int) []byte {
	b := make([]byte, n)
	b[0], b[4], b[5], b[6], b[7] = 0x60, byte((n-40)>>8), byte(n-40), 17, 64
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return b
}

func twoNodes() (*Route, *packet.Hop) {
	peer := &packet.Hop{Peer: packet.Peer{ID: 1, VNI: 1}, Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:4789"), 1450)}
	t := NewTable()
	t.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	t.InsertSelf(netip.MustParsePrefix("fd00:10:244:1::/64"))
	t.Insert(netip.MustParsePrefix("10.244.2.0/24"), peer)
	t.Insert(netip.MustParsePrefix("fd00:10:244:2::/64"), peer)
	t.InsertPeer(netip.MustParseAddr("192.0.2.2"), peer)
	r := NewRoute()
	r.Publish(t)
	return r, peer
}

// TestLearntMTU: a path that turns out to carry less, or more again, does so from the next turn on, without another table.
func TestLearntMTU(t *testing.T) {
	r, peer := twoNodes()
	from := &feed{}
	var told []int
	l := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: from}, Forward: r,
		Ways: []Way{{Outside: End{Queue: &feed{}}}}, Room: 2000, TooBig: func(ip []byte, path *packet.Path) { told = append(told, len(ip), path.MTU()) }})
	for _, c := range []struct{ mtu, size, too int }{{1450, 1450, 0}, {1300, 1301, 1}, {1300, 1300, 0}, {1450, 1450, 0}, {1450, 1451, 1}} {
		peer.Path.SetMTU(c.mtu)
		from.batches, told = append(from.batches, [][]byte{ip4("10.244.1.5", "10.244.2.5", c.size)}), nil
		if err := l.Turn(); err != nil {
			t.Fatal(err)
		}
		if want := []int{c.size, c.mtu}[:2*c.too]; !slices.Equal(told, want) {
			t.Errorf("%d bytes on a path of %d: told %v, want %v", c.size, c.mtu, told, want)
		}
	}
}

func TestLaneConserves(t *testing.T) {
	r, _ := twoNodes()
	good := ip4("10.244.1.5", "10.244.2.5", 100)
	from := &feed{
		batches: [][][]byte{
			{good, ip4("10.244.1.5", "10.99.0.1", 100), good[:10], good, good, good},
			{good},
			{ip4("10.244.1.5", "10.99.0.1", 100)}, // nothing left to send
			{ip4("10.244.1.5", "10.244.2.5", 1451), good, ip6("fd00:10:244:1::5", "fd00:10:244:2::5", 1451)},
		},
		drops: map[int]packet.Drop{4: packet.Truncated},
	}
	to := &feed{refuse: map[int]packet.Drop{1: packet.QueueFull}}
	var rejected []int
	l := NewLane(LaneConfig{Name: "out/0", Direction: Out, Inside: End{Port: "a", Queue: from}, Forward: r,
		Ways: []Way{{Outside: End{Port: "b", Queue: to}}}, Room: 2000, TooBig: func(ip []byte, path *packet.Path) { rejected = append(rejected, len(ip), path.MTU()) }})
	for {
		if err := l.Turn(); err != nil {
			if err != errDry {
				t.Fatal(err)
			}
			break
		}
		s := l.Stats()
		d := s.Drops()
		if s.Received != s.Sent+d.Total() {
			t.Fatalf("received %d, sent %d, dropped %v", s.Received, s.Sent, d.Map())
		}
	}
	s := l.Stats()
	d := s.Drops()
	want := map[string]uint64{"no-route": 2, "too-short": 1, "truncated": 1, "queue-full": 1, "too-big": 2}
	for name, n := range want {
		if d.Map()[name] != n {
			t.Errorf("%s: %d, want %d (all: %v)", name, d.Map()[name], n, d.Map())
		}
	}
	if s.Received != 11 || int(s.Sent) != len(to.sent) || s.Sent != 4 {
		t.Errorf("received %d sent %d, queue saw %d", s.Received, s.Sent, len(to.sent))
	}
	if len(rejected) != 4 || rejected[0] != 1451 || rejected[1] != 1450 || rejected[2] != 1451 {
		t.Errorf("rejected %v: want both oversize packets, whole, with the hop's MTU", rejected)
	}
	if p := l.Peers(); len(p) < 2 || p[1].Packets != 5 || p[1].Bytes != 500 {
		t.Errorf("peers %v: want 5 packets of 100 bytes towards peer 1", p)
	}
}

// TestLaneConservesWhenThePortDies: the packets of the last batch die with the port, by name.
func TestLaneConservesWhenThePortDies(t *testing.T) {
	r, _ := twoNodes()
	good := ip4("10.244.1.5", "10.244.2.5", 100)
	dead := errors.New("device deleted")
	l := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: &feed{batches: [][][]byte{{good, good}}}}, Forward: r,
		Ways: []Way{{Outside: End{Queue: &feed{sendErr: dead}}}}, Room: 2000})
	if err := l.Turn(); !errors.Is(err, dead) {
		t.Fatalf("Turn: %v, want the port's error", err)
	}
	s := l.Stats()
	d := s.Drops()
	if s.Received != 2 || s.Sent != 0 || d[packet.Refused] != 2 {
		t.Fatalf("received %d sent %d drops %v", s.Received, s.Sent, d.Map())
	}
}

// prefixer puts n bytes in front: enough of an encapsulation to see the lane's order and arithmetic.
type prefixer struct {
	tag byte
	n   int
}

func (s prefixer) Name() string              { return string(s.tag) }
func (s prefixer) Overhead() packet.Overhead { return packet.Overhead{Front: s.n} }
func (s prefixer) Out(b *packet.Batch) {
	for i := range b.Packets() {
		h := b.Packets()[i].Prepend(s.n)
		for k := range h {
			h[k] = s.tag
		}
	}
}
func (s prefixer) In(b *packet.Batch) {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if p.Len() < s.n || p.Bytes()[0] != s.tag {
			p.Drop = packet.BadHeader
			continue
		}
		p.Strip(s.n)
	}
}

// TestLaneOrder: what a lane out wraps, a lane in unwraps in the opposite order.
func TestLaneOrder(t *testing.T) {
	r, _ := twoNodes()
	stages := []packet.Stage{r, prefixer{'v', 22}, prefixer{'s', 16}}
	data := ip4("10.244.1.5", "10.244.2.5", 100)
	wire := &feed{}
	out := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: &feed{batches: [][][]byte{{data}}}}, Forward: stages[0],
		Ways: []Way{{Wrap: stages[1:], Outside: End{Queue: wire}}}, Room: 2000})
	if err := out.Turn(); err != nil {
		t.Fatal(err)
	}
	if got := wire.sent[0]; len(got) != 138 || got[0] != 's' || got[16] != 'v' {
		t.Fatalf("on the wire: %d bytes %q", len(got), got[:20])
	}
	if p := out.Peers(); p[1].Bytes != 100 {
		t.Errorf("peer bytes %d, want the inner 100", p[1].Bytes)
	}

	// The far node owns what is remote here.
	far := NewTable()
	far.InsertSelf(netip.MustParsePrefix("10.244.2.0/24"))
	a := &packet.Hop{Peer: packet.Peer{ID: 7}}
	far.Insert(netip.MustParsePrefix("10.244.1.0/24"), a)
	far.InsertPeer(outer.Addr(), a)
	fr := NewRoute()
	fr.Publish(far)
	inside := &feed{}
	in := NewLane(LaneConfig{Direction: In, Inside: End{Queue: inside}, Forward: fr,
		Ways: []Way{{Wrap: []packet.Stage{prefixer{'v', 22}, prefixer{'s', 16}}, Outside: End{Queue: &feed{batches: [][][]byte{wire.sent}}}}}, Room: 2000})
	if err := in.Turn(); err != nil {
		t.Fatal(err)
	}
	if len(inside.sent) != 1 || string(inside.sent[0]) != string(data) {
		s := in.Stats()
		d := s.Drops()
		t.Fatalf("delivered %d packets, drops %v", len(inside.sent), d.Map())
	}
}

type endless struct {
	data []byte
	n    int
}

func (e *endless) Recv(b *packet.Batch) error {
	for i := range b.Slots()[:e.n] {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), e.data))
	}
	b.SetLen(e.n)
	return nil
}
func (e *endless) Send(*packet.Batch) error { return nil }

func TestLaneDoesNotAllocate(t *testing.T) {
	r, _ := twoNodes()
	for _, n := range []int{1, packet.BatchSize} {
		e := &endless{data: ip4("10.244.1.5", "10.244.2.5", 1400), n: n}
		l := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: e}, Forward: r,
			Ways: []Way{{Wrap: []packet.Stage{prefixer{'v', 22}}, Outside: End{Queue: e}}}, Room: 2000})
		l.Turn()
		if a := testing.AllocsPerRun(200, func() { l.Turn() }); a != 0 {
			t.Errorf("batches of %d: %v allocations a turn", n, a)
		}
	}
}

func BenchmarkLane(b *testing.B) {
	r, _ := twoNodes()
	for _, c := range []struct {
		name string
		n    int
	}{{"batch-1", 1}, {"batch-64", 64}} {
		b.Run(c.name, func(b *testing.B) {
			e := &endless{data: ip4("10.244.1.5", "10.244.2.5", 64), n: c.n}
			l := NewLane(LaneConfig{Direction: Out, Inside: End{Queue: e}, Forward: r,
				Ways: []Way{{Outside: End{Queue: e}}}, Room: 2000})
			b.ReportAllocs()
			for b.Loop() {
				l.Turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(c.n), "ns/pkt")
		})
	}
}
