package bgp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"weft/control"
	"weft/internal/config"
	"weft/internal/nettest"
	"weft/reach"
)

// asSpeaker is set where this test's program is run as one node: there is one Speaker in a process.
const asSpeaker = "WEFT_TEST_SPEAKER"

func TestMain(m *testing.M) {
	if os.Getenv(asSpeaker) != "" {
		speakAlone()
		return
	}
	os.Exit(m.Run())
}

// told is what a node's program is told: a line of JSON each time. The first one's options count.
type told struct {
	Port  uint16
	Waits [4]time.Duration // of waits, in their order; zero = the usual ones
	Held  map[string][]netip.Addr
	Drain bool

	State control.State
}

// speakAlone is such a program. It prints what has been published, and ends with its input.
func speakAlone() {
	lines := json.NewDecoder(os.Stdin)
	var t told
	if err := lines.Decode(&t); err != nil {
		panic(err)
	}
	o := Options{Node: t.State.Self.Name, Network: []netip.Prefix{prefix("10.244.0.0/16")}, Config: config.BGP{AS: 64512, Mesh: true}, port: t.Port,
		waits: waits{t.Waits[0], t.Waits[1], t.Waits[2], t.Waits[3]}, OnLink: func(netip.Addr) (string, error) { return "lo", nil }, Held: map[netip.Prefix][]netip.Addr{}}
	for p, via := range t.Held {
		o.Held[prefix(p)] = via
	}
	o.Log, _ = zap.NewDevelopment()
	s := New(o)
	s.Update(&t.State)
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		for {
			var t told
			if err := lines.Decode(&t); err != nil {
				stop()
				return
			}
			s.Drain(t.Drain)
			s.Update(&t.State)
		}
	}()
	out := json.NewEncoder(os.Stdout)
	if err := s.Run(ctx, func() { _ = out.Encode(s.Learnt()) }); err != nil {
		panic(err)
	}
}

// speaking is a node's program, and all that it has published.
type speaking struct {
	name string
	in   *json.Encoder
	log  bytes.Buffer
	mu   sync.Mutex
	all  []*reach.Learnt
}

// speak starts a node's program.
func speak(t *testing.T, with told) *speaking {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), asSpeaker+"=1", "GORACE=exitcode=0") // races are looked for below
	s := &speaking{name: with.State.Self.Name, all: []*reach.Learnt{{}}}
	c.Stderr = &s.log
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadBytes('\n')
			if err != nil {
				return
			}
			l := &reach.Learnt{}
			if err := json.Unmarshal(line, l); err != nil {
				t.Errorf("%s: %v", line, err)
			}
			s.mu.Lock()
			s.all = append(s.all, l)
			s.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		in.Close()
		<-read
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
		if race := ownRace(s.log.String()); race != "" {
			t.Error(race)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", s.name, s.log.String())
		}
	})
	s.in = json.NewEncoder(in)
	s.tell(t, with)
	return s
}

// accesses are the places of a data race.
var accesses = regexp.MustCompile(`(?mi)^(?:previous )?(?:read|write) at .*\n\s+(\S+)`)

// ownRace is the first data race that the log of a program has and that is not between two places in the library: that marks paths as stale while it reads
// them, which no setting changes.
func ownRace(log string) string {
	for _, race := range strings.Split(log, "WARNING: DATA RACE")[1:] {
		for _, at := range accesses.FindAllStringSubmatch(race, -1) {
			if !strings.HasPrefix(at[1], "github.com/osrg/gobgp/") {
				return race
			}
		}
	}
	return ""
}

func (s *speaking) tell(t *testing.T, with told) {
	t.Helper()
	if err := s.in.Encode(with); err != nil {
		t.Fatal(err)
	}
}

// Learnt is what was published last.
func (s *speaking) Learnt() *reach.Learnt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[len(s.all)-1]
}

