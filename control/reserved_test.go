package control_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weft/control"
)

func TestSpare(t *testing.T) {
	const a, b, c = "a 192.0.2.1 10.244.1.0/24,fd00:10:244:1::/64", "b 192.0.2.2 10.244.2.0/24,fd00:10:244:2::/64", "c 192.0.2.3 10.244.3.0/24"
	for name, tc := range map[string]struct {
		reserved string
		left     []string
		problems []string
	}{
		"nothing in the network":   {"192.0.2.0/24 203.0.113.53/32 2001:db8::/64", []string{b, c}, nil},
		"in one's own prefix":      {"10.244.1.0/24 10.244.1.128/25 fd00:10:244:1::1/128", []string{b, c}, nil},
		"nobody's":                 {"10.244.77.0/24", []string{b, c}, []string{": the overlay's network 10.244.0.0/16 covers X"}},
		"a peer's":                 {"10.244.3.0/24", []string{b}, []string{": the overlay's", "c: prefix 10.244.3.0/24 is left out on this node, it would take away X"}},
		"inside a peer's":          {"10.244.3.9/32", []string{b}, []string{": the overlay's", "c: prefix"}},
		"one family of a peer":     {"10.244.2.0/25", []string{"b 192.0.2.2 fd00:10:244:2::/64", c}, []string{": the overlay's", "b: prefix"}},
		"wider than the network":   {"10.0.0.0/8", []string{"b 192.0.2.2 fd00:10:244:2::/64"}, []string{": the overlay's", "b: prefix", "c: prefix"}},
		"wider than one's own one": {"10.244.0.0/23", []string{b, c}, []string{": the overlay's"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := control.State{Self: node(t, a), Nodes: []control.Node{node(t, b), node(t, c)}}
			before := fmt.Sprint(s)
			var reserved []control.Reserved
			for g := range strings.FieldsSeq(tc.reserved) {
				reserved = append(reserved, control.Reserved{Prefix: netip.MustParsePrefix(g), What: "X"})
			}
			got := s.Spare(network, reserved)
			if fmt.Sprint(s) != before {
				t.Error("what it was given changed")
			}
			var left, problems []string
			for _, n := range got.Nodes {
				left = append(left, show(n))
			}
			for _, p := range got.Problems {
				problems = append(problems, p.Node+": "+p.Text)
			}
			if !slices.Equal(left, tc.left) || len(problems) != len(tc.problems) {
				t.Fatalf("left %q, problems %q; want %q, %q", left, problems, tc.left, tc.problems)
			}
			for i := range problems {
				if !strings.HasPrefix(problems[i], tc.problems[i]) {
					t.Errorf("problem %q, want %q", problems[i], tc.problems[i])
				}
			}
			if len(tc.left) == 2 && tc.left[0] == b && &got.Nodes[0] != &s.Nodes[0] {
				t.Error("the list is another one, with nothing left out")
			}
		})
	}
}
