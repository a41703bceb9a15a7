package hostnet

import (
	"strings"
	"testing"

	"github.com/google/nftables"
	"go.uber.org/zap"

	"weft/internal/nettest"
)

// TestKept: nobody else flushes or deletes a table that is kept, while it is changed and changed anew; the next daemon takes it over as it is; one that
// nobody wants goes. On a kernel that does not have that it is a table like others.
func TestKept(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "nft")
	b := newBench(t)
	list := func() string { // but for who owns it
		_, body, _ := strings.Cut(b.ns.MustRun(t, "nft", "list", "table", "inet", "weft-test"), "counter of")
		return body
	}
	var h *Host
	start := func() {
		t.Helper()
		var err error
		b.ns.Do(func() { h, err = New(zap.NewNop(), "test") })
		if err != nil {
			t.Fatal(err)
		}
	}
	kept := func(addrs ...string) Table {
		table := policy(addrs...)
		table.Kept, table.Counters = true, []string{"of"}
		return table
	}
	apply := func(tables ...Table) {
		t.Helper()
		if err := h.Apply("test", Want{Tables: tables}); err != nil {
			t.Fatal(err)
		}
	}
	start()
	apply(kept("10.244.1.7"))
	able := h.Keeps(nftables.TableFamilyINet, "weft-test")
	t.Logf("this kernel has tables that are kept: %t", able)
	attack := func(when string) {
		t.Helper()
		if !able {
			return
		}
		before := list()
		b.ns.MustRun(t, "nft", "flush", "ruleset")
		for _, args := range [][]string{{"delete", "table", "inet", "weft-test"}, {"flush", "table", "inet", "weft-test"}, {"add", "rule", "inet", "weft-test", "ingress", "accept"}} {
			if _, err := b.ns.Run("nft", args...); err == nil {
				t.Errorf("%s: somebody else may %v", when, args)
			}
		}
		if now := list(); now != before {
			t.Errorf("%s: it is\n%s\nwas\n%s", when, now, before)
		}
	}
	attack("new")
	apply(kept("10.244.1.7", "10.244.1.8"))
	if !strings.Contains(list(), "10.244.1.8") {
		t.Errorf("an element is missing:\n%s", list())
	}
	attack("with another element")
	other := kept("10.244.1.9")
	other.Chains[0].Rules = other.Chains[0].Rules[:0]
	other.Chains, other.Counters = append(other.Chains, TableChain{Name: "more"}), []string{"of", "too"}
	apply(other)
	if now := list(); !strings.Contains(now, "chain more") || strings.Contains(now, "10.244.1.7") || strings.Contains(now, "drop") || !strings.Contains(now, "counter too") {
		t.Errorf("it was not made another:\n%s", now)
	}
	attack("made another")
	before := list()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if now := list(); now != before {
		t.Errorf("without its owner it is\n%s\nwas\n%s", now, before)
	}
	start()
	apply(other)
	if now := list(); now != before || able != h.Keeps(nftables.TableFamilyINet, "weft-test") {
		t.Errorf("taken over it is\n%s\nwas\n%s", now, before)
	}
	attack("taken over")
	apply()
	if out := b.ns.MustRun(t, "nft", "list", "tables"); strings.Contains(out, "weft-test") {
		t.Errorf("nobody wants it: %s", out)
	}
	apply(kept("10.244.1.7"))
	attack("new again")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	// One that was made without stays as it is made: what it denies is denied at every moment.
	b.ns.MustRun(t, "nft", "flush", "ruleset")
	start()
	defer h.Close()
	plain := kept("10.244.1.7")
	plain.Kept = false
	apply(plain)
	plain = kept("10.244.1.8")
	apply(plain)
	if h.Keeps(nftables.TableFamilyINet, "weft-test") || !strings.Contains(list(), "10.244.1.8") {
		t.Errorf("it is\n%s", list())
	}
}
