package control_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"weft/control"
)

var network = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}

// node reads "name endpoint,endpoint prefix,prefix"; "-" is none.
func node(t testing.TB, s string) control.Node {
	t.Helper()
	f := strings.Fields(s)
	n := control.Node{Name: strings.Trim(f[0], "-")}
	for _, a := range strings.Split(f[1], ",") {
		if a != "-" {
			n.Endpoints = append(n.Endpoints, netip.MustParseAddr(a))
		}
	}
	for _, p := range strings.Split(f[2], ",") {
		if p != "-" {
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
		}
	}
	return n
}

func show(n control.Node) string {
	return fmt.Sprintf("%s %s %s", n.Name, strings.Trim(strings.ReplaceAll(fmt.Sprint(n.Endpoints), " ", ","), "[]"),
		strings.Trim(strings.ReplaceAll(fmt.Sprint(n.Prefixes), " ", ","), "[]"))
}

func TestCheck(t *testing.T) {
	const a, b, c = "a 192.0.2.1 10.244.1.0/24", "b 192.0.2.2 10.244.2.0/24", "c 192.0.2.3 10.244.3.0/24"
	for name, tc := range map[string]struct {
		in       []string
		self     string // as left, default a
		nodes    []string
		problems []string // prefixes of "node: text"
		err      string
	}{
		"good":          {in: []string{c, a, b}, nodes: []string{b, c}},
		"alone":         {in: []string{a}},
		"both families": {in: []string{a, "b 2001:db8::2,192.0.2.2 fd00:10:244:2::/64,10.244.2.0/24"}, nodes: []string{"b 2001:db8::2,192.0.2.2 10.244.2.0/24,fd00:10:244:2::/64"}},
		"no family in common": {in: []string{a, "b 2001:db8::2 10.244.2.0/24"}, nodes: []string{"b 2001:db8::2 10.244.2.0/24"},
			problems: []string{"b: none of its endpoints [2001:db8::2] is of an address family that this node has"}},
		"said twice":      {in: []string{a, "b 192.0.2.2,192.0.2.2 10.244.2.0/24,10.244.2.0/24"}, nodes: []string{b}},
		"mapped endpoint": {in: []string{a, "b ::ffff:192.0.2.2 10.244.2.0/24"}, nodes: []string{b}},
		"self missing":    {in: []string{b, c}, nodes: []string{b, c}, err: `this node, "a", is not among the 2 nodes: add it, or set node.name`},
		"no name":         {in: []string{a, b, "- 192.0.2.9 10.244.9.0/24"}, nodes: []string{b}, problems: []string{": the node with endpoints [192.0.2.9] and prefixes [10.244.9.0/24] is left out: a node needs a name"}},
		"bad name":        {in: []string{a, "b\x1b[2J 192.0.2.2 10.244.2.0/24"}, problems: []string{": the node with endpoints"}},
		"name twice": {in: []string{a, b, "b 192.0.2.9 10.244.9.0/24"}, nodes: []string{b},
			problems: []string{"b: the name is used by two nodes; the one with [10.244.9.0/24] is left out, the one with [10.244.2.0/24] kept"}},
		"no endpoint": {in: []string{a, "b - 10.244.2.0/24"}, problems: []string{"b: the node is left out, it has no usable endpoint"}},
		"no prefix":   {in: []string{a, "b 192.0.2.2 -"}, problems: []string{"b: the node is left out, it has no usable prefix"}},
		"bad endpoints": {in: []string{a, "b 0.0.0.0,127.0.0.1,224.0.0.1,fe80::1%eth0,fe80::1,255.255.255.255,192.0.2.2 10.244.2.0/24"}, nodes: []string{b},
			problems: []string{"b: endpoint 0.0.0.0 cannot", "b: endpoint 127.0.0.1 cannot", "b: endpoint 224.0.0.1 cannot", "b: endpoint 255.255.255.255 cannot", "b: endpoint fe80::1 cannot", "b: endpoint fe80::1%eth0 has a zone"}},
		"endpoint twice": {in: []string{a, b, "c 192.0.2.2 10.244.3.0/24"}, nodes: []string{b},
			problems: []string{"c: endpoint 192.0.2.2 belongs to node b already", "c: the node is left out, it has no usable endpoint"}},
		"endpoint shared by one of two": {in: []string{a, b, "c 192.0.2.2,192.0.2.3 10.244.3.0/24"}, nodes: []string{b, c}, problems: []string{"c: endpoint 192.0.2.2 belongs"}},
		"a node left out claims nothing": {in: []string{a, "aa 192.0.2.2 -", "b 192.0.2.2 10.244.2.0/24"}, nodes: []string{b},
			problems: []string{"aa: the node is left out, it has no usable prefix"}},
		"outside":   {in: []string{a, "b 192.0.2.2 10.245.0.0/24,10.244.2.0/24"}, nodes: []string{b}, problems: []string{"b: prefix 10.245.0.0/24 is outside the network"}},
		"too wide":  {in: []string{a, "b 192.0.2.2 10.0.0.0/8"}, problems: []string{"b: prefix 10.0.0.0/8 is outside", "b: the node is left out"}},
		"host bits": {in: []string{a, "b 192.0.2.2 10.244.2.1/24"}, problems: []string{"b: prefix 10.244.2.1/24 has bits set behind its length: write 10.244.2.0/24", "b: the node"}},
		"same prefix": {in: []string{a, b, "c 192.0.2.3 10.244.2.0/24"}, nodes: []string{b},
			problems: []string{"c: prefix 10.244.2.0/24 is left out, it overlaps 10.244.2.0/24 of node b", "c: the node is left out"}},
		"a wide claim harms itself": {in: []string{"a 192.0.2.1 10.244.0.0/16,10.244.1.0/24", b, c}, nodes: []string{b, c}, self: a,
			problems: []string{"a: prefix 10.244.0.0/16 is left out, it overlaps 10.244.3.0/24 of node c"}},
		"nested thrice": {in: []string{a, "b 192.0.2.2 10.244.2.0/23", "c 192.0.2.3 10.244.2.0/24", "d 192.0.2.4 10.244.2.128/25"}, nodes: []string{"c 192.0.2.3 10.244.2.0/24"},
			problems: []string{"b: prefix", "b: the node", "d: prefix 10.244.2.128/25 is left out, it overlaps 10.244.2.0/24 of node c", "d: the node"}},
		"a narrow claim harms itself": {in: []string{a, "0 192.0.2.9 10.244.1.128/25", "b 192.0.2.2 10.244.2.0/24"}, nodes: []string{b},
			problems: []string{"0: prefix 10.244.1.128/25 is left out, it overlaps 10.244.1.0/24 of node a", "0: the node"}},
		"one of two lines": {in: []string{a, "0 192.0.2.9 10.244.1.128/25"},
			problems: []string{"0: prefix 10.244.1.128/25 is left out", "0: the node"}},
		"endpoint inside the network": {in: []string{a, "b 10.244.9.9 10.244.2.0/24", "c 192.0.2.3,fd00:10:244::3 10.244.3.0/24"}, nodes: []string{c},
			problems: []string{"b: endpoint 10.244.9.9 is inside the network 10.244.0.0/16", "b: the node is left out", "c: endpoint fd00:10:244::3 is inside"}},
		"self loses": {in: []string{"a 192.0.2.1 10.244.0.0/16", b}, nodes: []string{b}, self: "none",
			problems: []string{"a: prefix 10.244.0.0/16", "a: the node"},
			err:      `this node, "a", is left out: prefix 10.244.0.0/16 is left out, it overlaps 10.244.2.0/24 of node b: give each its own; the node is left out`},
	} {
		t.Run(name, func(t *testing.T) {
			var in []control.Node
			for _, s := range tc.in {
				in = append(in, node(t, s))
			}
			before := fmt.Sprint(in)
			s, err := control.Check("a", network, in, control.State{}, nil)
			if fmt.Sprint(in) != before {
				t.Error("the nodes it was given changed")
			}
			if err != nil && (tc.err == "" || !strings.Contains(err.Error(), tc.err)) || err == nil && tc.err != "" {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if want := map[bool]string{true: a, false: tc.self}[tc.self == ""]; err == nil && show(s.Self) != want {
				t.Errorf("self %q, want %q", show(s.Self), want)
			}
			var nodes, problems []string
			for _, n := range s.Nodes {
				nodes = append(nodes, show(n))
			}
			for _, p := range s.Problems {
				problems = append(problems, p.Node+": "+p.Text)
			}
			if !slices.Equal(nodes, tc.nodes) {
				t.Errorf("nodes %q, want %q", nodes, tc.nodes)
			}
			if len(problems) != len(tc.problems) {
				t.Fatalf("problems %q, want %q", problems, tc.problems)
			}
			for i := range problems {
				if !strings.HasPrefix(problems[i], tc.problems[i]) {
					t.Errorf("problem %q, want %q", problems[i], tc.problems[i])
				}
			}
		})
	}
}

// randomNodes makes clusters full of quarrels: few names, few addresses, prefixes of all lengths.
func randomNodes(r *rand.Rand) []control.Node {
	nodes := make([]control.Node, r.IntN(12))
	for i := range nodes {
		n := control.Node{Name: string(rune('a' + r.IntN(10)))}
		for range r.IntN(3) {
			n.Endpoints = append(n.Endpoints, netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(12))}))
		}
		for range r.IntN(4) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(r.IntN(4)), byte(r.IntN(2) * 128)}), 16+r.IntN(10))
			if r.IntN(8) > 0 {
				p = p.Masked()
			}
			n.Prefixes = append(n.Prefixes, p)
		}
		nodes[i] = n
	}
	return nodes
}

