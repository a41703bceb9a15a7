package etcd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"weft/control"
	"weft/control/etcd"
	"weft/internal/nettest"
)

// joined says that the node holds prefixes and sees so many others.
func joined(others int) func(control.State) bool {
	return func(s control.State) bool { return len(s.Self.Prefixes) > 0 && len(s.Nodes) == others }
}

func problem(text string) func(control.State) bool {
	return func(s control.State) bool {
		return slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return strings.Contains(p.Text, text) })
	}
}

func clean(s control.State) bool { return len(s.Problems) == 0 }

func both(a, b func(control.State) bool) func(control.State) bool {
	return func(s control.State) bool { return a(s) && b(s) }
}

// of is a source for one node of several that share a server.
func (s *server) of(name string, change func(*etcd.Settings)) *etcd.Source {
	set := s.settings
	set.Log = zaptest.NewLogger(s.t, zaptest.Level(zap.ErrorLevel)).Named(name)
	if change != nil {
		change(&set)
	}
	return etcd.New(set)
}

// small makes the network one of four IPv4 prefixes.
func small(set *etcd.Settings) { set.Network = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/22")} }

func TestJoin(t *testing.T) {
	s := startServer(t)
	self := node("a", "192.0.2.1", "2001:db8::1")
	self.Features, self.PublicKey = []string{"rco"}, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	a := run(t, s.of("a", nil), self)
	a.await("a alone", joined(0))
	b := run(t, s.of("b", nil), node("b", "192.0.2.2"))
	b.await("b sees a", joined(1))
	a.await("a sees b", joined(1))

	if p := a.last.Self.Prefixes; len(p) != 2 || p[0].Bits() != 24 || p[1].Bits() != 64 {
		t.Errorf("prefixes %v, want a /24 and a /64", p)
	}
	got, want := b.last.Nodes[0], a.last.Self
	if !got.Equal(want) || got.PublicKey != self.PublicKey || got.Features[0] != "rco" || got.MAC != self.MAC {
		t.Errorf("b sees %+v, want %+v", got, want)
	}
	if a.last.AsOf.IsZero() || len(a.last.Problems) > 0 {
		t.Errorf("state %+v", a.last)
	}
	for key, value := range s.keys("/weft/") {
		if !json.Valid([]byte(value)) {
			t.Errorf("%s = %s", key, value)
		}
	}
	if n, ok, err := s.of("", nil).Network(t.Context()); err != nil || !ok || n.VNI != 1 || fmt.Sprint(n.Prefixes()) != fmt.Sprint(s.settings.Network) {
		t.Errorf("network %+v %v %v", n, ok, err)
	}
}

// A daemon that starts again has its prefixes again, with its state directory or without, and even
// where its lease had ended meanwhile.
func TestRestart(t *testing.T) {
	s := startServer(t)
	dir := t.TempDir()
	keep := func(set *etcd.Settings) { set.StateDir = dir }
	start := func(change func(*etcd.Settings)) []netip.Prefix {
		d := run(t, s.of("a", change), node("a", "192.0.2.1"))
		p := d.await("joined", joined(0)).Self.Prefixes
		must(t, d.end())
		return p
	}
	first := start(keep)
	if again := start(keep); !slices.Equal(first, again) {
		t.Errorf("after a restart %v, before %v", again, first)
	}
	if again := start(nil); !slices.Equal(first, again) {
		t.Errorf("with the same address and no state directory %v, before %v", again, first)
	}
	s.delete("/weft/nodes/a")
	s.delete("/weft/prefixes/", clientv3.WithPrefix())
	if again := start(keep); !slices.Equal(first, again) {
		t.Errorf("after the lease ended %v, before %v", again, first)
	}
	must(t, os.WriteFile(filepath.Join(dir, etcd.MemoryFile), []byte("{"), 0o600))
	if again := start(keep); !slices.Equal(first, again) {
		t.Errorf("with a spoilt state directory %v, before %v", again, first)
	}
	if spoilt, err := os.ReadFile(filepath.Join(dir, etcd.MemoryFile+".damaged")); err != nil || string(spoilt) != "{" {
		t.Errorf("what was spoilt is set aside as %q, %v", spoilt, err)
	}
}

// A name belongs to one daemon: a second one waits, forwards nothing, says why, and gets its turn.
func TestNameTaken(t *testing.T) {
	s := startServer(t)
	first := run(t, s.of("a", nil), node("a", "192.0.2.1"))
	first.await("joined", joined(0))
	second := run(t, s.of("a", nil), node("a", "192.0.2.9"))
	second.await("refused", problem("the name a is held by another daemon, at [192.0.2.1]"))
	if len(second.last.Self.Prefixes) > 0 || len(second.last.Nodes) > 0 {
		t.Errorf("a refused node has %+v", second.last)
	}
	must(t, first.end())
	s.delete("/weft/nodes/a")
	second.await("joined", both(joined(0), clean))
}

// What a node announces while it runs the others hear, and it keeps its prefixes; what cannot be announced changes nothing.
func TestAnnounce(t *testing.T) {
	t.Parallel()
	for schema, of := range map[string]func(*etcd.Settings){etcd.SchemaWeft: nil, etcd.SchemaFlannel: flannelSettings} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			a, b := run(t, s.of("a", of), node("a", "192.0.2.1")), run(t, s.of("b", of), node("b", "192.0.2.2"))
			a.await("both", joined(1))
			p := b.await("both", joined(1)).Self.Prefixes
			b.src.Announce(node("b"))
			b.src.Announce(node("b", "192.0.2.22"))
			moved := func(n control.Node) bool {
				return slices.Equal(n.Endpoints, node("b", "192.0.2.22").Endpoints) && slices.Equal(n.Prefixes, p)
			}
			b.await("moved", func(st control.State) bool { return moved(st.Self) && len(st.Nodes) == 1 })
			a.await("b has moved", func(st control.State) bool { return len(st.Nodes) == 1 && moved(st.Nodes[0]) })
			b.src.Announce(node("b"))
			if st := b.await("still there", joined(1)); !moved(st.Self) {
				t.Errorf("without an address %+v", st.Self)
			}
		})
	}
}

