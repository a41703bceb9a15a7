package hostnet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"weft/internal/nettest"
)

// TestSeamless: a table whose change no packet finds half made is made beside the one in force, whatever was there: an earlier weft's, what somebody who
// died in the midst has left, elements of one key or of more. What nobody has changed is not touched.
func TestSeamless(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "nft")
	for _, kept := range []bool{true, false} {
		t.Run(fmt.Sprintf("kept=%t", kept), func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			table := func(seamless bool, addrs ...string) Want {
				t := policy(addrs...)
				t.Seamless, t.Kept, t.Counters = seamless, kept, []string{"of"}
				return Want{Tables: []Table{t}}
			}
			list := func() string { return b.ns.MustRun(t, "nft", "list", "table", "inet", "weft-test") }
			is := func(when, side string, addrs ...string) {
				t.Helper()
				text := list()
				for _, want := range append(addrs, "chain denied"+side+" ", "map pods"+side+" ", "vmap @pods"+side, "jump denied"+side, "counter of") {
					if want != "" && !strings.Contains(text, want) {
						t.Errorf("%s: it lacks %q:\n%s", when, want, text)
					}
				}
				if strings.Count(text, "chain denied") != 1 || strings.Count(text, "map pods") != 1 || strings.Count(text, "jump denied") != len(addrs) {
					t.Errorf("%s: there is more than it was to be:\n%s", when, text)
				}
				b.apply(table(true, addrs...))
				if again := list(); again != text {
					t.Errorf("%s: the same once more made it\n%s\nof\n%s", when, again, text)
				}
			}
			b.apply(table(false, "10.244.1.7"))
			b.apply(table(true, "10.244.1.7"))
			is("of an earlier weft", ".a", "10.244.1.7")
			b.apply(table(true, "10.244.1.7", "10.244.1.8"))
			is("one key", ".a", "10.244.1.7", "10.244.1.8")
			b.apply(table(true, "10.244.1.9", "10.244.1.8"))
			is("two keys", ".b", "10.244.1.9", "10.244.1.8")
			other := table(true, "10.244.1.9", "10.244.1.8")
			other.Tables[0].Counters = []string{"more", "of"}
			b.apply(other)
			if text := list(); !strings.Contains(text, "counter more") {
				t.Errorf("a counter is missing:\n%s", text)
			}
			b.apply(table(true, "10.244.1.9", "10.244.1.8"))
			if text := list(); strings.Contains(text, "counter more") {
				t.Errorf("a counter that nobody wants stays:\n%s", text)
			}
			is("other counters", ".b", "10.244.1.9", "10.244.1.8")
			if b.host.Keeps(nftables.TableFamilyINet, "weft-test") {
				return // nobody else leaves anything
			}
			b.ns.MustRun(t, "nft", "add chain inet weft-test denied.a; add map inet weft-test pods.a { type ipv4_addr : verdict; elements = { 10.244.9.9 : jump denied.a }; }")
			b.apply(table(true, "10.244.1.9"))
			is("what was left", ".a", "10.244.1.9")
		})
	}
}

// TestOneByOne: elements change where they are if each packet finds what was, or what is: one key, and of the sets that change a packet asks one.
func TestOneByOne(t *testing.T) {
	a, b, long := []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}, make([]byte, 16)
	change := func(asked uint16, key []byte) setDifference {
		return setDifference{asked: asked, come: []nftables.SetElement{{Key: key}}}
	}
	ranges := change(1, a)
	ranges.set.Interval = true
	for name, c := range map[string]struct {
		of   []setDifference
		want bool
	}{
		"one set":                      {[]setDifference{change(1, a)}, true},
		"one set that says nothing":    {[]setDifference{change(0, a)}, true},
		"two ends of packets":          {[]setDifference{change(1, a), change(2, a)}, true},
		"two families":                 {[]setDifference{change(1, a), change(4, long)}, true},
		"asked one after the other":    {[]setDifference{change(1, a), change(3, a)}, false},
		"beside one that says nothing": {[]setDifference{change(1, a), change(0, a)}, false},
		"behind one that says nothing": {[]setDifference{change(0, a), change(1, a)}, false},
		"two keys":                     {[]setDifference{change(1, a), change(2, b)}, false},
		"ranges":                       {[]setDifference{ranges}, false},
	} {
		if got := oneByOne(c.of); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestTableTrouble: an error about a table names who has it, where that is somebody else.
func TestTableTrouble(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ours := policy("10.244.1.7")
	ours.Kept = true
	b.apply(Want{Tables: []Table{ours}})
	bad := policy("10.244.1.7")
	bad.Kept = true
	bad.Chains[1].Rules = append(bad.Chains[1].Rules, []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, &expr.Lookup{SourceRegister: 1, SetName: "nowhere"}})
	err := b.host.Apply("test", Want{Tables: []Table{bad}})
	if err == nil || strings.Contains(err.Error(), "owns the table") || !errors.Is(err, unix.ENOENT) {
		t.Errorf("a rule that asks a set which is not there: %v", err)
	}
	for _, c := range []struct {
		there  bool
		holder string
		want   string
	}{{true, "nft (pid 7)", "nft (pid 7) owns it"}, {true, "", "made without an owner"}, {false, "", "Linux 6.9"}} {
		if got := whyNotKept(c.there, c.holder); !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
