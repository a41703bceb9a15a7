package agent

import (
	"context"
	"encoding/json"
	"errors"
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
	if _, err := supported("exec:/bin/sh"); err == nil || !strings.Contains(err.Error(), "runs no programs") {
		t.Errorf("a program from afar: %v", err)
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

// FuzzRequests: whatever a client says, the agent answers, and starts nothing but generators that are bound by its limits and by a key.
func FuzzRequests(f *testing.F) {
	for _, q := range requests() {
		f.Add(say(f, q))
	}
	f.Add([]byte(`{"op":"hello","version":"weft.agent/1"}{"op":"serve"}`))
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
				var key []byte
				var limit probe.Limit
				switch {
				case o.Serve != nil:
					key, limit = o.Serve.Key, o.Serve.Limit
				case o.Run != nil:
					key, limit = o.Run.Key, o.Run.Limit
					if o.Run.Duration > time.Minute {
						t.Errorf("a test of %s", o.Run.Duration)
					}
				case o.Path != nil:
					key, limit = o.Path.Key, o.Path.Limit
				}
				if len(key) != probe.KeySize || limit != s.Limit {
					t.Errorf("unbound: %+v", o)
				}
			}
		}
	})
}
