package policy_test

import (
	"os"
	"slices"
	"testing"

	"weft/policy"
	"weft/policy/policytest"
)

// agree holds the evaluator against the compiled form, verdict, reason and notes. It returns how many connections were denied, and counts the
// notes.
func agree(t *testing.T, seed uint64, questions int, noted map[policy.Action]int) (denied int) {
	r := policytest.New(seed)
	w := r.World()
	g := w.Compile(nil)
	for _, list := range g.Lists {
		next := policy.Place(0)
		for _, s := range list {
			if s.First != next || s.Last < s.First {
				t.Fatalf("seed %d: the list has a gap or an overlap at %d: %v", seed, next, list)
			}
			next = s.Last + 1
		}
		if p, _ := (next - 1).Protocol(); p != 0 {
			t.Fatalf("seed %d: the list ends at %d: %v", seed, next, list)
		}
	}
	for range questions {
		q := r.Traffic(w)
		a := w.Evaluate(q)
		allowed, out, in := g.Judge(q)
		if allowed != a.Allowed || out != a.Egress.Reason || in != a.Ingress.Reason {
			t.Fatalf("seed %d: %s: compiled: %v (%v; %v), evaluated: %v (%v; %v)", seed, q, allowed, out, in, a.Allowed, a.Egress.Reason, a.Ingress.Reason)
		}
		for d, o := range []policy.Opinion{a.Egress, a.Ingress} {
			if got := g.Noted(policy.Direction(d), q); !slices.Equal(got, o.Notes) {
				t.Fatalf("seed %d: %s, %s: compiled notes: %v, evaluated: %v", seed, q, policy.Direction(d), got, o.Notes)
			}
			for _, n := range o.Notes {
				noted[n.Action]++
			}
		}
		if !allowed {
			denied++
		}
	}
	return denied
}

// TestAgree: many worlds, in each of them a few connections.
func TestAgree(t *testing.T) {
	t.Parallel()
	worlds := 2000
	if os.Getenv("WEFT_TEST_LONG") != "" {
		worlds = 10_000
	}
	denied, noted := 0, map[policy.Action]int{}
	for seed := range uint64(worlds) {
		denied += agree(t, seed, 8, noted)
	}
	if denied < worlds || denied > 7*worlds {
		t.Errorf("%d of %d connections were denied: the worlds have nothing to say", denied, 8*worlds)
	}
	for _, a := range []policy.Action{policy.Log, policy.Accept, policy.Deny} {
		if noted[a] < worlds/20 {
			t.Errorf("%d connections were noted as %s", noted[a], a)
		}
	}
}

func FuzzAgree(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { agree(t, seed, 100, map[policy.Action]int{}) })
}
