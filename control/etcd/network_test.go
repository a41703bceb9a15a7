package etcd_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"weft/control"
	"weft/control/etcd"
)

// What is set is what is shown and what nodes get; what would take a node's prefix away is refused.
func TestNetwork(t *testing.T) {
	s := startServer(t)
	src := s.of("", nil)
	if _, ok, err := src.Network(t.Context()); ok || err != nil {
		t.Fatalf("an empty store has a network: %v %v", ok, err)
	}
	n := control.Network{VNI: 1, Reservations: map[string][]netip.Prefix{"a": {netip.MustParsePrefix("10.244.5.0/25")}}}
	for _, p := range s.settings.Network {
		n.Pools = append(n.Pools, control.NewPool(p))
	}
	n.Pools[0].NodeLength = 25
	must(t, src.SetNetwork(t.Context(), n))
	if got, ok, err := src.Network(t.Context()); err != nil || !ok || fmt.Sprint(got) != fmt.Sprint(n) {
		t.Errorf("got %+v %v %v, want %+v", got, ok, err, n)
	}
	a := run(t, s.of("a", nil), node("a", "192.0.2.1"))
	if st := a.await("joined", joined(0)); st.Self.Prefixes[0].String() != "10.244.5.0/25" {
		t.Errorf("prefixes %v, 10.244.5.0/25 is reserved", st.Self.Prefixes)
	}

	change := func(edit func(*control.Network)) control.Network {
		c := n
		c.Pools = append([]control.Pool(nil), n.Pools...)
		c.Reservations = nil
		edit(&c)
		return c
	}
	for want, c := range map[string]control.Network{
		"VNI 0 is out of range": change(func(c *control.Network) { c.VNI = 0 }),
		"has no prefix":         change(func(c *control.Network) { c.Pools = nil }),
		"overlaps":              change(func(c *control.Network) { c.Pools[1] = c.Pools[0] }),
		"does not fit":          change(func(c *control.Network) { c.Pools[0].NodeLength = 8 }),
		"has more than 2^32":    change(func(c *control.Network) { c.Pools[1].NodeLength = 128 }),
		"node a holds 10.244.5.0/25, which is not": change(func(c *control.Network) { c.Pools[0].NodeLength = 24 }),
		"node a holds 10.244.5.0/25: reserve another prefix for b": change(func(c *control.Network) {
			c.Reservations = map[string][]netip.Prefix{"b": {netip.MustParsePrefix("10.244.5.0/25")}}
		}),
		"is not one of the network's node prefixes": change(func(c *control.Network) {
			c.Reservations = map[string][]netip.Prefix{"b": {netip.MustParsePrefix("10.244.5.0/24")}}
		}),
		"is reserved for b and for c": change(func(c *control.Network) {
			p := []netip.Prefix{netip.MustParsePrefix("10.244.6.0/25")}
			c.Reservations = map[string][]netip.Prefix{"b": p, "c": p}
		}),
	} {
		if err := src.SetNetwork(t.Context(), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}

	// A change that this node's own configuration contradicts is a problem, and changes nothing.
	s.put("/weft/network", `{"pools":[{"prefix":"10.0.0.0/8","node_length":24}],"vni":1}`)
	a.await("alarm", both(joined(0), problem("the cluster's network is [10.0.0.0/8]")))
	s.put("/weft/network", `garbage`)
	a.await("alarm", both(joined(0), problem("the network's configuration at /weft/network cannot be used")))
	must(t, src.SetNetwork(t.Context(), n))
	a.await("all well", both(joined(0), clean))
}

// Flannel's configuration keeps what weft does not know.
func TestFlannelNetwork(t *testing.T) {
	s := startServer(t)
	s.put("/coreos.com/network/config", flannelConfig)
	src := s.of("", flannelSettings)
	n, ok, err := src.Network(t.Context())
	if err != nil || !ok || n.VNI != 1 || n.Port != etcd.FlannelPort || n.Pools[0].First.String() != "10.244.1.0" {
		t.Fatalf("network %+v %v %v", n, ok, err)
	}
	n.Pools[0].NodeLength, n.VNI = 25, 9
	must(t, src.SetNetwork(t.Context(), n))
	value := s.keys("/coreos.com/network/config")["/coreos.com/network/config"]
	for _, want := range []string{`"EnableNFTables":true`, `"GBP":false`, `"SubnetLen":25`, `"VNI":9`} {
		if !strings.Contains(value, want) {
			t.Errorf("%s has no %s", value, want)
		}
	}
}
