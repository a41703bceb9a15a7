package policy

import (
	"strings"

	"weft/internal/config/strict"
)

// ofCluster reads the spec of a ClusterNetworkPolicy.
func ofCluster(spec strict.Value, p *Policy) {
	f := spec.Fields("tier", "priority", "subject", "ingress", "egress")
	switch s, ok := f["tier"].String(); {
	case s == "Admin":
		p.Tier = Admin
	case s == "Baseline":
		p.Tier = Baseline
	case ok:
		f["tier"].Fail("%q is not a tier: write Admin or Baseline", s)
	case !f["tier"].Present():
		spec.Fail("has no tier: write Admin or Baseline")
	}
	n, _ := f["priority"].Int(0, 1000)
	p.Priority = int(n)
	if !f["priority"].Present() {
		spec.Fail("has no priority: write 0 to 1000")
	}
	if s := one(spec, "subject", f["subject"], "namespaces", "pods"); s != nil {
		p.Subject = clusterPods(s)
	}
	for d, list := range []strict.Value{f["egress"], f["ingress"]} {
		for _, v := range list.List() {
			p.Rules[d] = append(p.Rules[d], clusterRule(v, Direction(d)))
		}
	}
}

// one returns the fields of a value that must hold exactly one of the known ones; nil where it does not.
func one(parent strict.Value, what string, v strict.Value, known ...string) map[string]strict.Value {
	f := v.Fields(known...)
	n := 0
	for _, x := range f {
		if x.Present() {
			n++
		}
	}
	switch {
	case n == 1:
		return f
	case v.Present():
		v.Fail("wants exactly one of %s", strings.Join(known, ", "))
	default:
		parent.Fail("has no %s", what)
	}
	return nil
}

// clusterPods reads namespaces or pods.
func clusterPods(f map[string]strict.Value) Peer {
	if f["namespaces"].Present() {
		return Peer{Namespaces: selector(f["namespaces"])}
	}
	q := f["pods"].Fields("namespaceSelector", "podSelector")
	for _, k := range []string{"namespaceSelector", "podSelector"} {
		if !q[k].Present() {
			f["pods"].Fail("has no %s: {} selects all", k)
		}
	}
	return Peer{Namespaces: selector(q["namespaceSelector"]), Pods: selector(q["podSelector"])}
}

func clusterRule(v strict.Value, d Direction) Rule {
	key, kinds := "to", []string{"namespaces", "pods", "nodes", "networks"}
	if d == Ingress {
		key, kinds = "from", kinds[:2]
	}
	f := v.Fields("name", "action", key, "protocols")
	r := Rule{}
	r.Name, _ = f["name"].String()
	switch s, _ := f["action"].String(); s {
	case "Accept":
	case "Deny":
		r.Action = Deny
	case "Pass":
		r.Action = Pass
	default:
		v.Fail("action %q is unknown: write Accept, Deny or Pass", s)
	}
	if len(f[key].List()) == 0 {
		v.Fail("has nobody in %s: `namespaces: {}` are all pods", key)
	}
	for _, e := range f[key].List() {
		q := one(v, key, e, kinds...)
		switch {
		case q == nil:
		case q["nodes"].Present():
			r.Peers = append(r.Peers, Peer{Nodes: selector(q["nodes"])})
		case q["networks"].Present():
			r.Peers = append(r.Peers, Peer{Blocks: networks(e, q["networks"])})
		default:
			r.Peers = append(r.Peers, clusterPods(q))
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

func clusterPort(rule, v strict.Value) Port {
	f := one(rule, "protocols", v, "tcp", "udp", "sctp", "destinationNamedPort")
	if f["destinationNamedPort"].Present() {
		s, _ := f["destinationNamedPort"].String()
		if !isPortName(s) {
			f["destinationNamedPort"].Fail("%q is not the name of a port", s)
		}
		return Port{Name: s}
	}
	for i, k := range []string{"tcp", "udp", "sctp"} {
		if !f[k].Present() {
			continue
		}
		p := Port{Protocol: placed[i], Last: 65535}
		to := f[k].Fields("destinationPort")["destinationPort"]
		if !to.Present() {
			return p
		}
		q := one(f[k], "destinationPort", to, "number", "range")
		if q["range"].Present() {
			r := q["range"].Fields("start", "end")
			first, ok1 := r["start"].Int(1, 65535)
			last, ok2 := r["end"].Int(1, 65535)
			if ok1 && ok2 && last < first || !r["start"].Present() || !r["end"].Present() {
				q["range"].Fail("wants a start and an end that is not less")
			}
			p.First, p.Last = uint16(first), uint16(last)
		} else if q != nil {
			n, _ := q["number"].Int(1, 65535)
			p.First, p.Last = uint16(n), uint16(n)
		}
		return p
	}
	return Port{}
}
