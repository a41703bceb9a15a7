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
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/hostnet"
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
	Host *hostnet.Host
	Log  *zap.Logger
}

// Manager keeps one file's policies in force. Safe for concurrent use.
type Manager struct {
	o    Options
	look chan struct{} // holds a token while the node may have other prefixes

	mu     sync.Mutex
	data   []byte        // the file as it was read last
	stat   os.FileInfo   // when that was
	world  *policy.World // of the last good file
	read   time.Time     // when that was read
	wrong  string        // why the file is not in force, "" where it is
	nodes  []netip.Prefix
	rules  nft.Rules         // in force
	failed error             // why not all of them are
	since  time.Time         // when they came into force; zero = not yet
	denied map[Drop]uint64   // since the daemon began
	seen   map[string]uint64 // the table's counters at the last look
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
	data, err := os.ReadFile(file)
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

// reread reads the file where it may have changed, and says whether there is another World.
func (m *Manager) reread() bool {
	stat, err := os.Stat(m.o.File)
	if err == nil && m.stat != nil && os.SameFile(stat, m.stat) && stat.ModTime().Equal(m.stat.ModTime()) && stat.Size() == m.stat.Size() &&
		time.Since(stat.ModTime()) > every { // a file that changes within the clock's grain looks the same
		return false
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(m.o.File)
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
		if text := err.Error(); text != m.wrong {
			m.wrong = text
			m.o.Log.Error("the file of policies cannot be used: the last good one stays in force", zap.String("file", m.o.File), zap.Error(err))
		}
		return false
	}
	m.wrong, m.world, m.read = "", world, time.Now()
	m.o.Log.Info("policies read", zap.String("file", m.o.File), zap.Int("policies", len(world.Policies())), zap.Int("pods", len(world.Pods())))
	return true
}

// keep puts in force what is to be.
func (m *Manager) keep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	another := m.reread()
	if now := m.o.Node(); len(now) > 0 && !slices.Equal(now, m.nodes) {
		m.nodes, another = now, true
	}
	if len(m.nodes) == 0 { // which pods are ours is not known yet: what an earlier daemon put in force stays
		return
	}
	if !another && m.failed == nil && !m.since.IsZero() {
		m.failed = m.o.Host.Err(Owner)
		return
	}
	m.put()
}

func (m *Manager) put() {
	program := m.world.Compile(func(p *policy.Pod) bool { return slices.ContainsFunc(p.Addresses, m.own) })
	var known []netip.Addr
	for _, p := range m.world.Pods() {
		known = append(known, p.Addresses...)
	}
	rules := nft.Table(program, nft.Options{Prefixes: m.nodes, Known: known})
	_ = m.count() // the table's counters end with it
	before := m.failed
	if m.failed = m.o.Host.Apply(Owner, hostnet.Want{Tables: []hostnet.Table{rules.Table}}); m.failed != nil {
		if before == nil || before.Error() != m.failed.Error() {
			m.o.Log.Error("policies are not in force, trying again", zap.Error(m.failed))
		}
		return
	}
	m.rules = rules
	if m.since.IsZero() {
		m.o.Log.Info("policies are in force", zap.String("file", m.o.File))
	}
	m.since = time.Now()
	// The table judges what begins; what stands is told to end.
	n, err := m.o.Host.MarkFlows(nft.Mark, func(f hostnet.Flow) bool {
		allowed, _, _ := program.Judge(policy.Traffic{Src: f.Src, Dst: f.Dst, Protocol: policy.Protocol(f.Protocol), Port: f.Port})
		return !allowed
	})
	if err != nil {
		m.o.Log.Warn("answers of connections that are denied by now may pass as long as those last: see `conntrack -L`", zap.Error(err))
	}
	if n > 0 {
		m.o.Log.Info("connections were judged anew", zap.Int("flows", n))
	}
}

func (m *Manager) own(a netip.Addr) bool {
	return slices.ContainsFunc(m.nodes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// count adds what the table has counted since the last look. A counter that went back is one of a table made anew. The caller holds m.mu.
func (m *Manager) count() error {
	if m.since.IsZero() {
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
	Problem string    // "" where the file as it is is in force
	Since   time.Time // when what is in force came to be so; zero = nothing is
	World   *policy.World
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
	}
	return ""
}

// Status tells it.
func (m *Manager) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{File: m.o.File, Since: m.since, World: m.world, Problem: m.problem()}
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
