// Package remote is the site of real hosts: an agent on each (package agent), connected by whatever is between them.
package remote

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/perf/agent"
	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/run"
	"weft/perf/site"
)

// Plan says what to measure between which hosts.
type Plan struct {
	Hosts    []Host
	Pods     []Host          // with an agent each, on the hosts of their names: contender Pods
	Paths    [][2]netip.Addr // that somebody else made, by an address at each end
	Identity *agent.Identity
	run.Plan
	Congestion string      // TCP congestion control, set on the generators' sockets
	Limit      probe.Limit // of what a host sends; agents may allow less
	Partial    bool        // hosts that cannot be reached are left out, and named in the result, while two can be
}

// Host is one machine with an agent.
type Host struct {
	Name string         // in results; "" = what the agent says
	At   netip.AddrPort // the agent, and by its address the host's place in the underlay
}

// Pods is the contender that somebody else's network between pods is, one on each host.
const Pods = "pods"

// PathName is what a path that somebody else made is called among the contenders.
func PathName(p [2]netip.Addr) string { return fmt.Sprintf("path %s=%s", p[0], p[1]) }

// hosts implements site.Site.
type hosts struct {
	plan   *Plan
	ends   []*end
	pods   map[string]*end // by their host's name
	away   []error         // why hosts and pods are left out
	secret []byte          // of sealed contenders
	slots  map[string]int  // of the contenders that were ever brought up
}

// end is a host that is connected.
type end struct {
	Host
	*agent.Client
	welcome *agent.Welcome
}

// Run carries out a plan; see run.Run. Whatever happens, the agents are left when Run returns, and with that they end what they did.
func Run(ctx context.Context, p *Plan, show func(run.Event)) (*result.Result, error) {
	h, err := Connect(ctx, p)
	if err != nil {
		return nil, err
	}
	return run.Run(ctx, h, &p.Plan, show)
}

// Connect connects to every host's agent and checks the plan against what they say.
func Connect(ctx context.Context, p *Plan) (_ *hosts, err error) {
	h := &hosts{plan: p, secret: make([]byte, 32), pods: map[string]*end{}, slots: map[string]int{}}
	rand.Read(h.secret)
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, host := range p.Hosts {
		e, err := h.dial(ctx, host)
		switch {
		case err != nil && p.Partial && ctx.Err() == nil:
			h.away = append(h.away, fmt.Errorf("host %s is left out: %w", cmp.Or(host.Name, host.At.String()), err))
			continue
		case err != nil:
			return nil, err
		}
		if e.Name == "" {
			e.Name = e.welcome.Name
		}
		if h.named(e.Name) != nil {
			e.Name = host.At.Addr().String()
		}
		h.ends = append(h.ends, e)
		if err := h.check(e); err != nil {
			return nil, err
		}
	}
	if len(h.away) > 0 && len(h.ends) < 2 {
		return nil, errors.Join(h.away...)
	}
	for _, pod := range p.Pods {
		if h.named(pod.Name) == nil && len(h.away) > 0 { // its host is left out
			continue
		}
		if h.named(pod.Name) == nil || h.pods[pod.Name] != nil {
			return nil, &run.UsageError{Err: fmt.Errorf("--pod %s=%s: give one pod of each host, by the host's name", pod.Name, pod.At)}
		}
		e, err := h.dial(ctx, pod)
		switch {
		case err != nil && p.Partial && ctx.Err() == nil:
			h.away = append(h.away, fmt.Errorf("the pod on %s is left out: %w", pod.Name, err))
			continue
		case err != nil:
			return nil, fmt.Errorf("the pod on %s: %w", pod.Name, err)
		}
		h.pods[pod.Name] = e
		if err := h.check(e); err != nil {
			return nil, err
		}
	}
	for _, path := range p.Paths {
		for _, a := range path {
			if h.holder(a) == nil && len(h.away) == 0 {
				return nil, &run.UsageError{Err: fmt.Errorf("--path %s=%s: no agent has the address %s: run one at each end of the path, and name both", path[0], path[1], a)}
			}
		}
	}
	return h, nil
}

