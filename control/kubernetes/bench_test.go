package kubernetes_test

import (
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/control"
	"weft/control/controltest"
	"weft/control/kubernetes"
)

// BenchmarkCluster is one node in a cluster of 5,000 others whose Node objects are as large as a
// kubelet makes them: how long until a new node knows all of them, what one change costs it, what a
// kubelet's sign of life costs it, and what it keeps in memory. With a real API server, where
// WEFT_KUBE_APISERVER says where it is:
//
//	WEFT_KUBE_APISERVER=$PWD/bin/kube-apiserver-1.37.2 go test ./control/kubernetes -run '^$' -bench Cluster -benchtime 100x
func BenchmarkCluster(b *testing.B) {
	binary := os.Getenv("WEFT_KUBE_APISERVER")
	if binary == "" {
		b.Skip("WEFT_KUBE_APISERVER does not say where a kube-apiserver is: scripts/test-long builds one")
	}
	const nodes = 5000
	s := startServer(b, binary)
	s.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 16
	settings := kubernetes.Settings{Kubeconfig: s.file("kubeconfig"), Schema: kubernetes.SchemaWeft, Network: controltest.Network(), VNI: 1, Log: zap.NewNop()}
	must(b, os.WriteFile(settings.Kubeconfig, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: x,
clusters: [{name: x, cluster: {server: "https://127.0.0.1:%s", insecure-skip-tls-verify: true}}], contexts: [{name: x, context: {cluster: x, user: x}}],
users: [{name: x, user: {token: admin}}]}`, s.port), 0o600))
	var group sync.WaitGroup
	for part := range 8 {
		group.Go(func() {
			for i := part; i < nodes; i += 8 {
				s.put(heavy(i))
			}
		})
	}
	group.Wait()
	s.put(object(node("a", "192.0.2.1", "10.244.255.0/28")))

	settle(b)
	before := heap()
	began := time.Now()
	d := run(b, settings, node("a", "192.0.2.1"))
	d.await("all", content(nodes))
	ready := time.Since(began)
	most := peak(b)
	kept := heap() - before

	change := func(i, version int) {
		at := i % nodes
		want := fmt.Sprintf("feature-%d", version)
		s.do(http.MethodPatch, fmt.Sprintf("%s/n%04d/status", nodesPath, at), mergeBody,
			fmt.Appendf(nil, `{"metadata":{"annotations":{"weft.network/features":%q}}}`, want))
		d.await("the change", func(st control.State) bool {
			return len(st.Nodes[at].Features) > 0 && st.Nodes[at].Features[0] == want
		})
	}
	change(nodes-1, 1) // the first one warms up
	cpu := processor(b)
	b.ResetTimer()
	for i := range b.N {
		change(i, 2+i/nodes)
	}
	b.StopTimer()
	used := processor(b) - cpu
	b.ReportMetric(float64(ready.Milliseconds()), "ms-until-ready")
	b.ReportMetric(float64(kept)/1e6, "MB-kept")
	b.ReportMetric(float64(most)/1e6, "MB-peak")                                   // of the whole process, until it is ready
	b.ReportMetric(float64(used.Microseconds())/1e3/float64(b.N), "cpu-ms/change") // the test's own requests included
}

// heavy is a Node with the images and labels that a kubelet reports.
func heavy(i int) *corev1.Node {
	prefixes := []string{fmt.Sprintf("fd00:10:244:%x::/64", i+1)}
	if i < 4000 {
		prefixes = append([]string{fmt.Sprintf("10.244.%d.%d/28", i/16, i%16*16)}, prefixes...)
	}
	n := registered(node(fmt.Sprintf("n%04d", i), append(prefixes, fmt.Sprintf("172.16.%d.%d", i/250, i%250+1))...), kubernetes.SchemaWeft)
	n.Labels = map[string]string{}
	for j := range 20 {
		n.Labels[fmt.Sprintf("example.org/label-%d", j)] = strings.Repeat("v", 30)
	}
	n.Annotations["example.org/large"] = strings.Repeat("x", 8000)
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}
	return n
}

// heap returns the bytes that are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// peak returns the most memory that this process had since settle, in bytes.
func peak(t testing.TB) int64 {
	text, err := os.ReadFile("/proc/self/status")
	must(t, err)
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kilobytes int64
	_, err = fmt.Sscan(rest, &kilobytes)
	must(t, err)
	return kilobytes << 10
}

// settle gives memory back, and begins to measure its peak anew.
func settle(t testing.TB) {
	debug.FreeOSMemory()
	must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
}

// processor returns the CPU time of this process.
func processor(t testing.TB) time.Duration {
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
