package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/control"
)

// member is one run of a source: this node in its cluster. One goroutine owns it.
type member struct {
	*Source
	client *clientv3.Client // nil = not made yet
	close  func()           // of client
	self   control.Node     // as the daemon knows it; without prefixes
	memory *memory
	update func(control.State)

	announced <-chan struct{} // tells that self may be another by now

	view    *view
	network control.Network
	wrong   string // what is wrong with the network's configuration now, "" when it is in force
	written []byte // the network's configuration as it is in the store, to write it again
	rev     int64  // the newest revision that the store spoke of
	cluster uint64 // the store's id

	grant     grant
	refused   string // why this node holds nothing
	ownKey    string // the public key that this node itself announced last, "" = none in this run
	fresh     bool   // nothing was claimed in this run yet
	notice    string // what happened to this node's prefixes, for people
	forgotten forgotten

	published bool
	settled   bool // the session got as far as following the store
	last      control.State
	index     *control.Index // of last, where that is a cluster in order; else nil
	asOf      time.Time
	failed    int    // questions in a row that had no answer
	outage    string // what keeps the store from being heard, "" when nothing does
}

// grant is what the store gave this node.
type grant struct {
	node    control.Node // with its prefixes; none = nothing granted
	keys    []string
	mod     int64            // revision that wrote the keys
	lease   clientv3.LeaseID // 0 = a reservation, which does not expire
	renewed time.Time        // when the lease was last known to run for its whole length
}

func (g *grant) held() bool { return len(g.node.Prefixes) > 0 }

// errAgain ends a session to begin another one at once: what this one knows is not what is.
var errAgain = errors.New("etcd: read the store again")

// session reads the store, makes sure that this node holds its prefixes, and follows the store until
// something is wrong.
func (m *member) session(ctx context.Context) error {
	if m.client == nil {
		client, hangUp, err := m.dial(m.set)
		if err != nil {
			return err
		}
		m.client, m.close = client, hangUp
	}
	if err := m.list(ctx); err != nil {
		return err
	}
	if err := m.readNetwork(ctx); err != nil {
		return err
	}
	if other, err := m.listen(); err != nil {
		m.log.Error("what this node announces is kept as it was", zap.Error(err))
	} else if other {
		m.grant.mod = 0 // what is written is not what is to be
	}
	if !m.agrees() {
		if err := m.hold(ctx); err != nil {
			return err
		}
	}
	m.outage = ""
	m.publish()
	return m.follow(ctx)
}

// listen takes over what this node announces by now. It says whether that is something else than before; after an error it is not.
func (m *member) listen() (other bool, err error) {
	self, changed := m.Announced()
	m.announced = changed
	if len(self.Endpoints) == 0 {
		return false, errors.New("etcd: this node has no address that it could tell the others: set node.interface")
	}
	if m.set.Schema == SchemaFlannel {
		self.Endpoints = control.OfNetwork(self.Endpoints, m.set.Network)
	}
	if _, err := m.schema.values(with(self, m.set.Network), m.memory.Owner); err != nil {
		return false, fmt.Errorf("etcd: %w", err)
	}
	other = !self.Equal(m.self)
	m.self = self
	return other, nil
}

// hangUp closes the client; the next session makes another.
func (m *member) hangUp() {
	if m.client != nil {
		m.close()
		m.client = nil
	}
}