// dial connects to an agent.
func (h *hosts) dial(ctx context.Context, host Host) (*end, error) {
	c, w, err := agent.Dial(ctx, host.At, host.At.Addr().String(), h.plan.Identity)
	if err != nil {
		return nil, err
	}
	return &end{host, c, w}, nil
}

// check says what of the plan an agent cannot do.
func (h *hosts) check(e *end) error {
	if at := e.At.Addr(); !slices.Contains(e.welcome.Addresses, at) {
		return &run.UsageError{Err: fmt.Errorf("%s is no address of the host that answers there, which has %v: name it by an address of its own", at, e.welcome.Addresses)}
	}
	if h.plan.Duration > e.welcome.Longest {
		return &run.UsageError{Err: fmt.Errorf("duration %s: the agent at %s runs tests of at most %s: give less, or start it with --max-time", h.plan.Duration, e.Name, e.welcome.Longest)}
	}
	return nil
}

// named is the host of a name; nil = there is none.
func (h *hosts) named(name string) *end {
	i := slices.IndexFunc(h.ends, func(e *end) bool { return e.Name == name })
	if i < 0 {
		return nil
	}
	return h.ends[i]
}

// holder is the host that has an address.
func (h *hosts) holder(a netip.Addr) *end {
	i := slices.IndexFunc(h.ends, func(e *end) bool { return slices.Contains(e.welcome.Addresses, a) })
	if i < 0 {
		return nil
	}
	return h.ends[i]
}

// Hosts implements site.Site.
func (h *hosts) Hosts() []result.Host {
	var list []result.Host
	for _, e := range h.ends {
		host := e.welcome.Host
		host.Name = e.Name
		if h.plan.Congestion != probe.HostCongestion {
			host.TCPCongestion = h.plan.Congestion
		}
		list = append(list, host)
	}
	return list
}

// Settings implements site.Site.
func (h *hosts) Settings() result.Settings {
	var bounds []string
	for _, e := range h.ends {
		if text := e.welcome.Bounds(); text != "" {
			bounds = append(bounds, e.Name+": "+text)
		}
	}
	if text := h.plan.Limit.String(); text != "" {
		bounds = append(bounds, "each: "+text)
	}
	return result.Settings{Nodes: len(h.ends), Load: strings.Join(bounds, "; ")}
}

// Alone implements site.Site: what is measured without contenders here is the underlay, a contender itself.
func (h *hosts) Alone(context.Context) (site.Alone, error) { return nil, nil }

// Close implements site.Site.
func (h *hosts) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for name := range h.slots {
		_ = h.leave(ctx, name) // hanging up has the same effect, only nobody would wait for it
	}
	for _, e := range h.ends {
		_ = e.Client.Close()
	}
	for _, e := range h.pods {
		_ = e.Client.Close()
	}
	h.slots, h.ends, h.pods = nil, nil, nil
	return nil
}

// Open implements site.Site.
func (h *hosts) Open(ctx context.Context, name string) ([]site.Setup, error) {
	var setups []site.Setup
	errs := slices.Clone(h.away) // what is measured without them is not all
	connect := func(from, to *end, source netip.Addr, target []netip.Addr, mtu int) {
		s := &setup{hosts: h, name: name, near: from, far: to, source: source, at: target, apart: agent.AtDevice(name)}
		if err := s.reach(ctx, mtu); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.path(), err))
			return
		}
		setups = append(setups, s)
	}
	for _, p := range h.plan.Paths {
		if PathName(p) == name {
			a, b := h.holder(p[0]), h.holder(p[1])
			if a == nil || b == nil {
				return nil, errors.Join(errs...)
			}
			connect(a, b, p[0], p[1:], 0)
			connect(b, a, p[1], p[:1], 0)
			return setups, errors.Join(errs...)
		}
	}
	inside := map[*end]*agent.OpenedSetup{}
	if name != result.Baseline && name != Pods {
		if err := h.join(ctx, name, inside); err != nil {
			return nil, err
		}
	}
	for _, from := range h.ends {
		for _, to := range h.ends {
			switch {
			case from == to:
			case name == Pods:
				if a, b := h.pods[from.Name], h.pods[to.Name]; a != nil && b != nil {
					connect(a, b, a.At.Addr(), []netip.Addr{b.At.Addr()}, 0)
				}
			case name == result.Baseline:
				connect(from, to, from.At.Addr(), []netip.Addr{to.At.Addr()}, 0)
			default:
				connect(from, to, netip.Addr{}, inside[to].Addresses, inside[from].InnerMTU)
			}
		}
	}
	if agent.AtDevice(name) { // it comes back for its samples
		errs = append(errs, h.leave(ctx, name))
	}
	return setups, errors.Join(errs...)
}

