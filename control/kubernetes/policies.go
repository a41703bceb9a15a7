package kubernetes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kind "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"weft/internal/backoff"
	"weft/policy"
)

// Policies is an API server as a source of network policies: Pods, Namespaces, NetworkPolicies, and, where the server has their kind,
// ClusterNetworkPolicies and the Nodes that those can be about. It implements policy.Source. All it needs is to list and to watch them.
//
// Of Pods it keeps what a policy can ask for. Losing the server is losing nothing: what was known stays, and is said to be old. An object that
// cannot be understood isolates what it selects (policy.Object).
type Policies struct {
	set       Settings
	lookAgain time.Duration
}

// NewPolicies makes a source. Nothing is read or connected before Run.
func NewPolicies(s Settings) *Policies { return &Policies{s, lookAgain} }

func (p *Policies) String() string { return "the API server" }

// Resources, as messages have them.
const (
	pods            = "pods"
	namespaces      = "namespaces"
	nodes           = "nodes"
	networkPolicies = "networkpolicies"
	clusterPolicies = "clusternetworkpolicies"
)

// runningPods are the Pods that have an address of their own, or will: those that have ended may have lost it to others.
const runningPods = "spec.hostNetwork=false,status.phase!=Failed,status.phase!=Succeeded"

// lookAgain is how often a server that does not have ClusterNetworkPolicies is asked whether it has them.
const lookAgain = 30 * time.Second

var networkPolicyResource = kind.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: networkPolicies}

// clusterPolicyGroup has the versions that can be read, the preferred one first.
const clusterPolicyGroup = "policy.networking.k8s.io"

var clusterPolicyVersions = []string{"v1alpha2", "v1beta1"}

// Run implements policy.Source.
func (p *Policies) Run(ctx context.Context, update func(policy.Cluster)) error {
	quiet()
	c, err := dial(p.set)
	if err != nil {
		return err
	}
	defer c.close()
	raw, err := dynamic.NewForConfigAndClient(c.config, c.http)
	if err != nil {
		return fmt.Errorf("kubernetes: %w", err)
	}
	v := newView(c, p.set.Log)
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	group.Go(func() {
		v.pods.fill(ctx, c.follow(pods, runningPods, func() runtime.Object { return &corev1.PodList{} }, thinPod, v.heard(pods)), &corev1.Pod{})
	})
	group.Go(func() {
		v.namespaces.fill(ctx, c.follow(namespaces, "", func() runtime.Object { return &corev1.NamespaceList{} }, thinNamespace, v.heard(namespaces)), &corev1.Namespace{})
	})
	group.Go(func() {
		v.policies.fill(ctx, followRaw(raw.Resource(networkPolicyResource), v.heard(networkPolicies)), &unstructured.Unstructured{})
	})
	group.Go(func() { v.ofCluster(ctx, raw, p.lookAgain) })
	return v.publish(ctx, update)
}

// followRaw is a listWatch of objects whose types the core does not have.
func followRaw(of dynamic.ResourceInterface, heard func(context.Context, error)) listWatch {
	return listWatch{heard: heard, thin: thinPolicy, watch: of.Watch,
		list: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return of.List(ctx, o) }}
}

// ofCluster follows ClusterNetworkPolicies and Nodes while the server has the kind.
func (v *view) ofCluster(ctx context.Context, raw dynamic.Interface, lookAgain time.Duration) {
	again := backoff.Backoff{First: 200 * time.Millisecond, Most: 5 * time.Second}
	for {
		version, err := v.client.clusterPolicyVersion(ctx)
		v.heard(clusterPolicies)(ctx, err)
		pause := lookAgain
		switch {
		case err != nil:
			pause = again.Next()
		case version == "":
			again.Reset()
			v.clusterPolicies.none()
			v.nodes.none()
		default:
			again.Reset()
			v.followCluster(ctx, raw.Resource(kind.GroupVersionResource{Group: clusterPolicyGroup, Version: version, Resource: clusterPolicies}))
			pause = again.Next()
		}
		if !backoff.Sleep(ctx, pause) {
			return
		}
	}
}

