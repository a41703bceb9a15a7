package dataplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft/packet"
)

// byWays is a forwarder to peers 0 to n-1 at 10.244.N.0/24, each reached by a way of random's choosing; peer 9 is behind a way that no
// lane has.
func byWays(random *rand.Rand, n, ways int) (*Route, []*packet.Hop) {
	t := NewTable()
	hops := make([]*packet.Hop, 10)
	for i := range hops {
		path := packet.NewPath(netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1), 1400)
		if path.Way = uint8(random.IntN(ways)); i == 9 {
			path.Way = uint8(ways)
		}
		hops[i] = &packet.Hop{Peer: packet.Peer{ID: uint32(i)}, Path: path}
		if i < n || i == 9 {
			t.Insert(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24), hops[i])
		}
	}
	r := NewRoute()
	r.Publish(t)
	return r, hops
}

// numbered is a packet to a peer that says which it is.
func numbered(peer, n, size int) []byte {
	b := ip4("10.99.0.1", fmt.Sprintf("10.244.%d.1", peer), size)
	b[28], b[29] = byte(n>>8), byte(n)
	return b
}

// picky is a port that refuses some of what it is given, and writes all of it down.
type picky struct {
	random *rand.Rand
	given  []string
	died   packet.Drops
}

func (*picky) Recv(*packet.Batch) error { return errDry }
func (q *picky) Send(b *packet.Batch) error {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		q.given = append(q.given, string(p.Bytes()))
		if q.random.IntN(20) == 0 {
			p.Drop = []packet.Drop{packet.QueueFull, packet.TooBig}[q.random.IntN(2)]
			q.died[p.Drop]++
		}
	}
	return nil
}

// TestWays: packets part by the ways of their hops, each is wrapped as its way wraps and leaves by its port in its order, whatever
// else is in the batch; nothing is lost on the way but by name.
func TestWays(t *testing.T) {
	for ways := 1; ways <= 4; ways++ {
		random := rand.New(rand.NewPCG(1, uint64(ways)))
		from, ports := &feed{}, make([]*picky, ways)
		cfg := LaneConfig{Inside: End{Queue: from}, Room: 2000}
		for i := range ways {
			ports[i] = &picky{random: random}
			w := Way{Name: fmt.Sprint("w", i), Outside: End{Queue: ports[i]}}
			for k := range i {
				w.Wrap = append(w.Wrap, prefixer{byte('a' + i), 4 + 2*k})
			}
			cfg.Ways = append(cfg.Ways, w)
		}
		r, hops := byWays(random, 8, ways)
		answered := 0
		cfg.Forward, cfg.TooBig = r, func(ip []byte, path *packet.Path) {
			if answered++; len(ip) != 1401 && len(ip) != 200 || ip[0] != 0x45 {
				t.Errorf("%d bytes beginning with %#x were answered, want the inner packet", len(ip), ip[0])
			}
		}
		l := NewLane(cfg)
		want, died, inner := make([][]string, ways), packet.Drops{}, map[int]uint64{}
		given := 0
		for range 200 {
			var batch [][]byte
			for n := 1 + random.IntN(packet.BatchSize); len(batch) < n; {
				peer := random.IntN(10)
				for run := min(1+random.IntN(5), n-len(batch)); run > 0; run-- {
					size := 200
					if random.IntN(30) == 0 {
						size = 1401
					}
					ip := numbered(peer, given, size)
					batch = append(batch, ip)
					given++
					switch way := int(hops[peer].Path.Way); {
					case peer == 8:
						died[packet.NoRoute]++
					case size == 1401:
						died[packet.TooBig]++
					case ways == 1: // there is nothing to choose
						want[0], inner[peer] = append(want[0], string(ip)), inner[peer]+200
					case way == ways:
						died[packet.NoEndpoint]++
					default:
						wire := string(ip)
						for k := range way {
							wire = strings.Repeat(string(rune('a'+way)), 4+2*k) + wire
						}
						want[way], inner[peer] = append(want[way], wire), inner[peer]+200
					}
				}
			}
			from.batches, from.next = [][][]byte{batch}, 0
			if err := l.Turn(); err != nil {
				t.Fatal(err)
			}
			s := l.Stats()
			if d := s.Drops(); s.Received != uint64(given) || s.Received != s.Sent+d.Total() {
				t.Fatalf("%d ways: received %d of %d, sent %d, dropped %v", ways, s.Received, given, s.Sent, d.Map())
			}
		}
		sent := uint64(0)
		for i, p := range ports {
			if !slices.Equal(p.given, want[i]) {
				t.Errorf("%d ways: by way %d %d packets left, want %d, or others", ways, i, len(p.given), len(want[i]))
			}
			sent += uint64(len(p.given)) - p.died.Total()
			died.Add(&p.died)
		}
		s := l.Stats()
		if d := s.Drops(); d != died || s.Sent != sent || answered != int(died[packet.TooBig]) {
			t.Errorf("%d ways: sent %d, dropped %v, answered %d; want %d, %v", ways, s.Sent, d.Map(), answered, sent, died.Map())
		}
		for peer, n := range inner {
			if p := l.Peers()[peer]; p.Bytes != n {
				t.Errorf("%d ways: %d bytes to peer %d, want %d inner ones", ways, p.Bytes, peer, n)
			}
		}
	}
}