// hosts are nodes a, b and so on at 127.0.0.1, 127.0.0.2 and so on, each with 10.244.N.0/24.
func hosts(n int) (list []control.Node) {
	for i := range n {
		list = append(list, control.Node{Name: string(rune('a' + i)), Endpoints: []netip.Addr{addr(fmt.Sprintf("127.0.0.%d", i+1))}, Prefixes: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", i+1))}})
	}
	return list
}

// as is what a node among others knows.
func as(nodes []control.Node, self int, revision uint64) control.State {
	s := control.State{Revision: revision, Self: nodes[self]}
	for i, n := range nodes {
		if i != self {
			s.Nodes = append(s.Nodes, n)
		}
	}
	return s
}

// ports are those that tests have taken.
var ports atomic.Uint32

// freePort is a TCP port that nobody uses, of those that connections do not begin at.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 1000 {
		port := uint16(20000 + (os.Getpid()+int(ports.Add(1)))%10000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// leads says whether a prefix is reached by a next hop, and whether what says so was told since the last start.
func (s *speaking) leads(p, via string, stale bool) error {
	l := s.Learnt()
	r, ok := l.To(prefix(p))
	if !ok || !slices.Equal(r.Via, []netip.Addr{addr(via)}) || r.Stale != stale {
		return fmt.Errorf("%s: %s by %v, stale %v, want %s and %v: %+v", s.name, p, r.Via, r.Stale, via, stale, *l)
	}
	return nil
}

// always says whether all that was published since a moment has a prefix.
func (s *speaking) always(p string, since int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.all[since:] {
		if _, ok := l.To(prefix(p)); !ok {
			return fmt.Errorf("%s: once nothing led to %s: %+v", s.name, p, *l)
		}
	}
	return nil
}

func (s *speaking) published() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func eventually(t *testing.T, cond func() error) {
	t.Helper()
	nettest.Eventually(t, nettest.Patience, cond)
}

// TestOtherAddresses: an address that comes besides ends no session. Where the one goes that sessions are had from, others are begun, and nothing that was learnt is
// lost meanwhile.
func TestOtherAddresses(t *testing.T) {
	t.Parallel()
	port, nodes := freePort(t), hosts(2)
	a := speak(t, told{Port: port, State: as(nodes, 0, 1)})
	b := speak(t, told{Port: port, State: as(nodes, 1, 1)})
	settled := func() error {
		errs := []error{a.leads("10.244.2.0/24", "127.0.0.2", false), b.leads("10.244.1.0/24", nodes[0].Endpoints[0].String(), false)}
		for _, s := range []*speaking{a, b} {
			if l := s.Learnt(); !l.Settled || len(l.Sessions) != 1 || !l.Sessions[0].Up || len(l.Problems) > 0 {
				errs = append(errs, fmt.Errorf("%s: %+v", s.name, l))
			}
		}
		return errors.Join(errs...)
	}
	eventually(t, settled)
	since, from := a.Learnt().Sessions[0].Since, a.published()

	// One that comes behind is told of at once, though the session is the same.
	nodes[0].Endpoints = append(nodes[0].Endpoints, addr("127.0.0.77"))
	nodes[0].Prefixes = append(nodes[0].Prefixes, prefix("10.244.77.0/24"))
	a.tell(t, told{State: as(nodes, 0, 2)})
	b.tell(t, told{State: as(nodes, 1, 2)})
	eventually(t, func() error { return b.leads("10.244.77.0/24", "127.0.0.1", false) })
	if err := settled(); err != nil || !a.Learnt().Sessions[0].Since.Equal(since) {
		t.Errorf("the session began anew at %v: %v", a.Learnt().Sessions[0].Since, err)
	}

	nodes[0].Endpoints = []netip.Addr{addr("127.0.0.3")}
	a.tell(t, told{State: as(nodes, 0, 3)})
	eventually(t, func() error { // b does not know yet
		if l := a.Learnt(); l.Settled || len(l.Sessions) != 1 || l.Sessions[0].Local != addr("127.0.0.3") || l.Sessions[0].Up {
			return fmt.Errorf("it has not begun anew: %+v", l)
		}
		return a.leads("10.244.2.0/24", "127.0.0.2", true)
	})
	b.tell(t, told{State: as(nodes, 1, 3)})
	eventually(t, settled)
	if err := a.always("10.244.2.0/24", from-1); err != nil {
		t.Error(err)
	}
}

// TestPortTaken: what the kernel had counts while another listens on the port, and no longer than peers are waited for; once the port is free, sessions are.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	port, nodes := freePort(t), hosts(2)
	other, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	a := speak(t, told{Port: port, State: as(nodes, 0, 1), Waits: [4]time.Duration{usual.peer, time.Second, usual.deferral, usual.mute}, Held: map[string][]netip.Addr{"10.244.2.0/24": {addr("127.0.0.2")}}})
	eventually(t, func() error {
		if l := a.Learnt(); len(l.Problems) != 1 || !strings.Contains(l.Problems[0].Text, "stop the other BGP daemon") || l.Settled {
			return fmt.Errorf("%+v", l)
		}
		return a.leads("10.244.2.0/24", "127.0.0.2", true)
	})
	eventually(t, func() error {
		if l := a.Learnt(); !l.Settled || len(l.Routes) > 0 || len(l.Problems) != 1 {
			return fmt.Errorf("%+v", l)
		}
		return nil
	})
	speak(t, told{Port: port, State: as(nodes, 1, 1)})
	other.Close()
	eventually(t, func() error {
		if l := a.Learnt(); len(l.Problems) > 0 {
			return fmt.Errorf("%+v", l)
		}
		return a.leads("10.244.2.0/24", "127.0.0.2", false)
	})
}

// TestRestartTogether: two nodes that begin anew while a third does not answer tell each other of their prefixes before either gives up what it had.
func TestRestartTogether(t *testing.T) {
	t.Parallel()
	port, nodes := freePort(t), hosts(3)
	var both []*speaking
	for i := range 2 {
		// As the usual ones are to each other, but for the time of those that are not graceful: these are.
		with := told{Port: port, State: as(nodes, i, 1), Waits: [4]time.Duration{10 * time.Second, 30 * time.Second, time.Second, time.Second / 100}, Held: map[string][]netip.Addr{}}
		for _, n := range with.State.Nodes {
			with.Held[n.Prefixes[0].String()] = n.Endpoints
		}
		both = append(both, speak(t, with))
	}
	eventually(t, func() error {
		for i, s := range both {
			if l := s.Learnt(); !l.Settled || len(l.Routes) != 1 {
				return fmt.Errorf("%+v", l)
			}
			if err := s.leads(nodes[1-i].Prefixes[0].String(), nodes[1-i].Endpoints[0].String(), false); err != nil {
				return err
			}
		}
		return nil
	})
	for i, s := range both {
		if err := s.always(nodes[1-i].Prefixes[0].String(), 1); err != nil {
			t.Error(err)
		}
	}
}

// TestDrain: a drained node's prefixes go at once, though the session stays and is graceful; what it has learnt it keeps, and it is told of again when that is over.
func TestDrain(t *testing.T) {
	t.Parallel()
	port, nodes := freePort(t), hosts(2)
	a := speak(t, told{Port: port, State: as(nodes, 0, 1)})
	b := speak(t, told{Port: port, State: as(nodes, 1, 1)})
	both := func() error {
		return errors.Join(a.leads("10.244.2.0/24", "127.0.0.2", false), b.leads("10.244.1.0/24", "127.0.0.1", false))
	}
	eventually(t, both)
	since := a.Learnt().Sessions[0].Since
	a.tell(t, told{State: as(nodes, 0, 1), Drain: true})
	eventually(t, func() error {
		if l := b.Learnt(); len(l.Routes) > 0 || !l.Sessions[0].Up {
			return fmt.Errorf("b: %+v", l)
		}
		if l := a.Learnt(); !l.Drained || len(l.Problems) != 1 || !strings.Contains(l.Problems[0].Text, "weft drain --undo") {
			return fmt.Errorf("a: %+v", l)
		}
		return a.leads("10.244.2.0/24", "127.0.0.2", false)
	})
	a.tell(t, told{State: as(nodes, 0, 1)})
	eventually(t, both)
	if l := a.Learnt(); !l.Sessions[0].Since.Equal(since) {
		t.Errorf("the session began anew: %+v", l)
	}
}

// TestNodeFloods: a node that tells of more than it can have is cut off, named, and none of it is kept, graceful restart or not; with prefixes of its own that
// make it right, it is spoken to again.
func TestNodeFloods(t *testing.T) {
	t.Parallel()
	port, nodes := freePort(t), hosts(2)
	a := speak(t, told{Port: port, State: as(nodes, 0, 1)})
	b := speak(t, told{Port: port, State: as(nodes, 1, 1)})
	eventually(t, func() error { return a.leads("10.244.2.0/24", "127.0.0.2", false) })
	for i := range 300 {
		nodes[1].Prefixes = append(nodes[1].Prefixes, prefix(fmt.Sprintf("10.244.%d.%d/28", 100+i/16, i%16*16)))
	}
	b.tell(t, told{State: as(nodes, 1, 2)})
	eventually(t, func() error {
		l := a.Learnt()
		if len(l.Routes) > 0 || len(l.Sessions) != 1 || l.Sessions[0].Up || !strings.Contains(l.Sessions[0].Reason, "more than 256 prefixes") {
			return fmt.Errorf("%+v", l)
		}
		return nil
	})
	a.tell(t, told{State: as(nodes, 0, 2)})
	eventually(t, func() error {
		if l := a.Learnt(); len(l.Routes) != 301 || len(l.Refused) > 0 {
			return fmt.Errorf("%d routes: %+v", len(l.Routes), l)
		}
		return a.leads("10.244.118.176/28", "127.0.0.2", false)
	})
}

// TestWatched: with BFD nothing of a session is graceful, and without it all of it is, unless that is switched off.
func TestWatched(t *testing.T) {
	r := &run{Speaker: New(Options{}), restarts: true}
	for _, s := range []session{{v4: true, v6: true, graceful: true}, {v4: true, bfd: true}, {v6: true}} {
		p := r.peer(s)
		graceful := []bool{p.GracefulRestart.Enabled, p.GracefulRestart.LocalRestarting}
		for _, f := range p.AfiSafis {
			graceful = append(graceful, f.MpGracefulRestart.Config.Enabled)
		}
		if slices.Contains(graceful, !s.graceful) || p.GetBfd().GetEnabled() != s.bfd {
			t.Errorf("%+v: graceful %v, BFD %v", s, graceful, p.GetBfd())
		}
	}
}

// TestPublish: problems are few, whatever a peer tells of, and all are counted.
func TestPublish(t *testing.T) {
	s := New(Options{})
	l := &reach.Learnt{}
	for i := range 20 {
		l.Problems = append(l.Problems, control.Problem{Text: fmt.Sprint(i)})
	}
	if s.publish(l, 100); len(l.Problems) != mostProblems+1 || l.Problems[mostProblems].Text != "BGP: 104 more: see `weft bgp routes`" {
		t.Errorf("%+v", l.Problems)
	}
}
