package metrics_test

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"weft/api"
	"weft/node/metrics"
	"weft/policy"
	"weft/reach"
)

// watched is a daemon whose answers are what the test puts in.
type watched struct {
	api.Daemon
	status api.Status
	peers  []api.Peer
	lanes  []api.Lane
	pods   []api.Pod

	policies api.Policies
	bgp      api.BGP
	mesh     api.Mesh
}

func (w watched) Status() api.Status             { return w.status }
func (watched) Choice(string) (api.Choice, bool) { return api.Choice{}, false }
func (w watched) Peers() []api.Peer              { return w.peers }
func (w watched) Lanes() []api.Lane              { return w.lanes }

func (w watched) Policies() api.Policies                             { return w.policies }
func (w watched) Explain(_, _, _ string) ([]policy.Explained, error) { return nil, nil }

func (w watched) BGP() api.BGP     { return w.bgp }
func (w watched) Drain(bool) error { return nil }

func (w watched) Mesh() api.Mesh                                { return w.mesh }
func (watched) Forget(context.Context, api.ForgetRequest) error { return nil }

func (w watched) Pods() ([]api.Pod, error) { return w.pods, nil }

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// full is a daemon with something to say in every metric.
func full() watched {
	return watched{
		status: api.Status{Version: "v1", Node: "a", Mode: "tun", Cipher: "auto", Now: now, Ready: true, UnderlayMTU: 1500, InnerMTU: 1418,
			KernelDrops: map[string]uint64{"tun queue": 11, "socket": 12}, Repairs: 13,
			Rings: []api.Ring{{Device: "eth0", Queue: 1, Attach: "native", Counters: map[string]uint64{"rx-dropped": 17}}}, Rejected: map[string]uint64{"unknown": 14}, CookiesSent: 16,
			Control: api.Control{Kind: "static", Nodes: 2, AsOf: now.Add(-90 * time.Second)}, Apply: api.Apply{Attempts: 15, Failures: 3},
			Problems: []api.Problem{{Text: "x"}, {Text: "y"}}},
		peers: []api.Peer{{Node: "b", Way: "sealed:8473", State: "up", Changes: 28, MTU: 1418, TxPackets: 21, TxBytes: 22, RxPackets: 23, RxBytes: 1 << 60,
			Session: &api.Session{Established: true, Since: now.Add(-30 * time.Second), Handshakes: 24, Attempts: 2, Rejected: map[string]uint64{"replayed": 25},
				CookiesSent: 26, CookiesReceived: 27}}},
		lanes: []api.Lane{{Name: "out/0", Turns: 31, Received: 32, Copied: 33, Sent: 34, Waited: 1.5e9, Age: 2e9,
			Stages: []api.Stage{{Name: "recv tun", Calls: 35, Packets: 36, Timed: 37, Nanos: 2.5e8, Drops: map[string]uint64{"no-route": 38, "not-ip": 39}}}}},
		policies: api.Policies{Enabled: true, Since: now, Policies: make([]policy.Listed, 41), Ended: 44, Denied: []api.PolicyDenied{{Tier: "Admin", Policy: "p", Rule: "ingress[0]", Packets: 42}},
			Counted: []api.PolicyCounted{{What: "would-deny", Tier: "security", Policy: "q", Rule: "egress[1]", Packets: 43}}},
		bgp: api.BGP{Enabled: true, Sessions: []reach.Session{{Peer: netip.MustParseAddr("192.0.2.2"), Node: "b", Up: true, Received: 45, Advertised: 46}},
			Routes: make([]reach.Route, 47), Refused: make([]reach.Refused, 8), RefusedMore: 40},
		mesh: api.Mesh{Enabled: true, Known: 3, Live: 2, Waiting: "x", RefusedPassword: 51, RefusedClock: 52, TxBytes: 53, RxBytes: 54,
			Nodes: []api.MeshNode{{Name: "a", Self: true, Live: true}, {Name: "b", Live: true}, {Name: "b"}, {Name: "c"}}},
		pods: []api.Pod{{HostInterface: "weft0123456789a", PodNamespace: "default", PodName: "web", Drops: map[string]uint64{"wrong-source": 40}}, {HostInterface: "weft0123456789b"}},
	}
}