// TestPublicKey: a node's own public key is published by itself and put right; one that somebody put there stays where the node has none.
func TestPublicKey(t *testing.T) {
	t.Parallel()
	const own, other = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	for schema, of := range map[string]func(*etcd.Settings){etcd.SchemaWeft: nil, etcd.SchemaFlannel: flannelSettings} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			s := startServer(t)
			a, b := run(t, s.of("a", of), node("a", "192.0.2.1")), run(t, s.of("b", of), node("b", "192.0.2.2"))
			a.await("both", joined(1))
			b.await("both", joined(1))
			published := func(key string) func(control.State) bool {
				return func(st control.State) bool { return len(st.Nodes) == 1 && st.Nodes[0].PublicKey == key }
			}
			edit := func(from, to string) {
				t.Helper()
				list, err := s.client.Get(t.Context(), "/", clientv3.WithPrefix())
				must(t, err)
				for _, kv := range list.Kvs {
					text := string(kv.Value)
					if !strings.Contains(text, `"id"`) || !strings.Contains(text, "192.0.2.2") {
						continue
					}
					if from == "" {
						text = strings.Replace(text, `"owner"`, `"public_key":"`+to+`","owner"`, 1)
					}
					_, err := s.client.Put(t.Context(), string(kv.Key), strings.Replace(text, from, to, min(1, len(from))), clientv3.WithLease(clientv3.LeaseID(kv.Lease)))
					must(t, err)
				}
			}
			edit("", other)
			a.await("what a person wrote", published(other))
			b.await("itself knows", func(st control.State) bool { return st.Self.PublicKey == other })
			self := node("b", "192.0.2.2")
			self.PublicKey = own
			b.src.Announce(self)
			a.await("its own key", published(own))
			edit(own, other)
			b.src.Announce(node("b", "192.0.2.22")) // anything that makes it write
			b.src.Announce(self)
			a.await("is put right", published(own))
		})
	}
}

// Two daemons with one state directory, as a cloned machine has it: the one that came later wins, the
// other stops and says so, and neither fights.
func TestClone(t *testing.T) {
	s := startServer(t)
	dir, copied := t.TempDir(), t.TempDir()
	d := run(t, s.of("a", func(set *etcd.Settings) { set.StateDir = dir }), node("a", "192.0.2.1"))
	p := d.await("joined", joined(0)).Self.Prefixes
	data, err := os.ReadFile(filepath.Join(dir, etcd.MemoryFile))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(copied, etcd.MemoryFile), data, 0o600))
	clone := run(t, s.of("a", func(set *etcd.Settings) { set.StateDir = copied }), node("a", "192.0.2.9"))
	if got := clone.await("joined", joined(0)).Self.Prefixes; !slices.Equal(got, p) {
		t.Errorf("the clone has %v, want %v", got, p)
	}
	d.await("stopped", both(problem("the name a is held by another daemon, at [192.0.2.9]"), func(s control.State) bool { return len(s.Self.Prefixes) == 0 }))
}

