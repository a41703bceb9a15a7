package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"weft/control"
	"weft/internal/config"
	"weft/reach"
)

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func node(name string, number int) control.Node {
	return control.Node{Name: name, Endpoints: []netip.Addr{addr(fmt.Sprintf("192.0.2.%d", number)), addr(fmt.Sprintf("2001:db8::%d", number))},
		Prefixes: []netip.Prefix{prefix(fmt.Sprintf("10.244.%d.0/24", number)), prefix(fmt.Sprintf("fd00:10:244:%d::/64", number))}}
}

// cluster is node a among b and c, with a router of each family at .254 that is believed 198.51.100.0/24 and what is in c's rack.
func cluster() (*Options, *control.State) {
	o := &Options{Node: "a", Network: []netip.Prefix{prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")}, Config: config.BGP{AS: 64512, Mesh: true, Peers: []config.BGPPeer{
		{Address: addr("192.0.2.254"), AS: 64513, MaxPrefixes: 10, Import: []config.Import{{Prefix: prefix("198.51.100.0/24"), Longest: 24}, {Prefix: prefix("10.244.3.0/24"), Longest: 32}}},
		{Address: addr("192.0.2.253"), AS: 64514, Import: []config.Import{{Prefix: prefix("198.51.100.0/24"), Longest: 28}}},
		{Address: addr("192.0.2.77"), AS: 64515, Nodes: []string{"rack2-*"}},
	}}, OnLink: func(a netip.Addr) (string, error) {
		if a == addr("192.0.2.3") {
			return "", errors.New("192.0.2.3 is behind a router")
		}
		return "eth0", nil
	}}
	return o, &control.State{Self: node("a", 1), Nodes: []control.Node{node("b", 2), node("c", 3)}}
}

