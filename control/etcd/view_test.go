package etcd

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"

	"weft/control"
)

// TestClaims: who was there first has it, and a claim off the network's cut is nobody's.
func TestClaims(t *testing.T) {
	const a, b = "a 192.0.2.1 10.244.1.0/24", "b 192.0.2.2 10.244.2.0/24"
	for name, c := range map[string]struct {
		keys []string // "node ENDPOINT PREFIX,…" in the order in which they came; "!" = no claim is written
		want string   // node and prefixes of all but self
		odd  int      // problems
	}{
		"in order":                       {[]string{a, b}, "b [10.244.2.0/24]", 0},
		"a narrower claim":               {[]string{a, b, "0 192.0.2.9 10.244.2.128/25"}, "b [10.244.2.0/24]", 2},
		"a wider claim":                  {[]string{a, b, "0 192.0.2.9 10.244.0.0/16"}, "b [10.244.2.0/24]", 2},
		"even an elder one off the cut":  {[]string{"0 192.0.2.9 10.244.2.128/25", a, b}, "b [10.244.2.0/24]", 2},
		"and one that has another, too":  {[]string{a, b, "c 192.0.2.3 10.244.3.0/24,10.244.2.0/23"}, "b [10.244.2.0/24] c [10.244.3.0/24]", 1},
		"an endpoint":                    {[]string{a, b, "0 192.0.2.2 10.244.3.0/24"}, "b [10.244.2.0/24]", 2},
		"of two families, one off":       {[]string{a, b, "c 192.0.2.3 10.244.3.0/24,fd00:10:244:3::/80"}, "b [10.244.2.0/24] c [10.244.3.0/24]", 1},
		"a prefix that nobody granted":   {[]string{a, b, "!0 192.0.2.9 10.244.2.0/24"}, "b [10.244.2.0/24]", 2},
		"the younger name sorts first":   {[]string{b, a, "0 192.0.2.1 10.244.7.0/24"}, "b [10.244.2.0/24]", 2},
		"an address inside the network":  {[]string{a, b, "0 10.244.9.9 10.244.9.0/24"}, "b [10.244.2.0/24]", 2},
		"what is missing harms nobody":   {[]string{a, b, "!c 192.0.2.3 10.244.3.0/24"}, "b [10.244.2.0/24]", 2},
		"another's station by its MAC":   {[]string{a, b, "0 192.0.2.9 10.244.9.0/24 b"}, "b [10.244.2.0/24]", 1},
		"another's station, self's MAC":  {[]string{a, b, "0 192.0.2.9 10.244.9.0/24 a"}, "b [10.244.2.0/24]", 1},
		"its own MAC among all of these": {[]string{a, b, "0 192.0.2.9 10.244.9.0/24 0"}, "0 [10.244.9.0/24] b [10.244.2.0/24]", 0},
	} {
		t.Run(name, func(t *testing.T) {
			network := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
			src := New(Settings{Network: network, VNI: 1, Log: zap.NewNop()})
			v := newView(src.schema)
			v.pools = []control.Pool{control.NewPool(network[0]), control.NewPool(network[1])}
			m := &member{Source: src, self: control.Node{Name: "a"}, memory: &memory{}, view: v, update: func(control.State) {}}
			rev := int64(0)
			put := func(key string, value any) {
				data, err := json.Marshal(value)
				if err != nil {
					t.Fatal(err)
				}
				if rev++; v.entries[key] == nil { // a claim stays its first owner's
					v.put(&mvccpb.KeyValue{Key: []byte(key), Value: data, CreateRevision: rev, ModRevision: rev})
				}
			}
			for _, text := range c.keys {
				claims := text[0] != '!'
				if !claims {
					text = text[1:]
				}
				var name, endpoint, prefixes, mac string
				fmt.Sscan(text, &name, &endpoint, &prefixes, &mac)
				n := control.Node{Name: name, Endpoints: []netip.Addr{netip.MustParseAddr(endpoint)}}
				if mac != "" {
					n.MAC = control.VTEPMAC(mac)
				}
				for _, p := range strings.Split(prefixes, ",") {
					n.Prefixes = append(n.Prefixes, netip.MustParsePrefix(p))
				}
				by := owner{ID: "of " + name, Epoch: 1}
				put("/weft/nodes/"+name, ownNode{n.Endpoints, n.Prefixes, n.VTEP().String(), nil, nil, "", by})
				for _, p := range n.Prefixes {
					if claims {
						put("/weft/prefixes/"+dashed(p), ownPrefix{name, by})
					}
				}
				if name == "a" {
					m.grant = grant{node: n, mod: rev}
				}
			}
			s := m.state()
			got := ""
			for _, n := range s.Nodes {
				got += fmt.Sprint(" ", n.Name, " ", n.Prefixes)
			}
			if got != " "+c.want || len(s.Problems) != c.odd || !slices.Equal(s.Self.Prefixes, m.grant.node.Prefixes) {
				t.Errorf("nodes%s, self %v, problems %v; want %s and %d", got, s.Self.Prefixes, s.Problems, c.want, c.odd)
			}
		})
	}
}
