package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"weft/api"
	"weft/backend"
	"weft/catalog/mode"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet"
	"weft/internal/config"
	"weft/internal/nettest"
	"weft/node/daemon"
	"weft/node/pods"
	"weft/packet"
)

// carrier is a backend in memory: it keeps what it was told, and fails as often as it is told to.
type carrier struct {
	mu      sync.Mutex
	fail    int // so many more times
	applied []control.State
	dead    chan error // what Run returns early with
	broken  chan error // what it says has broken
	host    chan *hostnet.Host
	closed  bool
}

func (c *carrier) Self() control.Node { return control.Node{MAC: control.VTEPMAC("a")} }
func (c *carrier) Apply(s control.State) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail > 0 {
		c.fail--
		return errors.New("the kernel is in a bad mood")
	}
	c.applied = append(c.applied, s)
	return nil
}
func (c *carrier) Run(ctx context.Context, look func(error)) error {
	var changed <-chan struct{}
	if c.host != nil {
		changed = (<-c.host).Changed(backend.Owner)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-c.broken:
			look(err)
		case <-changed:
			look(nil)
		case err := <-c.dead:
			return err
		}
	}
}
func (c *carrier) Close() error { c.mu.Lock(); defer c.mu.Unlock(); c.closed = true; return nil }
func (c *carrier) Status() backend.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return backend.Status{Ready: len(c.applied) > 0, Reason: "no state", InnerMTU: 1450, UnderlayMTU: 1500,
		Hops: []backend.Hop{{Node: "b", Endpoint: netip.MustParseAddrPort("192.0.2.2:4789"), MTU: 1450, TxPackets: 5}}}
}
func (c *carrier) InnerMTU() int                      { return 1450 }
func (*carrier) Choice(string) (backend.Choice, bool) { return backend.Choice{}, false }
func (c *carrier) Lanes() backend.Lanes               { return c }
func (c *carrier) Observe(dataplane.Observer) func()  { return func() {} }
func (c *carrier) Tunnel() backend.Tunnel             { return backend.Tunnel{} }
func (c *carrier) Decide(dataplane.Direction, []byte, string, netip.AddrPort) (*packet.Hop, packet.Drop, bool) {
	return nil, packet.Alive, false
}
func (c *carrier) LaneStats() []dataplane.LaneStats {
	var drops packet.Drops
	drops[packet.NoRoute] = 2
	return []dataplane.LaneStats{{Name: "out/0", Received: 9, Sent: 7, Age: time.Second, Waited: time.Second / 4,
		Stages: []dataplane.StageStats{{Name: "route", Packets: 9, Drops: drops}}}}
}

// teller is a source that publishes what the test says, and keeps what it hears.
type teller struct {
	control.Announcement
	states chan control.State
	last   control.State

	mu    sync.Mutex
	heard []control.InForce
}

func (s *teller) Hear(f control.InForce) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = append(s.heard, f)
}
func (s *teller) Read() (control.State, error) { return control.State{}, control.ErrJoin }
func (s *teller) Store() control.NetworkStore  { return nil }

// said is what the source heard last, and how often.
func (s *teller) said() (f control.InForce, times int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if times = len(s.heard); times > 0 {
		f = s.heard[times-1]
	}
	return f, times
}

var errNotInCluster = errors.New("this node is not in the cluster")

func (s *teller) Run(ctx context.Context, update func(control.State)) error {
	self, _ := s.Announced()
	for {
		select {
		case <-ctx.Done():
			return nil
		case st, open := <-s.states:
			if !open {
				return errNotInCluster
			}
			st.Self.Name = self.Name
			st.Number(&s.last)
			s.last = st
			update(st)
		}
	}
}

