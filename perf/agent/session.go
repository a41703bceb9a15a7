package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/site"
)

// slack is what a generator may take beyond the duration it was given.
const slack = 20 * time.Second

// starting is how long a process may take to begin, on a machine that has much else to do.
const starting = 30 * time.Second

// session is all that one client has had done. One goroutine uses it.
type session struct {
	*agent
	spawn func(place, string, Order) (*child, error)

	greeted bool
	proven  map[netip.Addr]bool // have answered a nonce over the path itself
	setups  map[string]*setup
}

// setup is a contender that is up at this end, with the server of its generators.
type setup struct {
	place   place
	inside  []netip.Addr // addresses that the generators use; nil = any of the host's
	overlay instance     // nil for the underlay itself, and others' paths
	server  *child
	used    machine.CPUTime // by generators that have ended
}

// instance is a contender that was brought up on this host.
type instance interface {
	Lanes(context.Context) ([]site.Lane, error)
	Times() (map[string]machine.CPUTime, error)
	Close() error
	device() bool // it has a program at the host's own device
}

func newSession(a *agent) *session {
	return &session{agent: a, spawn: spawn, proven: map[netip.Addr]bool{}, setups: map[string]*setup{}}
}

// close ends everything.
func (s *session) close() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.setups)) {
		errs = append(errs, s.shut(name))
	}
	return errors.Join(errs...)
}

// answer carries out one request. Whatever the data, there is a reply.
func (s *session) answer(ctx context.Context, data []byte) (r reply) {
	var q request
	err := decode(data, &q)
	if err == nil {
		err = s.do(ctx, q, &r)
	}
	if err != nil {
		var unsupported *site.UnsupportedError
		r = reply{Error: err.Error(), Unsupported: errors.As(err, &unsupported)}
		if r.Unsupported {
			r.Error = unsupported.Reason
		}
	}
	return r
}

func (s *session) do(ctx context.Context, q request, r *reply) (err error) {
	if q.Op == opHello {
		if q.Version != Version {
			return fmt.Errorf("version: the agent speaks %s, the client %q: use the same weft everywhere", Version, q.Version)
		}
		s.greeted = true
		r.Welcome, err = s.welcome()
		return err
	}
	if !s.greeted {
		return fmt.Errorf("%q where %q was due", q.Op, opHello)
	}
	if q.Setup == "" || len(q.Setup) > 200 {
		return errors.New("no contender is named")
	}
	switch q.Op {
	case opServe:
		r.Served, err = s.serve(ctx, q.Setup, q.Serve)
	case opStop:
		s.stopServer(q.Setup)
	case opPath:
		r.Path, err = s.path(ctx, q.Setup, q.Target)
	case opGenerate:
		r.Generated, err = s.generate(ctx, q.Setup, q.Target, q.Generate)
	case opCount:
		r.Counted, err = s.count(ctx, q.Setup)
	case opOpen:
		r.Opened, err = s.open(ctx, q.Setup, q.Open)
	case opShut:
		err = s.shut(q.Setup)
	default:
		err = fmt.Errorf("unknown operation %q", q.Op)
	}
	return err
}

// at is the setup of a name. One that was not opened is the host itself: the underlay, or a path that somebody else made.
func (s *session) at(name string) (*setup, error) {
	if st := s.setups[name]; st != nil {
		return st, nil
	}
	const most = 64
	if len(s.setups) == most {
		return nil, fmt.Errorf("more than %d contenders", most)
	}
	s.setups[name] = &setup{place: s.here}
	return s.setups[name], nil
}

