package policy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// Source is where workloads and policies come from.
type Source interface {
	// Run calls update with all that there is, once all of it is known and whenever it changes, until ctx ends; and with an Outage where it
	// cannot be had. One call at a time. An error is of something that a person has to mend, and ends it.
	Run(ctx context.Context, update func(Cluster)) error

	// String is what it is, for people: a file's path, say.
	String() string
}

// Cluster is all that a Source knows, never a part of it: what a World is made of. Nothing of it may be changed once it was handed over.
type Cluster struct {
	Revision uint64 // another one where Namespaces, Pods, Nodes or Policies are others; 0 = nothing is known yet

	Namespaces []Namespace
	Pods       []Pod
	Nodes      []Node
	Policies   []Policy

	// Problems are of single objects: what could not be understood, and what is denied for that.
	Problems []string
	// Outage says why the source may say something else by now, "" where it does not.
	Outage string
}

// World puts the Cluster together; see NewWorld.
func (c Cluster) World() (*World, error) {
	return NewWorld(c.Namespaces, c.Pods, c.Nodes, c.Policies)
}

// Add puts another Cluster's parts behind those of c.
func (c *Cluster) Add(o Cluster) {
	c.Namespaces, c.Pods = append(c.Namespaces, o.Namespaces...), append(c.Pods, o.Pods...)
	c.Nodes, c.Policies = append(c.Nodes, o.Nodes...), append(c.Policies, o.Policies...)
}

// Attached is a pod that has been given addresses on this node. Whoever gave them out knows better whose they are than any Source, and
// earlier.
type Attached struct {
	Namespace, Name string // "" = nobody said
	Addresses       []netip.Addr
}

func (a Attached) String() string { return fmt.Sprintf("%s/%s", a.Namespace, a.Name) }

// MayRunOn says whether a pod may be the one that was given addresses on a node, "" = of no known name. One that runs elsewhere was here before:
// its namesake's attachment is not gone yet.
func (p *Pod) MayRunOn(node string) bool { return p.Node == "" || node == "" || p.Node == node }

// WithAttached returns the Cluster's pods with the addresses that this node gave them, and nobody else with those. A pod that the Cluster does
// not know stays unknown.
func (c Cluster) WithAttached(node string, here []Attached) []Pod {
	type name struct{ namespace, name string }
	given, taken := map[name][]netip.Addr{}, map[netip.Addr]bool{}
	for _, a := range here {
		if a.Name == "" { // whose it is, the source may know by its addresses
			continue
		}
		k := name{a.Namespace, a.Name}
		given[k] = append(given[k], a.Addresses...)
		for _, addr := range a.Addresses {
			taken[addr] = true
		}
	}
	if len(taken) == 0 {
		return c.Pods
	}
	pods := slices.Clone(c.Pods)
	for i := range pods {
		p := &pods[i]
		if mine, ok := given[name{p.Namespace, p.Name}]; ok && p.MayRunOn(node) {
			p.Addresses = mine
		} else if slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return taken[a] }) {
			p.Addresses = slices.DeleteFunc(slices.Clone(p.Addresses), func(a netip.Addr) bool { return taken[a] })
		}
	}
	return pods
}
