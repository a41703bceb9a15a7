package kubernetes_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/control"
	"weft/control/controltest"
	"weft/control/kubernetes"
	"weft/internal/nettest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fake speaks what of the API server's HTTP this source uses: list, watch with and without a list in
// front, get, apply of annotations, and patches of conditions. The real one is beside it, in real_test.go.
type fake struct {
	t         testing.TB
	addr      string
	dir       string
	settings  kubernetes.Settings
	streaming bool // it can put the list in front of a watch

	mu      sync.Mutex
	changed *sync.Cond
	server  *http.Server
	version int
	oldest  int // watches from before are too old
	nodes   map[string]*corev1.Node
	events  []event
	deny    int                          // status that every request gets; 0 = none
	owner   map[string]map[string]string // of annotations, by node: who applied them
	lists   int
	told    []corev1.Event
	kubeadm string // ClusterConfiguration; "" = there is none
}

type event struct {
	version int
	Type    string       `json:"type"`
	Object  *corev1.Node `json:"object"`
}

func startFake(t testing.TB) *fake {
	f := &fake{t: t, dir: t.TempDir(), nodes: map[string]*corev1.Node{}, owner: map[string]map[string]string{}, streaming: true}
	f.changed = sync.NewCond(&f.mu)
	f.start()
	t.Cleanup(f.kill)
	f.settings = kubernetes.Settings{Kubeconfig: filepath.Join(f.dir, "kubeconfig"), Schema: kubernetes.SchemaWeft,
		Network: controltest.Network(), VNI: 1, Log: zap.NewNop()}
	must(t, os.WriteFile(f.settings.Kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "http://%s"}}], contexts: [{name: x, context: {cluster: x, user: x}}], users: [{name: x, user: {}}]}`, f.addr), 0o600))
	return f
}

func (f *fake) start() {
	if f.addr == "" {
		f.addr = nettest.FreeAddr(f.t).String()
	}
	l, err := net.Listen("tcp", f.addr)
	must(f.t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.server = &http.Server{Handler: http.HandlerFunc(f.handle)}
	go f.server.Serve(l)
}

// kill ends all connections without a word.
func (f *fake) kill() {
	f.mu.Lock()
	s := f.server
	f.server = nil
	f.changed.Broadcast()
	f.mu.Unlock()
	if s != nil {
		s.Close()
	}
}

// put makes a node so; nil takes it out.
func (f *fake) put(name string, n *corev1.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.putLocked(name, n)
}

func (f *fake) putLocked(name string, n *corev1.Node) {
	f.version++
	e := event{f.version, "MODIFIED", n}
	if n != nil && f.nodes[name] != nil {
		n.CreationTimestamp = f.nodes[name].CreationTimestamp
	} else if n != nil {
		n.CreationTimestamp = metav1.Unix(int64(f.version), 0)
	}
	switch {
	case n == nil:
		e.Type, e.Object = "DELETED", f.nodes[name].DeepCopy()
		delete(f.nodes, name)
	case f.nodes[name] == nil:
		e.Type = "ADDED"
	}
	e.Object.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	e.Object.ResourceVersion = strconv.Itoa(f.version)
	if n != nil {
		f.nodes[name] = n
	}
	f.events = append(f.events, e)
	f.changed.Broadcast()
}

// forget makes the server forget its history and end its watches: clients have to list again.
func (f *fake) forget() {
	f.kill()
	f.mu.Lock()
	f.version += 1000
	f.oldest, f.events = f.version, nil
	f.mu.Unlock()
	f.start()
}

func (f *fake) handle(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/api/v1/nodes"), "/"), "/status")
	q := r.URL.Query()
	from, _ := strconv.Atoi(q.Get("resourceVersion"))
	w.Header().Set("Content-Type", "application/json")
	switch {
	case f.deny != 0:
		status(w, f.deny, metav1.StatusReason(http.StatusText(f.deny)))
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/strategic-merge-patch+json":
		f.patchConditions(w, r, name)
	case r.Method == http.MethodPatch:
		f.patch(w, r, name, q.Get("fieldManager"), q.Get("force") == "true")
	case r.Method == http.MethodPost && r.URL.Path == "/api/v1/namespaces/default/events":
		var e corev1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			f.t.Errorf("an event: %v", err)
		}
		f.told = append(f.told, e)
		json.NewEncoder(w).Encode(e)
	case r.URL.Path == "/api/v1/namespaces/kube-system/configmaps/kubeadm-config" && f.kubeadm != "":
		json.NewEncoder(w).Encode(corev1.ConfigMap{TypeMeta: metav1.TypeMeta{Kind: "ConfigMap", APIVersion: "v1"}, Data: map[string]string{"ClusterConfiguration": f.kubeadm}})
	case r.Method != http.MethodGet:
		status(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	case name != "" && f.nodes[name] == nil:
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case name != "":
		json.NewEncoder(w).Encode(f.nodes[name])
	case q.Get("watch") == "":
		if q.Get("limit") != "" && q.Get("continue") == "" && from != 0 && q.Get("resourceVersionMatch") == "" {
			f.t.Errorf("a list was asked for as it was at version %d, whatever has changed since", from)
		}
		f.list(w, q.Get("continue"), q.Get("limit"))
	case q.Get("sendInitialEvents") != "" && !f.streaming:
		status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	default:
		f.watch(w, r, from, q.Get("sendInitialEvents") == "true")
	}
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: string(reason)})
}

// list sends the nodes after one of this name, so many of them at most.
func (f *fake) list(w http.ResponseWriter, after, limit string) {
	f.lists++
	list := corev1.NodeList{TypeMeta: metav1.TypeMeta{Kind: "NodeList", APIVersion: "v1"}}
	list.ResourceVersion = strconv.Itoa(f.version)
	most, err := strconv.Atoi(limit)
	if err != nil {
		most = len(f.nodes)
	}
	for _, name := range slices.Sorted(maps.Keys(f.nodes)) {
		switch {
		case name <= after:
		case len(list.Items) == most:
			list.Continue = list.Items[most-1].Name
		default:
			list.Items = append(list.Items, *f.nodes[name])
		}
	}
	json.NewEncoder(w).Encode(list)
}

// watch runs with the lock, and gives it up to write and to wait.
func (f *fake) watch(w http.ResponseWriter, r *http.Request, from int, initial bool) {
	server := f.server
	send := func(v any) bool {
		f.mu.Unlock()
		defer f.mu.Lock()
		err := json.NewEncoder(w).Encode(v)
		w.(http.Flusher).Flush()
		return err == nil
	}
	if initial {
		f.lists++
		from = f.version
		var all []event
		for _, n := range f.nodes {
			all = append(all, event{0, "ADDED", n.DeepCopy()})
		}
		mark := &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}}
		mark.ResourceVersion, mark.Annotations = strconv.Itoa(from), map[string]string{metav1.InitialEventsAnnotationKey: "true"}
		f.mu.Unlock()
		enc := json.NewEncoder(w)
		for _, e := range append(all, event{0, "BOOKMARK", mark}) {
			enc.Encode(e)
		}
		w.(http.Flusher).Flush()
		f.mu.Lock()
	}
	if from < f.oldest {
		send(map[string]any{"type": "ERROR", "object": metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
			Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired, Message: "too old resource version"}})
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-r.Context().Done():
			f.mu.Lock()
			f.changed.Broadcast()
			f.mu.Unlock()
		case <-stop:
		}
	}()
	w.(http.Flusher).Flush()
	for r.Context().Err() == nil && f.server == server {
		for _, e := range f.events {
			if e.version > from {
				from = e.version
				if !send(e) {
					return
				}
				break
			}
		}
		if len(f.events) == 0 || f.events[len(f.events)-1].version <= from {
			f.changed.Wait()
		}
	}
}

// patch is server-side apply, as far as annotations go.
func (f *fake) patch(w http.ResponseWriter, r *http.Request, name, manager string, force bool) {
	var p metav1.PartialObjectMetadata
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil || !strings.HasSuffix(r.URL.Path, "/status") || r.Header.Get("Content-Type") != "application/apply-patch+yaml" {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	old := f.nodes[name]
	if old == nil {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	n := old.DeepCopy()
	if n.Annotations == nil {
		n.Annotations = map[string]string{}
	}
	owners := f.owner[name]
	if owners == nil {
		owners = map[string]string{}
		f.owner[name] = owners
	}
	for key, value := range p.Annotations {
		if now, there := n.Annotations[key]; there && now != value && owners[key] != manager && !force {
			status(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
	}
	for key, by := range owners {
		if _, stays := p.Annotations[key]; by == manager && !stays {
			delete(n.Annotations, key)
			delete(owners, key)
		}
	}
	for key, value := range p.Annotations {
		n.Annotations[key], owners[key] = value, manager
	}
	f.putLocked(name, n)
	json.NewEncoder(w).Encode(n)
}

// patchConditions replaces conditions by their types.
func (f *fake) patchConditions(w http.ResponseWriter, r *http.Request, name string) {
	var p corev1.Node
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil || !strings.HasSuffix(r.URL.Path, "/status") {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	old := f.nodes[name]
	if old == nil {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	n := old.DeepCopy()
	for _, c := range p.Status.Conditions {
		n.Status.Conditions = append(slices.DeleteFunc(n.Status.Conditions, func(o corev1.NodeCondition) bool { return o.Type == c.Type }), c)
	}
	f.putLocked(name, n)
	json.NewEncoder(w).Encode(n)
}

// object is a Node as Kubernetes keeps it, not yet registered.
func object(n control.Node) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Annotations: map[string]string{}}}
	for _, p := range n.Prefixes {
		o.Spec.PodCIDRs = append(o.Spec.PodCIDRs, p.String())
	}
	for _, a := range n.Endpoints {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	if len(n.Prefixes) > 0 {
		o.Spec.PodCIDR = o.Spec.PodCIDRs[0]
	}
	return o
}

// registered is a Node whose daemon has written its annotations.
func registered(n control.Node, schema string) *corev1.Node {
	o := object(n)
	if n.PublicKey != "" {
		o.Annotations["weft.network/public-key"] = n.PublicKey
	}
	for i, w := range n.Ways {
		if i > 0 {
			o.Annotations["weft.network/ways"] += ","
		}
		o.Annotations["weft.network/ways"] += w.String()
	}
	if schema == kubernetes.SchemaWeft {
		o.Annotations["weft.network/vtep-mac"], o.Annotations["weft.network/vni"] = n.VTEP().String(), "1"
		return o
	}
	const f = "flannel.alpha.coreos.com/"
	o.Annotations[f+"kube-subnet-manager"], o.Annotations[f+"backend-type"] = "true", "vxlan"
	data := fmt.Sprintf(`{"VNI":1,"VtepMAC":"%v"}`, n.VTEP())
	for _, a := range n.Endpoints {
		if a.Is4() {
			o.Annotations[f+"public-ip"], o.Annotations[f+"backend-data"] = a.String(), data
		} else {
			o.Annotations[f+"public-ipv6"], o.Annotations[f+"backend-v6-data"] = a.String(), data
		}
	}
	return o
}
