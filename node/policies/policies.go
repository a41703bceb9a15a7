// Package policies keeps network policies in force: it reads workloads and policies from a file, again whenever that changes, and hands
// the Host the table that enforces them.
//
// It never opens what was closed: while the file cannot be used, the last good one stays in force; when the daemon ends or dies, the kernel's
// table stays; and while no policies are in force, no pods are attached (Ready).
package policies

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/hostnet"
	"weft/internal/plainfile"
	"weft/policy"
	"weft/policy/nft"
)

// Owner is the name under which policies are handed to the Host.
const Owner = "policies"

// every is how often the file and the node's prefixes are looked at. A look at a file that has not changed costs a stat.
const every = time.Second

// Options say what policies to keep in force, and where.
type Options struct {
	File string                // absolute path
	Node func() []netip.Prefix // the node's own prefixes, none while they are not known; cheap, from any goroutine
	// NoPods are the addresses of the node's prefixes that the daemon itself sends from and to: nothing is known of a pod
	// there, and they pass all the same. nil = there are none.
	NoPods func(prefixes []netip.Prefix) []netip.Addr
	Host   *hostnet.Host
	Log    *zap.Logger
}

// Manager keeps one file's policies in force. Safe for concurrent use.
type Manager struct {
	o    Options
	look chan struct{} // holds a token while the node may have other prefixes

	// Run's own, without a lock: to read, to compile, to apply and to walk connections take their time, and nobody who asks waits for them.
	data    []byte        // the file as it was read last
	stat    os.FileInfo   // when that was
	world   *policy.World // of the last good file
	nodes   []netip.Prefix
	program *policy.Program // in force

	mu       sync.Mutex
	wrong    string            // why the file cannot be used, "" where it can
	read     time.Time         // when the last good file was read
	inForce  *policy.World     // nil = none yet
	prefixes []netip.Prefix    // the node's own as they are in force
	rules    nft.Rules         // in force
	failed   error             // why not all of them are
	unmarked error             // why connections that stand may not have been judged anew
	since    time.Time         // when they came into force; zero = not yet
	changing bool              // the table may be one that rules does not tell of
	denied   map[Drop]uint64   // since the daemon began
	seen     map[string]uint64 // the table's counters at the last look
}

// Drop is what packets are counted by that policies denied.
type Drop struct {
	Tier, Policy, Rule string // Tier is "unknown" or "ended" for those that no policy denied by itself
}

// New reads the file, which has to be good: nobody knows what was meant by one that is not.
func New(o Options) (*Manager, error) {
	m := &Manager{o: o, look: make(chan struct{}, 1), denied: map[Drop]uint64{}, seen: map[string]uint64{}}
	m.reread()
	if m.wrong != "" {
		return nil, errors.New(m.wrong)
	}
	return m, nil
}

// Check reads a file and says what is wrong with it.
func Check(file string) error {
	data, err := plainfile.Read(file, plainfile.Most)
	if err != nil {
		return fmt.Errorf("policy.file: %w", err)
	}
	_, err = policy.Parse(file, data)
	return err
}

// Run keeps policies in force until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	changed := m.o.Host.Changed(Owner)
	for {
		m.keep()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changed:
		case <-m.look:
		}
	}
}

// Look is to be called when the node's prefixes may be others.
func (m *Manager) Look() {
	select {
	case m.look <- struct{}{}:
	default:
	}
}

// reread reads the file where it may have changed, and says whether there is another World. For Run alone.
func (m *Manager) reread() bool {
	stat, err := os.Stat(m.o.File)
	if err == nil && m.stat != nil && os.SameFile(stat, m.stat) && stat.ModTime().Equal(m.stat.ModTime()) && stat.Size() == m.stat.Size() &&
		time.Since(stat.ModTime()) > every { // a file that changes within the clock's grain looks the same
		return false
	}
	var data []byte
	if err == nil {
		data, err = plainfile.Read(m.o.File, plainfile.Most)
	}
	if err == nil && m.stat != nil && bytes.Equal(data, m.data) {
		m.stat = stat
		return false
	}
	m.data, m.stat = nil, nil
	var world *policy.World
	if err == nil {
		m.data, m.stat = data, stat
		world, err = policy.Parse(m.o.File, data)
	}
	if err != nil {
		m.mu.Lock()
		text := err.Error()
		another := text != m.wrong
		m.wrong = text
		m.mu.Unlock()
		if another {
			m.o.Log.Error("the file of policies cannot be used: the last good one stays in force", zap.String("file", m.o.File), zap.Error(err))
		}
		return false
	}
	m.world = world
	m.mu.Lock()
	m.wrong, m.read = "", time.Now()
	m.mu.Unlock()
	m.o.Log.Info("policies read", zap.String("file", m.o.File), zap.Int("policies", len(world.Policies())), zap.Int("pods", len(world.Pods())))
	return true
}

