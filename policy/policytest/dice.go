// Package policytest makes random policies and connections, for the tests of what judges them.
package policytest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"weft/policy"
)

// Dice makes small worlds in which things meet: few labels, few ports, overlapping prefixes.
type Dice struct{ *rand.Rand }

// New makes the Dice of a seed.
func New(seed uint64) Dice { return Dice{rand.New(rand.NewPCG(seed, 0))} }

func (r Dice) one(n int) bool { return r.IntN(n) == 0 }

func (r Dice) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if !r.one(3) {
			l[k] = string(rune('p' + r.IntN(3)))
		}
	}
	return l
}

func (r Dice) selector() *policy.Selector {
	s := &policy.Selector{Labels: map[string]string{}}
	if r.one(3) {
		return s
	}
	labels := r.labels()
	for _, k := range slices.Sorted(maps.Keys(labels)) { // in an order, for a seed to make one world
		if r.one(2) {
			s.Labels[k] = labels[k]
		}
	}
	if r.one(2) {
		q := policy.Requirement{Key: string(rune('a' + r.IntN(3))), Operator: []policy.Operator{policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist}[r.IntN(4)]}
		if q.Operator == policy.In || q.Operator == policy.NotIn {
			q.Values = []string{string(rune('p' + r.IntN(3))), "q"}
		}
		s.Expressions = append(s.Expressions, q)
	}
	return s
}

// addr is one of few, in and around the prefixes that block makes.
func (r Dice) addr() netip.Addr {
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
func (r Dice) end(w *policy.World) netip.Addr {
	if pod := w.Pods()[r.IntN(len(w.Pods()))]; len(pod.Addresses) > 0 && !r.one(4) {
		return pod.Addresses[r.IntN(len(pod.Addresses))]
	}
	return r.addr()
}

func (r Dice) block() policy.Block {
	a := r.addr()
	b := policy.Block{Prefix: netip.PrefixFrom(a, a.BitLen()-r.IntN(7)).Masked()}
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

func (r Dice) port() uint16 {
	return []uint16{0, 1, 53, 80, 81, 82, 90, 443, 65534, 65535}[r.IntN(10)]
}

func (r Dice) protocol() policy.Protocol {
	return []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP}[r.IntN(3)]
}

func (r Dice) rule(p *policy.Policy) policy.Rule {
	u := policy.Rule{}
	switch {
	case own(p.Tier):
		u.Action = policy.Action(r.IntN(4))
	case p.Tier != policy.Namespaced:
		u.Action = policy.Action(r.IntN(3))
	}
	for range r.IntN(3) {
		q := policy.Peer{}
		switch r.IntN(7) {
		case 6:
			q.Namespaces, q.Accounts = r.selector(), []string{fmt.Sprint("s", r.IntN(3)), "default"}[:1+r.IntN(2)]
		case 0, 1:
			q.Blocks = []policy.Block{r.block()}
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
		q := policy.Port{Protocol: r.protocol(), Last: 65535}
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
			q = policy.Port{Name: string(rune('h' + r.IntN(2))), Protocol: []policy.Protocol{0, policy.TCP, policy.UDP}[r.IntN(3)]}
		}
		u.Ports = append(u.Ports, q)
	}
	return u
}

// tiers are those of Kubernetes, and own ones around them; those of an odd order deny by default.
var tiers = []policy.Tier{policy.Admin, policy.Namespaced, policy.Namespaced, policy.Baseline, {Name: "first", Order: 500}, {Name: "second", Order: 501},
	{Name: "middle", Order: 1500}, {Name: "late", Order: 2501}, {Name: "last", Order: 4000}}

func own(t policy.Tier) bool {
	return t != policy.Admin && t != policy.Namespaced && t != policy.Baseline
}

// World makes a world.
func (r Dice) World() *policy.World {
	var namespaces []policy.Namespace
	for i := range 3 {
		namespaces = append(namespaces, policy.Namespace{Name: fmt.Sprint("n", i), Labels: r.labels()})
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
	var pods []policy.Pod
	for i := range 2 + r.IntN(8) {
		p := policy.Pod{Namespace: fmt.Sprint("n", r.IntN(4)), Name: fmt.Sprint("p", i), Labels: r.labels(), Addresses: addresses()}
		if r.one(2) {
			p.ServiceAccount = fmt.Sprint("s", r.IntN(3))
		}
		for range r.IntN(3) {
			p.Ports = append(p.Ports, policy.NamedPort{Name: string(rune('h' + r.IntN(2))), Port: r.port(), Protocol: r.protocol()})
		}
		pods = append(pods, p)
	}
	nodes := []policy.Node{{Name: "a", Labels: r.labels(), Addresses: addresses()}, {Name: "b", Labels: r.labels(), Addresses: addresses()}}
	var policies []policy.Policy
	for i := range r.IntN(7) {
		p := policy.Policy{Name: fmt.Sprint("q", i), Tier: tiers[r.IntN(len(tiers))], Staged: r.one(6)}
		if p.Tier == policy.Namespaced {
			p.Namespace = fmt.Sprint("n", r.IntN(3))
			p.Subject = policy.Peer{Namespace: p.Namespace, Pods: r.selector()}
			p.Isolates = [2]bool{r.one(2), !r.one(3)}
		} else {
			p.Priority = r.IntN(4)
			p.Subject = policy.Peer{Namespaces: r.selector(), Pods: r.selector()}
		}
		if own(p.Tier) {
			if r.one(4) {
				p.Subject = policy.Peer{Nodes: r.selector()}
			}
			if p.Tier.Order%2 == 1 {
				p.Isolates = [2]bool{r.one(2), r.one(2)}
			}
		}
		for _, d := range []policy.Direction{policy.Egress, policy.Ingress} {
			for range r.IntN(4) {
				if p.Tier != policy.Namespaced || p.Isolates[d] {
					p.Rules[d] = append(p.Rules[d], r.rule(&p))
				}
			}
		}
		policies = append(policies, p)
	}
	w, err := policy.NewWorld(namespaces, pods, nodes, policies)
	if err != nil {
		panic(err) // the generator's mistake
	}
	return w
}

// Other is a protocol that no rule names (RFC 3692).
const Other = policy.Protocol(253)

// Traffic makes a connection.
func (r Dice) Traffic(w *policy.World) policy.Traffic {
	q := policy.Traffic{Src: r.end(w), Dst: r.end(w), Protocol: r.protocol(), Port: r.port()}
	if r.one(8) {
		q.Protocol, q.Port = Other, 0
	}
	return q
}
