package capture

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"weft/backend"
	"weft/dataplane"
	"weft/encap/vxlan"
	"weft/insight/filter"
	"weft/internal/nettest"
	"weft/packet"
	"weft/packet/packettest"
)

var (
	ownMAC  = [6]byte{2, 0, 0, 0, 0, 1}
	peerMAC = [6]byte{2, 0, 0, 0, 0, 2}
	self4   = netip.MustParseAddr("192.0.2.1")
	self6   = netip.MustParseAddr("2001:db8::1")
	peer4   = netip.MustParseAddrPort("192.0.2.2:4789")
	peer6   = netip.MustParseAddrPort("[2001:db8::2]:4789")
	pod     = netip.MustParseAddrPort("10.244.1.5:41000")
	far     = netip.MustParseAddrPort("10.244.2.7:42000")
	nowhere = netip.MustParseAddrPort("10.99.0.1:42000")
)

// feed is a queue that presents the same batch again and again and takes what it is sent.
type feed struct {
	packets [][]byte
	from    netip.AddrPort
	sent    [][]byte
	refuse  int // index in Send of a packet that is refused; -1 = none
}

func (f *feed) Recv(b *packet.Batch) error {
	for i, data := range f.packets {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), data))
		p.From = f.from
	}
	b.SetLen(len(f.packets))
	return nil
}

func (f *feed) Send(b *packet.Batch) error {
	f.sent = f.sent[:0]
	for i := range b.Packets() {
		if i == f.refuse {
			b.Packets()[i].Drop = packet.QueueFull
			continue
		}
		f.sent = append(f.sent, b.Packets()[i].Bytes())
	}
	return nil
}

// route is a table with one peer, reached at an address.
func route(at netip.AddrPort) *dataplane.Route {
	t := dataplane.NewTable()
	t.InsertSelf(netip.MustParsePrefix("10.244.1.0/24"))
	h := &packet.Hop{Peer: packet.Peer{ID: 1, VNI: 7, MAC: peerMAC}, Path: packet.NewPath(netip.Addr{}, at, 1400)}
	t.Insert(netip.MustParsePrefix("10.244.2.0/24"), h)
	t.InsertPeer(at.Addr(), h)
	r := dataplane.NewRoute()
	r.Publish(t)
	return r
}

func wraps() []packet.Stage {
	return []packet.Stage{vxlan.New(vxlan.Config{Inner: packet.IP, VNI: 7, MAC: ownMAC})}
}

func tunnel() backend.Tunnel {
	return backend.Tunnel{Local: []netip.Addr{self4, self6}, Port: 4789, Inside: "weft0", Outside: "udp"}
}

// laneOut carries one packet to the peer, one to nowhere, and a second to the peer that Send refuses.
func laneOut(at netip.AddrPort) (*dataplane.Lane, *feed) {
	to := &feed{refuse: 1}
	from := &feed{packets: [][]byte{packettest.UDP(pod, far, 100, 1), packettest.UDP(pod, nowhere, 100, 2), packettest.UDP(pod, far, 200, 3)}}
	return dataplane.NewLane(dataplane.LaneConfig{Name: "out/0", Direction: dataplane.Out, Inside: dataplane.End{Port: "tun", Queue: from}, Forward: route(at),
		Ways: []dataplane.Way{{Wrap: wraps(), Outside: dataplane.End{Port: "udp", Queue: to}}}, Room: 2000}), to
}

// frame is one packet of a file as gopacket reads it.
type frame struct {
	where    string // name of the interface
	comments string
	data     []byte
	length   int
	flags    pcapgo.NgEpbFlags
	queue    uint32
}

