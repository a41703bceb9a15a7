package netns_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft/internal/nettest"
	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/testbed"
)

// generators is a testbed of `bare` with servers of all generators in the far pod.
type generators struct {
	t         *testing.T
	near, far *testbed.Node
	log       string
}

// TestGenerators runs weft's load generators and others' in turn over the same path, `bare` in layout split, and prints them side by side: iperf3,
// sockperf, and the packet generator trafgen. It is for a quiet machine, by hand or from scripts/test-long:
//
//	WEFT_TEST_LONG=1 go test -count=1 -v -run TestGenerators ./perf/site/netns
func TestGenerators(t *testing.T) {
	nettest.RequireLong(t, "it takes a minute of a quiet machine")
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "iperf3", "sockperf", "trafgen")
	g := openGenerators(t)
	far := g.far.PodAddr(4).String()
	g.serve("iperf3", "-s")
	g.serve("sockperf", "sr", "--tcp", "-i", far, "-p", "11111")
	g.serve("sockperf", "sr", "-i", far, "-p", "11112")
	g.sink()
	pingPong := []string{"sockperf", "pp", "-i", far, "-t", "1", "--full-rtt"}
	for _, c := range []struct {
		what, other   string
		ours, theirs  func() float64
		higherIsWorse bool
	}{
		{"TCP, 1 flow, cubic, Gbit/s", "iperf3",
			func() float64 { return g.bench("tcp-stream", "throughput") / 1e9 },
			func() float64 { return g.iperf3(far) / 1e9 }, false},
		{"TCP round trip of 14 bytes, p50, µs", "sockperf",
			func() float64 { return g.bench("tcp-rr:size=66", "p50") },
			func() float64 { return g.sockperf(append(pingPong, "--tcp", "-p", "11111", "-m", "14")...) }, true},
		{"UDP round trip of 36 bytes, p50, µs", "sockperf",
			func() float64 { return g.bench("udp-rr:size=64", "p50") },
			func() float64 { return g.sockperf(append(pingPong, "-p", "11112", "-m", "36")...) }, true},
		{"64-byte packets through the path of 100 offered, 1000/s", "trafgen",
			func() float64 {
				return g.arrived(func() { g.bench(fmt.Sprintf("udp-stream:size=64:rate=%d", 100_000*8*payload), "throughput") }) / 1e3
			},
			func() float64 { return g.arrived(func() { g.trafgen("-b", "100000pps") }) / 1e3 }, false},
		// A packet socket's ring costs the sender's core less than the UDP stack, and that core carries half the path: this is for information.
		{"64-byte packets through the path, flat out, 1000/s", "trafgen",
			func() float64 { return g.arrived(func() { g.bench("udp-stream:size=64", "throughput") }) / 1e3 },
			func() float64 { return g.arrived(func() { g.trafgen() }) / 1e3 }, false},
	} {
		var ours, theirs, ratios []float64
		for round := range 7 {
			// Who goes first changes: what one leaves behind would be the other's.
			if round%2 == 0 {
				ours = append(ours, c.ours())
				theirs = append(theirs, c.theirs())
			} else {
				theirs = append(theirs, c.theirs())
				ours = append(ours, c.ours())
			}
			ratios = append(ratios, ours[round]/theirs[round])
		}
		ratio := result.Median(ratios)
		low, high := result.Interval(ratios)
		t.Logf("%-52s weft bench %6.4g, %-8s %6.4g, ratio %.2f [%.2f to %.2f]", c.what, result.Median(ours), c.other, result.Median(theirs), ratio, low, high)
		// The generator must not be the worse one by more than a tenth: what it shows would be itself.
		worse := 1 / ratio
		if c.higherIsWorse {
			worse = ratio
		}
		if worse > 1.1 && !strings.Contains(c.what, "flat out") {
			t.Errorf("%s: weft bench is %.0f %% behind %s", c.what, 100*(worse-1), c.other)
		}
	}
}

func openGenerators(t *testing.T) *generators {
	dir := t.TempDir()
	bed, err := testbed.Open(testbed.Config{Label: "generators", Nodes: 2, MTU: 1500, Layout: testbed.Split, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	list, err := contender.Parse(contender.Bare)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	overlay, err := list[0].Up(ctx, contender.Env{Bed: bed, Weft: weft})
	if err == nil {
		err = bed.AttachPods(overlay.InnerMTU())
	}
	if err == nil {
		err = bed.Reach(ctx, overlay.InnerMTU())
	}
	if err != nil {
		t.Fatal(err)
	}
	g := &generators{t: t, near: bed.Nodes[0], far: bed.Nodes[1], log: filepath.Join(dir, "log")}
	if _, err := g.far.Pod.StartReady(ctx, "bench", g.log, weft, "lab", "generator", "serve", "--listen", fmt.Sprintf("[::]:%d", probe.DefaultPort)); err != nil {
		t.Fatal(err)
	}
	return g
}

// serve starts somebody else's server in the far pod; clients that come too early fail, and are run again.
func (g *generators) serve(argv ...string) {
	g.t.Helper()
	if _, err := g.far.Pod.Start(argv[0], g.log, nil, argv...); err != nil {
		g.t.Fatal(err)
	}
}

// sink starts what reads trafgen's packets.
func (g *generators) sink() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), patience)
	defer cancel()
	if _, err := g.far.Pod.StartReady(ctx, "sink", g.log, "env", sinkVariable+"="+sinkPort, os.Args[0]); err != nil {
		g.t.Fatal(err)
	}
}

