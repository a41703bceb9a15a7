package hostnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables"

	"weft/internal/nettest"
)

// TestChangeOfTableIsWholeOrNothing: a change that fails before it is sent leaves the table as it was, whatever is changed behind it.
func TestChangeOfTableIsWholeOrNothing(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "nft")
	list := func(b *bench) string { return b.ns.MustRun(t, "nft", "list", "table", "inet", "weft-test") }
	element := func(addr string) []nftables.SetElement {
		return []nftables.SetElement{{Key: netip.MustParseAddr(addr).AsSlice()}}
	}
	// The library refuses the second set.
	for name, spoil := range map[string]func(*Table){
		"of chains": func(t *Table) {
			t.Chains[0].Rules = nil
			t.Sets[1].Anonymous = true
		},
		"of elements": func(t *Table) {
			t.Sets[0].Elements = t.Sets[0].Elements[:1]
			t.Sets[1].Anonymous, t.Sets[1].Elements = true, element("10.244.1.2")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			w := func() Want {
				first, second := policy("10.244.1.7", "10.244.1.8"), policy("10.244.1.9")
				first.Sets = append(first.Sets, Set{Set: nftables.Set{Name: "more", KeyType: nftables.TypeIPAddr}, Elements: element("10.244.1.1")})
				second.Name = "weft-test-2"
				return Want{Tables: []Table{first, second}}
			}
			b.apply(w())
			before := list(b)
			bad := w()
			spoil(&bad.Tables[0])
			bad.Tables[1] = policy("10.244.1.9", "10.244.1.10")
			bad.Tables[1].Name = "weft-test-2"
			if err := b.host.Apply("test", bad); err == nil || !strings.Contains(err.Error(), "set more") {
				t.Fatalf("the change did not fail: %v", err)
			}
			if now := list(b); now != before {
				t.Errorf("the table is\n%s\nwas\n%s", now, before)
			}
			if other := b.ns.MustRun(t, "nft", "list", "table", "inet", "weft-test-2"); !strings.Contains(other, "10.244.1.10") {
				t.Errorf("the table behind it was not changed:\n%s", other)
			}
			b.apply(w())
			if now := list(b); now != before {
				t.Errorf("afterwards the table is\n%s\nwas\n%s", now, before)
			}
		})
	}
}