// keep puts in force what is to be. For Run alone.
func (m *Manager) keep() {
	another := m.reread()
	if now := m.o.Node(); len(now) > 0 && !slices.Equal(now, m.nodes) {
		m.nodes, another = now, true
	}
	if len(m.nodes) == 0 { // which pods are ours is not known yet: what an earlier daemon put in force stays
		return
	}
	m.mu.Lock()
	stands, unmarked := m.failed == nil && !m.since.IsZero(), m.unmarked != nil
	m.mu.Unlock()
	if another || !stands {
		m.put()
		return
	}
	err := m.o.Host.Err(Owner)
	m.mu.Lock()
	m.failed = err
	m.mu.Unlock()
	if unmarked {
		m.mark()
	}
}

// put compiles and applies. For Run alone.
func (m *Manager) put() {
	program := m.world.Compile(func(p *policy.Pod) bool { return slices.ContainsFunc(p.Addresses, m.own) })
	var known []netip.Addr
	for _, p := range m.world.Pods() {
		known = append(known, p.Addresses...)
	}
	if m.o.NoPods != nil {
		known = append(known, m.o.NoPods(m.nodes)...)
	}
	rules := nft.Table(program, nft.Options{Prefixes: m.nodes, Known: known})
	m.mu.Lock()
	_ = m.count() // the table's counters end with it
	m.changing = true
	m.mu.Unlock()
	err := m.o.Host.Apply(Owner, hostnet.Want{Tables: []hostnet.Table{rules.Table}})
	if !m.publish(rules, err) {
		return
	}
	m.program = program
	m.mark()
}

// publish says how it stands after an Apply, and whether that did it.
func (m *Manager) publish(rules nft.Rules, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.failed
	m.failed, m.changing = err, false
	if err != nil {
		if before == nil || before.Error() != err.Error() {
			m.o.Log.Error("policies are not in force, trying again", zap.Error(err))
		}
		return false
	}
	if m.since.IsZero() {
		m.o.Log.Info("policies are in force", zap.String("file", m.o.File))
	}
	m.rules, m.inForce, m.prefixes, m.since = rules, m.world, m.nodes, time.Now()
	m.unmarked = errBeingMarked
	_ = m.count() // at once: what a new table counts until the next look would pass for what the old one had
	there := map[string]bool{}
	for _, p := range m.inForce.Policies() {
		there[p.String()] = true
	}
	maps.DeleteFunc(m.denied, func(d Drop, _ uint64) bool { // of policies that are gone
		return d.Policy != "" && slices.ContainsFunc(strings.Split(d.Policy, ", "), func(name string) bool { return !there[name] })
	})
	return true
}

var errBeingMarked = errors.New("they are being judged anew")

// mark tells connections that stand to end where they are denied by now: the table judges what begins. What fails is tried again at the next
// look. For Run alone.
func (m *Manager) mark() {
	n, err := m.o.Host.MarkFlows(nft.Mark, func(f hostnet.Flow) bool {
		allowed, _, _ := m.program.Judge(policy.Traffic{Src: f.Src, Dst: f.Dst, Protocol: policy.Protocol(f.Protocol), Port: f.Port})
		return !allowed
	})
	if n > 0 {
		m.o.Log.Info("connections were judged anew", zap.Int("flows", n))
	}
	m.mu.Lock()
	before := m.unmarked
	m.unmarked = err
	m.mu.Unlock()
	if err != nil && (before == nil || before.Error() != err.Error()) {
		m.o.Log.Warn("answers of connections that are denied by now may pass, trying again", zap.Error(err))
	}
}

