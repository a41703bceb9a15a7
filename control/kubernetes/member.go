package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"

	"weft/control"
	"weft/internal/backoff"
)

// member is this node's part in the cluster during one Run. To the reflector it is the store that it
// fills.
type member struct {
	*Source
	client *client
	name   string // of this node, and of its Node object
	update func(control.State)
	say    chan pending // what is to be written, empty where nothing is; the newest only
	events chan string  // texts of Events about this node

	mu       sync.Mutex
	records  map[string]*record // by name
	listed   bool               // the server has told all of them at least once
	dirty    map[string]bool    // names whose record changed since the last State
	asOf     time.Time          // when the server was last heard
	outage   string             // why it is not, "" when it is
	refusing time.Time          // since when it refuses this node, zero when it does not
	ownKey   string             // the public key that this node itself announced last, "" = none in this run
	unsaid   string             // why what this node has to say is not written, "" when it is

	// Of the publishing goroutine alone.
	self      control.Node    // as the daemon announces it; without prefixes
	announced <-chan struct{} // tells that it may be another by now
	last      control.State
	published bool
	index     *control.Index           // of last, nil where it is not in order
	told      map[control.Problem]bool // those of last
}

// pending is what a Node object does not say yet about this node.
type pending struct {
	annotations map[string]string // all of this node's; nil = it says them
	network     condition         // "" = it says it
}

func (p pending) empty() bool { return p.annotations == nil && p.network == "" }

// listen takes over what this node announces by now.
func (m *member) listen() error {
	self, announced := m.Announced()
	m.announced = announced
	if m.set.Schema == SchemaFlannel {
		self.Endpoints = control.OfNetwork(self.Endpoints, m.set.Network)
	}
	if _, err := m.schema.annotations(self); err != nil && len(self.Endpoints) > 0 {
		return fmt.Errorf("kubernetes: %w", err)
	}
	m.self = self
	return nil
}

// heard notes how the server answered.
func (m *member) heard(ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil {
		return // we hung up
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.asOf, m.refusing = time.Now(), time.Time{}
		if m.outage != "" {
			m.outage = ""
			m.log.Info("the API server answers again", zap.String("server", m.client.server))
			m.wake()
		}
		return
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsTooManyRequests(err): // it answers, and is asked again
		return
	case !refused(err):
		m.refusing = time.Time{}
	case m.refusing.IsZero():
		m.refusing = time.Now()
	}
	if m.outage == "" {
		m.log.Warn("the API server is lost: forwarding goes on with what is known", zap.Error(err))
	}
	m.outage = m.client.told(err)
	m.wake()
}

// Add is one of the methods of a cache.ReflectorStore.
func (m *member) Add(obj any) error { return m.Update(obj) }

// Update takes a node that is new, or another one than before.
func (m *member) Update(obj any) error {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return fmt.Errorf("a %T is not a Node", obj)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(read(m.schema, n))
	return nil
}

func (m *member) put(r *record) {
	if old := m.records[r.node.Name]; old != nil && old.equal(r) {
		return // a kubelet's sign of life
	}
	m.records[r.node.Name] = r
	m.dirty[r.node.Name] = true
	m.wake()
}

// Delete takes a node out.
func (m *member) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.records, key)
	m.dirty[key] = true
	m.wake()
	return nil
}

// Replace takes the whole list.
func (m *member) Replace(list []any, _ string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	present := make(map[string]bool, len(list))
	for _, obj := range list {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return fmt.Errorf("a %T is not a Node", obj)
		}
		present[n.Name] = true
		m.put(read(m.schema, n))
	}
	for name := range m.records {
		if !present[name] {
			delete(m.records, name)
			m.dirty[name] = true
		}
	}
	m.listed = true
	m.wake()
	return nil
}

// Resync has nothing to do: records are States' only source.
func (m *member) Resync() error { return nil }

// Transformer makes the reflector keep of a list that it streams only what is needed.
func (m *member) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if n, ok := obj.(*corev1.Node); ok {
			return thin(n), nil
		}
		return obj, nil
	}
}

// register keeps this node's Node object as it is to be.
func (m *member) register(ctx context.Context) {
	p := pace{Backoff: backoff.Backoff{First: 200 * time.Millisecond, Most: 30 * time.Second}}
	var want pending
	for {
		select {
		case <-ctx.Done():
			return
		case want = <-m.say:
		}
		if want.empty() {
			continue
		}
		p.begin()
		for {
			err := m.tell(ctx, want)
			if ctx.Err() != nil {
				return
			}
			m.mu.Lock()
			m.unsaid = ""
			if err != nil {
				m.unsaid = fmt.Sprintf("the others do not learn of this node's state, its Node object cannot be written: %v: grant patch of nodes/status (deploy/kubernetes/weft.yaml)", err)
			}
			m.mu.Unlock()
			m.wake()
			if !backoff.Sleep(ctx, p.after(err)) {
				return
			}
			if err == nil {
				break
			}
			select { // what is wished by now may be nothing at all
			case want = <-m.say:
			default:
			}
		}
	}
}

