package trace

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"weft/dataplane"
	"weft/insight/filter"
	"weft/packet"
)

// udp4 builds an IPv4 UDP packet of n bytes.
func udp4(src, dst string, sport, dport uint16, n int) []byte {
	b := make([]byte, n)
	b[0], b[2], b[3], b[8], b[9] = 0x45, byte(n>>8), byte(n), 64, packet.ProtoUDP
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	b[20], b[21], b[22], b[23] = byte(sport>>8), byte(sport), byte(dport>>8), byte(dport)
	b[24], b[25] = byte((n-20)>>8), byte(n-20)
	return b
}

func FuzzReadKey(f *testing.F) {
	f.Add(udp4("10.0.0.1", "10.0.0.2", 1, 53, 40))
	f.Add(append([]byte{12: 8, 13: 0}, udp4("10.0.0.1", "10.0.0.2", 1, 53, 40)...))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64, 39: 1}, 0, 1, 0, 53, 0, 8, 0, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, link := range []int{0, packet.EthernetHeader} {
			k := ReadKey(data, link)
			if k.Length > len(data) || k.SPort != 0 && !k.Src.IsValid() || k.Src.IsValid() != k.Dst.IsValid() {
				t.Fatalf("%+v of %x", k, data)
			}
		}
	})
}

// queue presents batches and refuses what it is told to.
type queue struct {
	batches [][][]byte
	next    int
	refuse  map[int]packet.Drop
	endless bool
}

var errDry = errors.New("dry")

func (q *queue) Recv(b *packet.Batch) error {
	if q.next == len(q.batches) {
		if !q.endless {
			return errDry
		}
		q.next = 0
	}
	for i, data := range q.batches[q.next] {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.From = netip.MustParseAddrPort("192.0.2.9:5000")
	}
	b.SetLen(len(q.batches[q.next]))
	q.next++
	return nil
}

func (q *queue) Send(b *packet.Batch) error {
	for i := range b.Packets() {
		b.Packets()[i].Drop = q.refuse[i]
	}
	return nil
}

// wrap is a stage that puts four bytes in front.
type wrap struct{}

func (wrap) Name() string              { return "wrap" }
func (wrap) Overhead() packet.Overhead { return packet.Overhead{Front: 4} }
func (wrap) Out(b *packet.Batch) {
	for i := range b.Packets() {
		copy(b.Packets()[i].Prepend(4), "wrap")
	}
}
func (wrap) In(b *packet.Batch) {
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if p.Len() < 4 || string(p.Bytes()[:4]) != "wrap" {
			p.Drop = packet.BadHeader
			continue
		}
		p.Strip(4)
	}
}

