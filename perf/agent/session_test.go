package agent

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"weft/perf/probe"
)

// scripted is a session that starts nothing, but keeps what it would have.
func scripted(t testing.TB, orders *[]Order) *session {
	t.Helper()
	a := &agent{Config: Config{Data: DefaultData, Longest: time.Minute, Program: "/nonexistent/weft", Limit: probe.Limit{Bits: 1e6, Packets: 100}, Log: zap.NewNop()}}
	s := newSession(a)
	s.spawn = func(_ place, _ string, o Order) (*child, error) {
		*orders = append(*orders, o)
		return nil, errors.New("nothing is started here")
	}
	return s
}

func say(t testing.TB, q request) []byte {
	t.Helper()
	data, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// orders are requests of every kind.
func requests() []request {
	target := &Target{At: netip.MustParseAddrPort("192.0.2.2:8480"), Key: make([]byte, probe.KeySize)}
	return []request{
		{Op: opHello, Version: Version},
		{Op: opServe, Setup: "bare", Serve: &ServeChoice{netip.MustParseAddr("127.0.0.1")}},
		{Op: opPath, Setup: "bare", Target: target},
		{Op: opGenerate, Setup: "bare", Target: target, Generate: &TestOrder{Test: "udp-stream", Params: probe.Params{"rate": 1e12}, Duration: time.Second}},
		{Op: opCount, Setup: "bare"},
		{Op: opOpen, Setup: "tun", Open: &OpenOrder{Nodes: []Node{{"a", netip.MustParseAddr("192.0.2.1")}, {"b", netip.MustParseAddr("192.0.2.2")}}}},
		{Op: opStop, Setup: "bare"},
		{Op: opShut, Setup: "tun"},
	}
}

// TestRefused: what a client must not have done is refused, with the reason.
func TestRefused(t *testing.T) {
	all := requests()
	target := all[2].Target
	change := func(q request, f func(*request)) request { f(&q); return q }
	for _, c := range []struct {
		name  string
		after int // requests of the list that come first
		q     request
		says  string
	}{
		{"another version", 0, request{Op: opHello, Version: "weft.agent/0"}, "use the same weft"},
		{"no hello", 0, all[3], `where "hello" was due`},
		{"unknown", 1, request{Op: "exec", Setup: "bare"}, "unknown operation"},
		{"no contender", 1, request{Op: opCount}, "no contender"},
		{"an address of somebody else", 1, request{Op: opServe, Setup: "bare", Serve: &ServeChoice{netip.MustParseAddr("192.0.2.99")}}, "no address of this host"},
		{"no key", 1, request{Op: opGenerate, Setup: "bare", Target: &Target{At: target.At}, Generate: all[3].Generate}, "without its key"},
		{"a group", 1, request{Op: opGenerate, Setup: "bare", Target: &Target{At: netip.MustParseAddrPort("224.0.0.1:8480"), Key: target.Key}, Generate: all[3].Generate}, "no host's address"},
		{"no such test", 1, change(all[3], func(q *request) { q.Generate = &TestOrder{Test: "ping", Duration: time.Second} }), "unknown test"},
		{"too long", 1, change(all[3], func(q *request) { q.Generate = &TestOrder{Test: "tcp-rr", Duration: time.Hour} }), "at most 1m0s"},
		{"a program", 1, change(all[5], func(q *request) { q.Setup = "exec:/bin/sh" }), "has not proven"},
		{"an overlay to a third", 1, all[5], "has not proven"},
		{"the underlay", 1, change(all[5], func(q *request) { q.Setup = "bare" }), "without being opened"},
	} {
		var orders []Order
		s := scripted(t, &orders)
		for _, q := range all[:c.after] {
			s.answer(t.Context(), say(t, q))
		}
		orders = nil
		if r := s.answer(t.Context(), say(t, c.q)); !strings.Contains(r.Error, c.says) || len(orders) > 0 {
			t.Errorf("%s: %+v, %d processes; want %q", c.name, r, len(orders), c.says)
		}
	}
	for name, says := range map[string]string{"exec:/bin/sh": "runs no programs", "host-gw": "routes of the hosts' own", "flannel-host-gw": "between hosts", "xdp": "--xdp", "tun-xdp+auto": "--xdp",
		"xdp-lib": "--xdp", "wireguard-go": "between hosts", "bare": "between hosts"} {
		if _, _, err := supported(name, false); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, says)
		}
	}
	var orders []Order
	s := scripted(t, &orders)
	for _, q := range all {
		s.answer(t.Context(), say(t, q))
	}
	if i := slices.IndexFunc(orders, func(o Order) bool { return o.Run != nil }); i < 0 || orders[i].Run.Limit != s.Limit || orders[i].Run.Key == nil {
		t.Errorf("a test is not bound to the agent's limits: %+v", orders)
	}
}

