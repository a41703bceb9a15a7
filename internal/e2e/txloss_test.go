package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

// TestLossBehindSend: packets that the kernel took and then lost, because the peer's link is down and nobody answers for its address, are
// told of by name, in every mode.
func TestLossBehindSend(t *testing.T) {
	t.Parallel()
	nettest.RequireTool(t, "ping")

	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := up(t, m.Name, 4, nettest.ClusterOptions{})
			a, b := c.Nodes[0], c.Nodes[1]
			drops := func() map[string]uint64 {
				var s struct {
					KernelDrops map[string]uint64 `json:"kernel_drops"`
				}
				if err := c.ask(a, &s, "status"); err != nil {
					t.Fatal(err)
				}
				return s.KernelDrops
			}
			before := drops()
			b.NS.MustRun(t, "ip", "link", "set", b.Iface, "down")
			c.eventually("the kernel tells of what it lost", func() error {
				_, _ = a.Pod.Run("ping", "-n", "-q", "-c", "30", "-i", "0.002", "-W", "0.01", b.PodAddrs[0].String()) // in vain
				now := drops()
				for _, name := range []string{"machine neighbour-failed", "neighbour-unresolved"} {
					if now[name] > before[name] {
						return nil
					}
				}
				return fmt.Errorf("%v, before %v", now, before)
			})
			code, page, err := scrape(a, "/metrics")
			if err != nil || code != http.StatusOK || !regexp.MustCompile(`(?m)^weft_kernel_drops_total\{reason="(machine neighbour-failed|neighbour-unresolved)"\} [1-9]`).MatchString(page) {
				t.Errorf("/metrics: %d %v\n%s", code, err, page)
			}
		})
	}
}
