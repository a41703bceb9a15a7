package etcd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"weft/control"
)

// Whatever happens in whatever order, a State made of the last one and of what changed is the State
// made of everything.
func TestPatched(t *testing.T) {
	for _, schema := range []string{SchemaWeft, SchemaFlannel} {
		t.Run(schema, func(t *testing.T) {
			patched := 0
			for seed := range uint64(300) {
				patched += scramble(t, schema, rand.New(rand.NewPCG(seed, 1)))
			}
			if patched < 1000 {
				t.Errorf("only %d States were patched: the test tests little", patched)
			}
		})
	}
}

// scramble makes random changes and returns how many States were made without a look at everything.
func scramble(t *testing.T, schema string, r *rand.Rand) (patched int) {
	network := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	src := New(Settings{Schema: schema, Network: network, VNI: 1, Log: zap.NewNop()})
	self := control.Node{Name: "n3", Endpoints: []netip.Addr{netip.MustParseAddr("192.0.2.3")}, MAC: control.VTEPMAC("n3")}
	var last control.State
	m := &member{Source: src, self: self, memory: &memory{}, view: newView(src.schema), update: func(s control.State) { last = s }}
	m.grant.node = with(self, []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")})
	rev := int64(1)
	put := func(key, value string) {
		create := rev
		if e := m.view.entries[key]; e != nil {
			create = e.create
		}
		m.view.put(&mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: create, ModRevision: rev, Lease: 1})
	}
	join := func(n control.Node, wrong int) {
		values, err := src.schema.values(n, owner{ID: n.Name, Epoch: 1})
		if err != nil {
			return
		}
		for i, key := range src.schema.keys(n) {
			switch wrong {
			case i:
				continue // a key is missing
			case i + 10:
				values[i] = "garbage"
			}
			put(key, values[i])
		}
	}
	for range 60 {
		rev++
		i := r.IntN(8)
		n := control.Node{Name: fmt.Sprintf("n%d", i), Endpoints: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})},
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24)}, Features: []string{fmt.Sprint(r.IntN(2))}}
		wrong := -1
		switch r.IntN(24) {
		case 0:
			n.Endpoints[0] = netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(8))})
		case 1:
			n.Prefixes[0] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(r.IntN(8)), 0}), 24+r.IntN(2))
		case 2:
			n.Prefixes[0] = netip.MustParsePrefix("10.244.0.0/17")
		case 3:
			n.Prefixes[0] = netip.MustParsePrefix("10.9.0.0/24")
		case 4:
			wrong = r.IntN(2)
		case 5:
			wrong = 10 + r.IntN(2)
		case 6:
			n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", i)))
		case 7:
			n.Endpoints = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		}
		if r.IntN(3) == 0 {
			for key, e := range m.view.entries {
				if e.name == n.Name || e.wrong != "" {
					m.view.remove(key)
				}
			}
		} else {
			join(n, wrong)
		}
		if r.IntN(3) == 0 {
			continue // several changes for one State
		}
		before := m.last
		if m.index != nil && !m.view.whole {
			patched++
		}
		m.publish()
		fresh := &member{Source: src, self: self, memory: &memory{}, view: m.view, grant: m.grant, last: before}
		want := fresh.state()
		if !last.Self.Equal(want.Self) || !slices.EqualFunc(last.Nodes, want.Nodes, control.Node.Equal) || !reflect.DeepEqual(sorted(last.Problems), sorted(want.Problems)) {
			t.Fatalf("published %+v\nwant      %+v", last, want)
		}
	}
	return patched
}

// sorted leaves out the order of problems, and that none can be written in two ways.
func sorted(problems []control.Problem) []string {
	words := []string{}
	for _, p := range problems {
		words = append(words, p.Node+": "+p.Text)
	}
	slices.Sort(words)
	return words
}
