package kubernetes

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weft/policy"
)

// processor is how long this process has had one.
func processor() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPods says what a node keeps of a hundred thousand Pods, and what a change among them costs it: `go test ./control/kubernetes -run '^$' -bench Pods -benchtime 1x`.
func BenchmarkPods(b *testing.B) {
	const pods = 100_000
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc)
	}
	pod := func(i int, version string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("team-%d", i%100), Name: fmt.Sprintf("web-7c5ddbdf54-%05d", i), UID: "0b3c4e2e-7c2f-4a53-8f5e-5f2f9f0a2f11",
			Labels:      map[string]string{"app.kubernetes.io/name": fmt.Sprintf("web-%d", i%1000), "app.kubernetes.io/component": "server", "pod-template-hash": "7c5ddbdf54", "version": version},
			Annotations: map[string]string{"kubernetes.io/config.seen": "2030-01-01T00:00:00Z"}}}
		p.Spec.NodeName = fmt.Sprintf("node-%d", i/100)
		p.Spec.Containers = []corev1.Container{{Name: "c", Image: "registry/web:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
		p.Status.Phase = corev1.PodRunning
		p.Status.PodIPs = []corev1.PodIP{{IP: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()}, {IP: netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}).String()}}
		return p
	}
	for b.Loop() {
		v := newView(nil, zap.NewNop())
		before := heap()
		for i := range pods {
			if err := v.pods.Update(thinPod(pod(i, "1"))); err != nil {
				b.Fatal(err)
			}
		}
		kept := heap() - before
		v.policies.all = map[string]policyRecord{}
		for i := range 20 {
			spec := fmt.Sprintf(`{"podSelector":{"matchLabels":{"app.kubernetes.io/name":"web-%d"}},"policyTypes":["Ingress"],"ingress":[{"from":[{"namespaceSelector":{},"podSelector":{"matchLabels":{"app.kubernetes.io/name":"web-%d"}}}],"ports":[{"port":"http"}]}]}`, i, i+1)
			p, err := policy.Object{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: fmt.Sprintf("team-%d", i), Name: "web", Spec: []byte(spec)}.Policy()
			if err != nil {
				b.Fatal(err)
			}
			v.policies.all[fmt.Sprint(i)] = policyRecord{policy: p}
		}
		began := processor()
		if err := v.pods.Update(thinPod(pod(7, "2"))); err != nil {
			b.Fatal(err)
		}
		c := v.cluster()
		w, err := c.World()
		if err != nil {
			b.Fatal(err)
		}
		program := w.Compile(func(p *policy.Pod) bool { return p.Node == "node-0" })
		b.ReportMetric(float64((processor() - began).Milliseconds()), "cpu-ms/change")
		b.ReportMetric(kept/pods, "B/pod")
		b.ReportMetric((heap()-before)/(1<<20), "MiB-in-force")
		runtime.KeepAlive(v)
		runtime.KeepAlive(w)
		runtime.KeepAlive(program)
	}
}
