package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
)

// bigWorld has so many pods of 200 namespaces, and in each of these a policy of as many rules.
func bigWorld(b *testing.B, pods, rules int) *World {
	b.Helper()
	const namespaces = 200
	var all []Pod
	for i := range pods {
		all = append(all, Pod{Namespace: fmt.Sprint("n", i%namespaces), Name: fmt.Sprint("p", i), Labels: map[string]string{"app": fmt.Sprint(i % 50)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}})
	}
	var policies []Policy
	for i := range namespaces {
		p := Policy{Namespace: fmt.Sprint("n", i), Name: "p", Tier: Namespaced, Subject: Peer{Namespace: fmt.Sprint("n", i)}, Isolates: [2]bool{true, true}}
		for _, d := range directions {
			for k := range rules {
				p.Rules[d] = append(p.Rules[d], Rule{Peers: []Peer{{Namespaces: &Selector{}, Pods: &Selector{Labels: map[string]string{"app": fmt.Sprint(k % 50)}}}},
					Ports: []Port{onePort(TCP, uint16(1000+k))}})
			}
		}
		policies = append(policies, p)
	}
	w, err := NewWorld(nil, all, nil, policies)
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// BenchmarkCompile is what a change costs that is compiled anew, on a node with 100 pods among as many; memory is what the program holds.
func BenchmarkCompile(b *testing.B) {
	for _, pods := range []int{5_000, 100_000} {
		for _, rules := range []int{1, 10, 50} {
			b.Run(fmt.Sprintf("pods=%d/rules=%d", pods, 200*2*rules), func(b *testing.B) {
				w := bigWorld(b, pods, rules)
				g := w.Compile(func(*Pod) bool { return false })
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for b.Loop() {
					n := 0
					g = w.Compile(func(*Pod) bool { n++; return n%(pods/100) == 0 })
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/(1<<20), "MB")
				runtime.KeepAlive(g)
				runtime.KeepAlive(w)
			})
		}
	}
}