type rig struct {
	t      *testing.T
	ns     *nettest.NS
	cfg    *config.Config
	socket string
	parts  daemon.Parts
	b      *carrier
	source *teller
	client *api.Client
	logs   *observer.ObservedLogs
	log    *zap.Logger
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, ns: nettest.New(t), b: &carrier{dead: make(chan error, 1), broken: make(chan error, 1)}, source: &teller{states: make(chan control.State, 8)}, socket: filepath.Join(dir, "sock")}
	core, logs := observer.New(zap.InfoLevel)
	r.log, r.logs = zap.New(core), logs
	text := fmt.Sprintf("node: {name: a}\nnetwork: 10.244.0.0/16\napi: {socket: %s}\nstate_dir: %s/state", r.socket, dir)
	var err error
	r.cfg, err = config.Parse("weft.yaml", []byte(text), config.Built{Modes: mode.All(), DefaultMode: "vxlan", Controls: []string{"static"}})
	if err == nil {
		err = r.cfg.Detect(config.Host{CPUs: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	r.parts = daemon.Parts{Version: "test",
		Backend: func(backend.Settings) (backend.Backend, error) { return r.b, nil },
		Source:  func(*config.Config, *zap.Logger) control.Source { return r.source }}
	r.client = api.NewClient(r.socket)
	t.Cleanup(r.client.Close)
	return r
}

// run starts the daemon; stop ends it and returns what Run returned.
func (r *rig) run() (stop func() error) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := r.ns.Go(func() error { return daemon.Run(ctx, r.cfg, r.parts, r.log) })
	stopped := false
	var err error
	stop = func() error {
		cancel()
		if !stopped {
			err, stopped = <-done, true
		}
		return err
	}
	r.t.Cleanup(func() { stop() })
	return stop
}

// until waits for a status.
func (r *rig) until(what string, ok func(api.Status) bool) api.Status {
	r.t.Helper()
	deadline := time.Now().Add(nettest.Patience)
	for {
		s, err := r.client.Status(r.t.Context())
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("never %s: %+v, %v", what, s, err)
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

func state(nodes ...string) control.State {
	st := control.State{AsOf: time.Now(), Self: control.Node{Name: "a", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}}
	for i, name := range nodes {
		st.Nodes = append(st.Nodes, control.Node{Name: name, Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 2)})},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 2), 0}), 24)}})
	}
	return st
}

func TestLife(t *testing.T) {
	r := newRig(t)
	stop := r.run()
	s := r.until("up", func(api.Status) bool { return true })
	if s.Ready || s.Reason != "the control source has not spoken yet" {
		t.Errorf("before the first State: %+v", s)
	}
	st := state("b", "c")
	st.Problems = []control.Problem{{Node: "d", Text: "has no endpoint"}}
	r.source.states <- st
	s = r.until("ready", func(s api.Status) bool { return s.Ready })
	if s.Node != "a" || s.Version != "test" || s.Control.Nodes != 3 || s.Reason != "" || s.Problems[0].Node != "d" || s.PID != os.Getpid() || s.InnerMTU != 1450 {
		t.Errorf("status %+v", s)
	}
	nodes, _ := r.client.Nodes(t.Context())
	if len(nodes) != 3 || !nodes[0].Self || nodes[1].Name != "b" || nodes[1].MAC != control.VTEPMAC("b").String() {
		t.Errorf("nodes %+v", nodes)
	}
	peers, _ := r.client.Peers(t.Context())
	if len(peers) != 1 || peers[0].TxPackets != 5 || peers[0].Prefixes == nil {
		t.Errorf("peers %+v", peers)
	}
	routes, _ := r.client.Routes(t.Context())
	if len(routes) != 3 || !routes[0].Self || routes[0].MTU != 1450 || routes[1].Endpoint.String() != "192.0.2.2:4789" || routes[2].Endpoint.IsValid() {
		t.Errorf("routes %+v", routes)
	}
	lanes, _ := r.client.Lanes(t.Context())
	if len(lanes) != 1 || lanes[0].Stages[0].Drops["no-route"] != 2 || lanes[0].Busy() != 0.75 {
		t.Errorf("lanes %+v", lanes)
	}
	if n := r.logs.FilterMessage("carrying traffic").Len(); n != 1 {
		t.Errorf("the effective facts were logged %d times", n)
	}
	if err := stop(); err != nil || !r.b.closed {
		t.Errorf("at the end: %v, closed %v", err, r.b.closed)
	}
	if _, err := os.Lstat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestFailedApplyIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.b.fail = 3
	r.run()
	r.source.states <- state("b")
	s := r.until("failed", func(s api.Status) bool { return s.Apply.Failures > 0 })
	if s.Ready || s.Apply.Error != "the kernel is in a bad mood" || !s.Apply.Retry.After(s.Started) {
		t.Errorf("while it fails: %+v", s)
	}
	s = r.until("ready", func(s api.Status) bool { return s.Ready })
	if s.Apply.Failures != 0 || s.Apply.Error != "" || s.Apply.Attempts != 4 {
		t.Errorf("after it: %+v", s.Apply)
	}
}