// followCluster follows them until ctx ends or the server no longer has their kind.
func (v *view) followCluster(ctx context.Context, of dynamic.ResourceInterface) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() {
		v.nodes.fill(ctx, v.client.follow(nodes, "", func() runtime.Object { return &corev1.NodeList{} }, thinLabelled, v.heard(nodes)), &corev1.Node{})
	})
	heard := v.heard(clusterPolicies)
	v.clusterPolicies.fill(ctx, followRaw(of, func(ctx context.Context, err error) {
		if apierrors.IsNotFound(err) { // their definition is gone
			cancel()
			return
		}
		heard(ctx, err)
	}), &unstructured.Unstructured{})
	group.Wait()
}

// unreadable is the error of a server that has policies in versions only that are not known here.
type unreadable struct{ versions []string }

func (u unreadable) Error() string {
	return fmt.Sprintf("the API server has ClusterNetworkPolicies of %s in version %s only, and this weft reads %s: have it serve one of these, or update weft", clusterPolicyGroup,
		strings.Join(u.versions, " and "), strings.Join(clusterPolicyVersions, " and "))
}

// clusterPolicyVersion asks in which version the server has ClusterNetworkPolicies, "" = it has none. An error that is unreadable says that it
// has them in others than can be read.
func (c *client) clusterPolicyVersion(ctx context.Context) (string, error) {
	var group metav1.APIGroup
	if err := c.discover(ctx, &group, clusterPolicyGroup); err != nil {
		return "", err
	}
	var has []string
	for _, v := range group.Versions {
		var list metav1.APIResourceList
		if err := c.discover(ctx, &list, clusterPolicyGroup, v.Version); err != nil {
			return "", err
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == clusterPolicies }) {
			has = append(has, v.Version)
		}
	}
	for _, version := range clusterPolicyVersions {
		if slices.Contains(has, version) {
			return version, nil
		}
	}
	if len(has) > 0 {
		return "", unreadable{has}
	}
	return "", nil
}

// discover asks what the server has below /apis; nothing is read where there is nothing.
func (c *client) discover(ctx context.Context, into any, path ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := c.rest.Get().AbsPath(append([]string{"/apis"}, path...)...).SetHeader("Accept", "application/json").Do(ctx).Raw()
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return err
	}
	return json.Unmarshal(body, into)
}

// view is what the server has, as far as this node knows.
type view struct {
	client *client
	log    *zap.Logger
	poke   chan struct{} // holds a token while there is something to tell

	mu                        sync.Mutex
	pods                      shelf[*podRecord]
	namespaces                shelf[policy.Namespace]
	nodes                     shelf[policy.Node]
	policies, clusterPolicies shelf[policyRecord]
	at                        map[netip.Addr][]*podRecord // who has an address: one, but for a moment
	revision                  uint64
	outages                   map[string]string // why a resource is not heard of, by its name
	asOf                      time.Time         // when the server was last heard
}

// podRecord is a Pod. Its Addresses are all that it says of them.
type podRecord struct {
	policy.Pod
	created int64
	going   bool // it is being deleted
}

// policyRecord is a policy, and why its object cannot be understood, "" where it can.
type policyRecord struct {
	policy policy.Policy
	odd    string
}

func newView(c *client, log *zap.Logger) *view {
	v := &view{client: c, log: log, poke: make(chan struct{}, 1), at: map[netip.Addr][]*podRecord{}, outages: map[string]string{}}
	v.pods = shelf[*podRecord]{v: v, thin: thinPod, read: readPod, same: (*podRecord).same, moved: v.moved}
	v.namespaces = shelf[policy.Namespace]{v: v, thin: thinNamespace, read: readNamespace, same: func(a, b policy.Namespace) bool { return maps.Equal(a.Labels, b.Labels) }}
	v.nodes = shelf[policy.Node]{v: v, thin: thinLabelled, read: readNode,
		same: func(a, b policy.Node) bool {
			return maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Addresses, b.Addresses)
		}}
	same := func(a, b policyRecord) bool { return false } // they are rarely written for nothing
	v.policies = shelf[policyRecord]{v: v, thin: thinPolicy, read: readPolicy, same: same}
	v.clusterPolicies = shelf[policyRecord]{v: v, thin: thinPolicy, read: readPolicy, same: same}
	return v
}