func get(t *testing.T, d watched, path string) (code int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	metrics.Handler(d, d).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

// ours returns weft's own lines of a page.
func ours(page string) (lines []string) {
	for l := range strings.Lines(page) {
		if strings.HasPrefix(l, "weft_") {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	return lines
}

func TestEveryMetric(t *testing.T) {
	_, page := get(t, full(), "/metrics")
	want := strings.Split(strings.TrimSpace(`
weft_apply_attempts_total 15
weft_apply_failures 3
weft_bgp_advertised_prefixes{node="b",peer="192.0.2.2"} 46
weft_bgp_received_prefixes{node="b",peer="192.0.2.2"} 45
weft_bgp_refused_prefixes 48
weft_bgp_routes 47
weft_bgp_session_up{node="b",peer="192.0.2.2"} 1
weft_cookies_sent_total 16
weft_data_age_seconds 90
weft_drops_total{lane="out/0",reason="no-route",stage="recv tun"} 38
weft_drops_total{lane="out/0",reason="not-ip",stage="recv tun"} 39
weft_handshakes_rejected_total{reason="unknown"} 14
weft_info{cipher="auto",control="static",mode="tun",node="a",version="v1"} 1
weft_inner_mtu_bytes 1418
weft_kernel_drops_total{reason="socket"} 12
weft_kernel_drops_total{reason="tun queue"} 11
weft_lane_batches_total{lane="out/0"} 31
weft_lane_copied_packets_total{lane="out/0"} 33
weft_lane_received_packets_total{lane="out/0"} 32
weft_lane_seconds_total{lane="out/0"} 2
weft_lane_sent_packets_total{lane="out/0"} 34
weft_lane_waited_seconds_total{lane="out/0"} 1.5
weft_mesh_bytes_total{direction="in"} 54
weft_mesh_bytes_total{direction="out"} 53
weft_mesh_live_nodes 2
weft_mesh_node_live{peer="b"} 1
weft_mesh_node_live{peer="c"} 0
weft_mesh_nodes 3
weft_mesh_refused_total{reason="clock"} 52
weft_mesh_refused_total{reason="password"} 51
weft_mesh_waiting 1
weft_nodes 2
weft_peer_bytes_total{direction="in",peer="b"} 1.152921504606847e+18
weft_peer_bytes_total{direction="out",peer="b"} 22
weft_peer_cookies_total{direction="in",peer="b"} 27
weft_peer_cookies_total{direction="out",peer="b"} 26
weft_peer_handshake_attempts{peer="b"} 2
weft_peer_handshakes_total{peer="b"} 24
weft_peer_mtu_bytes{peer="b"} 1418
weft_peer_packets_total{direction="in",peer="b"} 23
weft_peer_packets_total{direction="out",peer="b"} 21
weft_peer_rejected_total{peer="b",reason="replayed"} 25
weft_peer_session_age_seconds{peer="b"} 30
weft_peer_session_established{peer="b"} 1
weft_peer_way{peer="b",state="up",way="sealed:8473"} 1
weft_peer_way_changes_total{peer="b"} 28
weft_pod_drops_total{link="weft0123456789a",namespace="default",pod="web",reason="wrong-source"} 40
weft_pods 2
weft_policies 41
weft_policy_denied_packets_total{policy="p",rule="ingress[0]",tier="Admin"} 42
weft_policy_ended_connections_total 44
weft_policy_packets_total{policy="q",rule="egress[1]",tier="security",what="would-deny"} 43
weft_problems 2
weft_ready 1
weft_repairs_total 13
weft_ring_events_total{attach="native",counter="rx-dropped",device="eth0",queue="1"} 17
weft_stage_calls_total{lane="out/0",stage="recv tun"} 35
weft_stage_packets_total{lane="out/0",stage="recv tun"} 36
weft_stage_timed_packets_total{lane="out/0",stage="recv tun"} 37
weft_stage_timed_seconds_total{lane="out/0",stage="recv tun"} 0.25
weft_underlay_mtu_bytes 1500`), "\n")
	if got := ours(page); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// Nothing is declared that a full daemon does not say, and the other way round.
	said := map[string]bool{}
	for _, l := range ours(page) {
		said[regexp.MustCompile(`^\w+`).FindString(l)] = true
	}
	var declared []string
	for _, m := range metrics.Metrics() {
		declared = append(declared, m.Name)
	}
	if slices.Sort(declared); !slices.Equal(declared, slices.Sorted(maps.Keys(said))) {
		t.Errorf("declared %q, said %q", declared, slices.Sorted(maps.Keys(said)))
	}
	for _, other := range []string{"\ngo_goroutines ", "\nprocess_resident_memory_bytes "} {
		if !strings.Contains(page, other) {
			t.Errorf("no %q", other)
		}
	}
	// Their names follow Prometheus's own rules.
	problems, err := promlint.New(strings.NewReader(page)).Lint()
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "weft_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// Where the kernel forwards, and before the first State, what nobody knows is not said.
func TestUnknownIsAbsent(t *testing.T) {
	d := full()
	d.lanes, d.peers[0].Session, d.status.Control.AsOf = nil, nil, time.Time{}
	code, page := get(t, d, "/metrics")
	for _, l := range ours(page) {
		if regexp.MustCompile(`^weft_(peer_packets|peer_bytes|peer_session|peer_hand|lane|stage|drops|data_age)`).MatchString(l) {
			t.Errorf("said although unknown: %s", l)
		}
	}
	if code != http.StatusOK || !strings.Contains(page, `weft_peer_mtu_bytes{peer="b"} 1418`) {
		t.Errorf("%d\n%s", code, page)
	}
	if code, page = get(t, watched{}, "/metrics"); code != http.StatusOK || !strings.Contains(page, "\nweft_ready 0\n") {
		t.Errorf("a daemon with nothing to say: %d\n%s", code, page)
	}
}

// A name that Prometheus refuses costs its own metrics, not the page or the process.
func TestBadName(t *testing.T) {
	d := full()
	d.peers = append(d.peers, api.Peer{Node: "b\xff"})
	if code, page := get(t, d, "/metrics"); code != http.StatusOK || !strings.Contains(page, `weft_peer_packets_total{direction="out",peer="b"} 21`) {
		t.Errorf("%d\n%s", code, page)
	}
}

func TestHealth(t *testing.T) {
	ready, waiting := full(), full()
	waiting.status.Ready, waiting.status.Reason = false, "userspace: no device\nsecond line"
	for _, c := range []struct {
		d    watched
		path string
		code int
		body string
	}{
		{ready, "/healthz", 200, "ok\n"},
		{waiting, "/healthz", 200, "ok\n"},
		{ready, "/readyz", 200, "ready\n"},
		{waiting, "/readyz", 503, "not ready: userspace: no device second line\n"},
		{ready, "/nonsense", 404, "404 page not found\n"},
	} {
		if code, body := get(t, c.d, c.path); code != c.code || body != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, body, c.code, c.body)
		}
	}
}

func TestServe(t *testing.T) {
	l, err := metrics.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := metrics.Listen(l.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use by process "+strconv.Itoa(os.Getpid())+" (") ||
		!strings.HasPrefix(err.Error(), "api.metrics: ") {
		t.Errorf("a port in use: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- metrics.Serve(ctx, l, full(), full()) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(body), "\nweft_ready 1\n") {
		t.Errorf("%v\n%s", err, body)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}
