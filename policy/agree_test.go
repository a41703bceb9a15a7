package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// dice makes small worlds in which things meet: few labels, few ports, overlapping prefixes.
type dice struct{ *rand.Rand }

func (r dice) one(n int) bool { return r.IntN(n) == 0 }

func (r dice) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if !r.one(3) {
			l[k] = string(rune('p' + r.IntN(3)))
		}
	}
	return l
}

func (r dice) selector() *Selector {
	s := &Selector{Labels: map[string]string{}}
	if r.one(3) {
		return s
	}
	for k, v := range r.labels() {
		if r.one(2) {
			s.Labels[k] = v
		}
	}
	if r.one(2) {
		q := Requirement{Key: string(rune('a' + r.IntN(3))), Operator: []Operator{In, NotIn, Exists, DoesNotExist}[r.IntN(4)]}
		if q.Operator == In || q.Operator == NotIn {
			q.Values = []string{string(rune('p' + r.IntN(3))), "q"}
		}
		s.Expressions = append(s.Expressions, q)
	}
	return s
}

// addr is one of few, in and around the prefixes that block makes.
func (r dice) addr() netip.Addr {
	last := byte(r.IntN(32))
	if r.one(16) {
		last = 255
	}
	if r.one(2) {
		return netip.AddrFrom4([4]byte{10, 0, 0, last})
	}
	return netip.AddrFrom16([16]byte{0xfd, 15: last})
}

// end is a pod's address mostly.
func (r dice) end(w *World) netip.Addr {
	if pod := w.pods[r.IntN(len(w.pods))]; len(pod.Addresses) > 0 && !r.one(4) {
		return pod.Addresses[r.IntN(len(pod.Addresses))]
	}
	return r.addr()
}

func (r dice) block() Block {
	a := r.addr()
	b := Block{Prefix: netip.PrefixFrom(a, a.BitLen()-r.IntN(7)).Masked()}
	if r.one(8) {
		b.Prefix = netip.PrefixFrom(a, 0).Masked()
	}
	for range r.IntN(3) {
		x := r.addr()
		p := netip.PrefixFrom(x, x.BitLen()-r.IntN(4)).Masked()
		if b.Prefix.Contains(p.Addr()) && p.Bits() > b.Prefix.Bits() {
			b.Except = append(b.Except, p)
		}
	}
	return b
}

func (r dice) port() uint16 {
	return []uint16{0, 1, 53, 80, 81, 82, 90, 443, 65534, 65535}[r.IntN(10)]
}

func (r dice) protocol() Protocol { return placed[r.IntN(3)] }

func (r dice) rule(p *Policy) Rule {
	u := Rule{}
	if p.Tier != Namespaced {
		u.Action = Action(r.IntN(3))
	}
	for range r.IntN(3) {
		q := Peer{}
		switch r.IntN(6) {
		case 0, 1:
			q.Blocks = []Block{r.block()}
		case 2:
			q.Nodes = r.selector()
		case 3:
			q.Namespaces = r.selector()
		case 4:
			q.Namespaces, q.Pods = r.selector(), r.selector()
		case 5:
			q.Namespace, q.Pods = fmt.Sprint("n", r.IntN(3)), r.selector()
		}
		u.Peers = append(u.Peers, q)
	}
	for range r.IntN(4) {
		q := Port{Protocol: r.protocol(), Last: 65535}
		switch r.IntN(4) {
		case 0:
			q.First = r.port()
			q.Last = q.First
		case 1:
			q.First, q.Last = 80, r.port()
			if q.Last < 80 {
				q.Last = 80
			}
		case 2:
			q = Port{Name: string(rune('h' + r.IntN(2))), Protocol: []Protocol{0, TCP, UDP}[r.IntN(3)]}
		}
		u.Ports = append(u.Ports, q)
	}
	return u
}