// What a State promises, whatever a source read.
func TestCheckProperties(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := randomNodes(r)
		s, err := control.Check("a", network, nodes, control.State{}, nil)
		holds(t, s, err)

		shuffled := slices.Clone(nodes)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if s2, err2 := control.Check("a", network, shuffled, control.State{}, nil); !reflect.DeepEqual(s, s2) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Fatalf("the order of the nodes matters:\n%+v\n%+v", s, s2)
		}
		// Another node must see the same cluster.
		sb, _ := control.Check("b", network, nodes, control.State{}, nil)
		if !reflect.DeepEqual(all(s), all(sb)) {
			t.Fatalf("a and b disagree:\n%+v\n%+v", all(s), all(sb))
		}
		// What was kept is beyond reproach.
		again, err := control.Check("a", network, all(s), control.State{}, nil)
		if len(again.Problems) > 0 || !reflect.DeepEqual(all(again), all(s)) {
			t.Fatalf("second thoughts: %+v, %v", again, err)
		}
	}
}

func all(s control.State) []control.Node {
	nodes := slices.Clone(s.Nodes)
	if s.Self.Name != "" {
		nodes = append(nodes, s.Self)
	}
	slices.SortFunc(nodes, func(a, b control.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes
}

func holds(t *testing.T, s control.State, err error) {
	t.Helper()
	if (err == nil) != (s.Self.Name == "a") {
		t.Fatalf("error %v with self %q", err, s.Self.Name)
	}
	names, endpoints := map[string]bool{}, map[netip.Addr]bool{}
	var prefixes []netip.Prefix
	for _, n := range all(s) {
		if names[n.Name] || n.Name == "" || len(n.Endpoints) == 0 || len(n.Prefixes) == 0 {
			t.Fatalf("node %+v in %+v", n, s)
		}
		names[n.Name] = true
		for _, e := range n.Endpoints {
			if endpoints[e] {
				t.Fatalf("endpoint %v twice in %+v", e, s)
			}
			endpoints[e] = true
		}
		for _, p := range n.Prefixes {
			for _, q := range prefixes {
				if p.Overlaps(q) {
					t.Fatalf("%v overlaps %v in %+v", p, q, s)
				}
			}
			prefixes = append(prefixes, p)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(uint64(1), "a", "10.244.1.0/24", "192.0.2.1")
	f.Add(uint64(2), "\x00", "::/0", "fe80::1%x")
	f.Add(uint64(3), "b", "::ffff:10.244.1.0/120", "::ffff:192.0.2.1")
	f.Fuzz(func(t *testing.T, seed uint64, name, prefix, endpoint string) {
		nodes := randomNodes(rand.New(rand.NewPCG(seed, 2)))
		p, _ := netip.ParsePrefix(prefix)
		a, _ := netip.ParseAddr(endpoint)
		nodes = append(nodes, control.Node{Name: name, Prefixes: []netip.Prefix{p}, Endpoints: []netip.Addr{a}})
		s, err := control.Check("a", network, nodes, control.State{}, nil)
		holds(t, s, err)
	})
}

// TestStations: a VTEP MAC or a public key is one node's.
func TestStations(t *testing.T) {
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	a, b, c := node(t, "a 192.0.2.1 10.244.1.0/24"), node(t, "b 192.0.2.2 10.244.2.0/24"), node(t, "c 192.0.2.3 10.244.3.0/24")
	for name, tc := range map[string]struct {
		claim func() // by c, of what is b's
		left  string
	}{
		"no quarrel":          {func() {}, "[b c]"},
		"an announced MAC":    {func() { b.MAC = control.MAC{2, 1}; c.MAC = control.MAC{2, 1} }, "[b]"},
		"a MAC of a name":     {func() { c.MAC = control.VTEPMAC("b") }, "[b]"},
		"a public key":        {func() { b.PublicKey, c.PublicKey = key, key }, "[b]"},
		"MAC and key at once": {func() { b.PublicKey, c.PublicKey, c.MAC = key, key, control.VTEPMAC("b") }, "[b]"},
	} {
		t.Run(name, func(t *testing.T) {
			b.MAC, b.PublicKey, c.MAC, c.PublicKey = control.MAC{}, "", control.MAC{}, ""
			tc.claim()
			x := control.NewIndex([]control.Node{a, b})
			if fits := x.Fits(c); fits != (tc.left == "[b c]") {
				t.Errorf("it fits: %v", fits)
			}
			s, err := control.Check("a", network, []control.Node{c, a, b}, control.State{}, nil)
			var left []string
			for _, n := range s.Nodes {
				left = append(left, n.Name)
			}
			if err != nil || fmt.Sprint(left) != tc.left || (len(s.Problems) == 1) != (len(left) == 1) {
				t.Errorf("left are %v, problems %v, %v; want %s", left, s.Problems, err, tc.left)
			}
		})
	}
}

// elders is a cluster in order, and an Elder that knows that it was there before all others.
func elders(r *rand.Rand) ([]control.Node, control.Elder) {
	var nodes []control.Node
	for i := range 1 + r.IntN(6) {
		bits := 20 + r.IntN(9)
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i) << 4, byte(r.IntN(256))}), bits).Masked()
		n := control.Node{Name: "m" + string(rune('0'+i)), Prefixes: []netip.Prefix{p}, Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}}
		if r.IntN(2) == 0 {
			n.MAC, n.PublicKey = control.MAC{2, byte(i)}, fmt.Sprint("key", i)
		}
		nodes = append(nodes, n)
	}
	return nodes, func(a, b control.Claim) int {
		old := func(c control.Claim) int {
			for _, n := range nodes {
				if n.Name == c.Node.Name && n.Equal(*c.Node) || n.Name == c.Node.Name && (c.Prefix.IsValid() || c.Endpoint.IsValid()) && n.MAC == c.Node.MAC {
					return 0
				}
			}
			return 1
		}
		return old(a) - old(b)
	}
}