// Whose keys are deleted claims them again, and nothing moves; whose prefix is another's by then
// stops, says so, and takes another one.
func TestLoss(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	a := run(t, s.of("a", small), node("a", "192.0.2.1"))
	b := run(t, s.of("b", small), node("b", "192.0.2.2"))
	a.await("both", joined(1))
	b.await("both", joined(1))
	p := a.last.Self.Prefixes
	key := fmt.Sprintf("/weft/prefixes/%v-%d", p[0].Addr(), p[0].Bits())

	s.delete(key)
	nettest.Eventually(t, nettest.Patience, func() error {
		if s.keys(key)[key] == "" {
			return fmt.Errorf("%s is not back", key)
		}
		return nil
	})
	if a.await("still there", joined(1)); !slices.Equal(a.last.Self.Prefixes, p) {
		t.Errorf("prefixes %v, before %v", a.last.Self.Prefixes, p)
	}

	s.put(key, `{"node":"thief","owner":{"id":"t","epoch":1}}`)
	a.await("stopped", func(s control.State) bool { return len(s.Self.Prefixes) == 0 && len(s.Nodes) == 0 })
	if !problem("this node lost " + p[0].String() + " to node thief")(a.last) {
		t.Errorf("problems %+v", a.last.Problems)
	}
	a.await("another prefix", joined(1))
	if slices.Equal(a.last.Self.Prefixes, p) {
		t.Errorf("still %v", p)
	}
	b.await("b sees it", func(s control.State) bool {
		return len(s.Nodes) == 1 && slices.Equal(s.Nodes[0].Prefixes, a.last.Self.Prefixes)
	})
}

// A lease that ended while the node was cut off, and a prefix that went to another one meanwhile.
func TestLeaseEnds(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	short := func(set *etcd.Settings) { small(set); set.Lease = 12 * time.Second }
	a := run(t, s.of("a", short), node("a", "192.0.2.1"))
	p := a.await("joined", joined(0)).Self.Prefixes
	resp, err := s.client.Get(t.Context(), "/weft/nodes/a")
	must(t, err)
	_, err = s.client.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
	must(t, err)
	nettest.Eventually(t, nettest.Patience, func() error {
		if s.keys("/weft/nodes/")["/weft/nodes/a"] == "" {
			return fmt.Errorf("a is not back")
		}
		return nil
	})
	// The node keeps its keys alive: time is added to the lease before it ends.
	resp, err = s.client.Get(t.Context(), "/weft/nodes/a")
	must(t, err)
	lease, least, renewed := clientv3.LeaseID(resp.Kvs[0].Lease), int64(12), 0
	nettest.Eventually(t, time.Minute, func() error {
		left, err := s.client.TimeToLive(t.Context(), lease)
		must(t, err)
		if left.TTL > least {
			renewed++
		}
		if least = left.TTL; least < 0 {
			t.Fatal("the lease has ended")
		}
		if renewed < 2 {
			return fmt.Errorf("renewed %d times, %d s are left", renewed, left.TTL)
		}
		return nil
	})
	if a.await("joined", joined(0)); !slices.Equal(a.last.Self.Prefixes, p) {
		t.Errorf("prefixes %v, before %v", a.last.Self.Prefixes, p)
	}
	must(t, a.end())
	// Once its daemon is gone, so are its keys.
	nettest.Eventually(t, nettest.Patience, func() error {
		if keys := s.keys("/weft/nodes/"); len(keys) > 0 {
			return fmt.Errorf("still %v", keys)
		}
		return nil
	})
}

// etcd gone and back: nothing moves meanwhile, status says it, and nothing moves when it is back.
func TestOutage(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	short := func(set *etcd.Settings) { set.Lease = 9 * time.Second }
	a := run(t, s.of("a", short), node("a", "192.0.2.1"))
	b := run(t, s.of("b", short), node("b", "192.0.2.2"))
	a.await("both", joined(1))
	b.await("both", joined(1))
	before := a.last

	s.kill()
	steady := func(st control.State) bool {
		if !st.Self.Equal(before.Self) || !slices.EqualFunc(st.Nodes, before.Nodes, control.Node.Equal) {
			t.Fatalf("the cluster moved: %+v, before %+v", st, before)
		}
		return true
	}
	st := a.await("alarm", both(steady, problem("does not answer")))
	if st.AsOf.After(time.Now()) || &st.Nodes[0] != &before.Nodes[0] {
		t.Error("the State is not the same with an older date")
	}
	a.await("older than the lease", both(steady, problem("its lease ended at")))
	if a.last.AsOf.After(st.AsOf) {
		t.Error("the data became younger during the outage")
	}
	s.start()
	s.await()
	a.await("all well", both(steady, clean))
	b.await("all well", both(joined(1), clean))
	c := run(t, s.of("c", short), node("c", "192.0.2.3"))
	c.await("c sees both", joined(2))
	a.await("a sees c", joined(2))
}

