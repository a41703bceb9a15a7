package e2e

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"weft/internal/nettest"
)

// TestCNILatency says how long ADD takes beside the reference plugins bridge and host-local: it logs a table and asserts
// no times. WEFT_TEST_LONG=1: 100 one after the other, 50 at once.
func TestCNILatency(t *testing.T) {
	nettest.RequireRoot(t)
	inRow, atOnce := 5, 5
	if os.Getenv("WEFT_TEST_LONG") != "" {
		inRow, atOnce = 100, 50
	}
	buildPlugin(t)
	c := prepare(t, "tun-gso", 4, nettest.ClusterOptions{})
	c.launch()
	ours := c.install(c.Nodes[0], "--chain", "")
	// The reference has IPv4 only, weft both families, which is to the reference's advantage: it has less to do.
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"ref","plugins":[{"type":"bridge","bridge":"ref0","isGateway":true,
		"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.99.0.0/16"}]]}}]}`, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	reference := &runtime{t: t, node: c.Nodes[0], cni: ours.cni, list: list}
	boxes := make([]*box, max(inRow, atOnce))
	for i := range boxes {
		boxes[i] = ours.box(fmt.Sprint("l", i))
	}
	one := func(r *runtime, b *box) (took time.Duration) {
		r.node.NS.Do(func() { // the bridge is to be the node's, and the plugin's processes with it
			start := time.Now()
			if _, err := r.cni.AddNetworkList(t.Context(), r.list, b.rt); err != nil {
				t.Errorf("ADD: %v", err)
			}
			took = time.Since(start)
		})
		return took
	}
	clear := func(r *runtime, list []*box) {
		for _, b := range list {
			if err := r.del(b); err != nil {
				t.Errorf("DEL: %v", err)
			}
		}
	}
	row := func(name string, times []time.Duration) {
		slices.Sort(times)
		t.Logf("%-30s p50 %-10v p90 %-10v max %v", name, times[len(times)/2].Round(10*time.Microsecond), times[len(times)*9/10].Round(10*time.Microsecond), times[len(times)-1].Round(10*time.Microsecond))
	}
	both := map[string]*runtime{"weft-cni": ours, "bridge + host-local": reference}
	series := map[string][]time.Duration{}
	for _, b := range boxes[:inRow] { // interleaved
		for name, r := range both {
			series[name] = append(series[name], one(r, b))
			clear(r, []*box{b})
		}
	}
	for _, name := range []string{"weft-cni", "bridge + host-local"} {
		row(fmt.Sprintf("%s, %d in a row", name, inRow), series[name])
	}
	for _, name := range []string{"weft-cni", "bridge + host-local"} {
		times := make([]time.Duration, atOnce)
		var wg sync.WaitGroup
		for i, b := range boxes[:atOnce] {
			wg.Go(func() { times[i] = one(both[name], b) })
		}
		wg.Wait()
		row(fmt.Sprintf("%s, %d at once", name, atOnce), times)
		clear(both[name], boxes[:atOnce])
	}
}
