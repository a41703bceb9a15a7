package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// running is the session of a Run that is under way.
type running struct {
	mu      sync.Mutex
	session *session
}

func (r *running) set(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session = s
}

func (r *running) get() *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// ErrNoMesh says that this node is not in a mesh.
var ErrNoMesh = errors.New("this node is not in a mesh")

// ErrForget says that a node cannot be forgotten.
var ErrForget = errors.New("the node cannot be forgotten")

// Forget frees what a node claims that is not heard any more, on all nodes.
func (s *Source) Forget(node string) error {
	run := s.running.get()
	if run == nil {
		return ErrNoMesh
	}
	run.mu.Lock()
	defer run.mu.Unlock()
	var found []*entry
	for who, e := range run.book.entries {
		if e.Name != node || who == run.own {
			continue
		}
		found = append(found, e)
	}
	switch i := slices.IndexFunc(found, func(e *entry) bool { return !e.live }); {
	case node == run.self.Name && len(found) == 0:
		return fmt.Errorf("%w: %s is this node; stop its daemon, and say it on another one", ErrForget, node)
	case len(found) == 0:
		return fmt.Errorf("%w: no node %s is known: `weft mesh status` lists them", ErrForget, node)
	case i < 0:
		return fmt.Errorf("%w: %s is heard at %v: stop its daemon first", ErrForget, node, found[0].Gossip.Addr())
	default:
		run.drop(found[i])
	}
	run.wake()
	return nil
}

// Status is what this node knows of the mesh.
type Status struct {
	Node    string         // this one
	Address netip.AddrPort // where it hears the mesh; invalid = nowhere
	Known   int            // nodes, this one among them
	Live    int            // those that are heard, this one among them
	Expect  int            // as configured
	Waiting string         // why this node has no prefix yet, "" = it has
	Reason  string         // why it is not in the mesh, "" = it is
	Nodes   []NodeStatus   // all, by name
	Refused [2]uint64      // packets and calls of strangers: by password, by clock

	Sent, Received uint64 // bytes, since Run
}

// NodeStatus is what is known of one.
type NodeStatus struct {
	Name     string
	ID       string
	Self     bool
	Live     bool
	Silent   time.Time // since when it is not heard; zero while it is
	Address  netip.AddrPort
	Seq      uint64
	Prefixes []netip.Prefix // in force
	Claims   []netip.Prefix // held out, not in force yet
}

// Status says what this node knows by now; ErrNoMesh before Run.
func (s *Source) Status() (Status, error) {
	run := s.running.get()
	if run == nil {
		return Status{}, ErrNoMesh
	}
	run.mu.Lock()
	defer run.mu.Unlock()
	st := Status{Node: run.self.Name, Address: run.at, Expect: s.set.Expect, Waiting: run.waiting, Reason: run.opened, Refused: run.strangers.total,
		Sent: run.traffic.sent.Load(), Received: run.traffic.received.Load()}
	for who, e := range run.book.entries {
		n := NodeStatus{Name: e.Name, ID: who.String(), Self: who == run.own, Live: e.live, Silent: e.silent, Address: e.Gossip, Seq: e.Seq, Prefixes: e.prefixes}
		for _, c := range e.Claims {
			if !c.Held {
				n.Claims = append(n.Claims, c.Prefix)
			}
		}
		st.Known++
		if e.live {
			st.Live++
		}
		st.Nodes = append(st.Nodes, n)
	}
	slices.SortFunc(st.Nodes, func(a, b NodeStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return st, nil
}
