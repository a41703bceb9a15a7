// Package policies keeps network policies in force: it takes workloads and policies from a source, again whenever they change, and hands
// the Host the table that enforces them.
//
// It never opens what was closed: while the source cannot say what there is, what it said last stays in force; when the daemon ends or
// dies, the kernel's table stays; and while no policies are in force, no pods are attached (Ready). A pod that is attached waits until what is
// known of it is in force (Admit).
//
// As long as there is no policy there is no table, and no packet costs anything.
package policies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/hostnet"
	"weft/policy"
	"weft/policy/nft"
)

// Owner is the name under which policies are handed to the Host.
const Owner = "policies"

// share is how much longer than a change took nothing is changed afterwards: what happens in a large cluster costs this node a tenth of a
// core at most.
const share = 9

// Options say what policies to keep in force, and where.
type Options struct {
	Source policy.Source
	Name   string // this node's; "" = not known
	// Node returns the node's own prefixes: whoever has an address of them and is not known is denied everything. It says whether they are
	// known by now. Cheap, from any goroutine.
	Node func() (prefixes []netip.Prefix, known bool)
	// Local are the pods that were given addresses here; nil = nobody gives any. Cheap, from any goroutine.
	Local func() []policy.Attached
	// NoPods are the addresses of the node's prefixes that the daemon itself sends from and to: nothing is known of a pod
	// there, and they pass all the same. nil = there are none.
	NoPods func(prefixes []netip.Prefix) []netip.Addr
	// Tells says that the source tells of every pod by its name: one that it does not know yet is waited for.
	Tells bool
	Host  *hostnet.Host
	Log   *zap.Logger

	Open func() [2][]policy.Port // by direction: what stays open on this node beside policy.Failsafe's, whatever policies say; nil = nothing. Asked again and again
}

// Manager keeps one source's policies in force. Safe for concurrent use.
type Manager struct {
	o      Options
	rest   time.Duration // share
	look   chan struct{} // holds a token while the node may have other prefixes or pods, or the source has said something
	urgent chan struct{} // holds a token while somebody waits for it

	// Run's own, without a lock: to compile, to apply and to walk connections take their time, and nobody who asks waits for them.
	cluster policy.Cluster // as it is being put in force
	open    [2][]policy.Port
	nodes   []netip.Prefix
	local   []policy.Attached

	mu       sync.Mutex
	said     policy.Cluster     // what the source said last
	inForce  *policy.World      // nil = none yet
	program  *policy.Program    // of it
	everyone *policy.World      // all that the source says where there are no policies: the one in force lacks pods of others then; nil = nobody has asked
	everyRev uint64             // whose Revision that is
	prefixes []netip.Prefix     // the node's own as they are in force
	rules    nft.Rules          // in force
	failed   error              // why not all of them are
	unmarked error              // why connections that stand may not have been judged anew
	since    time.Time          // when they came into force; zero = not yet
	changing bool               // the table may be one that rules does not tell of
	waiting  map[podName]int    // who is being admitted
	asked    uint64             // by Admit, so many times
	served   uint64             // all but those that asked after so many are in force
	changed  chan struct{}      // closed when served is another number
	counted  map[Counter]uint64 // since the daemon began
	seen     map[string]uint64  // the table's counters at the last look
	ended    uint64             // connections that changes denied, since the daemon began

	logs logs
}

// podName is a pod's namespace and name.
type podName struct{ namespace, name string }

// New makes a Manager. Nothing is read before Run.
func New(o Options) *Manager {
	if o.Local == nil {
		o.Local = func() []policy.Attached { return nil }
	}
	return &Manager{o: o, rest: share, look: make(chan struct{}, 1), urgent: make(chan struct{}, 1), changed: make(chan struct{}), counted: map[Counter]uint64{}, waiting: map[podName]int{}, seen: map[string]uint64{}}
}

// Run keeps policies in force until ctx ends. An error is the source's.
func (m *Manager) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- m.o.Source.Run(ctx, m.hear) }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	changed := m.o.Host.Changed(Owner)
	defer m.listen()()
	for {
		began, pause := time.Now(), time.Duration(0)
		if m.keep() {
			pause = m.rest * time.Since(began)
		}
		select {
		case <-ctx.Done():
			return <-ended
		case err := <-ended:
			return err
		case <-time.After(pause):
		case <-m.urgent:
			continue
		}
		select {
		case <-ctx.Done():
			return <-ended
		case err := <-ended:
			return err
		case <-tick.C:
		case <-changed:
		case <-m.look:
		case <-m.urgent:
		}
	}
}