// list reads everything below the prefix, as of one revision.
func (m *member) list(ctx context.Context) error {
	v, same := newView(m.schema), true
	v.pools = m.network.Pools
	key, end := m.set.Prefix+"/", clientv3.GetPrefixRangeEnd(m.set.Prefix+"/")
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if v.rev > 0 {
			opts = append(opts, clientv3.WithRev(v.rev))
		}
		var resp *clientv3.GetResponse
		err := m.request(ctx, func(ctx context.Context) (err error) {
			resp, err = m.client.Get(ctx, key, opts...)
			return err
		})
		if err != nil {
			return err
		}
		if v.rev == 0 {
			v.rev = resp.Header.Revision
			same = m.heard(resp.Header.ClusterId, resp.Header.Revision)
		}
		for _, kv := range resp.Kvs {
			v.put(kv)
		}
		if !resp.More {
			break
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	if same && v.network == nil && m.written != nil && !m.recovering() {
		m.wiped("it holds no network any more")
	}
	m.view = v
	return nil
}

// request bounds one request and notes when it was answered.
func (m *member) request(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return do(ctx)
}

// heard takes note of an answer. It says whether the store is still the one it was.
func (m *member) heard(cluster uint64, rev int64) bool {
	same := true
	switch {
	case m.cluster != 0 && m.cluster != cluster:
		m.wiped("another cluster answers")
		same = false
	case rev < m.rev:
		m.wiped(fmt.Sprintf("its revision went back from %d to %d", m.rev, rev))
		same = false
	}
	m.cluster, m.rev, m.asOf = cluster, rev, time.Now()
	return same
}

// readNetwork takes over the network's configuration, and writes it where there is none.
func (m *member) readNetwork(ctx context.Context) error {
	if m.view.network == nil {
		return m.writeNetwork(ctx)
	}
	n, err := m.schema.decodeNetwork(m.view.network.Value)
	switch {
	case err != nil:
		m.wrong = fmt.Sprintf("the network's configuration at %s cannot be used: %v", m.schema.networkKey(), err)
	default:
		m.wrong = m.set.disagrees(n)
	}
	if m.wrong == "" {
		m.network, m.written = n, m.view.network.Value
		m.view.pools, m.view.whole = n.Pools, true
		return nil
	}
	if m.published { // what is in force stays
		m.log.Error("the network's configuration changed and is not in force", zap.String("problem", m.wrong))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %s", errStore, m.wrong)
	}
	return fmt.Errorf("%w: %s", errConfiguration, m.wrong)
}

// disagrees says how n differs from what this node was configured with, "" when it does not.
func (s Settings) disagrees(n control.Network) string {
	theirs, ours := n.Prefixes(), slices.Clone(s.Network)
	slices.SortFunc(theirs, netip.Prefix.Compare)
	slices.SortFunc(ours, netip.Prefix.Compare)
	switch {
	case !slices.Equal(theirs, ours):
		return fmt.Sprintf("the cluster's network is %v, this node's network.prefixes are %v: make them the same (`weft network set`, or the file and a restart)", theirs, ours)
	case n.VNI != s.VNI:
		return fmt.Sprintf("the cluster's VNI is %d, this node's network.vni is %d: make them the same (`weft network set`, or the file and a restart)", n.VNI, s.VNI)
	case n.Port != 0 && n.Port != s.Port:
		return fmt.Sprintf("the cluster's port is %d, this node's network.port is %d: make them the same", n.Port, s.Port)
	}
	return ""
}

// writeNetwork writes the configuration that was in the store before, or else this node's own.
func (m *member) writeNetwork(ctx context.Context) error {
	value := m.written
	if value == nil {
		n := control.Network{VNI: m.set.VNI}
		for _, p := range m.set.Network {
			n.Pools = append(n.Pools, control.NewPool(p))
		}
		if m.set.Schema == SchemaFlannel && m.set.Port != FlannelPort {
			n.Port = m.set.Port
		}
		var err error
		if value, err = m.schema.encodeNetwork(n, nil); err != nil {
			return fmt.Errorf("%w: %w", errConfiguration, err)
		}
	}
	key := m.schema.networkKey()
	err := m.request(ctx, func(ctx context.Context) error {
		_, err := m.client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, string(value))).Commit()
		return err
	})
	if err != nil {
		return err
	}
	m.log.Info("the store had no network: wrote it", zap.String("key", key), zap.ByteString("value", value))
	return errAgain
}

// follow watches the store and keeps the lease until something is wrong.
func (m *member) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch := m.watch(ctx, m.view.rev+1)
	m.settled = true

	every := min(confirm, m.set.Lease/3)
	answers := make(chan answer, 1)
	ask := time.NewTimer(every)
	defer ask.Stop()
	if m.grant.held() && time.Since(m.grant.renewed) > m.set.Lease/3 {
		ask.Reset(0)
	}
	asking := false
	changed := m.connection(ctx)
	var flush <-chan time.Time
	var flushed time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case w, open := <-watch:
			if !open {
				return fmt.Errorf("%w: the watch ended", errStore)
			}
			if err := w.Err(); err != nil {
				if errors.Is(err, rpctypes.ErrCompacted) {
					return errAgain
				}
				return err
			}
			freed, err := m.apply(ctx, w)
			if err != nil {
				return err
			}
			if freed && !asking {
				ask.Reset(rand.N(time.Second)) // not all of them at the same moment
			}
			if flush == nil {
				flush = time.After(gather - min(gather, time.Since(flushed)))
			}
		case <-flush:
			flush, flushed = nil, time.Now()
			m.publish()
		case <-m.announced:
			return errAgain
		case <-changed:
			if !asking {
				ask.Reset(0)
			}
		case <-ask.C:
			asking = true
			go func(client *clientv3.Client, g grant) {
				select {
				case answers <- m.set.ask(ctx, client, g):
				case <-ctx.Done():
				}
			}(m.client, m.grant)
		case a := <-answers:
			asking = false
			again, err := m.answered(ctx, a, every)
			if err != nil {
				return err
			}
			ask.Reset(again)
		}
	}
}