func (m *Manager) own(a netip.Addr) bool {
	return slices.ContainsFunc(m.nodes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// count adds what the table has counted since the last look. A counter that went back is one of a table made anew. The caller holds m.mu.
func (m *Manager) count() error {
	if m.since.IsZero() || m.changing { // publish counts right after a change
		return nil
	}
	now, err := m.o.Host.Counts(nft.Family, nft.Name)
	if err != nil {
		return err
	}
	for name, n := range now[nft.Name] {
		d := Drop{Tier: name}
		if r, ok := m.rules.Denied[name]; ok {
			d = Drop{r.Tier.String(), r.Policy, r.Rule}
		}
		before := m.seen[name]
		if n < before {
			before = 0
		}
		m.denied[d] += n - before
	}
	m.seen = now[nft.Name]
	return nil
}

// Ready says why pods cannot be attached because of policies; nil where they can.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.failed != nil:
		return fmt.Errorf("network policies are not in force: %w", m.failed)
	case m.since.IsZero():
		return errors.New("network policies are not in force yet")
	}
	return nil
}

// Status is how it stands.
type Status struct {
	File    string
	Problem string        // "" where the file as it is is in force
	Since   time.Time     // when what is in force came to be so; zero = nothing is
	World   *policy.World // in force; nil where nothing is
	Denied  []Count
}

// Count is how many packets were denied by what.
type Count struct {
	Drop
	Packets uint64
}

// Problem says why what the file says is not in force, "" where it is.
func (m *Manager) Problem() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.problem()
}

func (m *Manager) problem() string {
	switch {
	case m.failed != nil:
		return m.failed.Error()
	case m.wrong != "":
		return fmt.Sprintf("%s is not in force, what was read at %s still is: %s", m.o.File, m.read.Format(time.RFC3339), m.wrong)
	case m.unmarked != nil:
		return fmt.Sprintf("answers of connections that are denied by now may pass: %v", m.unmarked)
	}
	return ""
}

// Status tells it.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{File: m.o.File, Since: m.since, World: m.inForce, Problem: m.problem()}
	if err := m.count(); err != nil && s.Problem == "" {
		s.Problem = err.Error()
	}
	for d, n := range m.denied {
		s.Denied = append(s.Denied, Count{d, n})
	}
	slices.SortFunc(s.Denied, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Tier, b.Tier), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Rule, b.Rule))
	})
	return s
}

// Explain says what the policies in force say about connections, as policy.World.Explain does, and what the table does with pods that the
// file does not list.
func (m *Manager) Explain(src, dst, port string) ([]policy.Explained, error) {
	m.mu.Lock()
	world, prefixes := m.inForce, m.prefixes
	m.mu.Unlock()
	if world == nil {
		return nil, errors.New("network policies are not in force yet: `weft policy list` says why, and --file asks a file")
	}
	answers, err := world.Explain(src, dst, port)
	if err != nil {
		return nil, err
	}
	mine, _ := net.InterfaceAddrs() // what the node itself sends and gets is not judged
	for i := range answers {
		a := &answers[i]
		for d, end := range []netip.Addr{a.Src, a.Dst} {
			own := slices.ContainsFunc(mine, func(n net.Addr) bool {
				p, err := netip.ParsePrefix(n.String())
				return err == nil && p.Addr().Unmap() == end
			})
			if world.Known(end) || own || !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(end) }) {
				continue
			}
			a.Allowed = false
			a.Ends = append(a.Ends, policy.ExplainedSide{Direction: policy.Direction(d).String(), Pod: end.String(), Tier: nft.Unknown,
				Text:   "denied: it has an address of this node's prefixes, and the file lists no pod that has it",
				Remedy: fmt.Sprintf("list the pod that has %s in %s", end, m.o.File), Asked: []policy.ExplainedRule{}})
		}
		slices.SortStableFunc(a.Ends, func(x, y policy.ExplainedSide) int { return cmp.Compare(x.Direction, y.Direction) }) // egress first
	}
	return answers, nil
}
