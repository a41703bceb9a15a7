package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// nameLabel is the label that every namespace has by itself.
const nameLabel = "kubernetes.io/metadata.name"

// World is everything that a verdict depends on. It is immutable: a change makes another one.
type World struct {
	tiers      []ranked // in the order in which they are asked
	pods       []*Pod
	nodes      []*Node
	namespaces map[string]map[string]string // labels
	at         map[netip.Addr]endpoint

	hosts  bool   // policies are about nodes, too
	staged bool   // there are policies that decide nothing
	self   string // the name of the node whose view it is, "" = nobody's
}

// ranked are a tier's policies in the order in which they are asked.
type ranked struct {
	tier     Tier
	policies []*Policy
}

// endpoint is one end of a connection.
type endpoint struct {
	addr netip.Addr
	pod  *Pod  // nil = none
	node *Node // nil = none
}

func (e endpoint) String() string {
	switch {
	case e.pod != nil:
		return "pod " + e.pod.String()
	case e.node != nil:
		return "node " + e.node.Name
	}
	return e.addr.String()
}

// named returns the ports that rules may call by name at this end.
func (e endpoint) named() []NamedPort {
	if e.pod == nil {
		return nil
	}
	return e.pod.Ports
}

// NewWorld puts together what there is, and Failsafe's policy where others are about nodes. Pods whose namespace is not listed are in one
// without labels but its name. The error names what is there twice; nothing that was given may be changed afterwards.
func NewWorld(namespaces []Namespace, pods []Pod, nodes []Node, policies []Policy) (*World, error) {
	w := &World{namespaces: map[string]map[string]string{}, at: map[netip.Addr]endpoint{}}
	var errs []error
	for _, n := range namespaces {
		if w.namespaces[n.Name] != nil {
			errs = append(errs, fmt.Errorf("policy: namespace %s is there twice", n.Name))
		}
		w.addNamespace(n)
	}
	place := func(e endpoint) {
		e.addr = e.addr.Unmap()
		if other, taken := w.at[e.addr]; taken {
			errs = append(errs, fmt.Errorf("policy: %s and %s both have address %s", other, e, e.addr))
		}
		w.at[e.addr] = e
	}
	known := map[string]bool{}
	for i := range pods {
		p := &pods[i]
		if known[p.String()] {
			errs = append(errs, fmt.Errorf("policy: pod %s is there twice", p))
		}
		known[p.String()] = true
		if w.namespaces[p.Namespace] == nil {
			w.addNamespace(Namespace{Name: p.Namespace})
		}
		w.pods = append(w.pods, p)
		for _, a := range p.Addresses {
			place(endpoint{addr: a, pod: p})
		}
	}
	for i := range nodes {
		w.nodes = append(w.nodes, &nodes[i])
		for _, a := range nodes[i].Addresses {
			place(endpoint{addr: a, node: &nodes[i]})
		}
	}
	return w, errors.Join(append(errs, w.rank(policies))...)
}

// rank sorts the policies into tiers. The error names what is there twice.
func (w *World) rank(policies []Policy) error {
	type key struct{ kind, namespace, name string }
	seen := map[key]bool{}
	byOrder, byName := map[int]Tier{}, map[string]Tier{}
	for _, t := range builtin {
		byOrder[t.Order], byName[t.Name] = t, t
	}
	by := map[Tier][]*Policy{}
	var errs []error
	for i := range policies {
		p := &policies[i]
		k := key{p.Tier.kind(), p.Namespace, p.Name}
		if seen[k] {
			errs = append(errs, fmt.Errorf("policy: policy %s is there twice", p))
		}
		seen[k] = true
		for _, other := range []Tier{byOrder[p.Tier.Order], byName[p.Tier.Name]} {
			if other != NoTier && other != p.Tier {
				errs = append(errs, fmt.Errorf("policy: tier %s of order %d and tier %s of order %d cannot both be there", p.Tier, p.Tier.Order, other, other.Order))
			}
		}
		byOrder[p.Tier.Order], byName[p.Tier.Name] = p.Tier, p.Tier
		by[p.Tier] = append(by[p.Tier], p)
		w.hosts, w.staged = w.hosts || p.Subject.Nodes != nil, w.staged || p.Staged
	}
	if w.hosts {
		by[Failsafe] = append(by[Failsafe], failsafe(openPorts))
	}
	for tier, list := range by {
		slices.SortFunc(list, func(a, b *Policy) int {
			return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		w.tiers = append(w.tiers, ranked{tier, list})
	}
	slices.SortFunc(w.tiers, func(a, b ranked) int { return cmp.Compare(a.tier.Order, b.tier.Order) })
	return errors.Join(errs...)
}

func (w *World) addNamespace(n Namespace) {
	labels := maps.Clone(n.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[nameLabel] = n.Name
	w.namespaces[n.Name] = labels
}

// Pods returns all pods, in the order in which they were given. Nobody may change them.
func (w *World) Pods() []*Pod { return w.pods }

// Policies returns all policies in the order in which they are asked. Nobody may change them.
func (w *World) Policies() (all []*Policy) {
	for _, t := range w.tiers {
		all = append(all, t.policies...)
	}
	return all
}

// Empty says that there are no policies.
func (w *World) Empty() bool { return len(w.tiers) == 0 }

// Pod returns the pod of that namespace and name, nil where there is none.
func (w *World) Pod(namespace, name string) *Pod {
	i := slices.IndexFunc(w.pods, func(p *Pod) bool { return p.Namespace == namespace && p.Name == name })
	if i < 0 {
		return nil
	}
	return w.pods[i]
}

// Selects says whether a policy is about a pod.
func (w *World) Selects(p *Policy, pod *Pod) bool { return w.contains(&p.Subject, endpoint{pod: pod}) }

// Name is what is known of an address: the pod or node that has it, or the address.
func (w *World) Name(a netip.Addr) string { return w.end(a).String() }

// Known says whether a pod or a node that is listed has the address.
func (w *World) Known(a netip.Addr) bool {
	_, known := w.at[a.Unmap().WithZone("")]
	return known
}

// NodeAt names the node that has the address, "" where none has.
func (w *World) NodeAt(a netip.Addr) string {
	if n := w.end(a).node; n != nil {
		return n.Name
	}
	return ""
}

func (w *World) end(a netip.Addr) endpoint {
	a = a.Unmap().WithZone("")
	if e, ok := w.at[a]; ok {
		return e
	}
	return endpoint{addr: a}
}

// contains says whether an end is one that a Peer means.
func (w *World) contains(p *Peer, e endpoint) bool {
	if p.Blocks != nil {
		return slices.ContainsFunc(p.Blocks, func(b Block) bool { return b.contains(e.addr) })
	}
	if p.Nodes != nil {
		return e.node != nil && p.Nodes.matches(e.node.Labels)
	}
	if e.pod == nil || p.Namespace != "" && p.Namespace != e.pod.Namespace {
		return false
	}
	return (p.Namespaces == nil || p.Namespaces.matches(w.namespaces[e.pod.Namespace])) && (p.Pods == nil || p.Pods.matches(e.pod.Labels)) &&
		(p.Accounts == nil || slices.Contains(p.Accounts, e.pod.account()))
}
