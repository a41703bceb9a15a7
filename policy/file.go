package policy

import (
	"net/netip"
	"regexp"
	"slices"

	"weft/internal/config/strict"
)

// API versions and kinds of the policies that Parse reads.
const (
	networkPolicyAPI = "networking.k8s.io/v1"
	networkPolicy    = "NetworkPolicy"
	clusterPolicy    = "ClusterNetworkPolicy"
	ownPolicyAPI     = "policy.weft/v1alpha1"
	ownPolicy        = "Policy"
)

var clusterPolicyAPIs = []string{"policy.networking.k8s.io/v1alpha2", "policy.networking.k8s.io/v1beta1"}

// Parse reads workloads and policies; file is the name that errors carry. Policies are written as for Kubernetes:
//
//	namespaces: [{name: shop, labels: {team: blue}}]
//	pods: [{name: web, namespace: shop, node: alpha, labels: {app: web}, addresses: [10.244.1.5], ports: [{name: http, port: 8080}]}]
//	nodes: [{name: alpha, addresses: [192.0.2.1]}]
//	tiers: [{name: security, order: 500, default: Deny}]
//	networkSets: [{name: offices, networks: [198.51.100.0/24]}]
//	policies:
//	  - apiVersion: networking.k8s.io/v1
//	    kind: NetworkPolicy
//	    metadata: {name: web, namespace: shop}
//	    spec: {podSelector: {}, ingress: [{ports: [{port: http}]}]}
//
// The error lists every mistake with its line, and there is no World then: half of somebody's policies are not what he wrote.
func Parse(file string, data []byte) (*World, error) {
	_, w, err := ParseCluster(file, data)
	return w, err
}

// ParseCluster is Parse with what the World is made of.
func ParseCluster(file string, data []byte) (c Cluster, w *World, err error) {
	doc := strict.Parse(file, data)
	if doc.Empty() {
		doc.Fail("the file is empty: it needs pods and policies")
	}
	c = parts(doc.Root())
	if err = doc.Err(); err != nil {
		return Cluster{}, nil, err
	}
	if w, err = c.World(); err != nil {
		doc.Fail("%v", err)
		return Cluster{}, nil, doc.Err()
	}
	return c, w, nil
}

// ParsePart reads a part of a file: what it names may be in another one.
func ParsePart(name string, data []byte) (Cluster, error) {
	doc := strict.Parse(name, data)
	if doc.Empty() {
		doc.Fail("is empty: write {policies: []} for nothing")
	}
	c := parts(doc.Root())
	return c, doc.Err()
}

func parts(root strict.Value) (c Cluster) {
	f := root.Fields("namespaces", "pods", "nodes", "tiers", "networkSets", "policies")
	for _, v := range f["namespaces"].List() {
		n := v.Fields("name", "labels")
		c.Namespaces = append(c.Namespaces, Namespace{Name: name(v, n["name"]), Labels: labels(n["labels"])})
	}
	for _, v := range f["pods"].List() {
		c.Pods = append(c.Pods, pod(v))
	}
	for _, v := range f["nodes"].List() {
		n := v.Fields("name", "labels", "addresses")
		c.Nodes = append(c.Nodes, Node{Name: name(v, n["name"]), Labels: labels(n["labels"]), Addresses: addresses(n["addresses"])})
	}
	own := ownObjects{tiers(f["tiers"]), networkSets(f["networkSets"])}
	for _, v := range f["policies"].List() {
		c.Policies = append(c.Policies, onePolicy(v, own))
	}
	return c
}

func name(v, of strict.Value) string {
	s, ok := of.String()
	if !of.Present() || ok && s == "" {
		v.Fail("has no name: write one")
	}
	return s
}

// namespace is default where none is said. An empty one is a mistake: a Peer without a namespace means pods of all.
func namespace(v strict.Value) string {
	s, ok := v.String()
	switch {
	case !ok:
		return "default"
	case s == "":
		v.Fail("is empty: write a namespace, or remove the key for default")
	}
	return s
}

func labels(v strict.Value) map[string]string {
	if !v.Present() {
		return nil
	}
	all := map[string]string{}
	for k, of := range v.Map() {
		if s, ok := of.String(); ok {
			all[k] = s
		}
	}
	return all
}

func addresses(v strict.Value) (all []netip.Addr) {
	for _, e := range v.List() {
		s, ok := e.String()
		if !ok {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			e.Fail("%q is not an address: write one like 10.244.1.5 or fd00:10:244:1::5", s)
			continue
		}
		all = append(all, a.Unmap())
	}
	return all
}