// read reads a file back and its interfaces' statistics, by name.
func read(t *testing.T, file []byte) (frames []frame, stats map[string]pcapgo.NgInterfaceStatistics) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(file), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		about, err := r.Interface(info.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		f := frame{where: about.Name, comments: strings.Join(options.Comments, ";"), data: data, length: info.Length, flags: *options.Flags, queue: *options.Queue}
		frames = append(frames, f)
	}
	stats = map[string]pcapgo.NgInterfaceStatistics{}
	for i := range r.NInterfaces() {
		about, err := r.Interface(i)
		if err != nil {
			t.Fatal(err)
		}
		stats[about.Name] = about.Statistics
	}
	return frames, stats
}

// captureOf attaches a Capture to lanes, runs what they do, and returns the file.
func captureOf(t *testing.T, o Options, lanes []*dataplane.Lane, do func()) ([]byte, Summary) {
	t.Helper()
	if o.Ends == nil {
		o.Ends = tunnel
	}
	c := New(o)
	for _, l := range lanes {
		l.Attach(c)
	}
	do()
	for _, l := range lanes {
		l.Detach(c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var file bytes.Buffer
	s, err := c.Run(ctx, &file, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return file.Bytes(), s
}

func turn(t *testing.T, l *dataplane.Lane) func() {
	return func() {
		if err := l.Turn(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOut(t *testing.T) {
	for _, at := range []netip.AddrPort{peer4, peer6} {
		l, to := laneOut(at)
		file, s := captureOf(t, Options{}, []*dataplane.Lane{l}, turn(t, l))
		frames, stats := read(t, file)
		if s != (Summary{Frames: 7}) || len(frames) != 7 {
			t.Fatalf("%+v, %d frames", s, len(frames))
		}
		for where, want := range map[string]uint64{"weft0": 3, "udp": 2, "drops": 2} {
			if got := stats[where]; got.PacketsReceived != want || got.PacketsDropped != 0 {
				t.Errorf("%s: %+v, want %d", where, got, want)
			}
		}
		var comments []string
		for _, f := range frames {
			if f.flags.Direction != pcapgo.NgEpbFlagDirectionOutbound || f.queue != 0 {
				t.Errorf("%+v", f)
			}
			p := gopacket.NewPacket(f.data, layers.LinkTypeEthernet, gopacket.Default)
			if p.ErrorLayer() != nil {
				t.Errorf("%s: %v", f.where, p.ErrorLayer().Error())
			}
			if f.comments != "" {
				comments = append(comments, f.where+": "+f.comments)
			}
		}
		if got := strings.Join(comments, "\n"); got != "drops: drop no-route at route of lane out/0\ndrops: drop queue-full at send udp of lane out/0" {
			t.Errorf("comments:\n%s", got)
		}
		outer := gopacket.NewPacket(outsideFrame(t, frames), layers.LinkTypeEthernet, gopacket.Default)
		flow := outer.NetworkLayer().NetworkFlow().String()
		if want := map[netip.AddrPort]string{peer4: "192.0.2.1->192.0.2.2", peer6: "2001:db8::1->2001:db8::2"}[at]; flow != want {
			t.Errorf("outer %s, want %s", flow, want)
		}
		udp := outer.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if udp.DstPort != 4789 || !bytes.Equal(udp.Payload, to.sent[0]) {
			t.Errorf("outer UDP: %v, %d bytes", udp.DstPort, len(udp.Payload))
		}
	}
}

// outsideFrame is the first frame of the outside.
func outsideFrame(t *testing.T, frames []frame) []byte {
	t.Helper()
	for _, f := range frames {
		if f.where == "udp" {
			return f.data
		}
	}
	t.Fatal("nothing outside")
	return nil
}

// laneIn receives what a peer sends, one datagram good, one of another network, one from a stranger's address inside.
func laneIn(t *testing.T) *dataplane.Lane {
	t.Helper()
	wrap := func(ip []byte, vni uint32) []byte {
		h := &packet.Hop{Peer: packet.Peer{VNI: vni, MAC: ownMAC}, Path: packet.NewPath(netip.Addr{}, peer4, 1400)}
		b := packet.NewBatch(1, 2000)
		p := &b.Slots()[0]
		p.Resize(copy(p.Reset(), ip))
		p.Hop = h
		b.SetLen(1)
		vxlan.New(vxlan.Config{Inner: packet.IP, VNI: vni, MAC: peerMAC}).Out(b)
		return bytes.Clone(p.Bytes())
	}
	from := &feed{from: netip.MustParseAddrPort("192.0.2.2:50001"), packets: [][]byte{
		wrap(packettest.UDP(far, pod, 100, 1), 7), wrap(packettest.UDP(far, pod, 100, 2), 8), wrap(packettest.UDP(nowhere, pod, 100, 3), 7)}}
	return dataplane.NewLane(dataplane.LaneConfig{Name: "in/3", Direction: dataplane.In, Inside: dataplane.End{Port: "tun", Queue: &feed{refuse: -1}}, Forward: route(peer4),
		Ways: []dataplane.Way{{Wrap: wraps(), Outside: dataplane.End{Port: "udp", Queue: from}}}, Room: 2000})
}

func TestIn(t *testing.T) {
	l := laneIn(t)
	file, _ := captureOf(t, Options{}, []*dataplane.Lane{l}, turn(t, l))
	frames, _ := read(t, file)
	var got []string
	for _, f := range frames {
		p := gopacket.NewPacket(f.data, layers.LinkTypeEthernet, gopacket.Default)
		got = append(got, fmt.Sprintf("%s %s %s q%d in=%v", f.where, p.NetworkLayer().NetworkFlow(), f.comments, f.queue, f.flags.Direction == pcapgo.NgEpbFlagDirectionInbound))
	}
	want := []string{
		"udp 192.0.2.2->192.0.2.1  q3 in=true", "udp 192.0.2.2->192.0.2.1  q3 in=true", "udp 192.0.2.2->192.0.2.1  q3 in=true",
		"drops 192.0.2.2->192.0.2.1 drop wrong-vni at vxlan of lane in/3 q3 in=true",
		"drops 10.99.0.1->10.244.1.5 drop wrong-source at route of lane in/3 q3 in=true", // order follows
		"weft0 10.244.2.7->10.244.1.5  q3 in=true",
	}
	for _, w := range want {
		if !strings.Contains("\n"+strings.Join(got, "\n")+"\n", "\n"+w+"\n") {
			t.Errorf("no %q in\n%s", w, strings.Join(got, "\n"))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d frames, want %d", len(got), len(want))
	}
}

func TestWhatIsAskedFor(t *testing.T) {
	for text, c := range map[string]struct {
		o    Options
		want map[string]int
	}{
		"inside only":           {Options{Inside: true}, map[string]int{"weft0": 3}},
		"drops only":            {Options{Drops: true}, map[string]int{"drops": 2}},
		"two of three":          {Options{Outside: true, Drops: true}, map[string]int{"udp": 2, "drops": 2}},
		"a destination":         {Options{Filter: parse(t, "dst host 10.99.0.1")}, map[string]int{"weft0": 1, "drops": 1}},
		"a reason":              {Options{Filter: parse(t, "drop queue-full")}, map[string]int{"drops": 1}},
		"what the tunnel holds": {Options{Outside: true, Filter: parse(t, "host 10.244.2.7 and udp port 4789")}, map[string]int{"udp": 2}},
		"nothing":               {Options{Filter: parse(t, "ip6 or arp")}, map[string]int{}},
	} {
		t.Run(text, func(t *testing.T) {
			l, _ := laneOut(peer4)
			file, _ := captureOf(t, c.o, []*dataplane.Lane{l}, turn(t, l))
			frames, _ := read(t, file)
			got := map[string]int{}
			for _, f := range frames {
				got[f.where]++
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func parse(t *testing.T, text string) *filter.Filter {
	t.Helper()
	f, err := filter.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSnapLen(t *testing.T) {
	l, _ := laneOut(peer4)
	file, _ := captureOf(t, Options{SnapLen: 40, Outside: true}, []*dataplane.Lane{l}, turn(t, l))
	frames, _ := read(t, file)
	for i, f := range frames {
		if want := 42 + 22 + 28 + 100*(i+1); len(f.data) != 40 || f.length != want {
			t.Errorf("frame %d: %d of %d bytes, want 40 of %d", i, len(f.data), f.length, want)
		}
	}
}

func TestCountEndsIt(t *testing.T) {
	l, _ := laneOut(peer4)
	c := New(Options{Count: 3, Ends: tunnel})
	l.Attach(c)
	turn(t, l)()
	l.Detach(c)
	var file bytes.Buffer
	if s, err := c.Run(t.Context(), &file, func() error { return nil }); err != nil || s.Frames != 3 {
		t.Fatalf("%+v, %v", s, err)
	}
	if frames, _ := read(t, file.Bytes()); len(frames) != 3 {
		t.Errorf("%d frames", len(frames))
	}
}

// A writer that cannot follow costs frames, which are counted and told in the file, and never a lane.
func TestLossesAreTold(t *testing.T) {
	l, _ := laneOut(peer4)
	turns := ringSize / 300
	file, s := captureOf(t, Options{Inside: true}, []*dataplane.Lane{l}, func() {
		for range turns {
			turn(t, l)()
		}
	})
	frames, stats := read(t, file)
	if s.Lost == 0 || s.Frames+s.Lost != uint64(3*turns) || int(s.Frames) != len(frames) {
		t.Errorf("%+v of %d, %d in the file", s, 3*turns, len(frames))
	}
	if got := stats["weft0"]; got.PacketsDropped != s.Lost || got.PacketsReceived != uint64(3*turns) {
		t.Errorf("the file says %+v", got)
	}
}

// A write that fails ends the capture.
func TestBrokenFile(t *testing.T) {
	c := New(Options{Ends: tunnel})
	r, w := io.Pipe()
	r.Close()
	if _, err := c.Run(t.Context(), w, func() error { return nil }); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
}

// TestDoesNotAllocate: neither does a lane without a Capture, nor one that a Capture watches.
func TestDoesNotAllocate(t *testing.T) {
	l, to := laneOut(peer4)
	to.sent = make([][]byte, 0, 8)
	c := New(Options{Ends: tunnel, Filter: parse(t, "udp port 42000 or drop")})
	run := turn(t, l)
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("off: %v allocations a turn", n)
	}
	l.Attach(c)
	run() // makes the lane's ring
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("on: %v allocations a turn", n)
	}
	l.Detach(c)
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("off again: %v allocations a turn", n)
	}
}

// TestTcpdumpAndTsharkRead lets others read the file.
func TestTcpdumpAndTsharkRead(t *testing.T) {
	nettest.RequireTool(t, "tcpdump")
	nettest.RequireTool(t, "tshark")
	out, _ := laneOut(peer6)
	in := laneIn(t)
	file, _ := captureOf(t, Options{Version: "v1", Node: "a", Filter: parse(t, "ip or ip6")}, []*dataplane.Lane{out, in}, func() { turn(t, out)(); turn(t, in)() })
	path := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command("tcpdump", "-n", "-v", "-r", path).CombinedOutput()
	if err != nil {
		t.Fatalf("tcpdump: %v\n%s", err, text)
	}
	for _, want := range []string{"10.244.1.5.41000 > 10.244.2.7.42000", "10.244.1.5.41000 > 10.99.0.1.42000", "2001:db8::1.0 > 2001:db8::2.4789: [udp sum ok] VXLAN", "192.0.2.2.50001 > 192.0.2.1.4789"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("tcpdump: no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "bad ") {
		t.Errorf("tcpdump: %s", text)
	}
	text, err = exec.Command("tshark", "-n", "-r", path, "-T", "json", "-e", "frame.comment", "-e", "frame.interface_name", "-e", "frame.protocols").Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	var packets []struct {
		Source struct {
			Layers map[string][]string `json:"layers"`
		} `json:"_source"`
	}
	if err := json.Unmarshal(text, &packets); err != nil || len(packets) != 13 {
		t.Fatalf("tshark: %d packets, %v", len(packets), err)
	}
	seen := map[string]int{}
	for _, p := range packets {
		seen[strings.Join(p.Source.Layers["frame.interface_name"], "")+" "+strings.Join(p.Source.Layers["frame.comment"], "")]++
	}
	for want, n := range map[string]int{"weft0 ": 4, "udp ": 5, "drops drop no-route at route of lane out/0": 1, "drops drop wrong-vni at vxlan of lane in/3": 1} {
		if seen[want] != n {
			t.Errorf("tshark: %q %d times, want %d: %v", want, seen[want], n, seen)
		}
	}
}

// TestRing lets one goroutine put and another take, with records of every size: what comes out is what went in, in order, and nothing
// is missing but what was counted.
func TestRing(t *testing.T) {
	q := newRing(4096)
	const n = 100000
	data := make([]byte, 600)
	for i := range data {
		data[i] = byte(i)
	}
	var done sync.WaitGroup
	done.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range n {
			size := r.IntN(len(data))
			q.put(&record{length: size, time: int64(i), side: side(i % int(sides)), step: 3, in: i%2 == 0}, data[:size/3], data[size/3:size], size)
		}
	})
	finished := make(chan struct{})
	go func() { done.Wait(); close(finished) }()
	var got, last int64 = 0, -1
	for over := false; ; {
		r, size, ok := q.peek()
		if !ok {
			if over {
				break
			}
			select {
			case <-finished:
				over = true
			default:
			}
			continue
		}
		if r.time <= last || r.side != side(r.time%int64(sides)) || r.in != (r.time%2 == 0) || r.length != len(r.data) || !bytes.Equal(r.data, data[:r.length]) {
			t.Fatalf("record %d after %d: %+v", r.time, last, r)
		}
		last = r.time
		got++
		q.release(size)
	}
	lost := q.lost[0].Load() + q.lost[1].Load() + q.lost[2].Load()
	if got+int64(lost) != n {
		t.Errorf("%d taken and %d lost of %d", got, lost, n)
	}
}

// FuzzObserve: whatever a packet that died looks like, a Capture takes it, and gopacket reads the file.
func FuzzObserve(f *testing.F) {
	f.Add([]byte{0x08, 0, 0, 0, 0, 0, 7, 0}, true, uint8(3))
	f.Add(packettest.UDP(pod, far, 50, 1), false, uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, ethernet bool, drop uint8) {
		if len(data) > 1500 {
			return
		}
		link := 0
		if ethernet {
			link = packet.EthernetHeader
		}
		e := tunnel()
		e.Ethernet = ethernet
		c := New(Options{Ends: func() backend.Tunnel { return e }})
		b := packet.NewBatch(1, 2000)
		for _, at := range []dataplane.Point{
			{Lane: "out/0", Direction: dataplane.Out, Row: 0, Rows: 4, Inside: true, Inner: link, Dead: link},
			{Lane: "out/0", Direction: dataplane.Out, Row: 2, Rows: 4, Wire: true, Inner: -1, Dead: link + 22},
			{Lane: "in/0", Direction: dataplane.In, Row: 0, Rows: 4, Wire: true, Inner: -1, Dead: -1},
			{Lane: "in/0", Direction: dataplane.In, Row: 2, Rows: 4, Inside: true, Inner: link, Dead: link},
		} {
			p := &b.Slots()[0]
			p.Resize(copy(p.Reset(), data))
			p.Drop = packet.Drop(drop) % packet.NumDrops
			b.SetLen(1)
			c.Observe(&at, b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var file bytes.Buffer
		if _, err := c.Run(ctx, &file, func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		if frames, _ := read(t, file.Bytes()); len(frames) != 4 {
			t.Errorf("%d frames", len(frames))
		}
	})
}