// serve starts the server of a setup's generators, with a key of its own.
func (s *session) serve(ctx context.Context, name string, choice *ServeChoice) (*Target, error) {
	st, err := s.at(name)
	if err != nil {
		return nil, err
	}
	if choice == nil {
		return nil, errors.New("nobody says where to serve")
	}
	own := st.inside
	if st.overlay == nil {
		if own, err = addresses(); err != nil {
			return nil, err
		}
	}
	if !slices.Contains(own, choice.At) {
		return nil, fmt.Errorf("%v is no address of this host: it has %v", choice.At, own)
	}
	s.stopServer(name)
	key := make([]byte, probe.KeySize)
	rand.Read(key)
	st.server, err = s.spawn(st.place, s.Program, Order{Serve: &probe.Config{
		Listen: netip.AddrPortFrom(choice.At, s.Data), DataPort: s.Data + 1, Key: key, Limit: s.Limit}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	ready, err := st.server.await(ctx)
	if err != nil {
		s.stopServer(name)
		return nil, fmt.Errorf("the generators' server: %w", err)
	}
	return &Target{At: ready.Listen, Key: key}, nil
}

func (s *session) stopServer(name string) {
	st := s.setups[name]
	if st == nil || st.server == nil {
		return
	}
	st.server.stop()
	st.used = st.used.Plus(st.server.used())
	st.server = nil
}

// spec checks a target and turns it into what a generator is told.
func (s *session) spec(t *Target) (probe.Spec, error) {
	switch {
	case t == nil || len(t.Key) != probe.KeySize || !t.At.IsValid() || t.At.Port() == 0:
		return probe.Spec{}, errors.New("no target, or one without its key")
	case t.At.Addr().IsMulticast() || t.At.Addr().IsUnspecified():
		return probe.Spec{}, fmt.Errorf("%v is no host's address", t.At.Addr())
	}
	return probe.Spec{Target: t.At, Key: t.Key, Source: t.Source, Limit: s.Limit}, nil
}

// path proves a server, which takes two short segments of TCP, and asks the path what it carries.
func (s *session) path(ctx context.Context, name string, t *Target) (*PathFound, error) {
	spec, err := s.spec(t)
	if err != nil {
		return nil, err
	}
	a, err := s.run(ctx, name, Order{Path: &spec}, slack)
	if err != nil {
		return nil, err
	}
	if s.setups[name].overlay == nil {
		s.proven[spec.Target.Addr().Unmap()] = true
	}
	return &PathFound{a.MTU}, nil
}

// generate runs one test. Its generator asks the server for a proof before it sends anything else, every time.
func (s *session) generate(ctx context.Context, name string, t *Target, o *TestOrder) (*Generated, error) {
	spec, err := s.spec(t)
	if err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("no test")
	}
	if o.Duration > s.Longest {
		return nil, fmt.Errorf("duration %s: this agent runs tests of at most %s (--max-time)", o.Duration, s.Longest)
	}
	if o.Limit.Bits < 0 || o.Limit.Packets < 0 {
		return nil, errors.New("a limit below nothing")
	}
	spec.Limit = s.Limit.And(o.Limit)
	spec.Test, spec.Params, spec.Duration, spec.Congestion = o.Test, o.Params, o.Duration, o.Congestion
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	st, err := s.at(name)
	if err != nil {
		return nil, err
	}
	before := st.used
	a, err := s.run(ctx, name, Order{Run: &spec}, o.Duration+slack)
	if err != nil {
		return nil, err
	}
	if a.Result == nil {
		return nil, errors.New("the generator has no result")
	}
	return &Generated{*a.Result, st.used.Since(before)}, nil
}

// run has a generator carry out an order.
func (s *session) run(ctx context.Context, name string, o Order, within time.Duration) (Answer, error) {
	st, err := s.at(name)
	if err != nil {
		return Answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := s.spawn(st.place, s.Program, o)
	if err != nil {
		return Answer{}, err
	}
	a, err := c.await(ctx)
	c.stop()
	st.used = st.used.Plus(c.used())
	return a, err
}

// count reads what is around the generators.
func (s *session) count(ctx context.Context, name string) (*Counted, error) {
	st, err := s.at(name)
	if err != nil {
		return nil, err
	}
	c := &Counted{Times: map[string]machine.CPUTime{}}
	if st.overlay != nil {
		if c.Times, err = st.overlay.Times(); err != nil {
			return nil, err
		}
		if c.Lanes, err = st.overlay.Lanes(ctx); err != nil {
			return nil, err
		}
	}
	used := st.used
	if st.server != nil {
		used = used.Plus(st.server.used())
	}
	c.Times[site.Generator] = used
	c.Busy, err = machine.Read()
	return c, err
}

// open brings a contender up. Those that it will send to must have proven that they expect it.
func (s *session) open(ctx context.Context, name string, o *OpenOrder) (*OpenedSetup, error) {
	switch {
	case o == nil || o.Self < 0 || o.Self >= len(o.Nodes) || len(o.Nodes) < 2 || len(o.Nodes) > maxNodes:
		return nil, fmt.Errorf("open: %d hosts at most, of which this is one", maxNodes)
	case o.Slot < 0 || o.Slot >= maxSlots:
		return nil, fmt.Errorf("open: at most %d overlays at once", maxSlots)
	case s.setups[name] != nil:
		return nil, fmt.Errorf("%s is up already", name)
	case name == result.Baseline:
		return nil, errors.New("the underlay is there without being opened")
	}
	for i, n := range o.Nodes {
		if i != o.Self && !s.proven[n.Endpoint.Unmap()] {
			return nil, fmt.Errorf("open: %v has not proven that it expects this host: measure the path to it first", n.Endpoint)
		}
	}
	taken := slices.ContainsFunc(slices.Collect(maps.Values(s.setups)), func(st *setup) bool { return st.overlay != nil && st.overlay.device() })
	up, err := bringUp(ctx, s.agent, name, o, taken)
	if err != nil {
		return nil, err
	}
	s.setups[name] = &setup{place: up.place(), inside: up.addresses(), overlay: up}
	return &OpenedSetup{InnerMTU: up.mtu(), Addresses: up.addresses()}, nil
}

// shut takes down a setup.
func (s *session) shut(name string) error {
	st := s.setups[name]
	if st == nil {
		return nil
	}
	s.stopServer(name)
	delete(s.setups, name)
	if st.overlay != nil {
		return st.overlay.Close()
	}
	return nil
}