// TestAnotherVersion: an agent and a client of different versions know each other by the same secret, and say what to do.
func TestAnotherVersion(t *testing.T) {
	t.Parallel()
	id := secret(t, "a secret of many bytes")
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan netip.AddrPort, 1), make(chan error, 1)
	go func() {
		done <- Serve(ctx, Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Identity: id, Data: DefaultData, Longest: time.Minute, Log: zap.NewNop(),
			Ready: func(at netip.AddrPort) { ready <- at }})
	}()
	at := <-ready
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tls, err := secret(t, "a secret of many bytes").greet(t.Context(), c, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	old := &Client{line: newLine(tls)}
	if _, err := old.ask(t.Context(), request{Op: opHello, Version: "weft.agent/1"}, patience); err == nil || !strings.Contains(err.Error(), "the agent speaks "+Version) || !strings.Contains(err.Error(), "use the same weft everywhere") {
		t.Errorf("an old client is told %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestMutatedRequests: a hundred thousand requests, each a good one with bytes changed, lost, doubled or moved, in sessions of five hundred: every one is answered,
// nothing crashes, and what is started is bound by the limits.
func TestMutatedRequests(t *testing.T) {
	random := rand.New(rand.NewPCG(18, 100_000))
	var good [][]byte
	for _, q := range requests() {
		good = append(good, say(t, q))
	}
	const all = 100_000
	started, refused := 0, 0
	for n := 0; n < all; {
		var orders []Order
		s := scripted(t, &orders)
		s.answer(t.Context(), good[0])
		for range 500 {
			data := mutate(random, slices.Clone(good[random.IntN(len(good))]), good)
			r := s.answer(t.Context(), data)
			if _, err := json.Marshal(r); err != nil {
				t.Fatalf("%q: a reply that cannot be sent: %v", data, err)
			}
			if r.Error != "" {
				refused++
			}
			n++
		}
		for _, o := range orders {
			bound(t, s, o)
		}
		started += len(orders)
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d mutated requests: %d refused; %d generators would have been started, all bound", all, refused, started)
	if refused < all/2 || started == 0 {
		t.Errorf("%d refused, %d started: the mutations are too wild or too tame", refused, started)
	}
}

// mutate changes a request one to four times.
func mutate(random *rand.Rand, data []byte, others [][]byte) []byte {
	for range 1 + random.IntN(4) {
		if len(data) == 0 {
			return data
		}
		at := random.IntN(len(data))
		to := at + random.IntN(min(len(data)-at, 16)+1)
		switch random.IntN(6) {
		case 0:
			data[at] ^= 1 << random.IntN(8)
		case 1:
			data = slices.Delete(data, at, to)
		case 2:
			data = slices.Insert(data, at, slices.Clone(data[at:to])...)
		case 3:
			data = slices.Insert(data, at, []byte(tokens[random.IntN(len(tokens))])...)
		case 4:
			data = slices.Replace(data, at, to, []byte(tokens[random.IntN(len(tokens))])...)
		case 5:
			o := others[random.IntN(len(others))]
			data = append(data[:at:at], o[random.IntN(len(o)):]...)
		}
	}
	return data
}

// tokens are what JSON and requests are made of.
var tokens = []string{"{", "}", "[", "]", ",", ":", `"`, "null", "true", "-1", "0", "1e999", "18446744073709551616", `"exec:/bin/sh"`, `"bare"`, `"op":"open"`, `"op":"generate"`,
	`"setup":"tun"`, "127.0.0.1", "224.0.0.1", "::ffff:192.0.2.2", `"duration_ns":1`, `"limit":{"bits":0,"packets":0}`, "\x00", "\xff", "\\u0000", " "}

// bound says that a generator is bound by the agent's limits and a key.
func bound(t *testing.T, s *session, o Order) {
	t.Helper()
	var key []byte
	var limit probe.Limit
	switch {
	case o.Serve != nil:
		key, limit = o.Serve.Key, o.Serve.Limit
	case o.Run != nil:
		key, limit = o.Run.Key, o.Run.Limit
		if o.Run.Duration > s.Longest {
			t.Errorf("a test of %s", o.Run.Duration)
		}
	case o.Path != nil:
		key, limit = o.Path.Key, o.Path.Limit
	}
	within := limit.Bits > 0 && limit.Bits <= s.Limit.Bits && limit.Packets > 0 && limit.Packets <= s.Limit.Packets
	if len(key) != probe.KeySize || !within {
		t.Errorf("unbound: %+v", o)
	}
}

// FuzzRequests: whatever a client says, the agent answers, and starts nothing but generators that are bound by its limits and by a key.
func FuzzRequests(f *testing.F) {
	for _, q := range requests() {
		f.Add(say(f, q))
	}
	f.Add([]byte(`{"op":"hello","version":"weft.agent/2"}{"op":"serve"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, greeted := range []bool{false, true} {
			var orders []Order
			s := scripted(t, &orders)
			s.greeted = greeted
			r := s.answer(context.Background(), data)
			if _, err := json.Marshal(r); err != nil {
				t.Errorf("a reply that cannot be sent: %v", err)
			}
			if !greeted && len(orders) > 0 {
				t.Error("started before a word of who is there")
			}
			for _, o := range orders {
				bound(t, s, o)
			}
		}
	})
}
