package etcd_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft/control"
)

// BenchmarkCluster is one node in a store with 5,000 others, over TLS to a real etcd: how long until a
// new node knows all of them, what one change costs it in CPU and bytes, and what it keeps in memory.
//
//	go test ./control/etcd -run '^$' -bench Cluster -benchtime 100x
func BenchmarkCluster(b *testing.B) {
	const nodes = 5000
	s := startServer(b)
	fill(b, s, nodes)
	wire := meter(b, s)

	before := heap()
	began := time.Now()
	d := run(b, s.of("a", nil), node("a", "192.0.2.1"))
	d.await("all", func(st control.State) bool { return len(st.Self.Prefixes) > 0 && len(st.Nodes) == nodes })
	ready := time.Since(began)
	kept := heap() - before
	full := wire.Load()

	change := func(i int) {
		key, value := other(i%nodes, 1+i/nodes)
		s.put(key, value)
		want := fmt.Sprintf("feature-%d", 1+i/nodes)
		d.await("the change", func(st control.State) bool {
			at := i % nodes
			n := st.Nodes[at]
			return len(n.Features) > 0 && n.Features[0] == want
		})
	}
	change(nodes - 1) // the first one warms up
	wire.Store(0)
	cpu := processor(b)
	b.ResetTimer()
	for i := range b.N {
		change(i)
	}
	b.StopTimer()
	used := processor(b) - cpu
	b.ReportMetric(float64(ready.Milliseconds()), "ms-until-ready")
	b.ReportMetric(float64(kept)/1e6, "MB-kept")
	b.ReportMetric(float64(full)/1e6, "MB-on-the-wire-to-join")
	b.ReportMetric(float64(used.Microseconds())/1e3/float64(b.N), "cpu-ms/change") // client and test writing included
	b.ReportMetric(float64(wire.Load())/float64(b.N), "B-on-the-wire/change")
}

// other is the key and the value of a simulated node.
func other(i, version int) (key, value string) {
	v4 := fmt.Sprintf(`"10.244.%d.%d/28",`, i/16%256, i%16*16)
	if i >= 4000 {
		v4 = ""
	}
	return fmt.Sprintf("/weft/nodes/n%04d", i), fmt.Sprintf(`{"endpoints":["172.16.%d.%d","2001:db8::%x"],"prefixes":[%s"fd00:10:244:%x::/64"],"mac":"%v","features":["feature-%d"],"public_key":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","owner":{"id":"0123456789abcdef0123456789abcdef-%d","epoch":1}}`,
		i/250, i%250+1, i+1, v4, i+1, control.VTEPMAC(fmt.Sprint(i)), version, i)
}

// fill writes the keys of many nodes. 10.244.0.0/16 has no /28 for more than 4,096, so the rest have
// IPv6 only.
func fill(t testing.TB, s *server, nodes int) {
	t.Helper()
	var ops []clientv3.Op
	for i := range nodes {
		key, value := other(i, 0)
		prefixes := []string{fmt.Sprintf("10.244.%d.%d-28", i/16%256, i%16*16), fmt.Sprintf("fd00:10:244:%x::-64", i+1)}
		if i >= 4000 {
			prefixes = prefixes[1:]
		}
		ops = append(ops, clientv3.OpPut(key, value))
		for _, p := range prefixes {
			ops = append(ops, clientv3.OpPut("/weft/prefixes/"+p, fmt.Sprintf(`{"node":"n%04d","owner":{"id":"0123456789abcdef0123456789abcdef-%d","epoch":1}}`, i, i)))
		}
		if len(ops) > 100 || i == nodes-1 {
			_, err := s.client.Txn(context.Background()).Then(ops...).Commit()
			must(t, err)
			ops = nil
		}
	}
}

// meter puts a proxy before the server that counts what the server sends; sources made from now on
// use it.
func meter(t testing.TB, s *server) *atomic.Int64 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	var bytes atomic.Int64
	upstream := strings.TrimPrefix(s.url, "https://")
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", upstream)
			if err != nil {
				in.Close()
				continue
			}
			go pipe(out, in, nil)
			go pipe(in, out, &bytes)
		}
	}()
	s.settings.Endpoints = []string{"https://" + l.Addr().String()}
	return &bytes
}

func pipe(to, from net.Conn, count *atomic.Int64) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if count != nil {
			count.Add(int64(n))
		}
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// heap returns the bytes that are in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// processor returns the CPU time of this process.
func processor(t testing.TB) time.Duration {
	var u syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
