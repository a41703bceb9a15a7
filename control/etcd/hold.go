package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/control"
)

// hold claims prefixes for this node: those it had, where nobody else has them by now. Without an
// error this node then holds prefixes, or refused says why not.
func (m *member) hold(ctx context.Context) error {
	for {
		mine, refused := m.mine()
		var chosen []netip.Prefix
		if refused == "" {
			chosen, refused = m.choose(mine)
		}
		if m.grant.held() && !slices.Equal(chosen, m.grant.node.Prefixes) {
			m.stop(refused)
		}
		if refused != "" {
			if m.refused != refused {
				m.log.Error("this node holds no prefix and forwards nothing", zap.String("node", m.self.Name), zap.String("problem", refused))
			}
			m.refused = refused
			return nil
		}
		if done, err := m.claim(ctx, chosen, mine); done || err != nil {
			return err
		}
	}
}

// stop ends forwarding: this node's prefixes are another's by now.
func (m *member) stop(why string) {
	had := prefixes(m.grant.node.Prefixes)
	by := m.holders(m.grant.node.Prefixes)
	if why == "" {
		why = "another takes their place"
	}
	m.notice = fmt.Sprintf("this node lost %s to %s at %s: what still uses their addresses is cut off, restart it", had, by, time.Now().Format(time.RFC3339))
	m.log.Error("this node lost its prefixes and stops forwarding", zap.String("node", m.self.Name),
		zap.Stringers("prefixes", m.grant.node.Prefixes), zap.String("to", by), zap.String("problem", why))
	m.grant, m.refused, m.index = grant{}, m.notice, nil
	m.publish()
}

