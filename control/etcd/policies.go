package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/internal/backoff"
	"weft/policy"
)

// Policies is an etcd cluster as a source of network policies: the values of all keys below PREFIX/policy/ hold parts of what a file of
// policies holds (policy.Parse), and are one together. What the keys are called behind that is up to whoever writes them. It implements
// policy.Source.
//
// It is as strict as a file: while one value cannot be used, or all of them together cannot, what they said before stays in force.
type Policies struct {
	set    Settings
	prefix string // of the keys
	dial   func(Settings) (client *clientv3.Client, hangUp func(), err error)
}

// NewPolicies makes a source. Nothing is read or connected before Run.
func NewPolicies(s Settings) *Policies {
	s.Prefix = New(s).set.Prefix
	return &Policies{set: s, prefix: s.Prefix + "/policy/", dial: dial}
}

func (p *Policies) String() string { return "etcd below " + p.prefix }

// Run implements policy.Source.
func (p *Policies) Run(ctx context.Context, update func(policy.Cluster)) error {
	f := &follower{Policies: p, update: update}
	again := backoff.Backoff{First: pauseFirst, Most: pauseMost}
	for {
		before := f.last.Revision
		err := f.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case f.last.Revision == 0 && hopeless(err):
			return errors.New(p.set.told(err))
		case !errors.Is(err, errAgain):
			f.outage(p.set.told(err))
		}
		if f.last.Revision != before {
			again.Reset()
		}
		if !backoff.Sleep(ctx, again.Next()) {
			return nil
		}
	}
}

// follower is one Run.
type follower struct {
	*Policies
	update func(policy.Cluster)
	last   policy.Cluster // the last that was good
	asOf   time.Time      // when the store said that

	values map[string][]byte
	parts  map[string]part
}

// part is what one key's value says.
type part struct {
	policy.Cluster
	err error
}

// outage says why the store may say something else by now.
func (f *follower) outage(text string) {
	if f.last.Revision > 0 {
		text = fmt.Sprintf("%s. What was known at %s stays in force", strings.TrimSuffix(text, "."), f.asOf.Format(time.RFC3339))
	}
	if text == f.last.Outage {
		return
	}
	f.last.Outage = text
	f.update(f.last)
}

// session reads the store and follows it until something is wrong.
func (f *follower) session(ctx context.Context) error {
	client, hangUp, err := f.dial(f.set)
	if err != nil {
		return err
	}
	defer hangUp()
	revision, err := f.list(ctx, client)
	if err != nil {
		return err
	}
	f.tell()
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx)) // a member that has lost the others says so
	defer cancel()
	watch := client.Watch(ctx, f.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithProgressNotify())
	conn := client.ActiveConnection()
	broken := make(chan struct{})
	go func() { // the watch itself waits for the server to come back
		defer close(broken)
		for state := conn.GetState(); ctx.Err() == nil; state = conn.GetState() {
			if text := state.String(); text == "TRANSIENT_FAILURE" || text == "SHUTDOWN" || !conn.WaitForStateChange(ctx, state) {
				return
			}
		}
	}()
	var flush <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-broken:
			return fmt.Errorf("%w: the connection broke", errStore)
		case w, open := <-watch:
			if !open {
				return fmt.Errorf("%w: the watch ended", errStore)
			}
			if err := w.Err(); errors.Is(err, rpctypes.ErrCompacted) {
				return errAgain
			} else if err != nil {
				return err
			}
			for _, e := range w.Events {
				if e.Type == mvccpb.PUT {
					f.values[string(e.Kv.Key)] = e.Kv.Value
				} else {
					delete(f.values, string(e.Kv.Key))
				}
				delete(f.parts, string(e.Kv.Key))
			}
			if len(w.Events) > 0 && flush == nil {
				flush = time.After(gather)
			}
		case <-flush:
			flush = nil
			f.tell()
		}
	}
}

// list reads all keys, as of one revision, which it returns.
func (f *follower) list(ctx context.Context, client *clientv3.Client) (revision int64, err error) {
	values := map[string][]byte{}
	key, end := f.prefix, clientv3.GetPrefixRangeEnd(f.prefix)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(pageSize)}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		asking, cancel := context.WithTimeout(ctx, requestTimeout)
		resp, err := client.Get(asking, key, opts...)
		cancel()
		if err != nil {
			return 0, err
		}
		revision = max(revision, resp.Header.Revision)
		for _, kv := range resp.Kvs {
			values[string(kv.Key)] = kv.Value
		}
		if !resp.More {
			break
		}
		key = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	f.values, f.parts = values, map[string]part{}
	return revision, nil
}

// tell puts together what the keys say, and tells it where that can be done.
func (f *follower) tell() {
	if len(f.values) == 0 {
		// Nothing at all is what a store holds that was wiped.
		f.outage(fmt.Sprintf("there is no key below %s in the store: write policies there, or {policies: []} into one", f.prefix))
		return
	}
	c := policy.Cluster{Revision: f.last.Revision + 1}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		q, ok := f.parts[key]
		if !ok {
			q.Cluster, q.err = policy.ParsePart(key, f.values[key])
			f.parts[key] = q
		}
		c.Add(q.Cluster)
		errs = append(errs, q.err)
	}
	err := errors.Join(errs...)
	if err == nil {
		_, err = c.World()
	}
	if err != nil {
		f.outage(err.Error())
		return
	}
	f.last, f.asOf = c, time.Now()
	f.set.Log.Info("policies read", zap.String("in", f.prefix), zap.Int("policies", len(c.Policies)), zap.Int("pods", len(c.Pods)))
	f.update(c)
}
