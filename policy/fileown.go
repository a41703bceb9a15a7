package policy

import "weft/internal/config/strict"

// ownObjects are what policies of our own kind refer to by name.
type ownObjects struct {
	tiers map[string]ownTier
	sets  map[string][]Block
}

type ownTier struct {
	Tier
	deny bool // what no rule of its policies allows, of pods and nodes that they select
}

// tiers reads the tiers that are not there by themselves.
func tiers(v strict.Value) map[string]ownTier {
	all := map[string]ownTier{}
	orders := map[int]string{}
	for _, t := range builtin {
		all[t.Name], orders[t.Order] = ownTier{}, t.Name
	}
	for _, e := range v.List() {
		f := e.Fields("name", "order", "default")
		t := ownTier{Tier: Tier{Name: name(e, f["name"])}}
		n, ok := f["order"].Int(1, 9999)
		t.Order = int(n)
		if !f["order"].Present() {
			e.Fail("has no order: write 1 to 9999; Admin has %d, NetworkPolicy %d, Baseline %d", Admin.Order, Namespaced.Order, Baseline.Order)
		}
		switch s, has := f["default"].String(); {
		case s == "Deny":
			t.deny = true
		case has && s != "Pass":
			f["default"].Fail("%q is no default of a tier: write Deny, or Pass for the next tier's word", s)
		}
		if _, there := all[t.Name]; there {
			e.Fail("tier %s is there already", t.Name)
		}
		if other, taken := orders[t.Order]; ok && taken {
			e.Fail("tier %s has order %d already", other, t.Order)
		}
		all[t.Name], orders[t.Order] = t, t.Name
	}
	for _, t := range builtin {
		delete(all, t.Name) // they are of the kinds that Kubernetes has
	}
	return all
}

func networkSets(v strict.Value) map[string][]Block {
	all := map[string][]Block{}
	for _, e := range v.List() {
		f := e.Fields("name", "networks")
		n := name(e, f["name"])
		if all[n] != nil {
			e.Fail("set %s is there twice", n)
		}
		all[n] = networks(e, f["networks"])
	}
	return all
}

// networks reads prefixes, one at least: none would be everybody to some readers and nobody to others.
func networks(parent, v strict.Value) []Block {
	blocks := []Block{}
	if len(v.List()) == 0 {
		parent.Fail("names no network: write prefixes")
	}
	for _, x := range v.List() {
		blocks = append(blocks, Block{Prefix: prefix(x)})
	}
	return blocks
}

// policy reads the spec of a Policy of our own.
func (o ownObjects) policy(spec strict.Value, p *Policy) {
	f := spec.Fields("tier", "priority", "staged", "subject", "policyTypes", "ingress", "egress")
	word, _ := f["tier"].String()
	tier, known := o.tiers[word]
	if !known {
		spec.Fail("tier %q is none of tiers: a Policy needs one of these; Admin and Baseline have ClusterNetworkPolicies", word)
	}
	p.Tier = tier.Tier
	n, _ := f["priority"].Int(0, 10000)
	p.Priority = int(n)
	if !f["priority"].Present() {
		spec.Fail("has no priority: write 0 to 10000")
	}
	p.Staged, _ = f["staged"].Bool()
	kinds := []string{"namespaces", "pods", "serviceAccounts", "nodes"}
	if s := one(spec, "subject", f["subject"], kinds...); s != nil {
		p.Subject = o.peers(f["subject"], s)[0]
	}
	var about [2]bool
	for d, list := range []strict.Value{f["egress"], f["ingress"]} {
		for _, v := range list.List() {
			p.Rules[d] = append(p.Rules[d], o.rule(v, Direction(d)))
		}
		about[d] = len(p.Rules[d]) > 0
	}
	for _, e := range f["policyTypes"].List() {
		switch s, ok := e.String(); {
		case s == "Ingress":
			about[Ingress] = true
		case s == "Egress":
			about[Egress] = true
		case ok:
			e.Fail("%q is not a type of policy: write Ingress or Egress", s)
		}
	}
	if about == [2]bool{} {
		spec.Fail("is about nothing: write rules, or policyTypes")
	}
	if !tier.deny {
		return
	}
	p.Isolates = about
}

func (o ownObjects) rule(v strict.Value, d Direction) Rule {
	key := []string{"to", "from"}[d]
	f := v.Fields("name", "action", key, "protocols")
	r := Rule{}
	r.Name, _ = f["name"].String()
	switch s, _ := f["action"].String(); s {
	case "Accept":
	case "Deny":
		r.Action = Deny
	case "Pass":
		r.Action = Pass
	case "Log":
		r.Action = Log
	default:
		v.Fail("action %q is unknown: write Accept, Deny, Pass or Log", s)
	}
	if f[key].Present() && len(f[key].List()) == 0 {
		v.Fail("has nobody in %s: remove it for everybody", key)
	}
	for _, e := range f[key].List() {
		if q := one(v, key, e, "namespaces", "pods", "serviceAccounts", "nodes", "networks", "networkSets"); q != nil {
			r.Peers = append(r.Peers, o.peers(e, q)...)
		}
	}
	if f["protocols"].Present() && len(f["protocols"].List()) == 0 {
		v.Fail("names no protocol: write some, or remove protocols for all")
	}
	for _, e := range f["protocols"].List() {
		r.Ports = append(r.Ports, clusterPort(v, e))
	}
	return r
}

// peers reads who is meant: several where it names several sets. There is one at least.
func (o ownObjects) peers(e strict.Value, q map[string]strict.Value) []Peer {
	switch {
	case q["nodes"].Present():
		return []Peer{{Nodes: selector(q["nodes"])}}
	case q["networks"].Present():
		return []Peer{{Blocks: networks(e, q["networks"])}}
	case q["serviceAccounts"].Present():
		f := q["serviceAccounts"].Fields("namespaceSelector", "names")
		p := Peer{Namespaces: selector(f["namespaceSelector"]), Accounts: []string{}}
		if !f["namespaceSelector"].Present() {
			q["serviceAccounts"].Fail("has no namespaceSelector: {} selects all")
		}
		for _, x := range f["names"].List() {
			s, ok := x.String()
			if ok && s == "" {
				x.Fail("is empty: write a service account")
			}
			p.Accounts = append(p.Accounts, s)
		}
		if len(p.Accounts) == 0 {
			q["serviceAccounts"].Fail("names none: write names")
		}
		return []Peer{p}
	case q["networkSets"].Present():
		var all []Peer
		for _, x := range q["networkSets"].List() {
			s, ok := x.String()
			if blocks, there := o.sets[s]; there {
				all = append(all, Peer{Blocks: blocks, Set: s})
			} else if ok {
				x.Fail("%q is none of networkSets", s)
			}
		}
		if len(all) == 0 {
			e.Fail("names no set: write names of networkSets")
			return []Peer{{Blocks: []Block{}}}
		}
		return all
	}
	return []Peer{clusterPods(q)}
}