func TestSessions(t *testing.T) {
	o, s := cluster()
	show := func() (list []string) {
		sessions, problems := o.sessions(s, map[string]string{"": "", "/f": "secret"})
		for _, x := range sorted(sessions) {
			list = append(list, fmt.Sprintf("%s %v-%v as %d %v passive=%v %s", x.node, x.local, x.remote, x.as, x.families(), x.passive, x.password))
		}
		for _, p := range problems {
			list = append(list, p.Text)
		}
		return list
	}
	want := func(lines ...string) {
		t.Helper()
		if got := show(); !slices.Equal(got, lines) {
			t.Errorf("sessions:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
		}
	}
	routers := []string{" 192.0.2.1-192.0.2.253 as 64514 [ipv4] passive=false ", " 192.0.2.1-192.0.2.254 as 64513 [ipv4] passive=false "}
	want(append(routers,
		"b 192.0.2.1-192.0.2.2 as 64512 [ipv4] passive=false ", "b 2001:db8::1-2001:db8::2 as 64512 [ipv6] passive=false ",
		"c 192.0.2.1-192.0.2.3 as 64512 [ipv4] passive=false ", "c 2001:db8::1-2001:db8::3 as 64512 [ipv6] passive=false ")...)

	// IPv4 goes by IPv6 where that is all; the node with the higher address waits for the other.
	s.Nodes[0].Endpoints, s.Nodes[1].Endpoints = []netip.Addr{addr("2001:db8::2")}, []netip.Addr{addr("192.0.2.3")}
	s.Self, s.Nodes = s.Nodes[1], []control.Node{s.Nodes[0], s.Self}
	s.Self.Endpoints = append(s.Self.Endpoints, addr("2001:db8::3"))
	o.Node, o.Config.PasswordFile, o.Config.Peers = "c", "/f", nil
	want("a 192.0.2.3-192.0.2.1 as 64512 [ipv4] passive=true secret", "a 2001:db8::3-2001:db8::1 as 64512 [ipv6] passive=true secret",
		"b 2001:db8::3-2001:db8::2 as 64512 [ipv4 ipv6] passive=true secret")

	// A selector, a family that this node lacks, a node among the peers.
	o, s = cluster()
	o.Node, o.Config.Mesh = "rack2-7", false
	want(append([]string{" 192.0.2.1-192.0.2.77 as 64515 [ipv4] passive=false "}, routers...)...)
	o.Config.Mesh, o.Config.Peers = true, []config.BGPPeer{{Address: addr("192.0.2.2"), AS: 64512}, {Address: addr("192.0.2.1"), AS: 64512}}
	s.Nodes = s.Nodes[:1]
	s.Self.Endpoints = s.Self.Endpoints[:1]
	want("b 192.0.2.1-192.0.2.2 as 64512 [ipv4] passive=false ", "BGP: bgp.peers has this node's own endpoint 192.0.2.2: remove it there, for nodes are peers by themselves, or write bgp.mesh: false")
}

func TestRouterID(t *testing.T) {
	o, s := cluster()
	if id := o.routerID(&s.Self); id != addr("192.0.2.1") {
		t.Errorf("router ID %v", id)
	}
	s.Self.Endpoints = s.Self.Endpoints[1:]
	if a, b := o.routerID(&s.Self), (&Options{Node: "b"}).routerID(&s.Self); !a.Is4() || a == b || a.IsUnspecified() || a.As4()[0] > 223 {
		t.Errorf("router IDs %v and %v", a, b)
	}
	o.Config.RouterID = addr("198.51.100.1")
	if id := o.routerID(&s.Self); id != addr("198.51.100.1") {
		t.Errorf("router ID %v", id)
	}
}

// TestDecide: who is believed what, and who is not and why.
func TestDecide(t *testing.T) {
	o, s := cluster()
	sessions, _ := o.sessions(s, map[string]string{"": ""})
	w := newWorld(o, s, sessions)
	const b, tor, tor2 = "192.0.2.2", "192.0.2.254", "192.0.2.253"
	for _, c := range []struct {
		prefix, via, from string
		wrong             string // a part of it; "" = it is believed
	}{
		{"10.244.2.0/24", b, b, ""},
		{"fd00:10:244:2::/64", "2001:db8::2", "2001:db8::2", ""},
		{"10.244.2.0/24", "2001:db8::2", "2001:db8::2", ""}, // RFC 8950
		{"10.244.2.0/24", "192.0.2.3", b, "no endpoint of b"},
		{"10.244.3.0/24", b, b, "it belongs to c, and b tells of it"},
		{"10.244.3.0/24", "192.0.2.3", "192.0.2.3", "behind a router"},
		{"10.244.1.0/24", b, b, "this node's own"},
		{"10.244.1.128/25", tor, tor, "this node's own"},
		{"10.0.0.0/8", tor, tor, "this node's own"},
		{"0.0.0.0/0", tor, tor, "this node's own"},
		{"10.244.2.0/25", b, b, "b owns 10.244.2.0/24, and prefixes of nodes are told of as they are"},
		{"10.244.2.0/23", b, b, "neither in parts nor together with others"},
		{"10.244.9.0/24", b, b, "no node owns it"},
		{"203.0.113.0/24", b, b, "nodes tell of nodes' prefixes alone"},
		{"10.244.2.0/24", tor, tor, "it belongs to b, and a router is believed a node's prefix only where its import lists it"},
		{"10.244.3.0/24", tor, tor, ""},
		{"10.244.3.0/24", b, tor, "an endpoint of b, which does not own it"},
		{"10.244.3.0/24", "192.0.2.99", tor, "no router of bgp.peers"},
		{"10.244.3.0/24", tor2, tor, ""},
		{"fd00:10:244:2::/64", "192.0.2.2", "2001:db8::2", "IPv6 needs an IPv6 next hop, and 192.0.2.2 is none"}, // told as ::ffff:192.0.2.2
		{"198.51.100.0/24", tor, tor, ""},
		{"198.51.100.0/28", tor, tor, "import does not list it"},
		{"198.51.100.0/28", tor2, tor2, ""},
		{"198.51.100.0/29", tor2, tor2, "import does not list it"},
		{"198.51.0.0/16", tor, tor, "import does not list it"},
		{"198.51.100.0/24", b, tor, "an endpoint of b"},
		{"198.51.100.0/24", tor, "192.0.2.88", "none any more"},
		{"::/0", tor, tor, "this node's own"},
	} {
		wrong := w.wrong(path{prefix: prefix(c.prefix), via: addr(c.via), from: addr(c.from)})
		if (wrong == "") != (c.wrong == "") || !strings.Contains(wrong, c.wrong) {
			t.Errorf("%s via %s from %s: %q, want %q", c.prefix, c.via, c.from, wrong, c.wrong)
		}
	}

	show := func(paths ...path) string {
		slices.Reverse(paths) // the order says nothing
		routes, refused, _ := w.decide(paths)
		var list []string
		for _, r := range routes {
			list = append(list, fmt.Sprintf("%v %s via %v from %v", r.Prefix, r.Node, r.Via, r.From))
		}
		for _, r := range refused {
			list = append(list, fmt.Sprintf("%v from %s refused", r.Prefix, r.From))
		}
		return strings.Join(list, "; ")
	}
	out := func(from string, change ...func(*path)) path {
		p := path{prefix: prefix("198.51.100.0/24"), via: addr(from), from: addr(from), pref: 100, length: 1}
		for _, f := range change {
			f(&p)
		}
		return p
	}
	for _, c := range []struct {
		paths []path
		want  string
	}{
		{[]path{out(tor), out(tor2)}, "198.51.100.0/24  via [192.0.2.253 192.0.2.254] from [192.0.2.253 192.0.2.254]"},
		{[]path{out(tor), out(tor2, func(p *path) { p.length = 2 })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]"},
		{[]path{out(tor), out(tor2, func(p *path) { p.length, p.pref = 5, 200 })}, "198.51.100.0/24  via [192.0.2.253] from [192.0.2.253]"},
		{[]path{out(tor), out(tor2, func(p *path) { p.med = 1 })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]"},
		{[]path{out(tor), out(tor2, func(p *path) { p.origin = 2 })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]"},
		{[]path{out(tor), out(tor2, func(p *path) { p.stale = true })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]"},
		{[]path{out(tor, func(p *path) { p.stale = true })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]"},
		{[]path{out(tor), out(tor, func(p *path) { p.prefix = prefix("10.244.2.0/24") })}, "198.51.100.0/24  via [192.0.2.254] from [192.0.2.254]; 10.244.2.0/24 from 192.0.2.254 refused"},
	} {
		if got := show(c.paths...); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

// TestOutside: of what a broad import lists, nothing is believed that would go before what this node needs; what is shorter than the networks on its links
// takes nothing away.
func TestOutside(t *testing.T) {
	o, s := cluster()
	tor, tor6 := addr("192.0.2.254"), addr("2001:db8::fe")
	everything := []config.Import{{Prefix: prefix("0.0.0.0/1"), Longest: 32}, {Prefix: prefix("128.0.0.0/1"), Longest: 32}, {Prefix: prefix("2000::/3"), Longest: 128}}
	o.Config.Peers = []config.BGPPeer{{Address: tor, AS: 64513, Import: everything}, {Address: tor6, AS: 64513, Import: everything}, {Address: addr("198.51.100.9"), AS: 64512}}
	s.Nodes = append(s.Nodes, control.Node{Name: "far", Endpoints: []netip.Addr{addr("203.0.113.7")}})
	o.Reserved = func() []control.Reserved {
		return []control.Reserved{{Prefix: prefix("192.0.2.0/24"), What: "the network 192.0.2.0/24"}, {Prefix: prefix("2001:db8::/64"), What: "the network 2001:db8::/64"},
			{Prefix: prefix("192.0.2.250/32"), What: "the router 192.0.2.250"}, {Prefix: prefix("8.8.8.8/32"), What: "the name server 8.8.8.8"}}
	}
	sessions, _ := o.sessions(s, map[string]string{"": ""})
	w := newWorld(o, s, sessions)
	for p, want := range map[string]string{
		"192.0.2.0/24":       "it would take away the network 192.0.2.0/24",
		"192.0.2.0/25":       "it would take away the network 192.0.2.0/24",
		"192.0.2.2/32":       "it would take away the network 192.0.2.0/24", // an endpoint of b
		"192.0.2.250/32":     "it would take away the network 192.0.2.0/24",
		"192.0.2.0/23":       "", // the network on the link goes first, for all in it
		"192.0.0.0/8":        "",
		"8.8.8.8/32":         "it would take away the name server 8.8.8.8",
		"8.0.0.0/8":          "it would take away the name server 8.8.8.8",
		"9.0.0.0/8":          "",
		"2001:db8::/64":      "it would take away the network 2001:db8::/64",
		"2001:db8::2/128":    "it would take away the network 2001:db8::/64",
		"2001:db8::/48":      "",
		"203.0.113.0/24":     "", // how far is reached is a router's to say
		"203.0.113.7/32":     "it is an endpoint of far",
		"198.51.100.9/32":    "it is a router of bgp.peers",
		"198.51.100.8/29":    "",
		"2001:db8:0:1::/127": "",
	} {
		from := tor
		if prefix(p).Addr().Is6() {
			from = tor6
		}
		if wrong := w.wrong(path{prefix: prefix(p), via: from, from: from}); wrong != want {
			t.Errorf("%s: %q, want %q", p, wrong, want)
		}
	}
	// A node's prefix is a router's to tell of where it is listed, wherever it lies: what of it goes too far control.State.Spare has left out.
	if wrong := w.wrong(path{prefix: prefix("10.244.2.0/24"), via: tor, from: tor}); wrong != "" {
		t.Error(wrong)
	}
	o.Held = map[netip.Prefix][]netip.Addr{prefix("192.0.2.0/25"): {tor}, prefix("9.0.0.0/8"): {tor}}
	if held := w.held(o.Held, nil); len(held) != 1 || held[0].Prefix != prefix("9.0.0.0/8") {
		t.Errorf("from before: %+v", held)
	}
}

// TestFlood: of very many prefixes that are refused the first are named, and the others counted.
func TestFlood(t *testing.T) {
	o, s := cluster()
	sessions, _ := o.sessions(s, map[string]string{"": ""})
	w := newWorld(o, s, sessions)
	tor := addr("192.0.2.254")
	var paths []path
	for i := range 12345 {
		paths = append(paths, path{prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 24), via: tor, from: tor})
	}
	slices.Reverse(paths)
	paths = append(paths, path{prefix: prefix("198.51.100.0/24"), via: tor, from: tor})
	routes, refused, more := w.decide(paths)
	if len(routes) != 1 || len(refused) != mostRefused || more != 12345-mostRefused || refused[0].Prefix != prefix("20.0.0.0/24") || refused[mostRefused-1].Prefix != prefix("20.3.231.0/24") {
		t.Errorf("%d routes, %d refused, %v to %v, and %d more", len(routes), len(refused), refused[0], refused[len(refused)-1], more)
	}
}

// TestHeld: until the peers have told of all, what was known before counts where nobody has told of it, if it is somebody's to tell of, with next hops
// that are somebody's to tell of.
func TestHeld(t *testing.T) {
	o, s := cluster()
	via := []netip.Addr{addr("192.0.2.9"), addr("192.0.2.253")}
	b := []netip.Addr{addr("192.0.2.2")}
	o.Held = map[netip.Prefix][]netip.Addr{prefix("10.244.2.0/24"): append(b, addr("192.0.2.3"), addr("192.0.2.253")), prefix("10.244.3.0/24"): via, prefix("10.244.9.0/24"): via, prefix("203.0.113.0/24"): via,
		prefix("fd00:10:244:2::/64"): b, prefix("fd00:10:244:3::/64"): {addr("2001:db8::3")}, prefix("10.244.1.0/24"): via}
	two := []netip.Addr{addr("192.0.2.253"), addr("192.0.2.254")}
	o.Held[prefix("198.51.100.0/24")] = two
	o.Held[prefix("2001:db8:1::/48")] = []netip.Addr{addr("2001:db8::fe"), addr("2001:db8::fd")}
	o.Config.Peers = append(o.Config.Peers, config.BGPPeer{Address: addr("2001:db8::fe"), AS: 64513, Import: []config.Import{{Prefix: prefix("2001:db8::/32"), Longest: 48}}})
	told := []reach.Route{{Prefix: prefix("198.51.100.0/24"), Via: two[:1], From: []string{"x"}}}
	show := func(routes []reach.Route) (got []string) {
		for _, r := range routes {
			got = append(got, fmt.Sprintf("%v %q %v %v", r.Prefix, r.Node, r.Via, r.Stale))
		}
		return got
	}
	want := []string{`10.244.2.0/24 "b" [192.0.2.2] true`, `10.244.3.0/24 "c" [192.0.2.253] true`, `198.51.100.0/24 "" [192.0.2.253 192.0.2.254] true`,
		`2001:db8:1::/48 "" [2001:db8::fe] true`, `fd00:10:244:3::/64 "c" [2001:db8::3] true`}
	w := newWorld(o, s, nil)
	if got := show(w.held(o.Held, told)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	told = append(told, reach.Route{Prefix: prefix("10.244.3.0/24"), Node: "c", Via: []netip.Addr{addr("192.0.2.254")}})
	want[1] = `10.244.3.0/24 "c" [192.0.2.254] false`
	if got := show(w.held(o.Held, told)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	speaker := New(*o)
	s.Revision = 1
	if speaker.Update(s); len(speaker.Learnt().Routes) != 5 || speaker.Learnt().Settled {
		t.Errorf("before anything was learnt: %+v", speaker.Learnt())
	}
}

// TestMost: how many prefixes a node may tell of does not follow each that it has, for its session would end each time.
func TestMost(t *testing.T) {
	for has, want := range map[int]int{0: 256, 2: 256, 128: 256, 129: 512, 5000: 16384} {
		if got := most(&control.Node{Prefixes: make([]netip.Prefix, has)}); got != want {
			t.Errorf("of %d: %d, want %d", has, got, want)
		}
	}
}

// TestPending: who is waited for, and how long.
func TestPending(t *testing.T) {
	began := time.Now()
	up := func(after time.Duration, graceful, told bool) reach.Session {
		return reach.Session{Up: true, Since: began.Add(after), Restarts: graceful, Told: told}
	}
	for name, c := range map[string]struct {
		is    reach.Session
		until time.Duration // since the beginning; 0 = not at all
	}{
		"no session":                              {reach.Session{}, usual.peer},
		"one that says when it has told of all":   {up(5*time.Second, true, false), 5*time.Second + usual.peer},
		"one that does not":                       {up(5*time.Second, false, false), 5*time.Second + usual.mute},
		"one that has told of all":                {up(5*time.Second, true, true), 0},
		"one that is there late, and is graceful": {up(19*time.Second, true, false), 39 * time.Second},
	} {
		for _, at := range []time.Duration{0, max(0, c.until-1), c.until, c.until + time.Hour} {
			if got, want := usual.pending(&c.is, began, began.Add(at)), at < c.until; got != want {
				t.Errorf("%s: after %v it is waited for: %v, want %v", name, at, got, want)
			}
		}
	}
	if usual.deferral >= usual.peer || 2*usual.peer > usual.all || restartTime < usual.all {
		t.Errorf("two nodes that have begun anew would lose each other: %+v", usual)
	}
}

// TestWaitedFor: how long what a peer told of counts that is gone.
func TestWaitedFor(t *testing.T) {
	began := time.Now()
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	eor := func(l *life) { l.eor[wire.RF_IPv4_UC] = true }
	for name, c := range map[string]struct {
		heard func(*life)
		want  map[int]bool // seconds after the beginning
	}{
		"gone":                              {func(l *life) { l.begin(at(0)); eor(l); l.end(at(100), "") }, map[int]bool{101: true, 220: true, 221: false}},
		"back, and does not say all":        {func(l *life) { l.begin(at(0)); eor(l); l.end(at(100), ""); l.begin(at(110)) }, map[int]bool{111: true, 170: true, 171: false}},
		"just gone, which is not heard yet": {func(l *life) { l.begin(at(0)); eor(l); l.see(false, at(1)); l.see(true, at(100)) }, map[int]bool{100: true, 101: true}},
		"back, and told all, and just gone again": {func(l *life) {
			l.begin(at(0))
			l.see(false, at(1))
			l.end(at(100), "")
			l.see(true, at(101))
			l.begin(at(110))
			l.see(true, at(111))
			eor(l)
			l.see(false, at(112))
			l.see(true, at(300))
		}, map[int]bool{300: true}},
		"back late": {func(l *life) { l.begin(at(0)); eor(l); l.end(at(100), ""); l.begin(at(230)) }, map[int]bool{231: false}},
		"comes and goes": {func(l *life) {
			l.begin(at(0))
			eor(l)
			l.end(at(100), "")
			for s := 110; s < 220; s += 20 {
				l.begin(at(s))
				l.end(at(s+10), "")
			}
		}, map[int]bool{220: true, 221: false}},
		"gone a second time after a while": {func(l *life) {
			l.begin(at(0))
			l.end(at(100), "")
			l.begin(at(110))
			l.end(at(500), "")
		}, map[int]bool{501: true, 620: true, 621: false}},
	} {
		l := life{eor: map[wire.Family]bool{}}
		c.heard(&l)
		for s, want := range c.want {
			if got := l.waitedFor(at(s)); got != want {
				t.Errorf("%s: after %d s: %v, want %v", name, s, got, want)
			}
		}
	}
}
