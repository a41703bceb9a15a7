package kubernetes_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/control/kubernetes"
	"weft/internal/nettest"
	"weft/policy"
)

// shop is an API server of the resources that policies are made of, as JSON. The real one is beside it, in TestRealServer.
type shop struct {
	t    testing.TB
	addr string
	set  kubernetes.Settings

	mu        sync.Mutex
	changed   *sync.Cond
	server    *http.Server
	version   int
	oldest    int
	streaming bool
	deny      map[string]int            // status by resource
	objects   map[string]map[string]any // by resource and namespace/name
	events    []shopEvent
	served    string // version of ClusterNetworkPolicy, "" = none
	selectors map[string]string
}

type shopEvent struct {
	version  int
	resource string
	Type     string `json:"type"`
	Object   any    `json:"object"`
}

// resources are by their URL's path.
var resources = map[string]string{"/api/v1/pods": "Pod v1", "/api/v1/namespaces": "Namespace v1", "/api/v1/nodes": "Node v1",
	"/apis/networking.k8s.io/v1/networkpolicies": "NetworkPolicy networking.k8s.io/v1"}

func openShop(t testing.TB, streaming bool) *shop {
	s := &shop{t: t, objects: map[string]map[string]any{}, deny: map[string]int{}, selectors: map[string]string{}, streaming: streaming, version: 1}
	s.changed = sync.NewCond(&s.mu)
	s.start()
	t.Cleanup(s.kill)
	s.set = kubernetes.Settings{Kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"), Log: zaptest.NewLogger(t)}
	must(t, os.WriteFile(s.set.Kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "http://%s"}}], contexts: [{name: x, context: {cluster: x, user: x}}], users: [{name: x, user: {}}]}`, s.addr), 0o600))
	return s
}

func (s *shop) start() {
	if s.addr == "" {
		s.addr = nettest.FreeAddr(s.t).String()
	}
	l, err := net.Listen("tcp", s.addr)
	must(s.t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = &http.Server{Handler: http.HandlerFunc(s.handle)}
	go s.server.Serve(l)
}

func (s *shop) kill() {
	s.mu.Lock()
	server := s.server
	s.server = nil
	s.changed.Broadcast()
	s.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// put makes an object so, in JSON; "" takes it out.
func (s *shop) put(path, namespace, name, rest string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	key := namespace + "/" + name
	all := s.objects[path]
	if all == nil {
		all = map[string]any{}
		s.objects[path] = all
	}
	e := shopEvent{version: s.version, resource: path, Type: "MODIFIED", Object: all[key]}
	if all[key] == nil {
		e.Type = "ADDED"
	}
	if rest == "" {
		e.Type = "DELETED"
		delete(all, key)
	} else {
		o := map[string]any{}
		must(s.t, json.Unmarshal([]byte(rest), &o))
		kind, api, _ := strings.Cut(s.kind(path), " ")
		meta, _ := o["metadata"].(map[string]any)
		if meta == nil {
			meta = map[string]any{}
		}
		meta["name"], meta["resourceVersion"], meta["uid"] = name, strconv.Itoa(s.version), path+key
		if meta["creationTimestamp"] == nil {
			meta["creationTimestamp"] = time.Unix(int64(s.version), 0).UTC().Format(time.RFC3339)
		}
		meta["managedFields"] = []any{map[string]any{"manager": "kubectl", "fieldsV1": map[string]any{"f:spec": map[string]any{}}}}
		if namespace != "" {
			meta["namespace"] = namespace
		}
		o["metadata"], o["kind"], o["apiVersion"] = meta, kind, api
		all[key], e.Object = o, o
	}
	s.events = append(s.events, e)
	s.changed.Broadcast()
}

func (s *shop) kind(path string) string {
	if k, ok := resources[path]; ok {
		return k
	}
	return "ClusterNetworkPolicy policy.networking.k8s.io/" + s.served
}

func (s *shop) cnp() string {
	return "/apis/policy.networking.k8s.io/" + s.served + "/clusternetworkpolicies"
}

// wipeHistory makes the server forget what happened: clients have to list again.
func (s *shop) wipeHistory() {
	s.kill()
	s.mu.Lock()
	s.version += 1000
	s.oldest, s.events = s.version, nil
	s.mu.Unlock()
	s.start()
}

func (s *shop) handle(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := r.URL.Query()
	path := r.URL.Path
	w.Header().Set("Content-Type", "application/json")
	_, known := resources[path]
	known = known || s.served != "" && path == s.cnp()
	switch {
	case s.deny[path] != 0:
		status(w, s.deny[path], "Forbidden")
	case s.served != "" && path == "/apis/policy.networking.k8s.io":
		fmt.Fprintf(w, `{"kind":"APIGroup","apiVersion":"v1","name":"policy.networking.k8s.io","versions":[{"groupVersion":"x","version":"v1alpha1"},{"groupVersion":"x","version":%q}]}`, s.served)
	case s.served != "" && path == "/apis/policy.networking.k8s.io/"+s.served:
		fmt.Fprint(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"x","resources":[{"name":"clusternetworkpolicies"}]}`)
	case !known || r.Method != http.MethodGet:
		status(w, http.StatusNotFound, "NotFound")
	case q.Get("watch") == "":
		s.selectors[path] = q.Get("fieldSelector")
		kind, api, _ := strings.Cut(s.kind(path), " ")
		var items []any
		next := ""
		limit, _ := strconv.Atoi(q.Get("limit"))
		for _, key := range slices.Sorted(maps.Keys(s.objects[path])) {
			if key <= q.Get("continue") {
				continue
			}
			if limit > 0 && len(items) == limit {
				break
			}
			items = append(items, s.objects[path][key])
			next = key
		}
		if len(items) < limit || limit == 0 {
			next = ""
		}
		json.NewEncoder(w).Encode(map[string]any{"kind": kind + "List", "apiVersion": api, "items": items,
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.version), "continue": next}})
	case q.Get("sendInitialEvents") != "" && !s.streaming:
		status(w, http.StatusUnprocessableEntity, "Invalid")
	default:
		s.selectors[path] = q.Get("fieldSelector")
		from, _ := strconv.Atoi(q.Get("resourceVersion"))
		s.watch(w, r, path, from, q.Get("sendInitialEvents") == "true")
	}
}