// moved keeps at. The lock is held.
func (v *view) moved(before, now *podRecord) {
	if before != nil {
		for _, a := range before.Addresses {
			if left := slices.DeleteFunc(v.at[a], func(r *podRecord) bool { return r == before }); len(left) > 0 {
				v.at[a] = left
			} else {
				delete(v.at, a)
			}
		}
	}
	if now != nil {
		for _, a := range now.Addresses {
			v.at[a] = append(v.at[a], now)
		}
	}
}

// heard returns what takes note of how the server answered about a resource.
func (v *view) heard(resource string) func(context.Context, error) {
	return func(ctx context.Context, err error) {
		if err != nil && ctx.Err() != nil {
			return // we hung up
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		switch {
		case err == nil:
			v.asOf = time.Now()
			if v.outages[resource] != "" {
				delete(v.outages, resource)
				v.wake()
			}
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsTooManyRequests(err): // it answers, and is asked again
		case apierrors.IsForbidden(err):
			v.outage(resource, fmt.Sprintf("the API server %s refuses this node: %v: grant list and watch of %s (deploy/kubernetes/weft.yaml)", v.client.server, err, resource))
		case errors.As(err, &unreadable{}):
			v.outage(resource, err.Error())
		default:
			v.outage(resource, v.client.told(err))
		}
	}
}

func (v *view) outage(resource, text string) {
	if v.outages[resource] != text {
		v.outages[resource] = text
		v.wake()
	}
}

func (v *view) wake() {
	select {
	case v.poke <- struct{}{}:
	default:
	}
}

// publish tells what is known until ctx ends.
func (v *view) publish(ctx context.Context, update func(policy.Cluster)) error {
	var last policy.Cluster
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-v.poke:
		}
		v.mu.Lock()
		if v.listed() && v.revision != last.Revision {
			last = v.cluster()
		}
		last.Outage = ""
		if resources := slices.Sorted(maps.Keys(v.outages)); len(resources) > 0 {
			last.Outage = v.outages[resources[0]]
			if last.Revision > 0 {
				last.Outage = fmt.Sprintf("%s. What was known at %s stays in force", strings.TrimSuffix(last.Outage, "."), v.asOf.Format(time.RFC3339))
			}
		}
		v.mu.Unlock()
		update(last)
		if !backoff.Sleep(ctx, gather) {
			return nil
		}
	}
}

// listed says whether the server has told all of everything. The lock is held.
func (v *view) listed() bool {
	return v.pods.listed && v.namespaces.listed && v.policies.listed && v.clusterPolicies.listed && v.nodes.listed
}

// cluster is what is known, as the World has it. The lock is held.
func (v *view) cluster() policy.Cluster {
	c := policy.Cluster{Revision: v.revision, Pods: make([]policy.Pod, 0, len(v.pods.all)),
		Namespaces: slices.Collect(maps.Values(v.namespaces.all)), Nodes: make([]policy.Node, 0, len(v.nodes.all))}
	for _, r := range v.pods.all {
		if _, known := v.namespaces.all[r.Namespace]; !known {
			continue // what its namespace's labels would have policies deny is not known yet: so nothing is known of it
		}
		p := r.Pod
		if slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return v.holder(a) != r }) {
			p.Addresses = slices.DeleteFunc(slices.Clone(p.Addresses), func(a netip.Addr) bool { return v.holder(a) != r })
		}
		c.Pods = append(c.Pods, p)
	}
	taken := map[netip.Addr]string{}
	for _, name := range slices.Sorted(maps.Keys(v.nodes.all)) {
		n := v.nodes.all[name]
		n.Addresses = slices.DeleteFunc(slices.Clone(n.Addresses), func(a netip.Addr) bool {
			other := taken[a]
			if _, pod := v.at[a]; other == "" && !pod {
				taken[a] = name
				return false
			}
			c.Problems = append(c.Problems, fmt.Sprintf("node %s has address %s, and somebody else, too: rules about nodes do not know it there", name, a))
			return true
		})
		c.Nodes = append(c.Nodes, n)
	}
	for _, all := range []map[string]policyRecord{v.policies.all, v.clusterPolicies.all} {
		for _, name := range slices.Sorted(maps.Keys(all)) {
			r := all[name]
			c.Policies = append(c.Policies, r.policy)
			if r.odd != "" {
				c.Problems = append(c.Problems, r.odd)
			}
		}
	}
	return c
}