// twoWays is a lane out to peer 2 by one way and to peer 3 by another.
func twoWays(from packet.Queue, one, two packet.Queue) *Lane {
	t := NewTable()
	for i := range 2 {
		path := packet.NewPath(netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1), 1400)
		path.Way = uint8(i)
		t.Insert(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24), &packet.Hop{Peer: packet.Peer{ID: uint32(i)}, Path: path})
	}
	r := NewRoute()
	r.Publish(t)
	return NewLane(LaneConfig{Name: "out/0", Inside: End{Port: "tun", Queue: from}, Forward: r, Room: 2000, Ways: []Way{
		{Name: "plain", Wrap: []packet.Stage{prefixer{'v', 22}}, Outside: End{Port: "udp", Queue: one}},
		{Name: "sealed", Wrap: []packet.Stage{prefixer{'v', 22}, prefixer{'s', 16}}, Outside: End{Port: "udp", Queue: two}},
	}})
}

// followed writes down by which steps packets of a batch went.
type followed struct{ walks [packet.BatchSize][]string }

func (f *followed) Observe(at *Point, b *packet.Batch) {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		step := at.Name
		if p.Drop != packet.Alive {
			step += " " + p.Drop.String()
		}
		if at.Wire {
			step += " wire"
		}
		f.walks[p.Index()] = append(f.walks[p.Index()], step)
	}
}

// TestObserverOfWays: a packet keeps its index where ways part, and is shown on its own way only.
func TestObserverOfWays(t *testing.T) {
	from := &feed{batches: [][][]byte{{numbered(1, 0, 100), numbered(0, 1, 100), numbered(7, 2, 100), numbered(1, 3, 100)}}}
	l := twoWays(from, &feed{}, &feed{refuse: map[int]packet.Drop{0: packet.QueueFull}})
	f := &followed{}
	l.Attach(f)
	if err := l.Turn(); err != nil {
		t.Fatal(err)
	}
	sealed := []string{"recv tun", "route", "way", "sealed: v", "sealed: s wire"}
	want := [][]string{
		append(slices.Clone(sealed), "sealed: send udp queue-full"),
		{"recv tun", "route", "way", "plain: v wire", "plain: send udp"},
		{"recv tun", "route no-route"},
		append(sealed, "sealed: send udp"),
	}
	if got := f.walks[:4]; !reflect.DeepEqual(got, want) {
		t.Errorf("seen:\n%q\nwant:\n%q", got, want)
	}
	var rows []string
	for _, s := range l.Stats().Stages {
		rows = append(rows, fmt.Sprint(s.Name, " ", s.Packets))
	}
	if want := []string{"recv tun 4", "route 4", "way 3", "plain: v 1", "plain: send udp 1", "sealed: v 2", "sealed: s 2", "sealed: send udp 2"}; !slices.Equal(rows, want) {
		t.Errorf("rows %q, want %q", rows, want)
	}
}

