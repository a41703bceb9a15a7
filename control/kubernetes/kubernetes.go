// Package kubernetes is the control plane that is a Kubernetes API server: a node's prefixes are the
// podCIDRs that Kubernetes gave it, its endpoints are its internal addresses, and what else the others
// have to know about it stands in annotations of its Node object, which its daemon writes.
//
// All it needs of the server is to get, list and watch nodes, and to patch nodes/status; with the right to create events, what
// is wrong with this node is told there as well. Annotations
// are written by server-side apply, so that each of them has an owner and what a daemon no longer says
// goes away. Whether a node forwards it says by its condition NetworkUnavailable.
//
// Nodes come by list and watch, as an informer gets them. Losing the server is not losing the cluster:
// without an answer everything stays in force and only grows old. A node whose object is deleted is no
// longer in the cluster.
package kubernetes

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"weft/control"
)

// Schemas of Settings.
const (
	SchemaWeft    = "weft"
	SchemaFlannel = "flannel"
)

// Settings are what a source is made from.
type Settings struct {
	Kubeconfig string // file; "" = the service account of the pod that this runs in
	Server     string // HOST:PORT of the API server besides; "" = what DirectFile says, in a pod
	Schema     string // of Schema…

	Network []netip.Prefix // the cluster's podCIDRs lie in it
	VNI     uint32
	Port    uint16 // of Flannel's nodes; 0 = 8472
	Log     *zap.Logger
}

// Source is one API server. It implements control.Source.
type Source struct {
	set    Settings
	schema schema
	log    *zap.Logger
	poke   chan struct{} // holds a token while there is something to publish

	control.Announcement

	hearing   sync.Mutex
	carries   bool      // this node has a prefix, and carries its traffic
	broken    time.Time // since when it does not; zero before it was ever heard of
	downAfter time.Duration
}

// New makes a source. Nothing is read or connected before Run.
func New(s Settings) *Source {
	src := &Source{set: s, log: s.Log, schema: own{s.VNI}, poke: make(chan struct{}, 1), downAfter: downAfter}
	if s.Schema == SchemaFlannel {
		src.schema = flannel{s.VNI, cmp.Or(s.Port, flannelPort)}
	}
	return src
}

// Intervals. A server that was not heard of for confirm is asked.
const (
	confirm = 30 * time.Second
	// gather is the least time between two States, so that a thousand nodes that join at once make
	// twenty States a second, not a thousand.
	gather = 50 * time.Millisecond
	// refresh is the least time between two States that differ in their date only.
	refresh = 10 * time.Second
	// grace is how long a server may refuse a node that starts: its rules may be on their way.
	grace = 10 * time.Second
	// downAfter is how long a node does not forward before it says so: a path that is opened anew is no reason to write.
	downAfter = 10 * time.Second
)

// relist is between attempts to reach the server, in the client library's own words; halved at random.
var relist = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 5 * time.Second}

// quiet keeps the client library from writing to standard error by itself: what it has to say comes
// back as errors, and those are told once.
var quiet = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// Run writes what this node has to say into its Node object, and publishes the cluster until ctx ends. What is written stays
// then: a restart is no news to the others.
func (s *Source) Run(ctx context.Context, update func(control.State)) error {
	quiet()
	m := &member{Source: s, update: update, say: make(chan pending, 1), events: make(chan string, eventsWaiting),
		records: map[string]*record{}, dirty: map[string]bool{}, told: map[control.Problem]bool{}}
	if err := m.listen(); err != nil {
		return err
	}
	c, err := dial(s.set)
	if err != nil {
		return err
	}
	defer c.close()
	m.client, m.name = c, m.self.Name
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	pauses := relist
	reflector := cache.NewReflectorWithOptions(c.follow("nodes", "", func() runtime.Object { return &corev1.NodeList{} }, thinNode, m.heard), &corev1.Node{}, m, cache.ReflectorOptions{Name: "weft", Backoff: &pauses})
	group.Go(func() { reflector.RunWithContext(ctx) })
	group.Go(func() { m.register(ctx) })
	group.Go(func() { m.writeEvents(ctx) })
	return m.publish(ctx)
}

// Hear implements control.Source: the condition NetworkUnavailable of this node's Node object is made to say so, as often as it is
// found otherwise.
func (s *Source) Hear(f control.InForce) {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	carries := f.Carries()
	switch {
	case carries == s.carries && (carries || !s.broken.IsZero()):
		return
	case carries:
		s.broken = time.Time{}
	default:
		s.broken = time.Now()
		time.AfterFunc(s.downAfter, s.wake)
	}
	s.carries = carries
	s.wake()
}

// network is what the condition should be; "" where it is to stay as it is.
func (s *Source) network() condition {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	switch {
	case s.carries:
		return up
	case !s.broken.IsZero() && time.Since(s.broken) >= s.downAfter:
		return down
	}
	return ""
}

// Read implements control.Source: the server tells who may ask it.
func (s *Source) Read() (control.State, error) { return control.State{}, control.ErrJoin }

// Store implements control.Source: the network is the controller manager's.
func (s *Source) Store() control.NetworkStore { return nil }

func (s *Source) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}