// watch tells what happens below the prefix from rev on, until ctx ends or the watch does.
func (m *member) watch(ctx context.Context, rev int64) <-chan clientv3.WatchResponse {
	out, client := make(chan clientv3.WatchResponse), m.client
	go func() { // Watch itself waits for the server
		defer close(out)
		// A member of etcd that has lost the others says so instead of staying silent.
		for w := range client.Watch(clientv3.WithRequireLeader(ctx), m.set.Prefix+"/", clientv3.WithPrefix(), clientv3.WithRev(rev)) {
			select {
			case out <- w:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// connection tells, until ctx ends, when the connection to the store breaks or is back: neither should
// wait for the next question.
func (m *member) connection(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	conn := m.client.ActiveConnection()
	go func() {
		for state := conn.GetState(); conn.WaitForStateChange(ctx, state); state = conn.GetState() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed
}

// apply takes in what happened. freed says that a node without prefixes may have more luck now.
func (m *member) apply(ctx context.Context, w clientv3.WatchResponse) (freed bool, err error) {
	m.asOf = time.Now()
	known := m.view.rev
	gone := map[int64]string{} // node that left, by revision
	network := false
	for _, e := range w.Events {
		key := string(e.Kv.Key)
		if e.Kv.ModRevision <= known { // read since the watch began
			continue
		}
		m.view.rev = max(m.view.rev, e.Kv.ModRevision)
		m.rev = max(m.rev, e.Kv.ModRevision)
		network = network || key == m.schema.networkKey()
		if e.Type == mvccpb.PUT {
			m.view.put(e.Kv)
			continue
		}
		if old := m.view.entries[key]; old != nil && old.node.Name != "" {
			// A lease that ends takes one node with it.
			if other := gone[e.Kv.ModRevision]; other != "" && other != old.name {
				m.wiped("keys of several nodes were deleted at once")
				return false, errAgain
			}
			gone[e.Kv.ModRevision] = old.name
		}
		m.view.remove(key)
		freed = true
	}
	if network {
		if m.view.network == nil {
			m.wiped("the network's configuration was deleted")
			return false, errAgain
		}
		if err := m.readNetwork(ctx); err != nil {
			return false, err
		}
	}
	if m.grant.held() && !m.agrees() {
		return false, m.hold(ctx)
	}
	return !m.grant.held() && (freed || network), nil
}

// agrees says whether the store has this node's keys as this node wrote them. A view that is older
// than the keys has nothing to say.
func (m *member) agrees() bool {
	if !m.grant.held() {
		return false
	}
	if m.view.rev < m.grant.mod {
		return true
	}
	return !slices.ContainsFunc(m.grant.keys, func(key string) bool {
		e := m.view.entries[key]
		return e == nil || e.mod != m.grant.mod
	})
}

// answer is what the store says when it is asked whether all is well.
type answer struct {
	err     error
	cluster uint64
	rev     int64
	mod     int64 // of this node's key; 0 = it is gone
	renewed time.Time
	began   time.Time
}

// ask renews the lease where that is due, and reads this node's key. It runs beside the member's own
// goroutine and edits nothing.
func (s Settings) ask(ctx context.Context, client *clientv3.Client, g grant) answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a := answer{began: time.Now(), renewed: g.renewed}
	if g.lease != 0 && time.Since(g.renewed) >= s.Lease/3-time.Millisecond {
		_, err := client.KeepAliveOnce(ctx, g.lease)
		if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			a.err = err
			return a
		}
		if err == nil {
			a.renewed = a.began
		}
	}
	key := s.Prefix + "/"
	if g.held() {
		key = g.keys[0]
	}
	resp, err := client.Get(ctx, key, clientv3.WithKeysOnly())
	if err != nil {
		a.err = err
		return a
	}
	a.cluster, a.rev = resp.Header.ClusterId, resp.Header.Revision
	if len(resp.Kvs) > 0 {
		a.mod = resp.Kvs[0].ModRevision
	}
	return a
}

// answered takes an answer in and returns when to ask again.
func (m *member) answered(ctx context.Context, a answer, every time.Duration) (time.Duration, error) {
	if a.err != nil {
		if hopeless(a.err) {
			return 0, a.err
		}
		m.trouble(a.err)
		if m.failed++; m.failed > 1 && m.set.unreachable() == nil {
			// The server is there and this client does not get through: after a restart of the server it can
			// hold on to a token that the server forgot.
			return 0, a.err
		}
		return min(every, time.Second), nil
	}
	m.failed = 0
	if a.rev < m.rev && a.began.Before(m.asOf) {
		a.rev = m.rev // the watch was faster than the answer
	}
	if !m.heard(a.cluster, a.rev) {
		return 0, errAgain
	}
	if m.grant.held() {
		m.grant.renewed = a.renewed
		if a.mod != m.grant.mod {
			return 0, errAgain
		}
	} else if err := m.hold(ctx); err != nil { // something may have become free
		return 0, err
	}
	m.outage = ""
	m.publish()
	return every, nil
}

// trouble tells that the store is not heard, and leaves everything in force.
func (m *member) trouble(err error) {
	text := m.set.told(err)
	if m.outage == "" {
		m.log.Error("the store is not heard: what is in force stays", zap.Time("as_of", m.asOf), zap.String("problem", text))
	}
	m.outage = text
	m.publish()
}

// prefixes joins prefixes for people.
func prefixes(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i := range list {
		words[i] = list[i].String()
	}
	return strings.Join(words, ", ")
}