// TestInForceIsTold: whoever wants to know hears that a State is in force, that the newest is not, and that the path has broken; Flannel's
// hand-over is there just as long.
func TestInForceIsTold(t *testing.T) {
	r := newRig(t)
	r.cfg.Control.SubnetEnv = filepath.Join(t.TempDir(), "subnet.env")
	r.run()
	hears := func(what string, is func(control.InForce) bool, file bool) {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			if f, n := r.source.said(); n == 0 || !is(f) {
				return fmt.Errorf("%s: heard %+v after %d", what, f, n)
			}
			if _, err := os.Stat(r.cfg.Control.SubnetEnv); (err == nil) != file {
				return fmt.Errorf("%s: the hand-over: %v", what, err)
			}
			return nil
		})
	}
	r.until("up", func(s api.Status) bool { return true })
	if f, n := r.source.said(); n != 0 {
		t.Errorf("before the first State %+v", f)
	}
	none := state("b")
	none.Self.Prefixes = nil
	r.source.states <- none
	hears("no prefix", func(f control.InForce) bool { return f.Reason == "" && !f.Carries() }, false)
	failing := func(times int) {
		r.b.mu.Lock()
		defer r.b.mu.Unlock()
		r.b.fail = times
	}
	failing(1 << 30)
	r.source.states <- state("b")
	refused := func(f control.InForce) bool { return f.Reason == "the kernel is in a bad mood" && !f.Carries() }
	hears("refused", refused, false)
	failing(0)
	carried := func(f control.InForce) bool {
		return f.Carries() && len(f.State.Nodes) == 1 && f.InnerMTU == 1450
	}
	hears("in force", carried, true)
	failing(1 << 30)
	r.source.states <- state("b", "c")
	hears("no longer", refused, false)
	failing(0)
	hears("again", func(f control.InForce) bool { return f.Carries() && len(f.State.Nodes) == 2 }, true)
	failing(1 << 30)
	r.b.broken <- errors.New("a lane died")
	hears("broken", func(f control.InForce) bool { return f.Reason != "" }, false)
	failing(0)
	hears("mended", func(f control.InForce) bool { return f.Carries() }, true)
}

// TestAnnouncesAnew: what others reach this node by may change while it runs.
func TestAnnouncesAnew(t *testing.T) {
	r := newRig(t)
	r.ns.MustRun(t, "sh", "-ec", "ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up; ip addr add 192.0.2.1/24 dev eth0")
	r.cfg.Node.Interface = "eth0"
	r.b.host = make(chan *hostnet.Host, 1)
	r.parts.Backend = func(s backend.Settings) (backend.Backend, error) {
		r.b.host <- s.Host
		return r.b, s.Host.Apply(backend.Owner, hostnet.Want{Watch: []string{"eth0"}})
	}
	r.run()
	says := func(want string) {
		t.Helper()
		nettest.Eventually(t, nettest.Patience, func() error {
			if self, _ := r.source.Announced(); self.Name != "a" || self.MAC != control.VTEPMAC("a") || fmt.Sprint(self.Endpoints) != want {
				return fmt.Errorf("announced is %+v, want %s", self, want)
			}
			return nil
		})
	}
	says("[192.0.2.1]")
	r.ns.MustRun(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "eth0")
	says("[192.0.2.1 192.0.2.7]")
	r.ns.MustRun(t, "ip", "addr", "del", "192.0.2.1/24", "dev", "eth0") // a secondary address goes with it
	r.ns.MustRun(t, "ip", "addr", "add", "192.0.2.9/24", "dev", "eth0")
	says("[192.0.2.9]")
}

