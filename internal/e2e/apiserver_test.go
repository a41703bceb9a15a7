package e2e

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"weft/internal/nettest"
)

// kubeNodes is a cluster whose nodes find each other in a real kube-apiserver, on the first node with the etcd that
// it keeps its data in.
type kubeNodes struct {
	*etcdNodes
	binary     string
	at         string // host and port
	kubeconfig string // file, of an administrator
	client     *http.Client
	process    *nettest.Process
}

// startKubernetes starts etcd and a kube-apiserver for a cluster, and waits until it serves.
func startKubernetes(c *cluster, binary string) *kubeNodes {
	c.t.Helper()
	nettest.RequireTool(c.t, "etcd")
	first := c.Nodes[0]
	k := &kubeNodes{etcdNodes: &etcdNodes{cluster: c, url: "http://127.0.0.1:2379"}, binary: binary, at: net.JoinHostPort(first.Underlay[0].String(), "6443")}
	k.startServer()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		c.t.Fatal(err)
	}
	c.writeFile(k.file("sa.key"), string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	c.writeFile(k.file("tokens"), "admin,admin,1,system:masters\n")
	k.kubeconfig = k.file("kubeconfig")
	c.writeFile(k.kubeconfig, fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}], contexts: [{name: x, context: {cluster: x, user: x}}],
users: [{name: x, user: {token: admin}}]}`, k.at))
	k.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 16,
		DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
			first.NS.Do(func() { conn, err = net.Dial("tcp", k.at) })
			return conn, err
		}}, Timeout: 10 * time.Second}
	c.t.Cleanup(k.client.CloseIdleConnections)
	k.start()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // it takes longer to start than others
		if _, err = k.do(http.MethodGet, "/readyz", "", ""); err == nil {
			return k
		}
		if time.Now().After(deadline) {
			c.t.Fatal(err, k.process.Output())
		}
	}
}

func (k *kubeNodes) file(name string) string { return filepath.Join(k.dir, name) }

// start starts the API server.
func (k *kubeNodes) start() {
	k.t.Helper()
	first := k.Nodes[0]
	k.process = first.NS.MustStart(k.t, k.binary, "--etcd-servers="+k.url, "--secure-port=6443", "--bind-address="+first.Underlay[0].String(), "--cert-dir="+k.file("certs"),
		"--service-account-issuer=https://kubernetes.test", "--service-account-key-file="+k.file("sa.key"), "--service-account-signing-key-file="+k.file("sa.key"),
		"--authorization-mode=RBAC", "--token-auth-file="+k.file("tokens"), "--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none")
}

const (
	nodesPath   = "/api/v1/nodes"
	jsonBody    = "application/json"
	mergeBody   = "application/merge-patch+json"
	unavailable = `[{"type":"NetworkUnavailable","status":"True","reason":"NoRouteCreated"}]` // as clouds begin
)

// do makes a request as an administrator.
func (k *kubeNodes) do(method, path, kind, body string) ([]byte, error) {
	r, err := http.NewRequest(method, "https://"+k.at+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer admin")
	r.Header.Set("Content-Type", kind)
	resp, err := k.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode > 299 {
		err = fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
	}
	return text, err
}

func (k *kubeNodes) must(method, path, kind, body string) []byte {
	k.t.Helper()
	text, err := k.do(method, path, kind, body)
	if err != nil {
		k.t.Fatal(err)
	}
	return text
}

// register makes a node's Node object, as the kubelet and the cloud do.
func (k *kubeNodes) register(n *nettest.ClusterNode, prefixes ...netip.Prefix) {
	k.t.Helper()
	k.must(http.MethodPost, nodesPath, jsonBody, fmt.Sprintf(`{"metadata":{"name":%q,"annotations":{"volumes.kubernetes.io/controller-managed-attach-detach":"true"}},"spec":{"podCIDR":"%v","podCIDRs":["%s"]}}`, n.Name, prefixes[0], quoted(prefixes)))
	k.must(http.MethodPatch, nodesPath+"/"+n.Name+"/status", mergeBody,
		fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"%v"}],"conditions":%s}}`, n.Underlay[0], unavailable))
}

// available waits until a node's condition NetworkUnavailable is False, for this reason.
func (k *kubeNodes) available(n *nettest.ClusterNode, reason string) {
	k.t.Helper()
	k.eventually(n.Name+" is available, "+reason, func() error {
		o := k.node(n)
		for _, c := range o.Status.Conditions {
			if c.Type == "NetworkUnavailable" && c.Status == "False" && c.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("its conditions are %+v", o.Status.Conditions)
	})
}

// nodeObject is what the tests look at of a Node.
type nodeObject struct {
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		PodCIDRs []string `json:"podCIDRs"`
	} `json:"spec"`
	Status struct {
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
			Reason string `json:"reason"`
		} `json:"conditions"`
	} `json:"status"`
}

func (k *kubeNodes) node(n *nettest.ClusterNode) (o nodeObject) {
	k.t.Helper()
	if err := json.Unmarshal(k.must(http.MethodGet, nodesPath+"/"+n.Name, "", ""), &o); err != nil {
		k.t.Fatal(err)
	}
	return o
}
