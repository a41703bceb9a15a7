package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/control"
)

var _ control.NetworkStore = (*Source)(nil)

// Network reads the network's configuration; false where there is none yet.
func (s *Source) Network(ctx context.Context) (n control.Network, ok bool, err error) {
	client, hangUp, err := s.dial(s.set)
	if err != nil {
		return n, false, errors.New(s.set.told(err))
	}
	defer hangUp()
	if why := s.set.unreachable(); why != nil { // a person waits: no patience
		return n, false, errors.New(s.set.told(why))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := client.Get(ctx, s.schema.networkKey())
	if err != nil {
		return n, false, errors.New(s.set.told(err))
	}
	if len(resp.Kvs) == 0 {
		return n, false, nil
	}
	if n, err = s.schema.decodeNetwork(resp.Kvs[0].Value); err != nil {
		return n, false, fmt.Errorf("etcd: %s: %w", s.schema.networkKey(), err)
	}
	return n, true, nil
}

// SetNetwork writes the network's configuration. It refuses what would take a prefix from a node that
// holds it: a pool that no longer has it, or its reservation for another node.
func (s *Source) SetNetwork(ctx context.Context, n control.Network) error {
	if wrong := n.Wrong(); wrong != "" {
		return fmt.Errorf("etcd: %s", wrong)
	}
	client, hangUp, err := s.dial(s.set)
	if err != nil {
		return errors.New(s.set.told(err))
	}
	defer hangUp()
	if why := s.set.unreachable(); why != nil {
		return errors.New(s.set.told(why))
	}
	for {
		m := &member{Source: s, client: client}
		if err := m.list(ctx); err != nil {
			return errors.New(s.set.told(err))
		}
		if err := m.permits(n); err != nil {
			return err
		}
		var old []byte
		condition := clientv3.Compare(clientv3.CreateRevision(s.schema.networkKey()), "=", 0)
		if kv := m.view.network; kv != nil {
			old, condition = kv.Value, clientv3.Compare(clientv3.ModRevision(s.schema.networkKey()), "=", kv.ModRevision)
		}
		value, err := s.schema.encodeNetwork(n, old)
		if err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
		// Nobody may have claimed anything since the list was read.
		quiet := clientv3.Compare(clientv3.ModRevision(s.schema.claims()), "<", m.view.rev+1).WithPrefix()
		var resp *clientv3.TxnResponse
		err = m.request(ctx, func(ctx context.Context) (err error) {
			resp, err = client.Txn(ctx).If(condition, quiet).Then(clientv3.OpPut(s.schema.networkKey(), string(value))).Commit()
			return err
		})
		if err != nil {
			return errors.New(s.set.told(err))
		}
		if resp.Succeeded {
			return nil
		}
	}
}

// permits says whether all nodes keep what they hold under n.
func (m *member) permits(n control.Network) error {
	reserved := map[netip.Prefix]string{}
	for name, prefixes := range n.Reservations {
		for _, p := range prefixes {
			reserved[p] = name
		}
	}
	for _, e := range m.view.entries {
		for _, p := range e.claims {
			_, inside := n.PoolOf(p)
			other := reserved[p]
			switch {
			case e.wrong != "" || e.name == "":
			case !inside:
				return fmt.Errorf("etcd: node %s holds %v, which is not a node's prefix of that network: stop the node and wait for its lease to end, or keep the network's prefix and node length", e.name, p)
			case other != "" && other != e.name:
				return fmt.Errorf("etcd: node %s holds %v: reserve another prefix for %s, or stop that node and wait for its lease to end", e.name, p, other)
			}
		}
	}
	return nil
}
