// Package kubernetes is the control plane that is a Kubernetes API server: a node's prefixes are the
// podCIDRs that Kubernetes gave it, its endpoints are its internal addresses, and what else the others
// have to know about it stands in annotations of its Node object, which its daemon writes.
//
// All it needs of the server is to get, list and watch nodes, and to patch nodes/status. Annotations
// are written by server-side apply, so that each of them has an owner and what a daemon no longer says
// goes away. A node that forwards says so by its condition NetworkUnavailable.
//
// Nodes come by list and watch, as an informer gets them. Losing the server is not losing the cluster:
// without an answer everything stays in force and only grows old. A node whose object is deleted is no
// longer in the cluster.
package kubernetes

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
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
	Schema     string // of Schema…

	Network []netip.Prefix // the cluster's podCIDRs lie in it
	VNI     uint32
	Log     *zap.Logger
}

// Source is one API server. It implements control.Witness.
type Source struct {
	set        Settings
	schema     schema
	log        *zap.Logger
	poke       chan struct{} // holds a token while there is something to publish
	forwarding atomic.Bool   // this node has a prefix, and carries its traffic
}

// New makes a source. Nothing is read or connected before Run.
func New(s Settings) *Source {
	src := &Source{set: s, log: s.Log, schema: own{s.VNI}, poke: make(chan struct{}, 1)}
	if s.Schema == SchemaFlannel {
		src.schema = flannel{s.VNI}
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
)

// relist is between attempts to reach the server, in the client library's own words; halved at random.
var relist = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 5 * time.Second}

// quiet keeps the client library from writing to standard error by itself: what it has to say comes
// back as errors, and those are told once.
var quiet = sync.OnceFunc(func() { klog.SetSlogLogger(slog.New(slog.DiscardHandler)) })

// Run writes what this node has to say into its Node object, and publishes the cluster until ctx ends. What is written stays
// then: a restart is no news to the others.
func (s *Source) Run(ctx context.Context, self control.Node, update func(control.State)) error {
	quiet()
	if s.set.Schema == SchemaFlannel {
		self.Endpoints = control.OfNetwork(self.Endpoints, s.set.Network)
	}
	if _, err := s.schema.annotations(self); err != nil && len(self.Endpoints) > 0 {
		return fmt.Errorf("kubernetes: %w", err)
	}
	c, err := dial(s.set)
	if err != nil {
		return err
	}
	defer c.close()
	m := &member{Source: s, client: c, self: self, update: update, say: make(chan news, 1),
		records: map[string]*record{}, dirty: map[string]bool{}, told: map[control.Problem]bool{}}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	pauses := relist
	reflector := cache.NewReflectorWithOptions(listWatch{m}, &corev1.Node{}, m, cache.ReflectorOptions{Name: "weft", Backoff: &pauses})
	group.Go(func() { reflector.RunWithContext(ctx) })
	group.Go(func() { m.register(ctx) })
	return m.publish(ctx)
}

// Forwarding has the condition NetworkUnavailable of this node's Node object made False, as often as it is found
// otherwise.
func (s *Source) Forwarding() {
	if s.forwarding.CompareAndSwap(false, true) {
		s.wake()
	}
}

func (s *Source) wake() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}
