package hostnet

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stranger is a route of ours that nobody in this process has made.
const stranger = "10.244.77.0/24"

// TestOwnersAreMerged: what each owner wants is in force, and what it wants no more goes, whatever the others do.
func TestOwnersAreMerged(t *testing.T) {
	b := newBench(t)
	b.apply(sample())
	other := Want{Routes: []Route{{Dst: netip.MustParsePrefix("10.244.9.0/24"), Dev: "eth0"}}}
	if err := b.host.Apply("other", other); err != nil {
		t.Fatal(err)
	}
	both := b.kernel()
	b.mustHave("10.244.9.0/24 dev eth0", "10.244.2.0/24")
	b.apply(sample())
	if again := b.kernel(); !slices.Equal(both, again) {
		t.Errorf("an owner that says the same again takes from the other:\n%s", strings.Join(again, "\n"))
	}
	if err := b.host.Apply("other", Want{}); err != nil {
		t.Fatal(err)
	}
	b.mustHave("10.244.2.0/24")
	b.mustLack("10.244.9.0/24")
	if n := b.host.Repairs(); n != 0 {
		t.Errorf("%d repairs of what nobody touched", n)
	}
}

// TestContradiction: two owners want one object otherwise. The first keeps it, the other hears of it, and has it once the first wants
// it no more; also where the Host goes from change to change.
func TestContradiction(t *testing.T) {
	for _, listening := range []bool{false, true} {
		b := newBench(t)
		b.apply(sample())
		if err := b.host.Apply("other", Want{}); err != nil {
			t.Fatal(err)
		}
		b.host.listening.Store(listening)
		theirs := Route{Dst: netip.MustParsePrefix("10.244.2.0/24"), Dev: "eth0"}
		err := b.host.Apply("other", Want{Routes: []Route{theirs}})
		var c *Contradiction
		if !errors.As(err, &c) || c.Owner != "other" || c.Other != "test" || !strings.Contains(c.Error(), "10.244.2.0/24") || c.Dev != "eth0" || !errors.Is(err, unix.EEXIST) {
			t.Errorf("listening %t: %v", listening, err)
		}
		if err := b.host.Err("test"); err != nil {
			t.Errorf("the first hears of it: %v", err)
		}
		b.mustHave("10.244.2.0/24 via 10.244.2.0 dev weft-vx4")
		less := sample()
		less.Routes = nil
		b.apply(less)
		b.mustHave("10.244.2.0/24 dev eth0")
		if err := b.host.Err("other"); err != nil {
			t.Errorf("the other has it, and hears of %v", err)
		}
		// What both want alike stays until neither does.
		if err := b.host.Apply("other", Want{Routes: sample().Routes}); err != nil {
			t.Fatal(err)
		}
		b.apply(sample())
		b.apply(less)
		b.mustHave("10.244.2.0/24 via 10.244.2.0 dev weft-vx4")
	}
}

// TestNothingIsSweptBeforeAllHaveSpoken: what a part may want that has not spoken yet is no stranger.
func TestNothingIsSweptBeforeAllHaveSpoken(t *testing.T) {
	b := newBench(t)
	b.ip("route", "add", stranger, "dev", "eth0", "proto", "87")
	b.ip("link", "add", "weft-old", "type", "bridge")
	h, _ := b.open("test", "late")
	if err := h.Apply("test", sample()); err != nil {
		t.Fatal(err)
	}
	b.mustHave(stranger, "weft-old")
	if err := h.Apply("late", Want{}); err != nil {
		t.Fatal(err)
	}
	b.mustLack(stranger, "weft-old")
}