// Everything deleted, by a fresh data directory or by etcdctl: a clear alarm, forwarding goes on,
// everybody keeps the prefix, and the alarm ends when all are back.
func TestWiped(t *testing.T) {
	t.Parallel()
	for name, wipe := range map[string]func(*server){
		"data directory": func(s *server) { s.kill(); s.wipe(); s.start(); s.await() },
		"etcdctl del":    func(s *server) { s.delete("/weft", clientv3.WithPrefix()) },
	} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t)
			short := func(set *etcd.Settings) { set.Lease = 6 * time.Second }
			quiet := run(t, s.of("quiet", short), node("quiet", "192.0.2.9"))
			nodes := []*daemon{run(t, s.of("a", short), node("a", "192.0.2.1")), run(t, s.of("b", short), node("b", "192.0.2.2"))}
			var before []control.State
			for _, n := range nodes {
				before = append(before, n.await("all", joined(2)))
			}
			must(t, quiet.end())
			wipe(s)
			for i, n := range nodes {
				steady := func(st control.State) bool {
					if !st.Self.Equal(before[i].Self) || !slices.EqualFunc(st.Nodes, before[i].Nodes, control.Node.Equal) {
						t.Fatalf("the cluster moved: %+v, before %+v", st, before[i])
					}
					return true
				}
				n.await("alarm", both(steady, problem("etcd was wiped or restored")))
				n.await("one is missing", both(steady, problem("1 of 2 nodes have not come back")))
			}
			for _, n := range nodes {
				n.await("the one that is gone is dropped", both(joined(1), clean))
			}
			if keys := s.keys("/weft/nodes/"); len(keys) != 2 || s.keys("/weft/network")["/weft/network"] == "" {
				t.Errorf("keys %v", keys)
			}
		})
	}
}

// A watch that falls behind a compaction reads everything again.
func TestCompaction(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	a := run(t, s.of("a", nil), node("a", "192.0.2.1"))
	a.await("joined", joined(0))
	s.kill() // so that a's watch has to resume from before the compaction
	s.start()
	s.await()
	s.put("/weft/nodes/b", `{"endpoints":["192.0.2.2"],"prefixes":["10.244.7.0/24"],"owner":{"id":"b","epoch":1}}`)
	s.put("/weft/prefixes/10.244.7.0-24", `{"node":"b","owner":{"id":"b","epoch":1}}`)
	resp, err := s.client.Get(t.Context(), "x")
	must(t, err)
	_, err = s.client.Compact(t.Context(), resp.Header.Revision)
	must(t, err)
	a.await("b", both(joined(1), clean))
}

// Garbage of any sort names itself, and the others stay.
func TestGarbage(t *testing.T) {
	s := startServer(t)
	a := run(t, s.of("a", nil), node("a", "192.0.2.1"))
	b := run(t, s.of("b", nil), node("b", "192.0.2.2"))
	a.await("both", joined(1))
	b.await("both", joined(1))
	before := a.last
	for key, value := range map[string]string{
		"/weft/nodes/c":                 "not JSON",
		"/weft/nodes/d":                 `{"endpoints":["192.0.2.999"],"prefixes":[]}`,
		"/weft/nodes/e":                 `{"endpoints":["192.0.2.5"],"prefixes":["` + before.Self.Prefixes[0].String() + `"],"owner":{"id":"e"}}`,
		"/weft/nodes/f":                 `{"endpoints":["192.0.2.6"],"mac":"ff:ff:ff:ff:ff:ff"}`,
		"/weft/nodes/g":                 `{"endpoints":["192.0.2.7"],"public_key":"short"}`,
		"/weft/nodes/\x1b[2J":           "{}",
		"/weft/nodes/h/i":               "{}",
		"/weft/nodes/A":                 `{"endpoints":["192.0.2.1","192.0.2.2"],"prefixes":["10.244.0.0/16"],"owner":{"id":"A"}}`,
		"/weft/prefixes/10.244.0.0-16":  `{"node":"A","owner":{"id":"A"}}`,
		"/weft/prefixes/10.244.99.1-24": `{"node":"x"}`,
		"/weft/prefixes/10.244.98.0-24": `[`,
		"/weft/prefixes/nonsense":       `{"node":"x"}`,
		"/weft/else":                    "x",
	} {
		s.put(key, value)
	}
	st := a.await("all are named", func(s control.State) bool {
		for _, name := range []string{"c", "d", "e", "f", "g", "A", ""} {
			if !slices.ContainsFunc(s.Problems, func(p control.Problem) bool { return p.Node == name }) {
				return false
			}
		}
		return true
	})
	if !st.Self.Equal(before.Self) || !slices.EqualFunc(st.Nodes, before.Nodes, control.Node.Equal) {
		t.Errorf("others were harmed: %+v, before %+v", st, before)
	}
	src := s.of("z", small)
	src.Announce(node("z", "192.0.2.26"))
	err := src.Run(t.Context(), func(control.State) {})
	if err == nil || !strings.Contains(err.Error(), "the cluster's network is") {
		t.Errorf("a node of another network joined: %v", err)
	}
}