func pod(v strict.Value) Pod {
	f := v.Fields("name", "namespace", "node", "labels", "serviceAccount", "addresses", "ports")
	p := Pod{Name: name(v, f["name"]), Namespace: namespace(f["namespace"]), Labels: labels(f["labels"]), Addresses: addresses(f["addresses"])}
	p.Node, _ = f["node"].String()
	if account := f["serviceAccount"]; account.Present() {
		if p.ServiceAccount, _ = account.String(); p.ServiceAccount == "" {
			account.Fail("is empty: write a service account, or remove the key for default")
		}
	}
	for _, e := range f["ports"].List() {
		q := e.Fields("name", "port", "protocol")
		n := NamedPort{Protocol: protocol(q["protocol"])}
		if n.Name, _ = q["name"].String(); !isPortName(n.Name) {
			e.Fail("name %q is not that of a port: at most 15 of a–z, 0–9 and '-', and a letter among them", n.Name)
		}
		number, ok := q["port"].Int(1, 65535)
		if n.Port = uint16(number); !ok && !q["port"].Present() {
			e.Fail("has no port: write its number")
		}
		p.Ports = append(p.Ports, n)
	}
	return p
}

var portWord = regexp.MustCompile(`^[a-z0-9-]*[a-z][a-z0-9-]*$`)

// isPortName is RFC 6335, section 5.1, as Kubernetes has it, but for where a '-' may stand.
func isPortName(s string) bool { return len(s) <= 15 && portWord.MatchString(s) }

// protocol is TCP where none is said.
func protocol(v strict.Value) Protocol {
	s, ok := v.String()
	switch s {
	case "UDP":
		return UDP
	case "SCTP":
		return SCTP
	case "TCP":
	default:
		if ok {
			v.Fail("%q is not a protocol that rules know: write TCP, UDP or SCTP", s)
		}
	}
	return TCP
}

// onePolicy reads an object as Kubernetes has it. What its metadata says beside the names is of no meaning here.
func onePolicy(v strict.Value, own ownObjects) Policy {
	f := v.Fields("apiVersion", "kind", "metadata", "spec", "status")
	meta := f["metadata"].Fields("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "creationTimestamp",
		"managedFields", "ownerReferences", "finalizers", "selfLink", "generateName", "deletionTimestamp", "deletionGracePeriodSeconds")
	p := Policy{Name: name(v, meta["name"])}
	version, _ := f["apiVersion"].String()
	kind, _ := f["kind"].String()
	if !f["spec"].Present() {
		v.Fail("has no spec")
	}
	switch {
	case version == networkPolicyAPI && kind == networkPolicy:
		p.Namespace, p.Tier = namespace(meta["namespace"]), Namespaced
		namespaced(f["spec"], &p)
	case kind == clusterPolicy && slices.Contains(clusterPolicyAPIs, version):
		if meta["namespace"].Present() {
			meta["namespace"].Fail("a ClusterNetworkPolicy is in no namespace: remove it")
		}
		ofCluster(f["spec"], &p)
	case version == ownPolicyAPI && kind == ownPolicy:
		if meta["namespace"].Present() {
			meta["namespace"].Fail("a Policy of weft is in no namespace: remove it, and select namespaces by label")
		}
		own.policy(f["spec"], &p)
	default:
		v.Fail("apiVersion %q and kind %q are of no policy: write %s %s, %s %s or %s %s", version, kind, networkPolicyAPI, networkPolicy, clusterPolicyAPIs[0], clusterPolicy, ownPolicyAPI, ownPolicy)
	}
	return p
}

// namespaced reads the spec of a NetworkPolicy.
func namespaced(spec strict.Value, p *Policy) {
	f := spec.Fields("podSelector", "policyTypes", "ingress", "egress")
	p.Subject = Peer{Namespace: p.Namespace, Pods: &Selector{}}
	if f["podSelector"].Present() {
		p.Subject.Pods = selector(f["podSelector"])
	}
	for d, list := range []strict.Value{f["egress"], f["ingress"]} {
		for _, v := range list.List() {
			key := []string{"to", "from"}[d]
			r := v.Fields(key, "ports")
			rule := Rule{}
			for _, e := range r[key].List() {
				rule.Peers = append(rule.Peers, namespacedPeer(e, p.Namespace))
			}
			for _, e := range r["ports"].List() {
				rule.Ports = append(rule.Ports, namespacedPort(e))
			}
			p.Rules[d] = append(p.Rules[d], rule)
		}
	}
	types := f["policyTypes"].List()
	p.Isolates[Ingress], p.Isolates[Egress] = len(types) == 0, len(types) == 0 && len(p.Rules[Egress]) > 0
	for _, e := range types {
		s, ok := e.String()
		switch {
		case s == "Ingress":
			p.Isolates[Ingress] = true
		case s == "Egress":
			p.Isolates[Egress] = true
		case ok:
			e.Fail("%q is not a type of policy: write Ingress or Egress", s)
		}
	}
	for _, d := range directions {
		if !p.Isolates[d] {
			p.Rules[d] = nil // of a direction that the policy says it is not about
		}
	}
}

