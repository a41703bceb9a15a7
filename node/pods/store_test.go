package pods

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"weft/api"
)

func open(t *testing.T, file, boot string) *store {
	t.Helper()
	s, err := openStore(file, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func code(err error) string {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// TestNoAddressTwice attaches and detaches at random, with crashes in between, against a plain map.
func TestNoAddressTwice(t *testing.T) {
	file := filepath.Join(t.TempDir(), File)
	s := open(t, file, "b")
	s.db.NoSync = true
	rng := rand.New(rand.NewPCG(1, 2))
	pool := prefixes("10.0.0.0/28", "fd00::/124")
	has := map[netip.Addr]string{}
	held := map[string]*record{}
	for i := range 3000 {
		r := &record{Network: "n", ContainerID: fmt.Sprint(rng.IntN(20)), IfName: "eth0"}
		switch old := held[r.key()]; {
		case rng.IntN(100) == 0: // the process dies and comes back
			s.close()
			s = open(t, file, "b")
			s.db.NoSync = true
		case old != nil:
			if err := s.reserve(r, nil, pool); code(err) != api.CodeExists {
				t.Fatalf("a second time: %v", err)
			}
			if err := s.free(old); err != nil {
				t.Fatal(err)
			}
			for _, a := range old.Addrs {
				delete(has, a)
			}
			delete(held, r.key())
		default:
			err := s.reserve(r, nil, pool)
			if len(held) == 13 { // 16 less the prefix's own, the node's and the broadcast
				if code(err) != api.CodeExhausted || code(s.exhausted(pool)) != api.CodeExhausted {
					t.Fatalf("%d: more pods than addresses: %v", i, err)
				}
				continue
			}
			if err != nil || len(r.Addrs) != 2 || !r.Addrs[0].Is4() || !r.Addrs[1].Is6() {
				t.Fatalf("%d: %v, %v with %d held", i, r.Addrs, err, len(held))
			}
			for _, a := range r.Addrs {
				if other, twice := has[a]; twice {
					t.Fatalf("%s belongs to %q and %q", a, other, r.key())
				}
				switch a.String() {
				case "10.0.0.0", "10.0.0.1", "10.0.0.15", "fd00::", "fd00::1":
					t.Fatalf("%s was given out", a)
				}
				has[a] = r.key()
			}
			held[r.key()] = r
		}
	}
	all, err := s.all()
	if err != nil || len(all) != len(held) {
		t.Errorf("%d are written down, %d are held, %v", len(all), len(held), err)
	}
}

func TestAddressesRest(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), File), "b")
	now := time.Unix(1e9, 0)
	s.now = func() time.Time { return now }
	pool := prefixes("10.0.0.0/29") // .2 to .6
	take := func(id string) *record {
		t.Helper()
		r := &record{Network: "n", ContainerID: id, IfName: "eth0"}
		if err := s.reserve(r, nil, pool); err != nil {
			t.Fatal(err)
		}
		return r
	}
	var order []string
	for i := range 7 { // one pod after the other: no address comes again before all others
		now = now.Add(time.Second)
		r := take(fmt.Sprint(i))
		order = append(order, r.Addrs[0].String())
		if err := s.free(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(order); got != "[10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.2 10.0.0.3]" {
		t.Errorf("given out in the order %s", got)
	}
	now = now.Add(quarantine)
	if a := take("late").Addrs[0].String(); a != "10.0.0.2" && a != "10.0.0.4" && a != "10.0.0.5" && a != "10.0.0.6" {
		t.Errorf("after the rest: %s", a)
	}
}

func TestAskedFor(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), File), "b")
	pool := prefixes("10.0.0.0/24")
	for _, c := range []struct{ addr, code string }{
		{"10.0.0.9", ""}, {"10.0.0.9", api.CodeExists}, {"10.0.1.9", api.CodeNotInPrefix}, {"10.0.0.0", api.CodeNotInPrefix},
		{"10.0.0.1", api.CodeNotInPrefix}, {"10.0.0.255", api.CodeNotInPrefix}, {"fd00::9", api.CodeNotInPrefix},
	} {
		r := &record{Network: "n", ContainerID: c.addr + c.code, IfName: "eth0"}
		err := s.reserve(r, []netip.Addr{netip.MustParseAddr(c.addr)}, pool)
		if code(err) != c.code {
			t.Errorf("%s: %v, want code %q", c.addr, err, c.code)
		}
		if kept, _ := s.get(r.key()); (kept != nil) != (c.code == "") {
			t.Errorf("%s: written down: %v", c.addr, kept)
		}
	}
}

func TestBootForgets(t *testing.T) {
	file := filepath.Join(t.TempDir(), File)
	s := open(t, file, "one")
	r := &record{Network: "n", ContainerID: "c", IfName: "eth0"}
	if err := s.reserve(r, nil, prefixes("10.0.0.0/24")); err != nil {
		t.Fatal(err)
	}
	s.close()
	s = open(t, file, "one")
	if all, err := s.all(); len(all) != 1 || err != nil {
		t.Fatalf("after a restart: %v, %v", all, err)
	}
	s.close()
	if all, err := open(t, file, "two").all(); len(all) != 0 || err != nil {
		t.Errorf("after a boot: %v, %v", all, err)
	}
}

// TestRestoreTakesNothingAway: an address stays with whom it is written down for.
func TestRestoreTakesNothingAway(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), File), "b")
	first := &record{Network: "n", ContainerID: "first", IfName: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}
	for range 2 {
		if refused, err := s.restore(first); len(refused) > 0 || err != nil {
			t.Fatalf("refused %v, %v", refused, err)
		}
	}
	second := &record{Network: "n", ContainerID: "second", IfName: "eth0", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, Result: &api.AttachResult{
		IPs:    []api.PodIP{{Address: netip.MustParsePrefix("10.0.0.2/24")}, {Address: netip.MustParsePrefix("fd00::2/64")}},
		Routes: []api.PodRoute{{Dst: netip.MustParsePrefix("0.0.0.0/0")}, {Dst: netip.MustParsePrefix("::/0")}}}}
	refused, err := s.restore(second)
	if fmt.Sprint(refused) != "[10.0.0.2]" || err != nil {
		t.Errorf("refused %v, %v", refused, err)
	}
	got, err := s.get(second.key())
	if err != nil || fmt.Sprint(got.Addrs) != "[fd00::2]" || len(got.Result.IPs) != 1 || len(got.Result.Routes) != 1 || got.Result.Routes[0].Dst.Addr().Is4() {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.free(second); err != nil {
		t.Fatal(err)
	}
	if err := s.reserve(&record{Network: "n", ContainerID: "third", IfName: "eth0"}, first.Addrs, prefixes("10.0.0.0/24")); code(err) != api.CodeExists {
		t.Errorf("the first one's address: %v", err)
	}
}
