// Package mesh is the control plane without a store: every daemon is a member of one mesh, and what there is to know of a node, the node
// itself says.
//
// A node's record (name, addresses, claims of prefixes) is signed by an identity that is made on its first start and kept in the state directory. News are
// spread by gossip; every few seconds a node compares a digest of all it knows with a random other one's, and they exchange what differs. So a cluster
// in which nothing happens says next to nothing, and whatever got lost is found.
//
// Prefixes are claimed. A claim is held out first, and counts when no elder one was heard of; and nobody claims who does not hear a majority of all that
// are known or expected, so that of two halves of a cluster one at most gives prefixes out. Should one have been given twice all the same, nothing that
// runs is stopped: the younger claim's node takes another prefix besides, gives pods addresses of that one, and both are named (see session.claim).
//
// Membership says who is there, and is no reason to change a path: a node that is not heard stays in the State until it is forgotten.
package mesh

import (
	"context"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"weft/control"
)

// DefaultPort is the port, of UDP and TCP, on which members hear each other.
const DefaultPort = 4786

// Settings are what a source is made from.
type Settings struct {
	Join    []string                 // HOST or HOST:PORT of members to begin with; empty = this node may be the first
	Expect  int                      // how many nodes there will be at least; 0 = nobody says
	Port    uint16                   // UDP and TCP
	Forget  time.Duration            // how long the claims of a node that is not heard stay its own
	Secrets func() ([]Secret, error) // read at Run: the first seals, all open; one at least

	Network  []netip.Prefix
	VNI      uint32
	StateDir string // "" = nothing is remembered across restarts
	Log      *zap.Logger

	// For tests: another network than this machine's, at an address of its own, and another clock for the days of keys.
	listen func() (memberlist.NodeAwareTransport, netip.AddrPort, error)
	clock  func() time.Time
}

// Source is the mesh, as one node knows it. It implements control.Source.
type Source struct {
	set   Settings
	log   *zap.Logger
	pools []control.Pool

	control.Announcement
	running
}

// New makes a source. Nothing is read or opened before Run.
func New(s Settings) *Source {
	if s.clock == nil {
		s.clock = time.Now
	}
	src := &Source{set: s, log: s.Log}
	for _, p := range s.Network {
		src.pools = append(src.pools, control.NewPool(p))
	}
	return src
}

// Run joins the mesh, publishes what it knows, and keeps this node's claims until ctx ends. They stay its own then: a restart finds them again.
func (s *Source) Run(ctx context.Context, update func(control.State)) error {
	secrets, err := s.set.Secrets()
	if err != nil {
		return err
	}
	mem, err := remember(s.set.StateDir)
	if err != nil {
		return err
	}
	if mem.damaged != "" {
		s.log.Warn("what this node remembered cannot be read: it is a new node of its name to the others", zap.String("file", mem.damaged))
	}
	run := newSession(s, mem, newSealer(secrets, s.set.clock), update)
	s.running.set(run)
	defer s.running.set(nil)
	return run.run(ctx)
}

// Read implements control.Source: the mesh tells its members only.
func (s *Source) Read() (control.State, error) { return control.State{}, control.ErrJoin }

// Hear implements control.Source: whether a node forwards is for probes to find out.
func (s *Source) Hear(control.InForce) {}

// Store implements control.Source: the network is each node's own configuration.
func (s *Source) Store() control.NetworkStore { return nil }
