package control

import (
	"context"
	"errors"
	"sync"
)

// Source says who is in the cluster, and tells the cluster about this node. All but Run may be called at any time.
type Source interface {
	// Announce says what this node has to tell about itself: all that a Node has but prefixes, which are granted. It is said before
	// Run, and again whenever something else is so: the newest word counts, and where the kind of source has something to publish,
	// the others hear it soon. The name never changes.
	Announce(self Node)
	// Run calls update with the whole State whenever it changes, from one goroutine at a time, and returns when ctx ends (nil) or when
	// it can never work (error).
	Run(ctx context.Context, update func(State)) error
	// Hear is told what becomes of the States: see InForce.
	Hear(InForce)

	// Read returns what Run would publish first, without joining the cluster; ErrJoin where that takes joining it.
	Read() (State, error)
	// Store keeps the network's configuration for all nodes; nil where the source has no place for it.
	Store() NetworkStore
}

// ErrJoin says that a source knows nothing before this node has joined the cluster.
var ErrJoin = errors.New("the cluster is known to its members only")

// InForce is what has become of the newest State on this node: whether traffic is carried by it. Whoever wants to know is told after
// every attempt, and when what was in force has broken; the same may be said again. When the daemon ends nothing is said: the kernel may
// go on forwarding, and the next daemon speaks soon.
type InForce struct {
	State    State
	Reason   string // why it is not in force, or not wholly; "" = it is
	InnerMTU int    // largest inner packet, bytes; 0 = there is no path
}

// Carries says that this node has prefixes and carries their traffic.
func (f *InForce) Carries() bool { return f.Reason == "" && len(f.State.Self.Prefixes) > 0 }

// Announcement keeps what a Source was told to announce; a source embeds it. The zero value is ready for use.
type Announcement struct {
	mu      sync.Mutex
	self    Node
	changed chan struct{} // holds a token while the newest word was not asked for
}

// Announce implements Source.
func (a *Announcement) Announce(self Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.self = self
	a.quiet()
	a.changed <- struct{}{}
}

// Announced returns the newest word, and a channel that gets a token when there is a newer one. It is for one goroutine.
func (a *Announcement) Announced() (self Node, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quiet()
	return a.self, a.changed
}

// quiet takes the token out. The lock is held.
func (a *Announcement) quiet() {
	if a.changed == nil {
		a.changed = make(chan struct{}, 1)
	}
	select {
	case <-a.changed:
	default:
	}
}
