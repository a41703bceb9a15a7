package e2e

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestKubernetes: two daemons find each other through a real kube-apiserver on the first node, which
// is killed under traffic and comes back: no packet is lost. scripts/test-long builds the server.
func TestKubernetes(t *testing.T) {
	binary := os.Getenv("WEFT_KUBE_APISERVER")
	if binary == "" {
		return // Debian has no package of it: scripts/test-long runs this
	}
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "etcd")
	for _, mode := range []string{"vxlan", "tun-gso"} {
		t.Run(mode, func(t *testing.T) {
			c := &etcdNodes{cluster: prepare(t, mode, 4, nettest.ClusterOptions{Nodes: 2})}
			a, b := c.Nodes[0], c.Nodes[1]
			c.url = "http://127.0.0.1:2379"
			c.startServer()
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			file := func(name string) string { return filepath.Join(c.dir, name) }
			c.writeFile(file("sa.key"), string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
			c.writeFile(file("tokens"), "admin,admin,1,system:masters\n")
			at := net.JoinHostPort(a.Underlay[0].String(), "6443")
			c.writeFile(file("kubeconfig"), fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}], contexts: [{name: x, context: {cluster: x, user: x}}],
users: [{name: x, user: {token: admin}}]}`, at))
			start := func() *nettest.Process {
				return a.NS.MustStart(t, binary, "--etcd-servers="+c.url, "--secure-port=6443", "--bind-address="+a.Underlay[0].String(), "--cert-dir="+file("certs"),
					"--service-account-issuer=https://kubernetes.test", "--service-account-key-file="+file("sa.key"), "--service-account-signing-key-file="+file("sa.key"),
					"--authorization-mode=RBAC", "--token-auth-file="+file("tokens"), "--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none")
			}
			server := start()
			client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
				DialContext: func(context.Context, string, string) (conn net.Conn, err error) {
					a.NS.Do(func() { conn, err = net.Dial("tcp", at) })
					return conn, err
				}}, Timeout: 10 * time.Second}
			do := func(method, path, kind, body string) error {
				r, err := http.NewRequest(method, "https://"+at+path, strings.NewReader(body))
				if err != nil {
					return err
				}
				r.Header.Set("Authorization", "Bearer admin")
				r.Header.Set("Content-Type", kind)
				resp, err := client.Do(r)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if text, _ := io.ReadAll(resp.Body); resp.StatusCode > 299 {
					return fmt.Errorf("%s %s: %s %s", method, path, resp.Status, text)
				}
				return nil
			}
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) { // it takes longer to start than others
				if err = do(http.MethodGet, "/readyz", "", ""); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal(err, server.Output())
				}
			}
			for _, n := range c.Nodes {
				body := fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"podCIDR":"%v","podCIDRs":["%v","%v"]}}`, n.Name, n.Prefixes[0], n.Prefixes[0], n.Prefixes[1])
				if err := do(http.MethodPost, "/api/v1/nodes", "application/json", body); err != nil {
					t.Fatal(err)
				}
				body = fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":"%v"}]}}`, n.Underlay[0])
				if err := do(http.MethodPatch, "/api/v1/nodes/"+n.Name+"/status", "application/merge-patch+json", body); err != nil {
					t.Fatal(err)
				}
			}
			c.control = fmt.Sprintf("{kind: kubernetes, kubernetes: {kubeconfig: %s}}", file("kubeconfig"))
			c.iface = a.Iface
			c.launch()
			memory, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.daemons[a.Name].PID()))
			_, rss, _ := strings.Cut(string(memory), "VmRSS:")
			t.Logf("resident memory of a daemon: %s", strings.TrimSpace(strings.SplitN(rss, "\n", 2)[0]))

			traffic := a.Pod.MustStart(t, "ping", "-n", "-i", "0.01", b.PodAddrs[0].String())
			server.Kill()
			c.tells(a, "does not answer")
			c.tells(b, "does not answer")
			start()
			c.tellsNothing(a)
			c.tellsNothing(b)
			traffic.Signal(os.Interrupt)
			<-traffic.Done()
			if sent, received := replies(traffic.Output()); received == 0 || sent-received > 1 {
				t.Errorf("%s", traffic.Output()[max(0, len(traffic.Output())-300):])
			} else {
				t.Logf("%d packets sent, %d received", sent, received)
			}
			// A deleted Node is gone from the others' routes.
			if err := do(http.MethodDelete, "/api/v1/nodes/"+b.Name, "", ""); err != nil {
				t.Fatal(err)
			}
			c.eventually("no route to a deleted node", func() error {
				if _, err := a.NS.Netlink().RouteGet(b.PodAddrs[0].AsSlice()); err == nil {
					return fmt.Errorf("there is one")
				}
				return nil
			})
		})
	}
}