// run runs a generator in the near pod, again until its server is there, and returns what it printed.
func (g *generators) run(argv ...string) string {
	g.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		var out bytes.Buffer
		p, err := g.near.Pod.Start(argv[0], g.log, &out, argv...)
		if err != nil {
			g.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(g.t.Context(), patience)
		err = p.Wait(ctx)
		cancel()
		if err == nil {
			return out.String()
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out.String())
		}
		time.Sleep(100 * time.Millisecond) // between tries
	}
}

func (g *generators) bench(test, metric string) float64 {
	g.t.Helper()
	to := netip.AddrPortFrom(g.far.PodAddr(4), probe.DefaultPort).String()
	var r probe.Result
	if err := json.Unmarshal([]byte(g.run(weft, "lab", "generator", "run", "--to", to, "--test", test, "--duration", "1s", "-o", "json")), &r); err != nil {
		g.t.Fatal(err)
	}
	v, ok := r.Metric(metric)
	if !ok {
		g.t.Fatalf("%s has no %s", test, metric)
	}
	return v
}

func (g *generators) iperf3(to string) float64 {
	g.t.Helper()
	var r struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal([]byte(g.run("iperf3", "-c", to, "-C", "cubic", "-t", "1", "-J")), &r); err != nil {
		g.t.Fatal(err)
	}
	return r.End.Received.Rate
}

var sockperfMedian = regexp.MustCompile(`percentile 50\.000 = +([0-9.]+)`)

func (g *generators) sockperf(argv ...string) float64 {
	g.t.Helper()
	out := g.run(argv...)
	m := sockperfMedian.FindStringSubmatch(out)
	if m == nil {
		g.t.Fatalf("sockperf prints no median:\n%s", out)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return v
}

// arrived is how many packets a second came to the far pod's device while send ran, which is for a second.
func (g *generators) arrived(send func()) float64 {
	g.t.Helper()
	count := func() uint64 {
		link, err := g.far.Pod.Netlink().LinkByName("eth0")
		if err != nil {
			g.t.Fatal(err)
		}
		return link.Attrs().Statistics.RxPackets
	}
	before := count()
	send()
	return float64(count() - before)
}

// sinkVariable makes this test's binary a sink: it holds the port.
const sinkVariable = "WEFT_TEST_SINK_PORT"

// sink reads datagrams as `weft bench serve` does, 64 with a call and 50 µs later again, and does nothing with them.
func sink(port string) error {
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20), unix.Bind(fd, &unix.SockaddrInet4{Port: number}),
		unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)); err != nil {
		return err
	}
	const batch = 64
	var messages [batch]struct {
		unix.Msghdr
		_ uint64 // the length, and padding
	}
	var data [batch][2048]byte
	var vectors [batch]unix.Iovec
	for i := range messages {
		vectors[i].Base = &data[i][0]
		vectors[i].SetLen(len(data[i]))
		messages[i].Iov = &vectors[i]
		messages[i].SetIovlen(1)
	}
	fmt.Println("ready")
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[0])), batch, unix.MSG_WAITFORONE, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return errno
		}
		if n < batch/2 {
			ts := unix.NsecToTimespec(50_000)
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &ts, nil)
		}
	}
}

// trafgen sends UDP packets of 64 bytes for a second, to a sink; flat out, unless the options say how many.
func (g *generators) trafgen(options ...string) {
	g.t.Helper()
	from, to := g.near.PodAddr(4), g.far.PodAddr(4)
	link, err := g.near.Pod.Netlink().LinkByName("eth0")
	if err != nil {
		g.t.Fatal(err)
	}
	neighbours, err := g.near.Pod.Netlink().NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil || len(neighbours) == 0 {
		g.t.Fatalf("the near pod has no gateway: %v, %v", neighbours, err)
	}
	packet := fmt.Sprintf("{ eth(da=%s, sa=%s), ipv4(saddr=%s, daddr=%s, ttl=64), udp(sport=%s, dport=%s), fill(0, %d) }",
		net.HardwareAddr(neighbours[0].HardwareAddr), link.Attrs().HardwareAddr, from, to, sinkPort, sinkPort, payload)
	file := filepath.Join(g.t.TempDir(), "packet.cfg")
	if err := os.WriteFile(file, []byte(packet), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.run(append([]string{"timeout", "--preserve-status", "-s", "INT", "1", "trafgen", "-i", file, "-o", "eth0", "-P", "1", "--no-cpu-stats"}, options...)...)
}

const (
	sinkPort = "9999" // where trafgen sends to
	payload  = 36     // of a packet of 64 bytes
)