// holder is whose an address is: of several Pods one that stays, and of those the one that was made last. The address of a Pod that has
// gone may be another's before the server has forgotten the Pod.
func (v *view) holder(a netip.Addr) *podRecord {
	all := v.at[a]
	if len(all) == 1 {
		return all[0]
	}
	return slices.MaxFunc(all, func(a, b *podRecord) int {
		stays := map[bool]int{false: 1}
		return cmp.Or(cmp.Compare(stays[a.going], stays[b.going]), cmp.Compare(a.created, b.created), cmp.Compare(a.String(), b.String()))
	})
}

// shelf is the store that a reflector fills: what is kept of the objects of one resource, by namespace and name. Its view's lock guards it.
type shelf[T any] struct {
	v      *view
	thin   func(runtime.Object) runtime.Object
	read   func(any) (value T, keep bool, err error)
	same   func(a, b T) bool
	moved  func(before, now T) // nil = nobody asks
	all    map[string]T
	listed bool // the server has told all of them at least once
}

// fill runs a reflector until ctx ends.
func (s *shelf[T]) fill(ctx context.Context, from listWatch, kind any) {
	pauses := relist
	cache.NewReflectorWithOptions(from, kind, s, cache.ReflectorOptions{Name: "weft", Backoff: &pauses}).RunWithContext(ctx)
}

// none says that there are none, and that this is known.
func (s *shelf[T]) none() {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	if !s.listed || len(s.all) > 0 {
		s.all, s.listed = nil, true
		s.v.revision++
		s.v.wake()
	}
}

// Add is one of the methods of a cache.ReflectorStore.
func (s *shelf[T]) Add(obj any) error { return s.Update(obj) }

// Update takes an object that is new, or another one than before.
func (s *shelf[T]) Update(obj any) error {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	_, err := s.put(obj)
	return err
}

func (s *shelf[T]) put(obj any) (key string, err error) {
	if key, err = cache.MetaNamespaceKeyFunc(obj); err != nil {
		return "", err
	}
	now, keep, err := s.read(obj)
	if err != nil {
		return key, err
	}
	if !keep {
		s.remove(key)
		return key, nil
	}
	before, there := s.all[key]
	if there && s.same(before, now) {
		return key, nil
	}
	if s.all == nil {
		s.all = map[string]T{}
	}
	s.all[key] = now
	s.tell(before, now)
	return key, nil
}

func (s *shelf[T]) tell(before, now T) {
	if s.moved != nil {
		s.moved(before, now)
	}
	s.v.revision++
	s.v.wake()
}

func (s *shelf[T]) remove(key string) {
	if before, there := s.all[key]; there {
		delete(s.all, key)
		var none T
		s.tell(before, none)
	}
}

// Delete takes an object out.
func (s *shelf[T]) Delete(obj any) error {
	key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	s.remove(key)
	return nil
}

// Replace takes the whole list.
func (s *shelf[T]) Replace(list []any, _ string) error {
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	present := make(map[string]bool, len(list))
	var errs []error
	for _, obj := range list {
		key, err := s.put(obj)
		errs = append(errs, err)
		present[key] = true
	}
	for key := range s.all {
		if !present[key] {
			s.remove(key)
		}
	}
	if !s.listed {
		s.listed = true
		s.v.revision++
		s.v.wake()
	}
	return errors.Join(errs...)
}

// Resync has nothing to do.
func (s *shelf[T]) Resync() error { return nil }

// Transformer makes the reflector keep of a list that it streams only what is needed.
func (s *shelf[T]) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) {
		if o, ok := obj.(runtime.Object); ok {
			return s.thin(o), nil
		}
		return obj, nil
	}
}
