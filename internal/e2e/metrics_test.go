package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"weft/catalog"
	"weft/internal/nettest"
)

// scrape asks the metrics endpoint of a node's daemon.
func scrape(n *nettest.ClusterNode, path string) (code int, body string, err error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (c net.Conn, err error) {
			n.NS.Do(func() { c, err = net.Dial(network, address) })
			return c, err
		}}}
	resp, err := client.Get("http://127.0.0.1:9470" + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// TestMetrics: every mode's daemon, sealed or not, has a page that Prometheus takes, and the page knows what passed.
func TestMetrics(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := up(t, m.Name, 4, nettest.ClusterOptions{})
			a := c.Nodes[0]
			if code, body, err := scrape(a, "/readyz"); code != http.StatusOK {
				t.Errorf("/readyz: %d %s %v", code, body, err)
			}
			code, page, err := scrape(a, "/metrics")
			if err != nil || code != http.StatusOK {
				t.Fatalf("/metrics: %d %v\n%s", code, err, page)
			}
			s, err := c.status(a)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"weft_ready 1", "weft_nodes 2", fmt.Sprintf("weft_inner_mtu_bytes %d", s.InnerMTU),
				fmt.Sprintf(`weft_peer_mtu_bytes{peer="node-b"} %d`, s.InnerMTU)} {
				if !strings.Contains(page, "\n"+want+"\n") {
					t.Errorf("no %q in\n%s", want, page)
				}
			}
			if strings.Contains(page, "\nweft_stage_timed_seconds_total{lane=\"in/0\"") == kernelForwards(m.Name) {
				t.Errorf("times of stages in\n%s", page)
			}
			if ring := `weft_ring_events_total{attach="native",counter="rx-dropped",device="eth0",queue="0"}`; strings.Contains(page, ring) != pastKernel(m.Name) {
				t.Errorf("%s in\n%s", ring, page)
			}
			// allReach has sent echo requests both ways, through whichever lanes.
			for _, metric := range []string{`weft_peer_packets_total\{direction="out",peer="node-b"\}`, `weft_peer_packets_total\{direction="in",peer="node-b"\}`,
				`weft_lane_sent_packets_total\{lane="out/\d+"\}`, `weft_lane_received_packets_total\{lane="in/\d+"\}`} {
				if regexp.MustCompile(`(?m)^`+metric+` [1-9]`).MatchString(page) == kernelForwards(m.Name) {
					t.Errorf("%s in\n%s", metric, page)
				}
			}
		})
	}
}