// TestWaysConserveWhenAPortDies: what was to leave by a dead port, and by those after it, dies by name, and the lane ends.
func TestWaysConserveWhenAPortDies(t *testing.T) {
	gone := errors.New("device deleted")
	for dead := range 2 {
		ports := []*feed{{}, {}}
		ports[dead].sendErr = gone
		l := twoWays(&feed{batches: [][][]byte{{numbered(1, 0, 100), numbered(0, 1, 100), numbered(1, 2, 100)}}}, ports[0], ports[1])
		if err := l.Turn(); !errors.Is(err, gone) {
			t.Fatalf("Turn: %v, want the port's error", err)
		}
		s := l.Stats()
		if d := s.Drops(); s.Received != 3 || s.Sent != uint64(dead) || d[packet.Refused] != uint64(3-dead) {
			t.Errorf("port %d died: received %d, sent %d, dropped %v", dead, s.Received, s.Sent, d.Map())
		}
	}
}

// TestFloodByWays: copies of one frame leave by the ways of their peers, and all of it adds up.
func TestFloodByWays(t *testing.T) {
	table := NewTable()
	table.SetStation(own)
	table.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	for i := range 300 {
		h := &packet.Hop{Peer: packet.Peer{ID: uint32(i), MAC: [6]byte{2, 3, 4, 5, byte(i >> 8), byte(i)}},
			Path: packet.NewPath(netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 1), 1450)}
		h.Path.Way = uint8(i % 2)
		table.InsertStation(h)
	}
	s := NewBridge()
	s.Publish(table)
	ports := []*feed{{}, {}}
	l := NewLane(LaneConfig{Inside: End{Queue: &feed{batches: [][][]byte{{eth(broadcast, own, experimental, make([]byte, 46)), eth(broadcast, own, experimental, make([]byte, 1451))}}}},
		Forward: s, Flood: s.Peers, Link: packet.EthernetHeader, Room: 2000, Ways: []Way{{Name: "a", Outside: End{Queue: ports[0]}}, {Name: "b", Wrap: []packet.Stage{prefixer{'v', 22}}, Outside: End{Queue: ports[1]}}}})
	if err := l.Turn(); err != nil {
		t.Fatal(err)
	}
	st := l.Stats()
	d := st.Drops()
	if st.Received != 2 || st.Copied != 299 || st.Sent != 300 || d.Total() != 1 || len(ports[0].sent) != 150 || len(ports[1].sent) != 150 {
		t.Errorf("received %d, copied %d, sent %d (%d and %d), dropped %v", st.Received, st.Copied, st.Sent, len(ports[0].sent), len(ports[1].sent), d.Map())
	}
	if len(ports[0].sent[0]) != 60 || len(ports[1].sent[0]) != 82 {
		t.Errorf("%d and %d bytes on the wire, want 60 and 82", len(ports[0].sent[0]), len(ports[1].sent[0]))
	}
}

// alternating gives full batches to two peers in turns: the worst case where ways part.
type alternating struct{ frames [2][]byte }

func (a *alternating) Recv(b *packet.Batch) error {
	for i := range b.Slots() {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), a.frames[i%2]))
	}
	b.SetLen(len(b.Slots()))
	return nil
}
func (a *alternating) Send(*packet.Batch) error { return nil }

func TestWaysAllocateNothing(t *testing.T) {
	a := &alternating{[2][]byte{numbered(0, 0, 100), numbered(1, 1, 100)}}
	l := twoWays(a, a, a)
	l.Attach(&nobody{})
	l.Turn()
	if n := testing.AllocsPerRun(200, func() { l.Turn() }); n != 0 {
		t.Errorf("%v allocations a turn", n)
	}
}

type nobody struct{}

func (*nobody) Observe(*Point, *packet.Batch) {}

// BenchmarkWays is what it costs that there are two: with packets to one peer alone, and to both in turns.
func BenchmarkWays(b *testing.B) {
	for _, c := range []struct {
		name string
		to   [2]int
	}{{"one", [2]int{1, 1}}, {"both", [2]int{0, 1}}} {
		b.Run(c.name, func(b *testing.B) {
			a := &alternating{[2][]byte{numbered(c.to[0], 0, 64), numbered(c.to[1], 1, 64)}}
			l := twoWays(a, a, a)
			b.ReportAllocs()
			for b.Loop() {
				l.Turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/packet.BatchSize, "ns/pkt")
		})
	}
}
