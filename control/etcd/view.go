package etcd

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"weft/control"
)

// view is what the store holds below the prefix, as far as this node knows.
type view struct {
	schema  schema
	entries map[string]*entry // by key
	told    []*entry          // those of them that describe a node, sorted by name, then by age
	network *mvccpb.KeyValue  // nil = there is none
	pools   []control.Pool    // of the network that is in force; nil = not known yet
	rev     int64             // all that happened up to here is in

	// What changed since the last State, so that one change among thousands of nodes costs little.
	dirty map[string]bool // names of nodes
	whole bool            // something that is no node's, or nobody's
}

// entry is one key.
type entry struct {
	record
	key    string
	create int64 // revision at which the key came into being: who was first
	mod    int64 // revision of its present value
	lease  int64 // 0 = the key never expires
}

func newView(s schema) *view {
	return &view{schema: s, entries: map[string]*entry{}, dirty: map[string]bool{}, whole: true}
}

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
	v.touch(v.entries[key])
	v.forget(v.entries[key])
	e := &entry{record: r, key: key, create: kv.CreateRevision, mod: kv.ModRevision, lease: kv.Lease}
	v.entries[key] = e
	v.touch(e)
	if e.node.Name != "" {
		at, _ := slices.BinarySearchFunc(v.told, e, compareEntry)
		v.told = slices.Insert(v.told, at, e)
	}
}

// touch notes that what the entry says is new, or no more.
func (v *view) touch(e *entry) {
	if e == nil {
		return
	}
	v.whole = v.whole || e.wrong != "" || e.name == "" || slices.ContainsFunc(e.claims, v.odd)
	v.dirty[e.name] = true
}

// forget takes an entry out of the sorted ones.
func (v *view) forget(e *entry) {
	if e == nil || e.node.Name == "" {
		return
	}
	if at, ok := slices.BinarySearchFunc(v.told, e, compareEntry); ok {
		v.told = slices.Delete(v.told, at, at+1)
	}
}

func compareEntry(a, b *entry) int {
	return cmp.Or(cmp.Compare(a.node.Name, b.node.Name), cmp.Compare(a.create, b.create), cmp.Compare(a.key, b.key))
}

func (v *view) remove(key string) {
	if key == v.schema.networkKey() {
		v.network = nil
	}
	v.touch(v.entries[key])
	v.forget(v.entries[key])
	delete(v.entries, key)
}

// cluster is the view as a list of nodes for control.Check, what is wrong with it, and who was there first: by a key's creation, which
// all see alike. For a prefix that is the age of the claim, for whatever else the age of the node, which may have begun to claim it
// later: what the last State granted goes before (control.Check).
func (v *view) cluster() (nodes []control.Node, problems []control.Problem, elder control.Elder) {
	holder := make(map[netip.Prefix]*entry, len(v.entries))
	for _, e := range v.entries {
		if e.wrong != "" {
			problems = append(problems, control.Problem{Node: e.name, Text: e.wrong})
			continue
		}
		for _, p := range e.claims {
			if v.odd(p) {
				problems = append(problems, control.Problem{Node: e.name, Text: fmt.Sprintf("the claim of prefix %v is left out, the network is not cut into such ones: delete the key %s, or restart the daemon that wrote it", p, e.key)})
				continue
			}
			if other := holder[p]; other == nil || e.create < other.create {
				holder[p] = e
			}
		}
	}
	age := map[string]int64{} // of the nodes' own keys
	nodes = make([]control.Node, 0, len(v.told)+1)
	for i, e := range v.told {
		n := e.node
		problem := func(format string, args ...any) {
			problems = append(problems, control.Problem{Node: n.Name, Text: fmt.Sprintf(format, args...)})
		}
		if i > 0 && v.told[i-1].node.Name == n.Name {
			problem("the name is used by two nodes; the one with %v is left out, it joined later: rename one", n.Endpoints)
			continue
		}
		if slices.ContainsFunc(n.Prefixes, func(p netip.Prefix) bool { return !held(holder[p], e) }) {
			n.Prefixes = slices.DeleteFunc(slices.Clone(n.Prefixes), func(p netip.Prefix) bool {
				if !held(holder[p], e) && !v.odd(p) {
					problem("prefix %v is left out, the store does not say that the node holds it: restart its daemon", p)
				}
				return !held(holder[p], e)
			})
		}
		age[n.Name] = e.create
		nodes = append(nodes, n)
	}
	created := func(c control.Claim) int64 {
		if e := holder[c.Prefix]; c.Prefix.IsValid() && e != nil && e.name == c.Node.Name {
			return e.create
		}
		if create, ok := age[c.Node.Name]; ok && !c.Prefix.IsValid() {
			return create
		}
		return math.MaxInt64 // not in the store: this node's own newest, or one that the store forgot
	}
	return nodes, problems, func(a, b control.Claim) int { return cmp.Compare(created(a), created(b)) }
}

// odd says that the network is not cut into prefixes like p, so that nobody can hold it.
func (v *view) odd(p netip.Prefix) bool {
	return v.pools != nil && !slices.ContainsFunc(v.pools, func(pool control.Pool) bool {
		return pool.NodeLength == p.Bits() && pool.Prefix.Overlaps(p)
	})
}

// held says whether the key that claims a prefix belongs to the node of e.
func held(claim, e *entry) bool {
	return claim != nil && claim.name == e.name && claim.owner.ID == e.owner.ID
}

// one returns the node of a name; ok is false where the store does not say one thing about it, and
// the name is "" where it has none.
func (v *view) one(name string) (n control.Node, ok bool) {
	at, _ := slices.BinarySearchFunc(v.told, name, func(e *entry, name string) int { return cmp.Compare(e.node.Name, name) })
	if at == len(v.told) || v.told[at].node.Name != name {
		return n, true
	}
	e := v.told[at]
	if slices.ContainsFunc(e.node.Prefixes, v.odd) {
		return n, false
	}
	if at+1 < len(v.told) && v.told[at+1].node.Name == name {
		return n, false
	}
	if len(e.claims) == 0 { // they have keys of their own
		for _, key := range v.schema.keys(e.node)[1:] {
			if !held(v.entries[key], e) {
				return n, false
			}
		}
	}
	return e.node, true
}
