package daemon

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/control"
)

// TestWithoutIPv6: a node that cannot have IPv6 goes on with IPv4, if there is any, and says so; what the source published stays as it is.
func TestWithoutIPv6(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")
	why := errors.New("it is off")
	for _, c := range []struct {
		network []netip.Prefix
		why     error
		want    bool
	}{
		{[]netip.Prefix{v4, v6}, why, true}, {[]netip.Prefix{v4, v6}, nil, false}, {[]netip.Prefix{v4}, why, false}, {[]netip.Prefix{v6}, why, false},
	} {
		if got := without6(c.network, c.why); got != c.want {
			t.Errorf("%v, %v: %v", c.network, c.why, got)
		}
	}
	both := []netip.Prefix{v4, v6}
	s := control.State{Self: control.Node{Name: "a", Prefixes: both}, Nodes: []control.Node{{Name: "b", Prefixes: both}}}
	got := inIPv4(s, why)
	for _, n := range append(got.Nodes, got.Self) {
		if !slices.Equal(n.Prefixes, []netip.Prefix{v4}) {
			t.Errorf("%s has %v", n.Name, n.Prefixes)
		}
	}
	if len(got.Problems) != 1 || !strings.Contains(got.Problems[0].Text, why.Error()) {
		t.Errorf("problems: %+v", got.Problems)
	}
	if len(s.Nodes[0].Prefixes) != 2 || len(s.Self.Prefixes) != 2 || len(s.Problems) != 0 {
		t.Errorf("the source's own State was edited: %+v", s)
	}
}