// Many nodes race for few prefixes: those that there are get one each, the others are told clearly that there is none,
// and one of those gets its turn when a node goes. scripts/test-long has a thousand race for 300.
func TestRace(t *testing.T) {
	nodes, free := 100, 30
	if os.Getenv("WEFT_TEST_LONG") != "" {
		nodes, free = 1000, 300
	}
	s := startServer(t)
	network := control.Network{VNI: 1, Pools: []control.Pool{{Prefix: netip.MustParsePrefix("10.244.0.0/16"), NodeLength: 26}},
		Reservations: map[string][]netip.Prefix{}}
	for i := range 1<<10 - free {
		name := fmt.Sprintf("reserved-%d", i)
		network.Reservations[name] = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 2), byte(i << 6)}), 26)}
	}
	set := s.settings
	set.Network, set.Lease = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, time.Hour
	must(t, etcd.New(set).SetNetwork(t.Context(), network))

	var mu sync.Mutex
	held, refused := map[netip.Prefix]string{}, map[string]string{}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	leave := map[string]context.CancelFunc{}
	for i := range nodes {
		name := fmt.Sprintf("node-%d", i)
		self := node(name, fmt.Sprintf("172.16.%d.%d", i/250, i%250+1))
		src := etcd.New(set).Share(s.client)
		one, end := context.WithCancel(ctx)
		leave[name] = end
		all.Go(func() {
			var had []netip.Prefix
			src.Announce(self)
			err := src.Run(one, func(st control.State) {
				mu.Lock()
				defer mu.Unlock()
				delete(refused, name)
				for _, p := range st.Self.Prefixes {
					if other := held[p]; other != "" && other != name {
						t.Errorf("%v is held by %s and by %s", p, other, name)
					}
					held[p] = name
				}
				if had != nil && !slices.Equal(had, st.Self.Prefixes) {
					t.Errorf("%s had %v and now %v", name, had, st.Self.Prefixes)
				}
				if had = st.Self.Prefixes; len(had) == 0 && len(st.Problems) == 1 && st.Problems[0].Node == name {
					refused[name] = st.Problems[0].Text
				}
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	began := time.Now()
	nettest.Eventually(t, 4*time.Minute, func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(held) != free || len(refused) != nodes-free {
			return fmt.Errorf("%d hold a prefix, %d are refused", len(held), len(refused))
		}
		return nil
	})
	mu.Lock()
	t.Logf("%d joins for %d prefixes: %d held, %d refused, in %v", nodes, free, len(held), len(refused), time.Since(began).Round(time.Millisecond))
	texts := maps.Clone(refused)
	mu.Unlock()
	if keys := s.keys("/weft/prefixes/"); len(keys) != free {
		t.Errorf("%d prefixes in the store", len(keys))
	}
	for name, text := range texts {
		if !strings.Contains(text, "no prefix is free: all 1024 prefixes of 26 bits in 10.244.0.0/16 are held or reserved: remove") {
			t.Fatalf("%s: %q", name, text)
		}
	}

	mu.Lock()
	var gone netip.Prefix
	for p, name := range held {
		leave[name]()
		delete(held, p)
		gone = p
		s.delete("/weft/nodes/" + name)
		s.delete(fmt.Sprintf("/weft/prefixes/%v-%d", p.Addr(), p.Bits()))
		break
	}
	mu.Unlock()
	nettest.Eventually(t, time.Minute, func() error {
		mu.Lock()
		defer mu.Unlock()
		if held[gone] == "" {
			return fmt.Errorf("%v is still free", gone)
		}
		return nil
	})
	cancel()
	all.Wait()
}
