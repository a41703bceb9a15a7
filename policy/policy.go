// Package policy says which connections pods and nodes may make and take: Kubernetes' NetworkPolicy (networking.k8s.io/v1) and
// ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2 and v1beta1), and a kind of our own for what these two cannot say (API), over
// workloads known by their labels and addresses. It is pure: it knows no kernel and no Kubernetes.
//
//	Parse      reads workloads and policies from a file
//	Evaluate   judges one connection by the rules as they are written, and says which rule it was
//	Compile    folds the rules into lookups whose cost does not grow with them: what a kernel is told
//
// Evaluate and Compile share the vocabulary and nothing else, and the tests hold them against each other.
//
// A connection needs its source's egress and its destination's ingress. Each is decided for the pod by the first tier that has
// something to say: Admin (by priority, then by the order of rules; Pass leaves the tier), NetworkPolicy (a pod that any of them
// selects is isolated: what no rule of these allows is denied), Baseline (as Admin). Tiers of our own stand before, between or behind
// these, and deny what is left where they are told to. What nobody decides is allowed.
//
// A node is judged as a pod is where policies select it (host endpoints); then Failsafe is asked before all others. Rules that log, and
// policies that are staged, decide nothing: what they would have to say is a Note.
//
// Answers to an allowed connection, and ICMP errors about it, belong to it: they are not judged by themselves.
package policy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Protocol is an IP protocol number. Rules name TCP, UDP and SCTP; every other is decided by rules without ports only.
type Protocol uint8

// The protocols that rules can name (IANA protocol numbers).
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "protocol " + strconv.Itoa(int(p))
}

// Direction of a connection, as its pod sees it.
type Direction uint8

// Directions.
const (
	Egress Direction = iota
	Ingress
)

var directions = []Direction{Egress, Ingress}

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Tier is when a policy is asked: those of a lower Order first.
type Tier struct {
	Name  string
	Order int // no two tiers have the same
}

// Tiers that are always there.
var (
	NoTier     = Tier{} // no policy had anything to say
	Failsafe   = Tier{"failsafe", 0}
	Admin      = Tier{"Admin", 1000}         // ClusterNetworkPolicy
	Namespaced = Tier{"NetworkPolicy", 2000} // NetworkPolicy
	Baseline   = Tier{"Baseline", 3000}      // ClusterNetworkPolicy
)

// builtin are the tiers whose names and places are taken.
var builtin = []Tier{Failsafe, Admin, Namespaced, Baseline}

func (t Tier) String() string { return t.Name }

// kind is that of the policies of a tier.
func (t Tier) kind() string {
	switch t {
	case Namespaced:
		return networkPolicy
	case Admin, Baseline:
		return clusterPolicy
	}
	return ownPolicy
}

// Action is what a rule does with a connection that it matches.
type Action uint8

// Actions. Those of a NetworkPolicy's rules are all Accept.
const (
	Accept Action = iota
	Deny
	Pass // nothing more of this tier is asked
	Log  // it is noted, and the next rule is asked
)

func (a Action) String() string { return [...]string{"Accept", "Deny", "Pass", "Log"}[a] }

// Namespace is a namespace of pods.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Pod is a workload with addresses of its own. One of the node's network (hostNetwork) is none: no policy selects it.
type Pod struct {
	Namespace, Name string
	Node            string // where it runs, "" = nobody said
	Labels          map[string]string
	ServiceAccount  string // "" = default
	Addresses       []netip.Addr
	Ports           []NamedPort
}

func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// alike is the same of pods that no selector tells apart.
func (p *Pod) alike() string {
	key := make([]byte, 0, 64)
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		key = append(append(append(append(key, k...), 0), p.Labels[k]...), 0)
	}
	return string(append(append(append(append(key, 0), p.Namespace...), 0), p.ServiceAccount...))
}

// account is what the pod runs as.
func (p *Pod) account() string { return cmp.Or(p.ServiceAccount, "default") }

// NamedPort is a port of a pod that rules may call by name.
type NamedPort struct {
	Name     string
	Port     uint16
	Protocol Protocol
}

