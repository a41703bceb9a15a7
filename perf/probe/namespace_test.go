package probe

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"weft/internal/nettest"
)

// serveEnv makes the test binary a server at the address it holds: a server's sessions run on
// threads of their own, so only a process of its own is wholly in a namespace.
const serveEnv = "WEFT_PROBE_TEST_SERVE"

func TestMain(m *testing.M) {
	if at := os.Getenv(serveEnv); at != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := Serve(ctx, Config{
			Listen: netip.MustParseAddrPort(at), For: time.Minute,
			Ready: func(a netip.AddrPort) { fmt.Println("ready", a) },
		}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hosts is two namespaces joined by a veth, with a server in the far one.
type hosts struct {
	near, far *nettest.NS
	server    *nettest.Process
	v4, v6    netip.AddrPort
}

func newHosts(t *testing.T, mtu int) *hosts {
	h := &hosts{
		near: nettest.New(t), far: nettest.New(t),
		v4: netip.MustParseAddrPort("192.0.2.2:8479"), v6: netip.MustParseAddrPort("[2001:db8::2]:8479"),
	}
	nettest.Pair(t,
		nettest.End{NS: h.near, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")},
		nettest.End{NS: h.far, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, mtu)
	h.serve(t)
	return h
}

// serve starts the server.
func (h *hosts) serve(t *testing.T) {
	t.Helper()
	h.server = h.far.MustStart(t, "env", serveEnv+"=[::]:8479", os.Args[0])
	for !strings.Contains(h.server.Output(), "ready") {
		select {
		case <-h.server.Done():
			t.Fatal(h.server.Wait())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// run runs a test from the near namespace.
func (h *hosts) run(spec Spec) (r Result, err error) {
	if !spec.Target.IsValid() {
		spec.Target = h.v4
	}
	h.near.Do(func() { r, err = Run(context.Background(), spec) })
	return r, err
}

// filter loads nft rules into the far namespace, on what comes in.
func (h *hosts) filter(t *testing.T, rule string) {
	t.Helper()
	nettest.RequireTool(t, "nft")
	h.far.MustRun(t, "nft", "add table inet probe; add chain inet probe in { type filter hook input priority 0; }; add rule inet probe in "+rule)
}

func TestEveryTestBetweenHosts(t *testing.T) {
	h := newHosts(t, 1500)
	for _, target := range []netip.AddrPort{h.v4, h.v6} {
		for _, test := range Tests {
			t.Run(fmt.Sprintf("%s to %s", test.Name, target.Addr()), func(t *testing.T) {
				r, err := h.run(Spec{Test: test.Name, Target: target, Duration: 200 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				if unanswered(t, r) {
					return
				}
				if m := r.Metrics[0]; !(m.Value > 0) {
					t.Errorf("%s is %v", m.Name, m.Value)
				}
				if strings.HasPrefix(test.Name, "udp") && r.Generated < r.Delivered+r.KernelDrops[socketOverflow] {
					t.Errorf("%d generated, %d delivered and %v dropped", r.Generated, r.Delivered, r.KernelDrops)
				}
			})
		}
	}
}

// A path that drops every tenth packet: the reported loss is the filter's own count, to the packet.
func TestLossIsExact(t *testing.T) {
	h := newHosts(t, 1500)
	h.filter(t, "meta l4proto udp numgen inc mod 10 == 7 counter drop")
	r, err := h.run(Spec{Test: "udp-stream", Params: Params{"rate": 20e6, "size": 200}, Duration: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	var packets, bytes uint64
	rules := h.far.MustRun(t, "nft", "list chain inet probe in")
	if _, counter, ok := strings.Cut(rules, "counter "); !ok {
		t.Fatal(rules)
	} else if _, err := fmt.Sscanf(counter, "packets %d bytes %d", &packets, &bytes); err != nil {
		t.Fatal(err)
	}
	if lost := r.Generated - r.Delivered; lost != packets || r.KernelDrops[socketOverflow] != 0 {
		t.Errorf("%d lost and %v dropped, the filter dropped %d", lost, r.KernelDrops, packets)
	}
	if loss, _ := r.Metric("loss"); loss < .0995 || loss > .1005 {
		t.Errorf("loss is %v, every tenth packet is dropped", loss)
	}
	if r.Duplicates+r.Reordered != 0 {
		t.Errorf("%d duplicates, %d reordered on a path that does neither", r.Duplicates, r.Reordered)
	}

	// No rate is free of it, and the search says so.
	r, err = h.run(Spec{Test: "udp-rate", Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Metrics) > 0 || !strings.Contains(r.Unanswered, " long trials passed: the least loss") {
		t.Errorf("metrics %v, unanswered: %q", r.Metrics, r.Unanswered)
	}
}

// A path that duplicates: the copies are neither deliveries nor loss.
func TestDuplicatesAreCountedApart(t *testing.T) {
	h := newHosts(t, 1500)
	nettest.RequireTool(t, "nft")
	// The copy comes back through the same device, from the near namespace that forwards it.
	if _, err := h.near.Run("nft", "add table netdev probe; add chain netdev probe out { type filter hook egress device eth0 priority 0; }; "+
		"add rule netdev probe out meta l4proto udp numgen inc mod 5 == 0 dup to eth0"); err != nil {
		t.Fatal(err)
	}
	r, err := h.run(Spec{Test: "udp-stream", Params: Params{"rate": 4e6, "size": 200}, Duration: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Generated != r.Delivered || r.Duplicates == 0 || r.Reordered != 0 {
		t.Errorf("%d generated, %d delivered, %d duplicates, %d reordered", r.Generated, r.Delivered, r.Duplicates, r.Reordered)
	}
}

// The search finds the rate of a token bucket on the path.
func TestSearchFindsATokenBucket(t *testing.T) {
	h := newHosts(t, 1500)
	const limit, burst = 10000, 100
	h.filter(t, fmt.Sprintf("meta l4proto udp limit rate over %d/second burst %d packets drop", limit, burst))
	const duration = 3 * time.Second
	r, err := h.run(Spec{Test: "udp-rate", Duration: duration})
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine the sender's own hiccups cost it some of the rate, or all of the answer; nothing may add to it but the
	// burst in the shortest trial. How near it comes on a quiet one, the searches in virtual time show.
	if rate, _ := r.Metric("rate"); rate > limit+burst/(duration/40).Seconds() {
		t.Errorf("found %.0f where %d is the limit; trials:\n%s", rate, limit, list(r.Trials))
	}
	if loss, _ := r.Metric("loss"); loss > maxLoss {
		t.Errorf("loss at that rate is %v", loss)
	}
}

func TestSizeAgainstThePath(t *testing.T) {
	h := newHosts(t, 1400)
	for _, test := range []string{"udp-rr", "udp-rate", "tcp-rr"} {
		for size, want := range map[float64]string{1400: "", 1401: "carries IP packets of at most 1400"} {
			for _, target := range []netip.AddrPort{h.v4, h.v6} {
				_, err := h.run(Spec{Test: test, Target: target, Params: Params{"size": size}, Duration: 50 * time.Millisecond})
				if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s of %v bytes to %s: got %v", test, size, target.Addr(), err)
				}
			}
		}
	}
}

// The link is wider than a hop behind it: the first packet's answer says so.
func TestSizeAgainstAHopBehindTheLink(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1500)
	h.filter(t, "meta l4proto udp meta length > 1300 drop")
	_, err := h.run(Spec{Test: "udp-rr", Params: Params{"size": 1400}, Duration: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "no UDP packet of 1400 bytes came through") {
		t.Errorf("got %v", err)
	}
}

// A server that is killed without a word, its host still there.
func TestServerIsKilled(t *testing.T) {
	h := newHosts(t, 1500)
	time.AfterFunc(200*time.Millisecond, h.server.Kill)
	_, err := h.run(Spec{Test: "udp-rate", Duration: time.Hour})
	if err == nil {
		t.Error("no error")
	}
}

// The path goes away altogether: the test ends with an error, within its time and the timeouts.
func TestPathGoesAway(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1500)
	down := make(chan error, 1)
	time.AfterFunc(200*time.Millisecond, func() {
		_, err := h.far.Run("ip", "link", "set", "eth0", "down")
		down <- err
	})
	if _, err := h.run(Spec{Test: "udp-rr", Duration: 5 * time.Second}); err == nil {
		t.Error("no error")
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// SIGTERM ends a server in order.
func TestServerEndsOnSignal(t *testing.T) {
	h := newHosts(t, 1500)
	h.server.Signal(syscall.SIGTERM)
	if err := h.server.Wait(); err != nil {
		t.Error(err)
	}
}
