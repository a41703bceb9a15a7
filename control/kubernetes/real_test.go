package kubernetes_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"

	"weft/control"
	"weft/control/controltest"
	"weft/control/kubernetes"
	"weft/internal/nettest"
	"weft/policy"
)

// server is a real kube-apiserver with a real etcd, on loopback ports. Nothing of it outlives the test.
type server struct {
	t           testing.TB
	dir, binary string
	at          netip.AddrPort
	etcd        string // URL
	client      *http.Client
	process     *exec.Cmd
}

func startServer(t testing.TB, binary string) *server {
	nettest.RequireTool(t, "etcd")
	s := &server{t: t, dir: t.TempDir(), binary: binary, at: nettest.FreeAddr(t), etcd: "http://" + nettest.FreeAddr(t).String(),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	must(t, os.WriteFile(s.file("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	must(t, os.WriteFile(s.file("tokens.csv"), []byte("admin,admin,1,system:masters\n"), 0o600))
	peer := "http://" + nettest.FreeAddr(t).String()
	store := s.spawn("etcd", "--name=t", "--data-dir="+s.file("etcd"), "--listen-client-urls="+s.etcd, "--advertise-client-urls="+s.etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=t="+peer, "--unsafe-no-fsync")
	t.Cleanup(func() { end(store) })
	s.start()
	t.Cleanup(func() { end(s.process) })
	return s
}

func (s *server) file(name string) string { return filepath.Join(s.dir, name) }

func (s *server) spawn(name string, args ...string) *exec.Cmd {
	log, err := os.OpenFile(s.file(filepath.Base(name)+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(s.t, err)
	defer log.Close()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr, c.SysProcAttr = log, log, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(s.t, c.Start())
	return c
}

// end kills a process without a word, as a power cut does.
func end(c *exec.Cmd) {
	c.Process.Kill()
	c.Wait()
}

// start starts the API server and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.process = s.spawn(s.binary, "--etcd-servers="+s.etcd, fmt.Sprint("--secure-port=", s.at.Port()), "--bind-address="+s.at.Addr().String(), "--cert-dir="+s.file("certs"),
		"--service-account-issuer=https://kubernetes.test", "--service-account-key-file="+s.file("sa.key"), "--service-account-signing-key-file="+s.file("sa.key"),
		"--authorization-mode=RBAC", "--token-auth-file="+s.file("tokens.csv"), "--service-cluster-ip-range=10.0.0.0/24", "--endpoint-reconciler-type=none", "--allow-privileged")
	nettest.Eventually(s.t, 2*time.Minute, func() error {
		code, body := s.try("admin", http.MethodGet, "/readyz", "", nil)
		if code != http.StatusOK {
			log, _ := os.ReadFile(s.file(filepath.Base(s.binary) + ".log"))
			return fmt.Errorf("%d %s\n%s", code, body, log[max(0, len(log)-1500):])
		}
		return nil
	})
}

// try makes a request and returns how it was answered, 0 for not at all.
func (s *server) try(token, method, path, kind string, body []byte) (int, []byte) {
	r, err := http.NewRequest(method, "https://"+s.at.String()+path, bytes.NewReader(body))
	must(s.t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", kind)
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, data
}

// do makes a request of the administrator's that has to work.
func (s *server) do(method, path, kind string, body []byte) []byte {
	s.t.Helper()
	code, data := s.try("admin", method, path, kind, body)
	if code < 200 || code > 299 {
		s.t.Fatalf("%s %s: %d %s", method, path, code, data)
	}
	return data
}

const (
	jsonBody  = "application/json"
	mergeBody = "application/merge-patch+json"
	nodesPath = "/api/v1/nodes"
)

// put makes a Node as kubelet and controller manager do.
func (s *server) put(n *corev1.Node) {
	s.t.Helper()
	data, err := json.Marshal(n)
	must(s.t, err)
	s.do(http.MethodPost, nodesPath, jsonBody, data)
	data, err = json.Marshal(map[string]any{"status": map[string]any{"addresses": n.Status.Addresses, "conditions": n.Status.Conditions}})
	must(s.t, err)
	s.do(http.MethodPatch, nodesPath+"/"+n.Name+"/status", mergeBody, data)
}

// deploy applies deploy/kubernetes/weft.yaml.
func (s *server) deploy() {
	s.t.Helper()
	text, err := os.ReadFile("../../deploy/kubernetes/weft.yaml")
	must(s.t, err)
	const rbac, admission = "/apis/rbac.authorization.k8s.io/v1/", "/apis/admissionregistration.k8s.io/v1/"
	where := map[string]string{"Namespace": "/api/v1/namespaces", "ServiceAccount": "/api/v1/namespaces/weft/serviceaccounts",
		"ClusterRole": rbac + "clusterroles", "ClusterRoleBinding": rbac + "clusterrolebindings", "ConfigMap": "/api/v1/namespaces/weft/configmaps",
		"Role default": rbac + "namespaces/default/roles", "RoleBinding default": rbac + "namespaces/default/rolebindings",
		"Role kube-system": rbac + "namespaces/kube-system/roles", "RoleBinding kube-system": rbac + "namespaces/kube-system/rolebindings",
		"ValidatingAdmissionPolicy": admission + "validatingadmissionpolicies", "ValidatingAdmissionPolicyBinding": admission + "validatingadmissionpolicybindings",
		"DaemonSet": "/apis/apps/v1/namespaces/weft/daemonsets"}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		_, rest, _ := strings.Cut(doc, "\nkind: ")
		kind, _, _ := strings.Cut(rest, "\n")
		if kind == "Role" || kind == "RoleBinding" { // one in each of two namespaces
			_, in, _ := strings.Cut(rest, "namespace: ")
			in, _, _ = strings.Cut(in, "}")
			kind += " " + in
		}
		s.do(http.MethodPost, where[kind]+"?fieldValidation=Strict", "application/yaml", []byte(doc))
		delete(where, kind)
	}
	if len(where) > 0 {
		s.t.Fatalf("the manifest lacks %v", where)
	}
}

// token is one of the manifest's account, as a pod of it on a node has it; of no pod where node is "".
func (s *server) token(node string) string {
	s.t.Helper()
	spec := "{}"
	if node != "" {
		var pod struct{ Metadata struct{ UID string } }
		must(s.t, json.Unmarshal(s.do(http.MethodPost, "/api/v1/namespaces/weft/pods", jsonBody, fmt.Appendf(nil, `{"metadata":{"name":"weft-%s"},
"spec":{"nodeName":%q,"serviceAccountName":"weft","containers":[{"name":"weft","image":"weft"}]}}`, node, node)), &pod))
		spec = fmt.Sprintf(`{"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"weft-%s","uid":%q}}`, node, pod.Metadata.UID)
	}
	var token struct{ Status struct{ Token string } }
	must(s.t, json.Unmarshal(s.do(http.MethodPost, "/api/v1/namespaces/weft/serviceaccounts/weft/token", jsonBody,
		fmt.Appendf(nil, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":%s}`, spec)), &token))
	return token.Status.Token
}

func (s *server) node(name string) *corev1.Node {
	var n corev1.Node
	must(s.t, json.Unmarshal(s.do(http.MethodGet, nodesPath+"/"+name, "", nil), &n))
	return &n
}

// TestRealServer runs two nodes against a real kube-apiserver with the rights of the manifest and no
// others. scripts/test-long builds the server and says where it is.
func TestRealServer(t *testing.T) {
	binary := nettest.RequireGiven(t, "WEFT_KUBE_APISERVER")
	s := startServer(t, binary)
	s.deploy()
	s.put(object(node("a", "192.0.2.1")))
	s.put(unavailable(node("b", "192.0.2.2", "10.244.2.0/24")))
	token := s.token("a")
	settings := func(node, token string) kubernetes.Settings {
		set := kubernetes.Settings{Kubeconfig: s.file("kubeconfig-" + node), Schema: kubernetes.SchemaWeft, Network: controltest.Network(), VNI: 1,
			Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))}
		must(t, os.WriteFile(set.Kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "https://%v", insecure-skip-tls-verify: true}}], contexts: [{name: x, context: {cluster: x, user: x}}],
users: [{name: x, user: {token: %q}}]}`, s.at, token), 0o600))
		return set
	}

	// A daemon's token writes to the Node that its pod runs on, and there what is weft's; one of no pod writes to none.
	const touch, label, address = `{"metadata":{"annotations":{"weft.network/x":"y"}}}`, `{"metadata":{"labels":{"x":"y"}}}`, `{"status":{"addresses":[]}}`
	unbound := s.token("")
	nettest.Eventually(t, patience, func() error { // the server takes a while to put a policy in force
		if code, body := s.try(unbound, http.MethodPatch, nodesPath+"/a/status", mergeBody, []byte(touch)); code != http.StatusUnprocessableEntity || !strings.Contains(string(body), "a weft daemon may") {
			return fmt.Errorf("a token of no pod: %d %s", code, body)
		}
		return nil
	})
	for what, refused := range map[[2]string]bool{{"a", touch}: false, {"b", touch}: true, {"a", label}: true, {"a", address}: true,
		{"a", `{"status":{"daemonEndpoints":{"kubeletEndpoint":{"Port":1}}}}`}: true, {"a", `{"status":{"capacity":{"cpu":"1"}}}`}: true,
		{"a", `{"status":{"allocatable":{"cpu":"1"}}}`}: true, {"a", `{"status":{"images":[{"names":["x"]}]}}`}: true,
		{"a", `{"status":{"volumesAttached":[{"name":"x","devicePath":""}]}}`}: true, {"a", `{"metadata":{"finalizers":["x.y/z"]}}`}: true,
		{"a", `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"a","uid":"u"}]}}`}: true} {
		before := s.node(what[0])
		code, body := s.try(token, http.MethodPatch, nodesPath+"/"+what[0]+"/status", mergeBody, []byte(what[1]))
		if code == http.StatusOK && refused { // the server itself leaves out what is not of the status
			if after := s.node(what[0]); after.ResourceVersion == before.ResourceVersion {
				continue
			}
		}
		if (code != http.StatusOK) != refused {
			t.Errorf("%s of node a to %s: %d %s", what[1], what[0], code, body)
		}
	}

	// It may do this, and nothing else.
	for _, r := range []struct{ method, path, kind, body string }{
		{http.MethodDelete, nodesPath + "/a", jsonBody, ""}, {http.MethodPost, nodesPath, jsonBody, `{"metadata":{"name":"x"}}`},
		{http.MethodPatch, nodesPath + "/a", mergeBody, `{"metadata":{"labels":{"x":"y"}}}`}, {http.MethodGet, "/api/v1/secrets", "", ""},
		{http.MethodPost, "/api/v1/namespaces/kube-system/events", jsonBody, `{"metadata":{"name":"x"}}`}, {http.MethodGet, "/api/v1/namespaces/weft/pods/weft-a", "", ""},
		{http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/weft/networkpolicies", jsonBody, `{"metadata":{"name":"x"}}`},
	} {
		if code, body := s.try(token, r.method, r.path, r.kind, []byte(r.body)); code != http.StatusForbidden {
			t.Errorf("%s %s: %d %s", r.method, r.path, code, body)
		}
	}

	// What policies are made of comes from the real server, too, and an object of a later version is none that passes for understood.
	source := kubernetes.NewPolicies(settings("a", token))
	source.LookAgain(time.Second)
	policies := visit(t, source)
	policies.await("no policies", func(c policy.Cluster) bool { return c.Revision > 0 && c.Outage == "" && find(c, "weft-a") != nil })
	s.do(http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/weft/networkpolicies", jsonBody,
		[]byte(`{"metadata":{"name":"all"},"spec":{"podSelector":{"matchExpressions":[{"key":"app","operator":"Exists"}]},"policyTypes":["Ingress","Egress"],"egress":[{"to":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.0.0/16"]}}],"ports":[{"port":80,"endPort":90,"protocol":"TCP"}]}]}}`))
	if now := policies.await("a policy", func(c policy.Cluster) bool { return len(c.Policies) == 1 }); len(now.Problems) != 0 || len(now.Policies[0].Rules[policy.Egress]) != 1 {
		t.Errorf("%+v", now.Policies)
	}
	s.do(http.MethodPost, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", jsonBody, []byte(`{"metadata":{"name":"clusternetworkpolicies.policy.networking.k8s.io",
"annotations":{"api-approved.kubernetes.io":"https://github.com/kubernetes-sigs/network-policy-api/pull/300"}},"spec":{"group":"policy.networking.k8s.io","scope":"Cluster",
"names":{"kind":"ClusterNetworkPolicy","plural":"clusternetworkpolicies"},"versions":[{"name":"v1alpha2","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`))
	const cnp = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
	nettest.Eventually(t, patience, func() error {
		if code, body := s.try("admin", http.MethodPost, cnp, jsonBody, []byte(`{"apiVersion":"policy.networking.k8s.io/v1alpha2","kind":"ClusterNetworkPolicy","metadata":{"name":"deny"},
"spec":{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"ingress":[{"action":"Deny","from":[{"namespaces":{}}]}]}}`)); code != http.StatusCreated {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	policies.await("a policy of the cluster, and nodes", func(c policy.Cluster) bool { return len(c.Policies) == 2 && len(c.Nodes) == 2 && len(c.Problems) == 0 })

	// A node that waits for its podCIDR, and gets it.
	a := run(t, settings("a", token), node("a", "192.0.2.1"))
	a.tells("a", "waits for its podCIDR")
	nettest.Eventually(t, patience, func() error {
		if events := s.do(http.MethodGet, "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name=a", "", nil); !strings.Contains(string(events), "waits for its podCIDR") {
			return fmt.Errorf("events: %s", events)
		}
		return nil
	})
	s.do(http.MethodPatch, nodesPath+"/a", mergeBody, []byte(`{"spec":{"podCIDR":"10.244.1.0/24","podCIDRs":["10.244.1.0/24","fd00:10:244:1::/64"]}}`))
	a.await("the podCIDR", func(s control.State) bool { return len(s.Self.Prefixes) == 2 })
	a.tells("b", "no weft daemon")
	self := node("b", "192.0.2.2")
	self.PublicKey = key
	b := run(t, settings("b", s.token("b")), self)
	b.await("a", content(1))
	if st := a.await("b", content(1)); st.Nodes[0].PublicKey != key || st.Nodes[0].MAC != control.VTEPMAC("b") {
		t.Errorf("a sees %+v", st.Nodes)
	}

	// A node that forwards is available, and stays it.
	conditionsOfB := func(want string) {
		t.Helper()
		nettest.Eventually(t, patience, func() error {
			if got := conditions(s.node("b")); got != want {
				return fmt.Errorf("conditions are %s, want %s", got, want)
			}
			return nil
		})
	}
	conditionsOfB(conditionsBefore)
	b.source.Hear(carrying(""))
	conditionsOfB(conditionsUp)
	s.do(http.MethodPatch, nodesPath+"/b/status", "application/strategic-merge-patch+json",
		[]byte(`{"status":{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]}}`))
	conditionsOfB(conditionsUp)

	// Somebody takes an annotation over, by apply of a manager of its own: b takes it back.
	s.do(http.MethodPatch, nodesPath+"/b?fieldManager=somebody&force=true", "application/apply-patch+yaml",
		[]byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"b","annotations":{"weft.network/vtep-mac":"02:00:00:00:00:99"}}}`))
	nettest.Eventually(t, patience, func() error {
		if mac := s.node("b").Annotations["weft.network/vtep-mac"]; mac != control.VTEPMAC("b").String() {
			return fmt.Errorf("vtep-mac is %s", mac)
		}
		return nil
	})

	// The server dies, and comes back: nothing moves, and what happens afterwards is heard.
	end(s.process)
	if st := a.tells("", "does not answer"); len(st.Nodes) != 1 || len(st.Self.Prefixes) != 2 {
		t.Errorf("an outage changed the cluster: %+v", st)
	}
	s.start()
	a.await("content again", content(1))
	b.await("content again", content(1))
	s.put(registered(node("c", "192.0.2.3", "10.244.3.0/24"), kubernetes.SchemaWeft))
	a.await("c", content(2))
	s.do(http.MethodDelete, nodesPath+"/b", jsonBody, nil)
	if st := a.await("b is gone", content(1)); st.Nodes[0].Name != "c" {
		t.Errorf("a sees %+v", st.Nodes)
	}
	st := b.tells("", `no Node "b" any more`)
	if len(st.Self.Prefixes) != 1 || !slices.ContainsFunc(st.Nodes, func(n control.Node) bool { return n.Name == "c" }) {
		t.Errorf("b sees %+v", st)
	}
}