// pace is how long register pauses. Where somebody else keeps changing what it writes, that must not become a race; what worked at
// last, after failures, was no race.
type pace struct {
	backoff.Backoff
	last    time.Time // of the last attempt
	failing bool      // that one failed
}

// begin is for a wish that comes after what was wished before had been written.
func (p *pace) begin() {
	if time.Since(p.last) > p.Most {
		p.Reset()
	}
}

// after returns the pause after an attempt that ended so.
func (p *pace) after(err error) time.Duration {
	if err == nil && p.failing {
		p.Reset()
	}
	p.last, p.failing = time.Now(), err != nil
	return p.Next()
}

// tell writes what is pending.
func (m *member) tell(ctx context.Context, p pending) error {
	if p.annotations != nil {
		if err := m.apply(ctx, p.annotations); err != nil {
			return err
		}
	}
	if p.network == "" {
		return nil
	}
	err := m.client.setNetwork(ctx, m.name, p.network)
	if err == nil {
		m.log.Info("whether the node's network is available: condition written", zap.String("node", m.name), zap.String("reason", string(p.network)))
	}
	return err
}

// apply writes annotations. What somebody else has written becomes ours, and is told.
func (m *member) apply(ctx context.Context, want map[string]string) error {
	err := m.client.apply(ctx, m.name, want, false)
	if apierrors.IsConflict(err) {
		m.log.Warn("annotations of this node belong to somebody else, and are taken over", zap.Error(err))
		err = m.client.apply(ctx, m.name, want, true)
	}
	if err == nil {
		m.log.Info("annotations written", zap.String("node", m.name), zap.Int("annotations", len(want)))
	}
	return err
}

// publish hands on States until ctx ends, or until it is clear that the server never will have us.
func (m *member) publish(ctx context.Context) error {
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.poke:
		case <-m.announced:
			if err := m.listen(); err != nil {
				m.log.Error("what this node announces is kept as it was", zap.Error(err))
			}
		case <-tick.C:
			m.mu.Lock()
			silent := time.Since(m.asOf) > confirm && m.listed
			m.mu.Unlock()
			if silent {
				m.heard(ctx, m.client.ask(ctx, m.name))
			}
		}
		if err := m.once(); err != nil {
			return err
		}
		if !backoff.Sleep(ctx, gather) {
			return nil
		}
	}
}

// once hands on the State as it is now.
func (m *member) once() error {
	m.mu.Lock()
	if !m.listed {
		hopeless := !m.refusing.IsZero() && time.Since(m.refusing) > grace
		why := m.outage
		m.mu.Unlock()
		if hopeless {
			return fmt.Errorf("kubernetes: %s", why)
		}
		return nil
	}
	s := m.state()
	s.AsOf = m.asOf
	m.mu.Unlock()
	s.Number(&m.last)
	told := make(map[control.Problem]bool, len(s.Problems))
	for _, p := range s.Problems {
		if !m.told[p] {
			m.tellEvent(p)
			m.log.Warn("the cluster's data has a problem", zap.String("node", p.Node), zap.String("problem", p.Text))
		}
		told[p] = true
	}
	m.last, m.published, m.told = s, true, told
	m.update(s)
	return nil
}

// state makes the State of what is known, and has the annotations written that go with it. The lock is held.
func (m *member) state() control.State {
	problems, self := m.problems(), m.last.Self
	r := m.records[m.self.Name]
	switch {
	case r == nil && len(m.records) == 0 && m.published && len(self.Prefixes) > 0:
		problems = append(problems, control.Problem{Text: "the API server knows no node at all: forwarding goes on with those it knew. Look at whether its store was wiped"})
		return control.State{Self: self, Nodes: m.last.Nodes, Problems: problems}
	case r == nil && len(self.Prefixes) > 0 && !m.taken(self):
		problems = append(problems, control.Problem{Text: fmt.Sprintf("the API server has no Node %q any more: forwarding goes on, but the other nodes send nothing to this one: start the kubelet again", m.self.Name)})
	case r == nil:
		problems = append(problems, control.Problem{Node: m.self.Name, Text: fmt.Sprintf("the API server has no Node %q: start the kubelet, or set node.name to the Node's name", m.self.Name)})
		return m.alone(problems)
	case r.waits != "":
		problems = append(problems, control.Problem{Node: m.self.Name, Text: r.waits})
		m.announce(r)
		return m.alone(problems)
	default:
		self = m.announce(r)
	}
	if nodes, ok := m.patched(self); ok {
		clear(m.dirty)
		return control.State{Self: self, Nodes: nodes, Problems: problems}
	}
	return m.whole(self, problems)
}