// nobodyIsHarmed says that whatever comes later takes nothing from those who are there.
func nobodyIsHarmed(t *testing.T, seed uint64, more ...control.Node) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	old, elder := elders(r)
	junk := append(randomNodes(r), more...)
	for i := range junk { // claims on what others have, of every kind
		victim := old[r.IntN(len(old))]
		switch r.IntN(6) {
		case 0:
			junk[i].MAC = victim.VTEP()
		case 1:
			junk[i].PublicKey = victim.PublicKey
		case 2:
			junk[i].Endpoints = append(junk[i].Endpoints, victim.Endpoints...)
		case 3:
			p := victim.Prefixes[0]
			junk[i].Prefixes = append(junk[i].Prefixes, netip.PrefixFrom(p.Addr(), 16+r.IntN(17)).Masked(), p)
		case 4:
			junk[i].Name = victim.Name
			junk[i].MAC = control.MAC{2, 99} // so that it is not the victim itself
		}
	}
	nodes := append(slices.Clone(junk), old...)
	r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	s, err := control.Check("m0", network, nodes, control.State{}, elder)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	for _, want := range old {
		if i := slices.IndexFunc(all(s), func(n control.Node) bool { return n.Equal(want) }); i < 0 {
			t.Fatalf("seed %d: %+v is not what it was among\n%+v\nby\n%+v", seed, want, all(s), junk)
		}
	}
}