// watch runs with the lock, and gives it up to write and to wait.
func (s *shop) watch(w http.ResponseWriter, r *http.Request, path string, from int, initial bool) {
	server := s.server
	send := func(v any) bool {
		data, err := json.Marshal(v)
		s.mu.Unlock()
		defer s.mu.Lock()
		if err == nil {
			_, err = w.Write(append(data, '\n'))
		}
		w.(http.Flusher).Flush()
		return err == nil
	}
	kind, api, _ := strings.Cut(s.kind(path), " ")
	if initial {
		from = s.version
		for _, key := range slices.Sorted(maps.Keys(s.objects[path])) {
			if o := s.objects[path][key]; o != nil {
				send(shopEvent{Type: "ADDED", Object: o})
			}
		}
		send(shopEvent{Type: "BOOKMARK", Object: map[string]any{"kind": kind, "apiVersion": api, "metadata": map[string]any{"resourceVersion": strconv.Itoa(from),
			"annotations": map[string]any{"k8s.io/initial-events-end": "true"}}}})
	}
	if from < s.oldest {
		send(map[string]any{"type": "ERROR", "object": map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired"}})
		return
	}
	go func() {
		<-r.Context().Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	}()
	w.(http.Flusher).Flush()
	for r.Context().Err() == nil && s.server == server {
		i := slices.IndexFunc(s.events, func(e shopEvent) bool { return e.version > from && e.resource == path })
		if i < 0 {
			s.changed.Wait()
			continue
		}
		from = s.events[i].version
		if !send(s.events[i]) {
			return
		}
	}
}

// customer runs a source and has what it told last.
type customer struct {
	t    testing.TB
	mu   sync.Mutex
	last policy.Cluster
	end  func()
}

func visit(t testing.TB, source policy.Source) *customer {
	c := &customer{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- source.Run(ctx, func(now policy.Cluster) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.last = now
		})
	}()
	c.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(c.end)
	return c
}

// await waits until the source tells what is wanted, and returns it.
func (c *customer) await(what string, is func(policy.Cluster) bool) (now policy.Cluster) {
	c.t.Helper()
	nettest.Eventually(c.t, patience, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if now = c.last; !is(now) {
			return fmt.Errorf("%s: %+v", what, now)
		}
		return nil
	})
	return now
}