// join brings a contender up on every host. On an error it is nowhere.
func (h *hosts) join(ctx context.Context, name string, inside map[*end]*agent.OpenedSetup) (err error) {
	defer func() {
		if err != nil {
			_ = h.leave(context.WithoutCancel(ctx), name)
		}
	}()
	slot, known := h.slots[name]
	if !known {
		slot = len(h.slots)
	}
	if err := h.introduce(ctx); err != nil {
		return err
	}
	var nodes []agent.Node
	for _, e := range h.ends {
		nodes = append(nodes, agent.Node{Name: e.Name, Endpoint: e.At.Addr()})
	}
	for i, e := range h.ends {
		up, err := e.Client.Open(ctx, name, agent.OpenOrder{Self: i, Slot: slot, Nodes: nodes, Secret: h.secret})
		if err != nil {
			var unsupported *site.UnsupportedError
			if errors.As(err, &unsupported) {
				return &site.UnsupportedError{Reason: e.Name + ": " + unsupported.Reason}
			}
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if len(up.Addresses) == 0 {
			return fmt.Errorf("%s: the contender has no address", e.Name)
		}
		inside[e] = up
	}
	h.slots[name] = slot
	return nil
}

// leave takes a contender down on every host that is still there.
func (h *hosts) leave(ctx context.Context, name string) error {
	var errs []error
	for _, e := range h.ends {
		if e.Err() == nil {
			if err := e.Shut(ctx, name); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", e.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// introduce has every host prove every other one over the underlay: a contender sends to hosts that have only.
func (h *hosts) introduce(ctx context.Context) error {
	for _, to := range h.ends {
		t, err := to.Serve(ctx, result.Baseline, to.At.Addr())
		if err != nil {
			return fmt.Errorf("%s: %w", to.Name, err)
		}
		for _, from := range h.ends {
			if from == to {
				continue
			}
			if _, err := from.Path(ctx, result.Baseline, agent.Target{At: t.At, Key: t.Key, Source: from.At.Addr()}); err != nil {
				return fmt.Errorf("%s → %s: %w", from.Name, to.Name, err)
			}
		}
		if err := to.Stop(ctx, result.Baseline); err != nil {
			return fmt.Errorf("%s: %w", to.Name, err)
		}
	}
	return nil
}

// setup implements site.Setup: one direction between two hosts over one contender.
type setup struct {
	*hosts
	name      string
	near, far *end
	source    netip.Addr   // of the near end; zero = as the system chooses
	at        []netip.Addr // of the far one, one of each family that the path has
	target    agent.Target
	mtu       int
	apart     bool // up while its own samples are taken, and no longer
}

func (s *setup) path() string { return result.Path(s.near.Name, s.far.Name) }

// About implements site.Setup.
func (s *setup) About() site.About {
	return site.About{Contender: s.name, Path: s.path(), InnerMTU: s.mtu, Super: true}
}

// listen starts the far end's server. One path of a setup after the other has it.
func (s *setup) listen(ctx context.Context, at netip.Addr) error {
	t, err := s.far.Serve(ctx, s.name, at)
	if err != nil {
		return fmt.Errorf("%s: %w", s.far.Name, err)
	}
	s.target = agent.Target{At: t.At, Key: t.Key, Source: s.source}
	return nil
}

// reach asks the path what it carries; known is that, where it is known.
func (s *setup) reach(ctx context.Context, known int) error {
	if err := s.listen(ctx, s.at[0]); err != nil {
		return err
	}
	defer s.far.Stop(context.WithoutCancel(ctx), s.name)
	mtu, err := s.near.Path(ctx, s.name, s.target)
	if s.mtu = known; known == 0 {
		s.mtu = mtu
	}
	return err
}

// Generate implements site.Setup. The time is among Times.
func (s *setup) Generate(ctx context.Context, t probe.Selection, d time.Duration) (probe.Result, machine.CPUTime, error) {
	i := slices.IndexFunc(s.at, func(a netip.Addr) bool { return a.Unmap().Is4() == (t.Params["family"] == 4) })
	if i < 0 {
		return probe.Result{}, machine.CPUTime{}, fmt.Errorf("%s: the path has no address of IPv%v: name the hosts by addresses of that family", s.path(), t.Params["family"])
	}
	if err := s.listen(ctx, s.at[i]); err != nil {
		return probe.Result{}, machine.CPUTime{}, err
	}
	g, err := s.near.Generate(ctx, s.name, s.target, agent.TestOrder{Test: t.Test, Params: t.Params, Duration: d, Congestion: s.plan.Congestion, Limit: s.plan.Limit})
	if err != nil {
		return probe.Result{}, machine.CPUTime{}, fmt.Errorf("%s: %w", s.path(), err)
	}
	if err := s.far.Stop(ctx, s.name); err != nil {
		return probe.Result{}, machine.CPUTime{}, fmt.Errorf("%s: %w", s.far.Name, err)
	}
	return g.Result, machine.CPUTime{}, nil
}

// reading implements site.Reading.
type reading []site.Lane

// Same implements site.Reading.
func (r reading) Same(other site.Reading) bool {
	o, ok := other.(reading)
	return ok && site.SameLanes(r, o)
}

// Since implements site.Reading.
func (r reading) Since(before site.Reading) (m site.Moved, err error) {
	m.Open = true // the hosts' own packets are in every counter but the lanes'
	m.Lanes, err = site.LanesSince(r, before.(reading))
	return m, err
}

// both reads at both ends what a contender counted, the near one first.
func (s *setup) both(ctx context.Context, name string) (list [2]*agent.Counted, err error) {
	for i, e := range []*end{s.near, s.far} {
		if list[i], err = e.Count(ctx, name); err != nil {
			return list, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return list, nil
}

// Count implements site.Setup.
func (s *setup) Count(ctx context.Context) (site.Reading, error) {
	both, err := s.both(ctx, s.name)
	if err != nil {
		return nil, err
	}
	return append(slices.Clone(reading(both[0].Lanes)), both[1].Lanes...), nil
}

// Times implements site.Setup.
func (s *setup) Times(ctx context.Context) (map[string]machine.CPUTime, error) {
	both, err := s.both(ctx, s.name)
	if err != nil {
		return nil, err
	}
	all := map[string]machine.CPUTime{}
	for _, c := range both {
		for name, t := range c.Times {
			all[name] = all[name].Plus(t)
		}
	}
	return all, nil
}

// Busy implements site.Setup.
func (s *setup) Busy(ctx context.Context) (machine.Busy, error) {
	both, err := s.both(ctx, result.Baseline) // the machines' own, which a contender need not be up for
	if err != nil {
		return nil, err
	}
	return machine.Busy{both[0].Busy, both[1].Busy}, nil
}

// Up implements site.Setup.
func (s *setup) Up(ctx context.Context) (fresh bool, err error) {
	if !s.apart {
		return false, nil
	}
	if err := s.join(ctx, s.name, map[*end]*agent.OpenedSetup{}); err != nil {
		return false, err
	}
	if err := s.reach(ctx, s.mtu); err != nil {
		return false, errors.Join(fmt.Errorf("%s: %w", s.path(), err), s.Down(context.WithoutCancel(ctx)))
	}
	return true, nil
}

// Down implements site.Setup.
func (s *setup) Down(ctx context.Context) error {
	if !s.apart {
		return nil
	}
	return s.leave(ctx, s.name)
}

// Dead implements site.Setup.
func (s *setup) Dead() error {
	for _, e := range []*end{s.near, s.far} {
		if err := e.Err(); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}