// hear takes over what the source says.
func (m *Manager) hear(c policy.Cluster) {
	m.mu.Lock()
	before := m.said
	m.said = c
	awaited := len(m.waiting) > 0 && slices.ContainsFunc(c.Pods, func(p policy.Pod) bool { return m.waiting[podName{p.Namespace, p.Name}] > 0 })
	m.mu.Unlock()
	if c.Outage != "" && c.Outage != before.Outage {
		m.o.Log.Error("policies cannot be had: what was last read stays in force", zap.Stringer("source", m.o.Source), zap.String("problem", c.Outage))
	}
	for _, p := range c.Problems {
		if !slices.Contains(before.Problems, p) {
			m.o.Log.Error("a policy's object cannot be used", zap.String("problem", p))
		}
	}
	if c.Revision != before.Revision {
		m.o.Log.Debug("policies read", zap.Stringer("source", m.o.Source), zap.Int("policies", len(c.Policies)), zap.Int("pods", len(c.Pods)))
		m.Look()
		if awaited {
			poke(m.urgent)
		}
	}
}

// Look is to be called when the node's prefixes may be others, or its pods.
func (m *Manager) Look() { poke(m.look) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// keep puts in force what is to be, and says whether that was work. For Run alone.
func (m *Manager) keep() bool {
	m.mu.Lock()
	c, asked := m.said, m.asked
	stands, unmarked := m.failed == nil && !m.since.IsZero(), m.unmarked != nil
	m.mu.Unlock()
	another := c.Revision != m.cluster.Revision
	m.cluster = c
	now, known := m.o.Node()
	if known && !slices.Equal(now, m.nodes) {
		m.nodes, another = slices.Clone(now), true
	}
	if c.Revision == 0 || !known && len(m.nodes) == 0 { // which pods are ours is not known yet: what an earlier daemon put in force stays
		return false
	}
	if local := m.o.Local(); !slices.EqualFunc(local, m.local, func(a, b policy.Attached) bool {
		return a.Namespace == b.Namespace && a.Name == b.Name && slices.Equal(a.Addresses, b.Addresses)
	}) {
		m.local, another = local, true
	}
	if m.o.Open != nil {
		if open := m.o.Open(); !reflect.DeepEqual(open, m.open) {
			m.open, another = open, true
		}
	}
	worked := another || !stands
	if worked {
		m.put()
	} else {
		err := m.o.Host.Err(Owner)
		m.mu.Lock()
		m.failed = err
		m.mu.Unlock()
		if unmarked {
			m.mark()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed == nil && !m.since.IsZero() && asked != m.served {
		m.served = asked
		close(m.changed)
		m.changed = make(chan struct{})
	}
	return worked
}

// here says whether a pod runs on this node.
func (m *Manager) here(p *policy.Pod) bool {
	switch {
	case p.MayRunOn(m.o.Name) && slices.ContainsFunc(m.local, func(a policy.Attached) bool { return a.Namespace == p.Namespace && a.Name == p.Name }):
		return true
	case p.Node != "":
		return p.Node == m.o.Name
	case len(m.nodes) == 0:
		return true // nobody says where it runs
	}
	return slices.ContainsFunc(p.Addresses, m.own)
}

// put compiles and applies. For Run alone.
func (m *Manager) put() {
	c := m.cluster
	c.Pods = c.WithAttached(m.o.Name, m.local)
	if len(c.Policies) == 0 { // whoever is elsewhere does not matter
		c.Pods = slices.DeleteFunc(slices.Clone(c.Pods), func(p policy.Pod) bool { return !m.here(&p) })
	}
	world, err := c.World()
	if err != nil { // a source looks before it tells
		m.fail(err)
		return
	}
	program := world.On(m.o.Name, m.open).Compile(m.here)
	var rules nft.Rules
	var want hostnet.Want
	if len(c.Policies) > 0 {
		var known []netip.Addr
		for _, p := range world.Pods() {
			for _, a := range p.Addresses {
				if m.own(a) && (p.Node == "" || m.here(p)) {
					known = append(known, a)
				}
			}
		}
		if m.o.NoPods != nil {
			known = append(known, m.o.NoPods(m.nodes)...)
		}
		rules = nft.Table(program, nft.Options{Prefixes: m.nodes, Known: known, Log: m.logs.listening()})
		want.Tables = []hostnet.Table{rules.Table}
	}
	m.mu.Lock()
	same := m.failed == nil && !m.since.IsZero() && m.unmarked == nil && reflect.DeepEqual(rules, m.rules)
	if !same {
		_ = m.count() // the table's counters end with it
		m.changing = true
	}
	m.mu.Unlock()
	if same {
		err = m.o.Host.Err(Owner)
	} else {
		m.takeUp(world, program)
		err = m.o.Host.Apply(Owner, want)
	}
	if !m.publish(world, program, rules, err) {
		return
	}
	if !same {
		m.mark()
	}
}

// fail says why what is to be is not in force.
func (m *Manager) fail(err error) {
	m.mu.Lock()
	before := m.failed
	m.failed, m.changing = err, false
	m.mu.Unlock()
	if before == nil || before.Error() != err.Error() {
		m.o.Log.Error("policies are not in force, trying again", zap.Error(err))
	}
}

// publish says how it stands after an Apply, and whether that did it.
func (m *Manager) publish(world *policy.World, program *policy.Program, rules nft.Rules, err error) bool {
	if err != nil {
		m.fail(err)
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	first, changed := m.since.IsZero(), m.changing
	m.failed, m.changing = nil, false
	if first {
		m.o.Log.Info("policies are in force", zap.Stringer("source", m.o.Source), zap.Int("policies", len(m.cluster.Policies)), zap.Int("pods", len(m.cluster.Pods)))
	}
	m.rules, m.inForce, m.program, m.prefixes = rules, world, program, m.nodes
	m.logs.rules(rules, world)
	if changed || first {
		m.since, m.unmarked = time.Now(), errBeingMarked
		_ = m.count() // at once: what a new table counts until the next look would pass for what the old one had
	}
	there := map[string]bool{}
	for _, p := range m.inForce.Policies() {
		there[p.String()] = true
	}
	maps.DeleteFunc(m.counted, func(c Counter, _ uint64) bool { // of policies that are gone
		return c.Policy != "" && slices.ContainsFunc(strings.Split(c.Policy, ", "), func(name string) bool { return !there[name] })
	})
	return true
}

var errBeingMarked = errors.New("they are being judged anew")

// mark tells connections that stand to end where they are denied by now: the table judges what begins. What fails is tried again at the next
// look. For Run alone.
func (m *Manager) mark() {
	ended, revived, err := m.o.Host.MarkFlows(nft.Mark, m.ends)
	if ended+revived > 0 {
		m.o.Log.Info("connections were judged anew", zap.Int("denied", ended), zap.Int("allowed again", revived))
	}
	m.mu.Lock()
	m.ended += uint64(ended)
	before := m.unmarked
	m.unmarked = err
	m.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		m.o.Log.Warn("answers of connections that are denied by now may pass, trying again", zap.Error(err))
	}
}

// ends says whether a connection is denied by now. For Run alone.
func (m *Manager) ends(f hostnet.Flow) bool {
	allowed, egress, ingress := m.program.Judge(policy.Traffic{Src: f.Src, Dst: f.Dst, Protocol: policy.Protocol(f.Protocol), Port: f.Port})
	self := m.o.Name
	src, dst := self != "" && m.inForce.NodeAt(f.Src) == self, self != "" && m.inForce.NodeAt(f.Dst) == self
	if !src && !dst {
		return !allowed
	}
	// What pods and their own node send each other is judged by policies about the node alone. Connection tracking may have taken up a session of
	// one of its ports that stay open the wrong way round, and then only the source port says so.
	if f.Mark&nft.TakenUp != 0 && backwards(m.program, f, src) {
		return false
	}
	if src {
		return egress.Deny
	}
	return ingress.Deny
}

// backwards says whether a flow that begins or ends at this node is, the other way round, a session of a port of TCP that stays open.
func backwards(program *policy.Program, f hostnet.Flow, src bool) bool {
	if f.Protocol != uint8(policy.TCP) {
		return false
	}
	_, out, in := program.Judge(policy.Traffic{Src: f.Dst, Dst: f.Src, Protocol: policy.TCP, Port: f.From})
	if src {
		return in.Tier == policy.Failsafe
	}
	return out.Tier == policy.Failsafe
}

// takeUp is for the moment before the first policy about the node is put in force: connection tracking may have taken up sessions that stand the
// wrong way round, with nobody there to mark them. From then on the table marks those that are taken up, and a source port proves nothing. For
// Run alone.
func (m *Manager) takeUp(world *policy.World, program *policy.Program) {
	if !aboutNode(program) || m.program != nil && aboutNode(m.program) {
		return
	}
	if m.program == nil { // an earlier daemon's rules may be there
		if there, err := m.o.Host.HasChain(nft.Family, nft.Name, nft.HostChain(policy.Ingress)); there || err != nil {
			return // an Apply says what is wrong
		}
	}
	_, _, err := m.o.Host.MarkFlows(nft.TakenUp, func(f hostnet.Flow) bool {
		if f.Mark&(nft.TakenUp|nft.Mark) != 0 {
			return f.Mark&nft.TakenUp != 0
		}
		src, dst := m.o.Name != "" && world.NodeAt(f.Src) == m.o.Name, m.o.Name != "" && world.NodeAt(f.Dst) == m.o.Name
		return (src || dst) && backwards(program, f, src)
	})
	if err != nil {
		m.o.Log.Warn("sessions of the node that stand may have to be begun anew", zap.Error(err))
	}
}

// aboutNode says whether policies are about the node itself.
func aboutNode(p *policy.Program) bool {
	return p.Sides[policy.Egress].Host >= 0 || p.Sides[policy.Ingress].Host >= 0
}

func (m *Manager) own(a netip.Addr) bool {
	return slices.ContainsFunc(m.nodes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Ready says why pods cannot be attached because of policies; nil where they can.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.failed != nil:
		return fmt.Errorf("network policies are not in force: %w", m.failed)
	case m.since.IsZero():
		return fmt.Errorf("network policies are not in force yet%s", orNothing(": ", m.said.Outage))
	}
	return nil
}

// orNothing returns a text behind another, and nothing where it is "".
func orNothing(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

// admission is how long a pod waits for what is known of it.
const admission = 8 * time.Second

// Admit waits until the rules for a pod that has just been given addresses here, and is among Options.Local, are in force: before that it
// is not to run. Where the source Tells, it waits for the pod's object, too; else a pod that the source does not know is denied everything, and
// nobody waits. A pod of no name is one of which nothing is known. The error says what it waited for.
func (m *Manager) Admit(ctx context.Context, pod policy.Attached) error {
	if pod.Name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, admission)
	defer cancel()
	m.mu.Lock()
	m.asked++
	mine := m.asked
	m.waiting[podName{pod.Namespace, pod.Name}]++
	m.mu.Unlock()
	defer m.admitted(podName{pod.Namespace, pod.Name})
	poke(m.urgent)
	for {
		m.mu.Lock()
		served, changed, known, failed, outage := m.served >= mine, m.changed, false, m.failed, m.said.Outage
		if m.inForce != nil {
			p := m.inForce.Pod(pod.Namespace, pod.Name)
			known = p != nil && !slices.ContainsFunc(pod.Addresses, func(a netip.Addr) bool { return !slices.Contains(p.Addresses, a) })
		}
		if served && !known && m.o.Tells { // it comes with what the source says next
			m.asked++
			mine = m.asked
			served = false
		}
		m.mu.Unlock()
		if served {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			switch {
			case failed != nil:
				return fmt.Errorf("network policies are not in force: %w", failed)
			case !known && m.o.Tells:
				return fmt.Errorf("network policy: %s has not told of pod %s, nobody knows what it may do%s", m.o.Source, pod, orNothing(": ", outage))
			}
			return fmt.Errorf("network policy: the rules for pod %s are not in force yet%s", pod, orNothing(": ", outage))
		}
	}
}

// admitted is of Admit's end.
func (m *Manager) admitted(pod podName) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting[pod]--; m.waiting[pod] == 0 {
		delete(m.waiting, pod)
	}
}

// Status is how it stands.
type Status struct {
	Source  string
	Problem string        // "" where what the source says is in force
	Since   time.Time     // when what is in force came to be so; zero = nothing is
	World   *policy.World // in force; nil where nothing is. Of a world without policies, the pods of this node only
	Pods    int           // that the source knows
	Odd     []string      // objects that could not be understood, and what is denied for that
	Counts  []Count
	Ended   uint64 // connections that changes denied, since the daemon began
}

// Problems say why what the source says is not in force, what of it could not be understood, and what passes it by.
func (m *Manager) Problems() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.problem(); p != "" {
		list = append(list, p)
	}
	if len(m.said.Policies) > 0 {
		list = append(list, unjudged("/proc/thread-self/net")...)
	}
	return append(list, m.said.Problems...)
}

func (m *Manager) problem() string {
	switch {
	case m.failed != nil:
		return m.failed.Error()
	case m.said.Outage != "":
		return m.said.Outage
	case m.unmarked != nil:
		return fmt.Sprintf("answers of connections that are denied by now may pass: %v", m.unmarked)
	}
	return ""
}

// Status tells it.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Source: m.o.Source.String(), Since: m.since, World: m.inForce, Pods: len(m.said.Pods), Problem: m.problem(), Odd: m.said.Problems, Ended: m.ended}
	if err := m.count(); err != nil && s.Problem == "" {
		s.Problem = err.Error()
	}
	s.Counts = m.counts()
	return s
}