const podsPath, namespacesPath, npPath = "/api/v1/pods", "/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies"

func podJSON(node, labels string, ips ...string) string {
	var list []string
	for _, ip := range ips {
		list = append(list, fmt.Sprintf(`{"ip":%q}`, ip))
	}
	return fmt.Sprintf(`{"metadata":{"labels":%s,"annotations":{"a":"b"}},"spec":{"nodeName":%q,"containers":[{"name":"c","ports":[{"name":"http","containerPort":80},{"containerPort":81},{"name":"dns","containerPort":53,"protocol":"UDP"}]}],
"initContainers":[{"name":"once","ports":[{"name":"gone","containerPort":1}]},{"name":"beside","restartPolicy":"Always","ports":[{"name":"side","containerPort":2}]}]},
"status":{"phase":"Running","podIPs":[%s]}}`, labels, node, strings.Join(list, ","))
}

func find(c policy.Cluster, name string) *policy.Pod {
	i := slices.IndexFunc(c.Pods, func(p policy.Pod) bool { return p.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Pods[i]
}

// TestPolicies: what the API server has of pods, namespaces, nodes and policies is told whole, changes and all, by servers that stream lists and
// by others; an outage takes nothing away.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, streaming := range []bool{true, false} {
		t.Run(fmt.Sprintf("streaming=%t", streaming), func(t *testing.T) {
			t.Parallel()
			s := openShop(t, streaming)
			s.put(namespacesPath, "", "shop", `{"metadata":{"labels":{"team":"blue"}}}`)
			s.put(podsPath, "shop", "web", podJSON("a", `{"app":"web"}`, "10.244.1.5", "fd00::5"))
			s.put(namespacesPath, "", "many", `{}`)
			for i := range 600 { // more than a page
				s.put(podsPath, "many", fmt.Sprint("p", i), podJSON("b", `{}`, fmt.Sprintf("10.245.%d.%d", i/250, i%250)))
			}
			s.put(npPath, "shop", "web", `{"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"],"ingress":[{"ports":[{"port":"http"}],"from":[{"namespaceSelector":{}}]}]}}`)
			c := visit(t, kubernetes.NewPolicies(s.set))
			now := c.await("everything", func(c policy.Cluster) bool { return c.Revision > 0 })
			if len(now.Pods) != 601 || len(now.Policies) != 1 || len(now.Namespaces) != 2 || len(now.Problems) != 0 || len(now.Nodes) != 0 {
				t.Fatalf("%d pods, policies %+v, namespaces %+v, problems %v", len(now.Pods), now.Policies, now.Namespaces, now.Problems)
			}
			web := find(now, "web")
			if web == nil || web.Node != "a" || web.Labels["app"] != "web" || !slices.Equal(web.Addresses, []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::5")}) ||
				!slices.Equal(web.Ports, []policy.NamedPort{{Name: "http", Port: 80, Protocol: policy.TCP}, {Name: "dns", Port: 53, Protocol: policy.UDP}, {Name: "side", Port: 2, Protocol: policy.TCP}}) {
				t.Errorf("web is told as %+v", web)
			}
			s.mu.Lock()
			if got := s.selectors[podsPath]; got != "spec.hostNetwork=false,status.phase!=Failed,status.phase!=Succeeded" {
				t.Errorf("pods are selected by %q", got)
			}
			s.mu.Unlock()

			// What is of the node's network, and what has ended, is nobody.
			s.put(podsPath, "many", "p1", `{"spec":{"hostNetwork":true},"status":{"podIPs":[{"ip":"192.0.2.1"}]}}`)
			s.put(podsPath, "many", "p2", `{"spec":{},"status":{"phase":"Succeeded","podIPs":[{"ip":"10.245.0.2"}]}}`)
			s.put(podsPath, "many", "p3", "")
			c.await("three are nobody", func(c policy.Cluster) bool { return len(c.Pods) == 598 })

			// An address of two is the one's that stays, and of two such the later one's.
			s.put(podsPath, "shop", "heir", podJSON("a", `{}`, "10.244.1.5"))
			now = c.await("an heir", func(c policy.Cluster) bool { h := find(c, "heir"); return h != nil && len(h.Addresses) == 1 })
			if web := find(now, "web"); len(web.Addresses) != 1 || !web.Addresses[0].Is6() {
				t.Errorf("web has %v", web.Addresses)
			}
			s.put(podsPath, "shop", "heir", `{"metadata":{"deletionTimestamp":"2030-01-01T00:00:00Z"},"status":{"podIPs":[{"ip":"10.244.1.5"}]}}`)
			c.await("it goes", func(c policy.Cluster) bool { return len(find(c, "web").Addresses) == 2 })

			// An object that cannot be understood isolates what it selects, and is named.
			s.put(npPath, "shop", "odd", `{"spec":{"podSelector":{"matchLabels":{"app":"db"}},"ingress":[{"from":[{"serviceSelector":{}}]}]}}`)
			now = c.await("an odd policy", func(c policy.Cluster) bool { return len(c.Problems) == 1 && len(c.Policies) == 2 })
			odd := now.Policies[slices.IndexFunc(now.Policies, func(p policy.Policy) bool { return p.Name == "odd" })]
			if !odd.Isolates[policy.Egress] || !odd.Isolates[policy.Ingress] || odd.Subject.String() != "pods with app=db of namespace shop" || !strings.Contains(now.Problems[0], "NetworkPolicy shop/odd cannot be understood") {
				t.Errorf("%+v, %v", odd, now.Problems)
			}
			s.put(npPath, "shop", "odd", "")
			c.await("it is gone", func(c policy.Cluster) bool { return len(c.Problems) == 0 && len(c.Policies) == 1 })

			// The server is gone, and comes back without its history.
			before := c.await("content", func(c policy.Cluster) bool { return c.Outage == "" })
			s.kill()
			now = c.await("an outage", func(c policy.Cluster) bool { return strings.Contains(c.Outage, "stays in force") })
			if now.Revision != before.Revision || len(now.Pods) != len(before.Pods) || len(now.Policies) != 1 {
				t.Errorf("an outage took something away: %d pods, %d policies", len(now.Pods), len(now.Policies))
			}
			s.put(podsPath, "shop", "web", "")
			s.wipeHistory()
			c.await("content again, without web", func(c policy.Cluster) bool { return c.Outage == "" && find(c, "web") == nil && len(c.Pods) == 598 })

			// Rights that are taken away are told, and take nothing else away.
			s.mu.Lock()
			s.deny[npPath] = http.StatusForbidden
			s.mu.Unlock()
			s.wipeHistory()
			now = c.await("a refusal", func(c policy.Cluster) bool {
				return strings.Contains(c.Outage, "grant list and watch of networkpolicies")
			})
			if len(now.Policies) != 1 {
				t.Errorf("a refusal took policies away: %+v", now.Policies)
			}
		})
	}
}

// TestClusterPolicies: they are followed where the server has their kind, and with them Nodes.
func TestClusterPolicies(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v1alpha2", "v1beta1"} {
		s := openShop(t, true)
		s.served = version
		s.put("/api/v1/nodes", "", "alpha", `{"metadata":{"labels":{"kind":"metal"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"},{"type":"Hostname","address":"alpha"}]}}`)
		s.put(s.cnp(), "", "deny", `{"spec":{"tier":"Admin","priority":10,"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"nodes":{"matchLabels":{"kind":"metal"}}}]}]}}`)
		s.put(s.cnp(), "", "names", `{"spec":{"tier":"Baseline","priority":7,"subject":{"namespaces":{"matchLabels":{"team":"blue"}}},"egress":[{"action":"Accept","to":[{"domainNames":["example.org."]}]}]}}`)
		c := visit(t, kubernetes.NewPolicies(s.set))
		now := c.await("policies and nodes", func(c policy.Cluster) bool { return c.Revision > 0 })
		if len(now.Policies) != 2 || len(now.Nodes) != 1 || len(now.Nodes[0].Addresses) != 1 || len(now.Problems) != 1 || !strings.Contains(now.Problems[0], "domainNames") {
			t.Fatalf("%s: %+v", version, now)
		}
		for _, p := range now.Policies {
			if p.Name == "names" && (p.Tier != policy.Baseline || p.Priority != 7 || len(p.Rules[0]) != 1 || p.Rules[0][0].Action != policy.Deny || p.Subject.String() != "all pods of namespaces with team=blue") {
				t.Errorf("%s: what cannot be understood is %+v", version, p)
			}
		}
		// Their definition goes, and they with it.
		s.mu.Lock()
		s.served = ""
		s.mu.Unlock()
		s.wipeHistory()
		c.await("nothing", func(c policy.Cluster) bool { return len(c.Policies) == 0 && len(c.Nodes) == 0 && c.Outage == "" })
		c.end()
	}
}