// Node is a machine of the cluster, known for rules that let pods reach nodes, and for policies about nodes themselves.
type Node struct {
	Name      string
	Labels    map[string]string
	Addresses []netip.Addr
}

// Policy is a NetworkPolicy, a ClusterNetworkPolicy, or one of our own kind.
type Policy struct {
	Namespace string // of a NetworkPolicy; "" = of the cluster
	Name      string
	Tier      Tier
	Priority  int  // within its tier, 0 first; of NetworkPolicies 0
	Subject   Peer // the pods, or the nodes, that it is about
	Staged    bool // it decides nothing: what it would decide is noted

	// Isolates says in which directions it denies what no rule of its tier allows: a NetworkPolicy, or one of a tier that denies by default.
	Isolates [2]bool
	Rules    [2][]Rule // by Direction
}

func (p *Policy) String() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// about says whether a policy decides anything in a direction.
func (p *Policy) about(d Direction) bool { return p.Isolates[d] || len(p.Rules[d]) > 0 }

// Rule matches a connection whose other end is one of Peers and whose destination port is one of Ports.
type Rule struct {
	Name   string // may be ""
	Action Action
	Peers  []Peer // nil = everybody, also outside of the cluster
	Ports  []Port // nil = all protocols and ports
}

// Peer is a set of pods, of nodes, or of addresses.
type Peer struct {
	Namespace  string    // pods of this one; "" = of those that Namespaces selects
	Namespaces *Selector // nil = not asked
	Pods       *Selector // nil = all pods of those namespaces
	Accounts   []string  // not nil: pods that run as one of these service accounts
	Nodes      *Selector // not nil: nodes, and no pods
	Blocks     []Block   // not nil: addresses, whoever has them
	Set        string    // the name of the set that Blocks are; "" = none
}

// String says who is meant, with selectors as `kubectl -l` takes them.
func (p Peer) String() string {
	selected := func(what string, s *Selector) string {
		if s == nil || s.String() == "" {
			return "all " + what
		}
		return fmt.Sprintf("%s with %s", what, s)
	}
	switch {
	case p.Set != "":
		return "networks of set " + p.Set
	case p.Blocks != nil:
		var all []string
		for _, b := range p.Blocks {
			text := b.Prefix.String()
			if len(b.Except) > 0 {
				text += fmt.Sprintf(" without %v", b.Except)
			}
			all = append(all, text)
		}
		return strings.Join(all, ", ")
	case p.Nodes != nil:
		return selected("nodes", p.Nodes)
	case p.Accounts != nil:
		return "pods of service accounts " + strings.Join(p.Accounts, ", ") + " of " + selected("namespaces", p.Namespaces)
	case p.Namespace != "":
		return selected("pods", p.Pods) + " of namespace " + p.Namespace
	}
	return selected("pods", p.Pods) + " of " + selected("namespaces", p.Namespaces)
}

// Block is a prefix without some parts of it.
type Block struct {
	Prefix netip.Prefix
	Except []netip.Prefix
}

// contains says whether an address lies in the block.
func (b Block) contains(a netip.Addr) bool {
	if !b.Prefix.Contains(a) {
		return false
	}
	for _, e := range b.Except {
		if e.Contains(a) {
			return false
		}
	}
	return true
}

// Port is a protocol's port, range of ports, or all of them.
type Port struct {
	Protocol    Protocol // 0 with a Name: whichever the port of that name has
	Name        string   // resolved at the destination pod; "" = First to Last
	First, Last uint16   // 0 to 65535 = all
}

func (p Port) String() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.First == 0 && p.Last == 65535:
		return p.Protocol.String()
	case p.First == p.Last:
		return fmt.Sprintf("%s %d", p.Protocol, p.First)
	}
	return fmt.Sprintf("%s %d–%d", p.Protocol, p.First, p.Last)
}

// matches says whether a port is meant where the destination pod has these named ports.
func (p Port) matches(proto Protocol, port uint16, named []NamedPort) bool {
	if p.Name == "" {
		return p.Protocol == proto && p.First <= port && port <= p.Last
	}
	for _, n := range named {
		if n.Name == p.Name && n.Protocol == proto && n.Port == port && (p.Protocol == 0 || p.Protocol == proto) {
			return true
		}
	}
	return false
}