// TestNobodyIsHarmed: no set of claims takes away what somebody had before.
func TestNobodyIsHarmed(t *testing.T) {
	for seed := range uint64(3000) {
		nobodyIsHarmed(t, seed)
	}
}

func FuzzNobodyIsHarmed(f *testing.F) {
	f.Add(uint64(1), "a", "10.244.1.0/24", "192.0.2.1", []byte{2})
	f.Fuzz(func(t *testing.T, seed uint64, name, prefix, endpoint string, mac []byte) {
		p, _ := netip.ParsePrefix(prefix)
		a, _ := netip.ParseAddr(endpoint)
		n := control.Node{Name: name, Prefixes: []netip.Prefix{p}, Endpoints: []netip.Addr{a}}
		copy(n.MAC[:], mac)
		if strings.HasPrefix(name, "m") {
			return // the settled ones' names are the elder's to tell apart
		}
		nobodyIsHarmed(t, seed, n)
	})
}

// TestIncumbent: what the last State granted goes before age, for every kind of claim; what it knows nothing of goes by age.
func TestIncumbent(t *testing.T) {
	const old, young, self = "old 192.0.2.1 10.244.1.0/24", "young 192.0.2.2 10.244.2.0/24", "self 192.0.2.3 10.244.3.0/24"
	sealed := func(text, key string) control.Node {
		n := node(t, text)
		n.PublicKey = key
		return n
	}
	elder := func(a, b control.Claim) int { return strings.Compare(a.Node.Name, b.Node.Name) } // "old" is the eldest
	for name, claims := range map[string]control.Node{
		"endpoint":       sealed("old 192.0.2.2 10.244.1.0/24", "old's"),
		"two endpoints":  sealed("old 192.0.2.2,192.0.2.1 10.244.1.0/24", "old's"),
		"public key":     sealed(old, "young's"),
		"prefix":         sealed("old 192.0.2.1 10.244.2.0/24", "old's"),
		"a wider prefix": sealed("old 192.0.2.1 10.244.0.0/22", "old's"),
		"MAC": func() control.Node {
			n := sealed(old, "old's")
			n.MAC = control.VTEPMAC("young")
			return n
		}(),
		"all":    sealed("old 192.0.2.2,192.0.2.3 10.244.2.0/24,10.244.3.0/24", "young's"),
		"self's": sealed("old 192.0.2.3 10.244.3.0/24", "old's"),
	} {
		t.Run(name, func(t *testing.T) {
			before := []control.Node{sealed(old, "old's"), sealed(young, "young's"), sealed(self, "self's")}
			last, err := control.Check("self", network, before, control.State{}, elder)
			if err != nil || len(last.Problems) > 0 {
				t.Fatal(err, last.Problems)
			}
			now := []control.Node{claims, before[1], before[2]}
			s, err := control.Check("self", network, now, last, elder)
			if err != nil || len(s.Problems) == 0 || !s.Self.Equal(last.Self) || !slices.ContainsFunc(s.Nodes, before[1].Equal) {
				t.Errorf("%+v, %v; want self and young as they were", s, err)
			}
			for range 2 { // nor later
				if s, err = control.Check("self", network, now, s, elder); err != nil || !slices.ContainsFunc(s.Nodes, before[1].Equal) {
					t.Errorf("later %+v, %v", s, err)
				}
			}
			// Who starts has no past; nor has a node that waits for what it would be granted.
			for _, none := range []control.State{{}, {Self: control.Node{Name: "young", Endpoints: before[1].Endpoints, PublicKey: "young's"}}} {
				s, _ = control.Check("young", network, now[:2], none, elder)
				if young := slices.ContainsFunc(all(s), before[1].Equal); young != (name == "self's") {
					t.Errorf("at a start young is as it was: %v, in %+v", young, s)
				}
			}
		})
	}
}