// TestVersionsOfLater: a server that has ClusterNetworkPolicies in no version that can be read has them all the same: they stay as they were read, and it is
// said in which versions it has them.
func TestVersionsOfLater(t *testing.T) {
	t.Parallel()
	s := openShop(t, true)
	s.served = "v1beta1"
	s.put(s.cnp(), "", "deny", `{"spec":{"tier":"Admin","priority":10,"subject":{"namespaces":{}},"egress":[{"action":"Deny","to":[{"namespaces":{}}]}]}}`)
	c := visit(t, kubernetes.NewPolicies(s.set))
	c.await("a policy", func(c policy.Cluster) bool { return len(c.Policies) == 1 })
	s.mu.Lock()
	s.served = "v2"
	s.mu.Unlock()
	s.wipeHistory()
	c.await("an error that names the versions", func(c policy.Cluster) bool {
		return len(c.Policies) == 1 && strings.Contains(c.Outage, "in version v2 only, and this weft reads v1alpha2 and v1beta1")
	})
	c.end()
	// One that starts then has nothing to say but that.
	c = visit(t, kubernetes.NewPolicies(s.set))
	c.await("an error at the start", func(c policy.Cluster) bool { return c.Revision == 0 && strings.Contains(c.Outage, "version v2") })
	s.mu.Lock()
	s.served = "v1alpha2"
	s.mu.Unlock()
	c.await("it can be read again", func(c policy.Cluster) bool { return c.Revision > 0 && c.Outage == "" })
}

// TestNamespaceUnknown: of a pod nothing is known before its namespace's labels are: what these would have policies deny it could do until then.
func TestNamespaceUnknown(t *testing.T) {
	t.Parallel()
	s := openShop(t, true)
	s.put(namespacesPath, "", "old", `{"metadata":{"labels":{"team":"blue"}}}`)
	s.put(podsPath, "old", "a", podJSON("alpha", `{}`, "10.0.0.1"))
	s.put(podsPath, "new", "b", podJSON("alpha", `{}`, "10.0.0.2"))
	c := visit(t, kubernetes.NewPolicies(s.set))
	now := c.await("what is known", func(c policy.Cluster) bool { return c.Revision > 0 })
	if len(now.Pods) != 1 || find(now, "a") == nil {
		t.Fatalf("%+v", now.Pods)
	}
	s.put(namespacesPath, "", "new", `{"metadata":{"labels":{"team":"red"}}}`)
	c.await("the pod with its namespace", func(c policy.Cluster) bool { return find(c, "b") != nil && len(c.Namespaces) == 2 })
	s.put(namespacesPath, "", "new", "")
	c.await("the pod gone with it", func(c policy.Cluster) bool { return find(c, "b") == nil && find(c, "a") != nil })
}