// TestAnnouncesBeforeTheFirstState: what comes late at the start (a lease of DHCP, an IPv6 address that was tentative, the way out) is
// announced while there is no State yet, and so nothing is watched.
func TestAnnouncesBeforeTheFirstState(t *testing.T) {
	for name, c := range map[string]struct {
		device string // node.interface
		before string // commands
		first  string // what is announced
		steps  [][2]string
	}{
		"an address": {"eth0", "", "[]", [][2]string{{"ip addr add 192.0.2.1/24 dev eth0", "[192.0.2.1]"},
			{"ip addr add 2001:db8::1/64 dev eth0", "[192.0.2.1 2001:db8::1]"}, {"ip addr del 192.0.2.1/24 dev eth0", "[2001:db8::1]"}}},
		"the way out": {"", "ip addr add 192.0.2.1/24 dev eth0", "[]", [][2]string{{"ip route add default via 192.0.2.254", "[192.0.2.1]"},
			{"ip addr add 192.0.2.7/24 dev eth0", "[192.0.2.1 192.0.2.7]"}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.ns.MustRun(t, "sh", "-ec", "ip link add eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up; "+c.before)
			r.cfg.Node.Interface = c.device
			r.b.host = make(chan *hostnet.Host, 1)
			r.parts.Backend = func(s backend.Settings) (backend.Backend, error) {
				r.b.host <- s.Host
				return r.b, nil
			}
			r.run()
			says := func(want string) {
				t.Helper()
				nettest.Eventually(t, nettest.Patience, func() error {
					if self, _ := r.source.Announced(); self.Name != "a" || fmt.Sprint(self.Endpoints) != want {
						return fmt.Errorf("announced is %+v, want %s", self, want)
					}
					return nil
				})
			}
			says(c.first)
			for _, s := range c.steps {
				r.ns.MustRun(t, "sh", "-ec", s[0])
				says(s[1])
			}
		})
	}
}

// Between slow Applies only the newest State matters.
func TestNewestStateWins(t *testing.T) {
	r := newRig(t)
	r.run()
	for n := range 6 {
		var names []string
		for i := range n {
			names = append(names, fmt.Sprint("n", i))
		}
		r.source.states <- state(names...)
	}
	r.until("the sixth", func(s api.Status) bool { return s.Control.Nodes == 6 })
	deadline := time.Now().Add(nettest.Patience)
	for {
		r.b.mu.Lock()
		n := len(r.b.applied)
		newest := n > 0 && len(r.b.applied[n-1].Nodes) == 5
		r.b.mu.Unlock()
		if newest {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the newest State was not applied in %d tries", n)
		}
		time.Sleep(5 * time.Millisecond) // between looks
	}
}

func TestRefusedBySourceIsConfiguration(t *testing.T) {
	r := newRig(t)
	close(r.source.states)
	err := <-r.ns.Go(func() error { return daemon.Run(t.Context(), r.cfg, r.parts, r.log) })
	if !errors.Is(err, daemon.ErrConfiguration) || !errors.Is(err, errNotInCluster) || !r.b.closed {
		t.Errorf("got %v, closed %v", err, r.b.closed)
	}
}

func TestSourceLostLaterIsNot(t *testing.T) {
	r := newRig(t)
	done := r.ns.Go(func() error { return daemon.Run(t.Context(), r.cfg, r.parts, r.log) })
	r.source.states <- state()
	r.until("ready", func(s api.Status) bool { return s.Ready })
	close(r.source.states)
	if err := <-done; errors.Is(err, daemon.ErrConfiguration) || !errors.Is(err, errNotInCluster) {
		t.Errorf("got %v", err)
	}
}

func TestDeadBackendEndsTheDaemon(t *testing.T) {
	r := newRig(t)
	r.b.dead <- errors.New("netlink is gone")
	err := <-r.ns.Go(func() error { return daemon.Run(t.Context(), r.cfg, r.parts, r.log) })
	if err == nil || !strings.Contains(err.Error(), "netlink is gone") {
		t.Errorf("got %v", err)
	}
}