func (r dice) world(t *testing.T) *World {
	var namespaces []Namespace
	for i := range 3 {
		namespaces = append(namespaces, Namespace{fmt.Sprint("n", i), r.labels()})
	}
	taken := map[netip.Addr]bool{}
	addresses := func() (list []netip.Addr) {
		for range 2 {
			if a := r.addr(); !taken[a] {
				taken[a] = true
				list = append(list, a)
			}
		}
		return list
	}
	var pods []Pod
	for i := range 2 + r.IntN(8) {
		p := Pod{Namespace: fmt.Sprint("n", r.IntN(4)), Name: fmt.Sprint("p", i), Labels: r.labels(), Addresses: addresses()}
		for range r.IntN(3) {
			p.Ports = append(p.Ports, NamedPort{string(rune('h' + r.IntN(2))), r.port(), r.protocol()})
		}
		pods = append(pods, p)
	}
	nodes := []Node{{"a", r.labels(), addresses()}, {"b", r.labels(), addresses()}}
	var policies []Policy
	for i := range r.IntN(7) {
		p := Policy{Name: fmt.Sprint("q", i), Tier: Tier(1 + r.IntN(3))}
		if p.Tier == Namespaced {
			p.Namespace = fmt.Sprint("n", r.IntN(3))
			p.Subject = Peer{Namespace: p.Namespace, Pods: r.selector()}
			p.Isolates = [2]bool{r.one(2), !r.one(3)}
		} else {
			p.Priority = r.IntN(4)
			p.Subject = Peer{Namespaces: r.selector(), Pods: r.selector()}
			p.Isolates = [2]bool{}
		}
		for _, d := range directions {
			for range r.IntN(4) {
				if p.Tier != Namespaced || p.Isolates[d] {
					p.Rules[d] = append(p.Rules[d], r.rule(&p))
				}
			}
		}
		policies = append(policies, p)
	}
	w, err := NewWorld(namespaces, pods, nodes, policies)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// agree holds the evaluator against the compiled form, verdict and reason, and returns how many connections were denied.
func agree(t *testing.T, seed uint64, questions int) (denied int) {
	r := dice{rand.New(rand.NewPCG(seed, 0))}
	w := r.world(t)
	g := w.Compile(nil)
	for _, list := range g.Lists {
		next := Place(0)
		for _, s := range list {
			if s.First != next || s.Last < s.First {
				t.Fatalf("seed %d: the list has a gap or an overlap at %d: %v", seed, next, list)
			}
			next = s.Last + 1
		}
		if next != lastPlace+1 {
			t.Fatalf("seed %d: the list ends at %d: %v", seed, next, list)
		}
	}
	for range questions {
		q := Traffic{r.end(w), r.end(w), r.protocol(), r.port()}
		if r.one(8) {
			q.Protocol, q.Port = 1, 0
		}
		a := w.Evaluate(q)
		allowed, out, in := g.Judge(q)
		if allowed != a.Allowed || out != a.Egress.Reason || in != a.Ingress.Reason {
			t.Fatalf("seed %d: %s: compiled: %v (%v; %v), evaluated: %v (%v; %v)", seed, q, allowed, out, in, a.Allowed, a.Egress.Reason, a.Ingress.Reason)
		}
		if !allowed {
			denied++
		}
	}
	return denied
}

// TestAgree: 10,000 worlds, in each of them a few connections.
func TestAgree(t *testing.T) {
	denied := 0
	for seed := range uint64(10_000) {
		denied += agree(t, seed, 8)
	}
	if denied < 10_000 || denied > 70_000 {
		t.Errorf("%d of 80,000 connections were denied: the worlds have nothing to say", denied)
	}
}

func FuzzAgree(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { agree(t, seed, 100) })
}

// FuzzParse: nothing that a file holds breaks the reader, and what it takes compiles.
func FuzzParse(f *testing.F) {
	for _, c := range table {
		f.Add([]byte(town + c.policies))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if w, err := Parse("f", data); err == nil {
			w.Compile(nil)
		}
	})
}