func route() *dataplane.Route {
	peer := &packet.Hop{Peer: packet.Peer{ID: 3, VNI: 7}, Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.9:4789"), 1450)}
	t := dataplane.NewTable()
	t.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	t.Insert(netip.MustParsePrefix("10.244.2.0/24"), peer)
	t.InsertPeer(peer.Path.Dst.Addr(), peer)
	r := dataplane.NewRoute()
	r.Publish(t)
	return r
}

func parse(t testing.TB, text string) *filter.Filter {
	t.Helper()
	f, err := filter.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (w Walk) path() string {
	var s []string
	for _, step := range w.Steps[:w.N] {
		s = append(s, step.Name)
	}
	return strings.Join(s, " ") + " " + w.Drop.String()
}

func turn(t *testing.T, l *dataplane.Lane) {
	t.Helper()
	for {
		if err := l.Turn(); errors.Is(err, errDry) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecorderOut: each packet that the filter chooses is followed to its own end, whatever dies around it.
func TestRecorderOut(t *testing.T) {
	good := udp4("10.244.1.5", "10.244.2.7", 1, 53, 100)
	other := udp4("10.244.1.5", "10.244.2.7", 1, 54, 100)
	lost := udp4("10.244.1.5", "10.99.0.1", 1, 53, 100)
	big := udp4("10.244.1.5", "10.244.2.7", 2, 53, 1451)
	late := udp4("10.244.1.6", "10.244.2.7", 3, 53, 100)
	r := NewRecorder(parse(t, "port 53"), []string{"out/0"})
	l := dataplane.NewLane(dataplane.LaneConfig{Name: "out/0", Direction: dataplane.Out, Inside: dataplane.End{Port: "tun", Queue: &queue{batches: [][][]byte{{lost, other, good, big, other, late}, {good}}}}, Forward: route(),
		Ways: []dataplane.Way{{Wrap: []packet.Stage{wrap{}}, Outside: dataplane.End{Port: "udp", Queue: &queue{refuse: map[int]packet.Drop{3: packet.QueueFull}}}}}, Room: 2000})
	l.Attach(r)
	turn(t, l)
	got := map[string]int{}
	for _, w := range r.Take(nil) {
		got[w.Key.Dst.String()+" "+w.path()]++
		if w.Key.SPort == 3 && (w.Key.Src != netip.MustParseAddr("10.244.1.6") || w.Hop.Peer.ID != 3 || w.Hop.Peer.VNI != 7 || w.Steps[2].Length != 104) {
			t.Errorf("the late one: %+v", w)
		}
	}
	want := map[string]int{
		"10.244.2.7 recv tun route wrap send udp alive":      2,
		"10.244.2.7 recv tun route wrap send udp queue-full": 1,
		"10.99.0.1 recv tun route no-route":                  1,
		"10.244.2.7 recv tun route too-big":                  1,
	}
	if len(got) != len(want) {
		t.Errorf("walks %v, want %v", got, want)
	}
	for k, n := range want {
		if got[k] != n {
			t.Errorf("%q: %d, want %d; all: %v", k, got[k], n, got)
		}
	}
}

// TestRecorderIn: on the way in the inner packet is known only once it is unwrapped; the steps before are told too, and what dies
// wrapped is found by where it came from.
func TestRecorderIn(t *testing.T) {
	good := append([]byte("wrap"), udp4("10.244.2.7", "10.244.1.5", 53, 1, 100)...)
	spoofed := append([]byte("wrap"), udp4("10.244.3.7", "10.244.1.5", 53, 1, 100)...)
	broken := []byte("rap")
	for text, want := range map[string][]string{
		"port 53":                              {"recv udp wrap route send tun alive", "recv udp wrap route wrong-source"},
		"host 192.0.2.9 and drop":              {"recv udp wrap bad-header", "recv udp wrap route wrong-source"},
		"drop bad-header or net 10.244.2.0/24": {"recv udp wrap bad-header", "recv udp wrap route send tun alive"},
		"src 10.244.3.7":                       {"recv udp wrap route wrong-source"},
	} {
		r := NewRecorder(parse(t, text), []string{"in/0"})
		l := dataplane.NewLane(dataplane.LaneConfig{Name: "in/0", Direction: dataplane.In, Inside: dataplane.End{Port: "tun", Queue: &queue{}}, Forward: route(),
			Ways: []dataplane.Way{{Wrap: []packet.Stage{wrap{}}, Outside: dataplane.End{Port: "udp", Queue: &queue{batches: [][][]byte{{broken, good, spoofed}}}}}}, Room: 2000})
		l.Attach(r)
		turn(t, l)
		var got []string
		for _, w := range r.Take(nil) {
			got = append(got, w.path())
		}
		if len(got) != len(want) {
			t.Errorf("%q: %q, want %q", text, got, want)
			continue
		}
		for _, path := range want {
			if !strings.Contains(strings.Join(got, "\n"), path) {
				t.Errorf("%q: %q lacks %q", text, got, path)
			}
		}
	}
}

// TestRecorderBounds: nobody reads: the rest is counted, and nothing is allocated on the lane.
func TestRecorderBounds(t *testing.T) {
	var batch [][]byte
	for range packet.BatchSize {
		batch = append(batch, udp4("10.244.1.5", "10.244.2.7", 1, 53, 100))
	}
	r := NewRecorder(parse(t, "udp and not (host 10.1.1.1 or port 9)"), []string{"out/0"})
	l := dataplane.NewLane(dataplane.LaneConfig{Name: "out/0", Direction: dataplane.Out, Inside: dataplane.End{Queue: &queue{batches: [][][]byte{batch}, endless: true}}, Forward: route(),
		Ways: []dataplane.Way{{Wrap: []packet.Stage{wrap{}}, Outside: dataplane.End{Queue: &queue{}}}}, Room: 2000})
	l.Attach(r)
	turns := 0
	if a := testing.AllocsPerRun(100, func() { turns++; l.Turn() }); a != 0 {
		t.Errorf("%v allocations a turn", a)
	}
	if n, lost := len(r.Take(nil)), r.Lost(); n != ringSize || n+int(lost) != turns*packet.BatchSize {
		t.Errorf("%d walks and %d lost of %d packets", n, lost, turns*packet.BatchSize)
	}
	l.Turn()
	if n := len(r.Take(nil)); n != packet.BatchSize {
		t.Errorf("%d walks after there is room again", n)
	}
}
