// Package policies keeps network policies in force: it reads workloads and policies from a file, again whenever that changes, and hands
// the Host the table that enforces them.
//
// It never opens what was closed: while the file cannot be used, the last good one stays in force; when the daemon ends or dies, the kernel's
// table stays; and while no policies are in force, no pods are attached (Ready).
package policies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
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

	Name string           // the node's, for policies about nodes
	Open [2][]policy.Port // by direction: what stays open on this node beside policy.Failsafe's, whatever policies say
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
	wrong    string             // why the file cannot be used, "" where it can
	read     time.Time          // when the last good file was read
	inForce  *policy.World      // nil = none yet
	prefixes []netip.Prefix     // the node's own as they are in force
	rules    nft.Rules          // in force
	failed   error              // why not all of them are
	unmarked error              // why connections that stand may not have been judged anew
	since    time.Time          // when they came into force; zero = not yet
	changing bool               // the table may be one that rules does not tell of
	counted  map[Counter]uint64 // since the daemon began
	seen     map[string]uint64  // the table's counters at the last look

	logs logs
}

// New reads the file, which has to be good: nobody knows what was meant by one that is not.
func New(o Options) (*Manager, error) {
	m := &Manager{o: o, look: make(chan struct{}, 1), counted: map[Counter]uint64{}, seen: map[string]uint64{}}
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
	defer m.listen()()
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
	program := m.world.On(m.o.Name, m.o.Open).Compile(func(p *policy.Pod) bool { return slices.ContainsFunc(p.Addresses, m.own) })
	var known []netip.Addr
	for _, p := range m.world.Pods() {
		known = append(known, p.Addresses...)
	}
	if m.o.NoPods != nil {
		known = append(known, m.o.NoPods(m.nodes)...)
	}
	rules := nft.Table(program, nft.Options{Prefixes: m.nodes, Known: known, Log: m.logs.listening()})
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
	m.logs.rules(rules, m.world)
	m.unmarked = errBeingMarked
	_ = m.count() // at once: what a new table counts until the next look would pass for what the old one had
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
	n, err := m.o.Host.MarkFlows(nft.Mark, func(f hostnet.Flow) bool {
		allowed, egress, ingress := m.program.Judge(policy.Traffic{Src: f.Src, Dst: f.Dst, Protocol: policy.Protocol(f.Protocol), Port: f.Port})
		switch self := m.o.Name; { // what pods and their own node send each other is judged by policies about the node alone
		case m.world.NodeAt(f.Src) == self && self != "":
			return egress.Deny
		case m.world.NodeAt(f.Dst) == self && self != "":
			return ingress.Deny
		}
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
	Counts  []Count
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
	s.Counts = m.counts()
	return s
}