// TestNobodyIsHarmedByElders: whatever others claim who were there before, all that was granted stays.
func TestNobodyIsHarmedByElders(t *testing.T) {
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 4))
		settled, elder := elders(r)
		last, err := control.Check("m0", network, settled, control.State{}, elder)
		if err != nil || len(last.Problems) > 0 {
			t.Fatal(seed, err, last.Problems)
		}
		now := slices.Clone(settled)
		turned := r.IntN(len(now))
		for i := range now { // one of them claims what others have
			if i == turned {
				continue
			}
			switch victim := now[i]; r.IntN(5) {
			case 0:
				now[turned].MAC = victim.VTEP()
			case 1:
				now[turned].PublicKey = victim.PublicKey
			case 2:
				now[turned].Endpoints = append(slices.Clone(victim.Endpoints), now[turned].Endpoints...)
			case 3:
				now[turned].Prefixes = append(slices.Clone(victim.Prefixes), now[turned].Prefixes...)
			}
		}
		eldest := func(a, b control.Claim) int { // the one that turned
			rank := map[bool]int{true: 0, false: 1}
			return rank[a.Node.Name == now[turned].Name] - rank[b.Node.Name == now[turned].Name]
		}
		s, _ := control.Check("m0", network, now, last, eldest)
		for i, want := range settled {
			if i != turned && !slices.ContainsFunc(all(s), want.Equal) {
				t.Fatalf("seed %d: %+v is not what it was among\n%+v\nby\n%+v", seed, want, all(s), now[turned])
			}
		}
	}
}
