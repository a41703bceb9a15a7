package etcd

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"weft/control"
)

// view is what the store holds below the prefix, as far as this node knows.
type view struct {
	schema  schema
	entries map[string]*entry // by key
	network *mvccpb.KeyValue  // nil = there is none
	rev     int64             // all that happened up to here is in
}

// entry is one key.
type entry struct {
	record
	key    string
	create int64 // revision at which the key came into being: who was first
	mod    int64 // revision of its present value
	lease  int64 // 0 = the key never expires
}

func newView(s schema) *view { return &view{schema: s, entries: map[string]*entry{}} }

func (v *view) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	if key == v.schema.networkKey() {
		v.network = kv
		return
	}
	r, ok := v.schema.decode(key, kv.Value)
	if !ok {
		return
	}
	v.entries[key] = &entry{record: r, key: key, create: kv.CreateRevision, mod: kv.ModRevision, lease: kv.Lease}
}

func (v *view) remove(key string) {
	if key == v.schema.networkKey() {
		v.network = nil
	}
	delete(v.entries, key)
}

// cluster is the view as a list of nodes for control.Check, and what is wrong with it.
//
// Who came first stays: a key's creation decides between two nodes that claim one name or one
// endpoint, so that nobody who joins later can push another out. All nodes see the same revisions, so
// all decide alike.
func (v *view) cluster() (nodes []control.Node, problems []control.Problem) {
	var told []*entry
	holder := make(map[netip.Prefix]*entry, len(v.entries))
	for _, e := range v.entries {
		if e.wrong != "" {
			problems = append(problems, control.Problem{Node: e.name, Text: e.wrong})
			continue
		}
		if e.node.Name != "" {
			told = append(told, e)
		}
		for _, p := range e.claims {
			if other := holder[p]; other == nil || e.create < other.create {
				holder[p] = e
			}
		}
	}
	slices.SortFunc(told, func(a, b *entry) int { return cmp.Or(cmp.Compare(a.create, b.create), cmp.Compare(a.key, b.key)) })
	names, at := make(map[string]bool, len(told)), make(map[netip.Addr]string, len(told))
	nodes = make([]control.Node, 0, len(told))
	for _, e := range told {
		n := e.node
		problem := func(format string, args ...any) {
			problems = append(problems, control.Problem{Node: n.Name, Text: fmt.Sprintf(format, args...)})
		}
		if names[n.Name] {
			problem("the name is used by two nodes; the one with %v is left out, it joined later: rename one", n.Endpoints)
			continue
		}
		if slices.ContainsFunc(n.Endpoints, func(a netip.Addr) bool { return at[a] != "" }) {
			n.Endpoints = slices.DeleteFunc(slices.Clone(n.Endpoints), func(a netip.Addr) bool {
				if at[a] != "" {
					problem("endpoint %v belongs to node %s, which joined earlier: correct one of the two", a, at[a])
				}
				return at[a] != ""
			})
		}
		if slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return !held(holder[p], e) }) {
			n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool {
				if !held(holder[p], e) {
					problem("prefix %v is left out, the store does not say that the node holds it: restart its daemon", p)
					return true
				}
				return false
			})
		}
		names[n.Name] = true
		for _, a := range n.Endpoints {
			at[a] = n.Name
		}
		nodes = append(nodes, n)
	}
	return nodes, problems
}

// held says whether the key that claims a prefix belongs to the node of e.
func held(claim, e *entry) bool {
	return claim != nil && claim.name == e.name && claim.owner.ID == e.owner.ID && (len(claim.claims) > 0)
}