// holders names those who hold any of the prefixes.
func (m *member) holders(list []netip.Prefix) string {
	var names []string
	for _, e := range m.view.entries {
		if m.ours(e) || e.name == "" {
			continue
		}
		if slices.ContainsFunc(e.claims, func(p netip.Prefix) bool {
			return slices.ContainsFunc(list, p.Overlaps)
		}) && !slices.Contains(names, "node "+e.name) {
			names = append(names, "node "+e.name)
		}
	}
	if names == nil {
		return "nobody (the network changed, or the name is another's)"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// ours says whether this owner wrote the key, in this run or an earlier one. A key of this owner with
// a later epoch was written by a copy of it: another machine with a copy of the state directory.
func (m *member) ours(e *entry) bool {
	return e.owner.ID == m.memory.Owner.ID && e.owner.Epoch <= m.memory.Owner.Epoch
}

// mine returns the keys that this node may take over, reservations first: its own ones, and, once in
// a run, those of its name and its address, because the machine at this address is this one, even if
// it lost its state directory. refused says that the node's name is another's.
func (m *member) mine() (mine []*entry, refused string) {
	nodeKey := m.schema.keys(m.self)[0]
	former := map[owner]bool{}
	for key, e := range m.view.entries {
		if m.ours(e) || key == nodeKey && e.wrong != "" || m.fresh && m.here(e) {
			mine = append(mine, e)
			if e.owner.ID != "" {
				former[e.owner] = true
			}
		}
	}
	for _, e := range m.view.entries {
		switch {
		case slices.Contains(mine, e):
		case former[e.owner] && e.name == m.self.Name: // claims of a node key taken over
			mine = append(mine, e)
		case e.node.Name == m.self.Name:
			return nil, fmt.Sprintf("the name %s is held by another daemon, at %v: give this node another node.name; or, if that daemon is gone, wait for its lease to end or delete %s",
				e.name, e.node.Endpoints, e.key)
		}
	}
	slices.SortFunc(mine, func(a, b *entry) int {
		if a.lease == 0 != (b.lease == 0) {
			return map[bool]int{true: -1, false: 1}[a.lease == 0]
		}
		return strings.Compare(a.key, b.key)
	})
	return mine, ""
}

// here says whether the key is of a node with this one's address; Flannel's nodes have no other name.
func (m *member) here(e *entry) bool {
	if !e.at.IsValid() || !slices.Contains(m.self.Endpoints, e.at) {
		return false
	}
	_, isFlannel := m.schema.(flannel)
	return isFlannel || e.name == m.self.Name
}

// choose picks a prefix of each family: the reserved one, the one held before, or any free one.
func (m *member) choose(mine []*entry) (chosen []netip.Prefix, refused string) {
	t := newTaken()
	var before []netip.Prefix
	for _, e := range mine {
		before = append(before, e.claims...)
	}
	before = append(append(before, m.grant.node.Prefixes...), m.memory.Prefixes...)
	for _, e := range m.view.entries {
		if slices.Contains(mine, e) {
			continue
		}
		for _, p := range e.claims {
			if !m.view.odd(p) && !slices.ContainsFunc(mine, func(own *entry) bool { return own.create < e.create && slices.ContainsFunc(own.claims, p.Overlaps) }) {
				t.add(p) // else it is nobody's: a claim off the network's cut, or one that came later than ours
			}
		}
	}
	for name, reserved := range m.network.Reservations {
		if name != m.self.Name {
			for _, p := range reserved {
				t.add(p)
			}
		}
	}
	free := t // what a node without a past may be given: nodes that a wiped store forgot are not gone
	if m.recovering() {
		free = newTaken()
		for p := range t.exact {
			free.add(p)
		}
		for _, n := range m.forgotten.nodes {
			for _, p := range n.Prefixes {
				free.add(p)
			}
		}
	}
	for _, family := range families(m.network.Pools) {
		p, refused := m.one(family, t, free, before)
		if refused != "" {
			return nil, refused
		}
		chosen = append(chosen, p)
	}
	slices.SortFunc(chosen, netip.Prefix.Compare)
	return chosen, ""
}

// families groups pools by address family, IPv4 first.
func families(pools []control.Pool) [][]control.Pool {
	var v4, v6 []control.Pool
	for _, p := range pools {
		if p.Prefix.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return slices.DeleteFunc([][]control.Pool{v4, v6}, func(f []control.Pool) bool { return len(f) == 0 })
}

func (m *member) one(family []control.Pool, t, free *taken, before []netip.Prefix) (netip.Prefix, string) {
	poolOf := func(p netip.Prefix) (control.Pool, bool) {
		i := slices.IndexFunc(family, func(pool control.Pool) bool { return pool.Has(p) })
		if i < 0 {
			return control.Pool{}, false
		}
		return family[i], true
	}
	for _, p := range m.network.Reservations[m.self.Name] {
		pool, ok := poolOf(p)
		switch {
		case !ok:
		case t.within(pool.NodeLength).overlaps(p):
			return p, fmt.Sprintf("%v is reserved for this node, and held by %s: stop that node, or change the reservation", p, m.holders([]netip.Prefix{p}))
		default:
			return p, ""
		}
	}
	for _, p := range before {
		if pool, ok := poolOf(p); ok && !t.within(pool.NodeLength).overlaps(p) {
			return p, ""
		}
	}
	var words []string
	for _, pool := range family {
		if p, ok := allocate(pool, free); ok {
			return p, ""
		}
		_, count := pool.Span()
		words = append(words, fmt.Sprintf("all %d prefixes of %d bits in %v", count, pool.NodeLength, pool.Prefix))
	}
	return netip.Prefix{}, fmt.Sprintf("no prefix is free: %s are held or reserved: remove nodes that are gone, or give the network another prefix or longer node prefixes",
		strings.Join(words, " and "))
}

// claim writes this node's keys by one transaction; false where somebody was faster, and the view then
// knows what is taken.
func (m *member) claim(ctx context.Context, chosen []netip.Prefix, mine []*entry) (bool, error) {
	node := with(m.self, chosen)
	keys := m.schema.keys(node)
	if node.PublicKey != "" {
		m.ownKey = node.PublicKey
	} else if e := m.view.entries[keys[0]]; e != nil && e.node.Name == node.Name && e.node.PublicKey != m.ownKey {
		node.PublicKey = e.node.PublicKey // somebody put it there: this node has nothing to say about it
	}
	for _, e := range mine {
		if e.owner.ID == m.memory.Owner.ID {
			m.memory.Owner.Epoch = max(m.memory.Owner.Epoch, e.owner.Epoch)
		}
	}
	m.memory.Owner.Epoch++
	// Kept before it is used: a claim whose answer is lost is known for our own later.
	if err := m.memory.save(); err != nil {
		return false, err
	}
	values, err := m.schema.values(node, m.memory.Owner)
	if err != nil {
		return false, err
	}
	had := map[string]*entry{}
	forever := false
	for _, e := range mine {
		had[e.key] = e
		forever = forever || e.lease == 0 && e.wrong == "" && slices.Contains(keys, e.key)
	}
	began := time.Now()
	lease := clientv3.NoLease
	if !forever {
		err := m.request(ctx, func(ctx context.Context) error {
			l, err := m.client.Grant(ctx, int64(math.Ceil(m.set.Lease.Seconds())))
			if err == nil {
				lease = l.ID
			}
			return err
		})
		if err != nil {
			return false, err
		}
	}
	conditions, changes := m.transaction(keys, values, lease, had)
	var resp *clientv3.TxnResponse
	err = m.request(ctx, func(ctx context.Context) (err error) {
		resp, err = m.client.Txn(ctx).If(conditions...).Then(changes...).Else(
			clientv3.OpGet(m.schema.networkKey(), clientv3.WithKeysOnly()),
			clientv3.OpGet(keys[0], clientv3.WithKeysOnly()),
			clientv3.OpGet(m.schema.claims(), clientv3.WithPrefix(), clientv3.WithKeysOnly()),
		).Commit()
		return err
	})
	if err != nil {
		return false, err
	}
	if !resp.Succeeded {
		m.revoke(ctx, lease)
		return false, m.beaten(resp, keys[0])
	}
	for _, e := range mine {
		m.revoke(ctx, clientv3.LeaseID(e.lease))
	}
	again := slices.Equal(chosen, m.grant.node.Prefixes)
	m.heard(resp.Header.ClusterId, max(m.rev, resp.Header.Revision))
	m.grant = grant{node: node, keys: keys, mod: resp.Header.Revision, lease: lease, renewed: began}
	m.fresh, m.refused, m.memory.Prefixes, m.index = false, "", chosen, nil
	m.log.Info("holding prefixes", zap.String("node", m.self.Name), zap.Stringers("prefixes", chosen), zap.Bool("again", again || len(had) > 0),
		zap.Uint64("epoch", m.memory.Owner.Epoch), zap.Duration("lease", m.set.Lease), zap.Bool("reservation", forever))
	return true, m.memory.save()
}

// beaten takes in which prefixes are taken by now. Keys alone tell that; what they hold comes by the
// watch. Everything else that can have changed is read anew.
func (m *member) beaten(resp *clientv3.TxnResponse, nodeKey string) error {
	if !m.schema.exclusive(m.network.Pools) {
		return errAgain
	}
	network, node, claims := resp.Responses[0].GetResponseRange(), resp.Responses[1].GetResponseRange(), resp.Responses[2].GetResponseRange()
	if len(network.Kvs) == 0 || network.Kvs[0].ModRevision != m.view.network.ModRevision {
		return errAgain
	}
	e := m.view.entries[nodeKey]
	if (len(node.Kvs) > 0) != (e != nil) && !strings.HasPrefix(nodeKey, m.schema.claims()) || e != nil && len(node.Kvs) > 0 && node.Kvs[0].ModRevision != e.mod {
		return errAgain
	}
	learned := false
	for _, kv := range claims.Kvs {
		if m.view.entries[string(kv.Key)] == nil {
			m.view.put(kv)
			learned = true
		}
	}
	if !learned {
		return errAgain
	}
	return nil
}

// transaction succeeds only where the store is as it was read: the network's configuration, the keys
// to take over, and the absence of those to make.
func (m *member) transaction(keys, values []string, lease clientv3.LeaseID, had map[string]*entry) (conditions []clientv3.Cmp, changes []clientv3.Op) {
	conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(m.schema.networkKey()), "=", m.view.network.ModRevision))
	for i, key := range keys {
		if e := had[key]; e == nil {
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
		} else {
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", e.mod))
		}
		changes = append(changes, clientv3.OpPut(key, values[i], clientv3.WithLease(lease)))
	}
	for key, e := range had {
		if !slices.Contains(keys, key) {
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", e.mod))
			changes = append(changes, clientv3.OpDelete(key))
		}
	}
	if !m.schema.exclusive(m.network.Pools) {
		claims := clientv3.Compare(clientv3.ModRevision(m.schema.claims()), "<", m.view.rev+1)
		conditions = append(conditions, claims.WithPrefix())
	}
	return conditions, changes
}

// revoke ends a lease that nothing hangs on any more. Where that fails it ends by itself.
func (m *member) revoke(ctx context.Context, lease clientv3.LeaseID) {
	if lease == clientv3.NoLease {
		return
	}
	err := m.request(ctx, func(ctx context.Context) error {
		_, err := m.client.Revoke(ctx, lease)
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		m.log.Debug("revoke a lease", zap.Error(err))
	}
}