func namespacedPeer(v strict.Value, namespace string) Peer {
	f := v.Fields("podSelector", "namespaceSelector", "ipBlock")
	var p Peer
	selects := f["podSelector"].Present() || f["namespaceSelector"].Present()
	switch {
	case f["ipBlock"].Present() && selects:
		v.Fail("has an ipBlock and selectors: make two of it")
	case f["ipBlock"].Present():
		b := f["ipBlock"].Fields("cidr", "except")
		block := Block{Prefix: prefix(b["cidr"])}
		if !b["cidr"].Present() {
			f["ipBlock"].Fail("has no cidr")
		}
		for _, e := range b["except"].List() {
			x := prefix(e)
			if x.IsValid() && block.Prefix.IsValid() && (x.Bits() <= block.Prefix.Bits() || !block.Prefix.Contains(x.Addr())) {
				e.Fail("%s is not a part of %s", x, block.Prefix)
			}
			block.Except = append(block.Except, x)
		}
		p.Blocks = []Block{block}
	case !selects:
		v.Fail("selects nothing: write podSelector, namespaceSelector or ipBlock")
	}
	if f["podSelector"].Present() {
		p.Pods = selector(f["podSelector"])
	}
	if f["namespaceSelector"].Present() {
		p.Namespaces = selector(f["namespaceSelector"])
	} else {
		p.Namespace = namespace
	}
	return p
}

func prefix(v strict.Value) netip.Prefix {
	s, ok := v.String()
	p, err := netip.ParsePrefix(s)
	if ok && (err != nil || p.Addr().Is4In6()) {
		v.Fail("%q is not a prefix: write it like 10.244.0.0/16 or fd00:10:244::/48", s)
		return netip.Prefix{}
	}
	return p.Masked()
}

func namespacedPort(v strict.Value) Port {
	f := v.Fields("protocol", "port", "endPort")
	p := Port{Protocol: protocol(f["protocol"]), First: 0, Last: 65535}
	switch port := f["port"]; {
	case port.IsNumber():
		n, _ := port.Int(1, 65535)
		p.First, p.Last = uint16(n), uint16(n)
	case port.Present():
		// An empty name is none either: without a name the port would be all of them.
		if s, ok := port.String(); ok {
			if p.Name = s; !isPortName(s) {
				port.Fail("%q is not the name of a port; a number goes without quotes", s)
			}
		}
	}
	if !f["endPort"].Present() {
		return p
	}
	if !f["port"].IsNumber() {
		f["endPort"].Fail("needs a port that is a number")
	} else if n, ok := f["endPort"].Int(1, 65535); ok && uint16(n) < p.First {
		f["endPort"].Fail("%d is less than port %d", n, p.First)
	} else {
		p.Last = uint16(n)
	}
	return p
}

func selector(v strict.Value) *Selector {
	f := v.Fields("matchLabels", "matchExpressions")
	s := &Selector{Labels: labels(f["matchLabels"])}
	for _, e := range f["matchExpressions"].List() {
		q := e.Fields("key", "operator", "values")
		r := Requirement{}
		if r.Key, _ = q["key"].String(); r.Key == "" {
			e.Fail("has no key")
		}
		op, _ := q["operator"].String()
		r.Operator = Operator(op)
		for _, x := range q["values"].List() {
			if s, ok := x.String(); ok {
				r.Values = append(r.Values, s)
			}
		}
		switch r.Operator {
		case In, NotIn:
			if len(r.Values) == 0 {
				e.Fail("%s needs values", op)
			}
		case Exists, DoesNotExist:
			if len(r.Values) > 0 {
				e.Fail("%s takes no values", op)
			}
		default:
			e.Fail("operator %q is unknown: write In, NotIn, Exists or DoesNotExist", op)
		}
		s.Expressions = append(s.Expressions, r)
	}
	return s
}