// alone is the State of a node that has no prefix: it has no business in the network.
func (m *member) alone(problems []control.Problem) control.State {
	m.index = nil
	return control.State{Self: m.self, Problems: problems}
}

// taken says that another node has been given what this one still holds.
func (m *member) taken(self control.Node) bool {
	for _, r := range m.records {
		for _, p := range r.node.Prefixes {
			if slices.ContainsFunc(self.Prefixes, p.Overlaps) {
				return true
			}
		}
	}
	return false
}

// announce is this node as its Node object makes it, and has written what that does not say yet.
func (m *member) announce(r *record) control.Node {
	n := m.self
	if n.PublicKey != "" {
		m.ownKey = n.PublicKey
	} else if key := r.node.PublicKey; key != m.ownKey && control.WrongKey(key) == "" {
		n.PublicKey = key // somebody put it there: this node has nothing to say about it
	}
	n.Prefixes = slices.Clone(r.node.Prefixes)
	slices.SortFunc(n.Prefixes, netip.Prefix.Compare)
	n.Endpoints = m.schema.endpoints(m.self.Endpoints, r.internal, r.annotations)
	want, err := m.schema.annotations(n)
	if err != nil {
		m.unsaid = err.Error()
		return n
	}
	m.schema.tell(want, n, r.internal)
	same := true
	for key, value := range want {
		same = same && r.annotations[key] == value
	}
	for key := range r.annotations {
		_, wanted := want[key]
		same = same && (wanted || !strings.HasPrefix(key, prefixWeft))
	}
	fresh := pending{network: m.network()}
	if fresh.network == r.network {
		fresh.network = ""
	}
	if !same {
		fresh.annotations = want
	}
	select { // the newest only, and it alone: one that there is no more need for must not be written later
	case <-m.say:
	default:
	}
	m.say <- fresh
	return n
}

// whole makes a State with a look at every node.
func (m *member) whole(self control.Node, problems []control.Problem) control.State {
	clear(m.dirty)
	m.index = nil
	nodes := make([]control.Node, 0, len(m.records)+1)
	for name, r := range m.records {
		if r.wrong == "" && name != m.self.Name {
			nodes = append(nodes, r.node)
		}
	}
	s, err := control.Check(m.self.Name, m.set.Network, append(nodes, self), m.last, m.elder)
	switch {
	case err != nil && m.published && len(m.last.Self.Prefixes) > 0:
		s.Self, s.Nodes = m.last.Self, m.last.Nodes
		problems = append(problems, control.Problem{Text: err.Error()})
	case err != nil:
		return m.alone(append(problems, control.Problem{Node: m.self.Name, Text: err.Error()}))
	case len(s.Problems) == 0:
		m.index = control.NewIndex(append(slices.Clone(s.Nodes), s.Self))
	}
	s.Problems = append(problems, s.Problems...)
	return s
}

// elder implements control.Elder: an address that Kubernetes itself knows for the node's goes before one that is only annotated, then
// the Node object that was made first. That is the age of the node and not of the claim. The lock is held.
func (m *member) elder(a, b control.Claim) int {
	rank := func(c control.Claim) (annotated int, created int64) {
		r := m.records[c.Node.Name]
		if r == nil {
			return 1, math.MaxInt64
		}
		if c.Endpoint.IsValid() && !slices.Contains(r.internal, c.Endpoint) {
			annotated = 1
		}
		return annotated, r.created
	}
	aAnnotated, aCreated := rank(a)
	bAnnotated, bCreated := rank(b)
	return cmp.Or(cmp.Compare(aAnnotated, bAnnotated), cmp.Compare(aCreated, bCreated))
}

// problems are those of this node, of the server and of the Node objects by themselves.
func (m *member) problems() []control.Problem {
	var list []control.Problem
	if m.outage != "" {
		list = append(list, control.Problem{Text: fmt.Sprintf("%s. Forwarding goes on with what was known at %s", strings.TrimSuffix(m.outage, "."), m.asOf.Format(time.RFC3339))})
	}
	if m.unsaid != "" {
		list = append(list, control.Problem{Node: m.self.Name, Text: m.unsaid})
	}
	first := len(list)
	for name, r := range m.records {
		if r.wrong != "" && name != m.self.Name {
			list = append(list, control.Problem{Node: name, Text: r.wrong})
		}
	}
	slices.SortFunc(list[first:], func(a, b control.Problem) int { return strings.Compare(a.Node, b.Node) })
	return list
}