func TestOneDaemonAtATime(t *testing.T) {
	r := newRig(t)
	stop := r.run()
	r.until("up", func(api.Status) bool { return true })
	second := func(dir string) error {
		return <-r.ns.Go(func() error {
			l, err := daemon.Acquire(dir)
			if err == nil {
				l.Release()
			}
			return err
		})
	}
	if err := second(r.cfg.StateDir); !errors.Is(err, daemon.ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("the same state_dir: %v", err)
	}
	if err := second(t.TempDir()); !errors.Is(err, daemon.ErrRunning) || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("the same namespace: %v", err)
	}
	clean := func() (removed []string, err error) {
		err = <-r.ns.Go(func() (err error) {
			removed, err = daemon.Cleanup(r.cfg.StateDir, r.socket, zaptest.NewLogger(t))
			return err
		})
		return removed, err
	}
	if _, err := clean(); !errors.Is(err, daemon.ErrRunning) {
		t.Errorf("cleanup beside a daemon: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(r.cfg.StateDir, pods.File+pods.Damaged)
	if err := os.WriteFile(aside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if removed, err := clean(); err != nil || len(removed) != 3 || removed[1] != "file "+aside || removed[2] != "directory "+r.cfg.StateDir {
		t.Errorf("cleanup: %q, %v", removed, err)
	}
	if removed, err := clean(); err != nil || len(removed) != 0 {
		t.Errorf("cleanup, again: %q, %v", removed, err)
	}
	if _, err := os.Stat(r.cfg.StateDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state directory is there: %v", err)
	}
}

func TestNodesFileAskedForMustBeThere(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "nodes.yaml")
	cfg, err := config.Parse("weft.yaml", []byte("network: 10.244.0.0/16\ncontrol: {static: {file: "+missing+"}}"),
		config.Built{Modes: mode.All(), DefaultMode: "vxlan", Controls: []string{"static"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"run":   daemon.Run(t.Context(), cfg, daemon.Parts{}, zap.NewNop()),
		"check": daemon.Check(cfg, daemon.Parts{}, zap.NewNop()),
	} {
		if !errors.Is(err, daemon.ErrConfiguration) || !strings.Contains(err.Error(), missing) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// get asks the metrics endpoint, in the daemon's namespace.
func (r *rig) get(path string) (code int, body string) {
	r.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(_ context.Context, _, address string) (c net.Conn, err error) {
		r.ns.Do(func() { c, err = net.Dial("tcp", address) })
		return c, err
	}}}
	resp, err := client.Get("http://" + r.cfg.API.Metrics + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	stop := r.run()
	r.until("up", func(api.Status) bool { return true })
	if code, body := r.get("/healthz"); code != 200 {
		t.Errorf("/healthz: %d %s", code, body)
	}
	if code, body := r.get("/readyz"); code != 503 || body != "not ready: the control source has not spoken yet\n" {
		t.Errorf("/readyz before the first State: %d %s", code, body)
	}
	r.source.states <- state("b")
	r.until("ready", func(s api.Status) bool { return s.Ready })
	if code, body := r.get("/readyz"); code != 200 {
		t.Errorf("/readyz: %d %s", code, body)
	}
	code, body := r.get("/metrics")
	for _, want := range []string{`weft_info{cipher="none",control="static",mode="vxlan",node="a",version="test"} 1`, "weft_ready 1", "weft_nodes 2",
		`weft_peer_packets_total{direction="out",peer="b"} 5`, `weft_drops_total{lane="out/0",reason="no-route",stage="route"} 2`} {
		if code != 200 || !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("%d, no %q in\n%s", code, want, body)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A metrics port that is taken ends the daemon before it touches anything, with the remedy.
func TestMetricsPortInUse(t *testing.T) {
	r := newRig(t)
	var taken net.Listener
	var err error
	r.ns.Do(func() { taken, err = net.Listen("tcp", r.cfg.API.Metrics) })
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	r.parts.Backend = func(backend.Settings) (backend.Backend, error) {
		t.Error("a backend was made")
		return r.b, nil
	}
	err = r.run()()
	if err == nil || !strings.Contains(err.Error(), `api.metrics: listen tcp 127.0.0.1:9470: bind: address already in use by process `) || !strings.Contains(err.Error(), "give it an address of this node") {
		t.Errorf("got %v", err)
	}
	r.cfg.API.Metrics = ""
	r.parts.Backend = func(backend.Settings) (backend.Backend, error) { return r.b, nil }
	stop := r.run()
	r.until("up without metrics", func(api.Status) bool { return true })
	if err := stop(); err != nil {
		t.Error(err)
	}
}
