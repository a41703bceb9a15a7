// Package etcd is the control plane that is an etcd cluster: it holds the network's configuration,
// and every node leases a prefix of each of its families there.
//
// Two nodes never hold one prefix: a prefix is a key, and claiming it is a transaction that succeeds
// only where the key does not exist yet and the network's configuration is the one that was read.
// Keys hang on the node's lease, which is renewed at a third of its length. Every claim carries its
// owner (random, kept in the state directory) and an epoch that grows with each claim, so that a
// daemon knows its own keys after a restart and notices when somebody else has taken them over. Who
// loses its lease or its keys claims the same prefixes again; where somebody else has them by then it
// stops forwarding, says so, and takes others.
//
// Losing etcd is not losing the lease: without an answer everything stays in force and only grows
// old. A node that was cut off for longer than its lease finds out when it is back; until then the
// other nodes take no packets from it under a prefix that they know to be another's.
//
// A store that was wiped is neither: see (*member).wiped.
package etcd

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft/control"
	"weft/internal/backoff"
)

// Schemas of Settings, and where in the store they are unless told otherwise.
const (
	SchemaWeft           = "weft"
	SchemaFlannel        = "flannel"
	DefaultPrefixWeft    = "/weft"
	DefaultPrefixFlannel = "/coreos.com/network"
)

// Settings are what a source is made from.
type Settings struct {
	Endpoints []string // URLs of one etcd cluster, one at least
	Prefix    string   // of all keys; "" = by schema
	Schema    string   // of Schema…
	Lease     time.Duration

	CAFile, CertFile, KeyFile string // PEM, "" = none
	Username, PasswordFile    string

	Network  []netip.Prefix // what this node was configured with; the store has to agree
	VNI      uint32
	Port     uint16
	StateDir string // "" = nothing is remembered across restarts
	Log      *zap.Logger
}

// Source is one etcd cluster. It implements control.Source and control.NetworkStore.
type Source struct {
	set    Settings
	schema schema
	log    *zap.Logger
	dial   func(Settings) (client *clientv3.Client, hangUp func(), err error)

	control.Announcement
}

// New makes a source. Nothing is read or connected before Run, Network or SetNetwork.
func New(s Settings) *Source {
	src := &Source{log: s.Log, dial: dial}
	s.Prefix = strings.TrimRight(s.Prefix, "/")
	if s.Schema == SchemaFlannel {
		if s.Prefix == "" {
			s.Prefix = DefaultPrefixFlannel
		}
		src.schema = flannel{s.Prefix, s.VNI, cmp.Or(s.Port, FlannelPort)}
	} else {
		if s.Prefix == "" {
			s.Prefix = DefaultPrefixWeft
		}
		src.schema = own{s.Prefix}
	}
	src.set = s
	return src
}

// Intervals. A failed session is tried again soon, then with growing pauses; a store that was not
// heard of for confirm is asked.
const (
	pauseFirst = 50 * time.Millisecond
	pauseMost  = 5 * time.Second
	confirm    = 10 * time.Second
	// gather is the least time between two States, so that a thousand nodes that join at once make
	// twenty States a second, not a thousand.
	gather = 50 * time.Millisecond
)

// Run joins the cluster, publishes it, and keeps this node's lease until ctx ends. The lease stays
// then: a restart finds its prefixes again.
func (s *Source) Run(ctx context.Context, update func(control.State)) error {
	mem, err := remember(s.set.StateDir)
	if err != nil {
		return err
	}
	if mem.damaged != "" {
		s.log.Warn("what this node remembered cannot be read: it is a new owner to the store, and may get another prefix", zap.String("file", mem.damaged))
	}
	m := &member{Source: s, memory: mem, update: update, fresh: true}
	if _, err := m.listen(); err != nil {
		return err
	}
	defer m.hangUp()
	again := backoff.Backoff{First: pauseFirst, Most: pauseMost}
	for {
		err := m.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAgain): // the store is there
		case !m.published && hopeless(err):
			return errors.New(s.set.told(err))
		default:
			m.trouble(err)
			m.hangUp()
		}
		if m.settled {
			again.Reset()
			m.settled = false
		}
		if !backoff.Sleep(ctx, again.Next()) {
			return nil
		}
	}
}

// Read implements control.Source: the store tells its members only.
func (s *Source) Read() (control.State, error) { return control.State{}, control.ErrJoin }

// Hear implements control.Source: that a node has a lease is all that the store knows of it.
func (s *Source) Hear(control.InForce) {}

// Store implements control.Source.
func (s *Source) Store() control.NetworkStore { return s }

func with(n control.Node, prefixes []netip.Prefix) control.Node {
	n.Prefixes = prefixes
	return n
}
