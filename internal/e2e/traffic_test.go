package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"weft/catalog"
	"weft/catalog/mode"
	"weft/internal/nettest"
)

// traffic is what the lab's test of mixed traffic (`weft bench run --test mixed`) says: super-packets, small packets, fragments, round
// trips and bulk TCP of several segment sizes at once, both ways and over both families, every byte of it compared with what was sent.
type traffic struct {
	Verified       uint64   `json:"verified"`
	Corrupt        uint64   `json:"corrupt"`
	CorruptPackets uint64   `json:"corrupt_packets"`
	Damage         []string `json:"damage"`
	Shapes         []struct {
		Name     string `json:"name"`
		Family   int    `json:"family"`
		Unit     string `json:"unit"`
		Sent     uint64 `json:"sent"`
		Received uint64 `json:"received"`
		Lost     uint64 `json:"lost"`
		Verified uint64 `json:"verified"`
		Corrupt  uint64 `json:"corrupt"`
	} `json:"shapes"`
}

// lost is how many datagrams did not arrive, of how many.
func (r traffic) lost() (lost, sent uint64) {
	for _, s := range r.Shapes {
		if s.Unit == "datagram" {
			lost, sent = lost+s.Lost, sent+s.Sent
		}
	}
	return lost, sent
}

// verify sends mixed traffic between the pods of the first two nodes, each end at a rate of payload in bit/s. The error says what was corrupt, too.
func (c *cluster) verify(rate float64, duration time.Duration) (r traffic, err error) {
	a, b := c.Nodes[0], c.Nodes[1]
	at := netip.AddrPortFrom(b.PodAddrs[0], 8479)
	server, err := b.Pod.Start(weft, "lab", "generator", "serve", "--listen", at.String(), "--for", (duration + 3*patience).String())
	if err != nil {
		return r, err
	}
	defer server.Kill()
	for deadline := time.Now().Add(patience); !strings.Contains(server.Output(), "listening"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return r, fmt.Errorf("bench serve does not listen:\n%s", server.Output())
		}
	}
	out, err := a.Pod.Run(weft, "lab", "generator", "run", "--to", at.String(), "--test", fmt.Sprintf("mixed:rate=%.0f", rate), "--duration", duration.String(), "-o", "json")
	if jerr := json.NewDecoder(strings.NewReader(out)).Decode(&r); err == nil {
		err = jerr
	}
	if r.Corrupt > 0 { // the command has printed its result before its error
		err = fmt.Errorf("%d of %d bytes are other than they were sent, e.g. %s", r.Corrupt, r.Verified, strings.Join(r.Damage, "; "))
	}
	return r, err
}

// verified is verify for suites: a short time, all shapes there, nothing corrupt.
func (c *cluster) verified(rate float64, duration time.Duration) {
	c.t.Helper()
	r, err := c.verify(rate, duration)
	if err != nil {
		c.t.Errorf("mixed traffic: %v", err)
		return
	}
	families := map[string]uint64{}
	for _, s := range r.Shapes {
		families[s.Name] += s.Verified
		if s.Unit != "datagram" && s.Sent != s.Received {
			c.t.Errorf("%s over IPv%d: TCP delivered %d of %d %ss", s.Name, s.Family, s.Received, s.Sent, s.Unit)
		}
	}
	if len(r.Shapes) != 18 {
		c.t.Errorf("%d shapes over both families: %+v", len(r.Shapes), r.Shapes)
	}
	for name, bytes := range families {
		if bytes == 0 {
			c.t.Errorf("nothing of %s arrived: %+v", name, r.Shapes)
		}
	}
}

// TestMixedTraffic is the long form, for WEFT_TEST_MIXED (10m, say): mixed traffic in every userspace mode in clear and with two ciphers, and in
// the kernel's modes, all at once on one machine. It prints a table, and fails where a byte is corrupt. Without the variable it
// runs two setups for a moment.
func TestMixedTraffic(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping")
	type setup struct{ mode, cipher string }
	setups := []setup{{mode.Default, ""}, {"host-gw", ""}}
	duration, rate := 2*time.Second, number(t, "WEFT_TEST_MIXED_RATE", 3_000_000)
	if text := os.Getenv("WEFT_TEST_MIXED"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WEFT_TEST_MIXED: %v", err)
		}
		setups = nil
		for _, m := range catalog.Modes {
			setups = append(setups, setup{m.Name, ""})
			if !kernelForwards(m.Name) {
				setups = append(setups, setup{m.Name, "aes-256-gcm"}, setup{m.Name, "chacha20-poly1305"})
			}
		}
	}
	clusters := make([]*cluster, len(setups))
	for i, s := range setups {
		c := prepare(t, s.mode, 4+i%2*2, nettest.ClusterOptions{})
		if s.cipher != "" {
			c.ownKeys(s.cipher)
		}
		c.launch()
		// Pods that know the MTU lose nothing in learning it.
		st, err := c.status(c.Nodes[0])
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes[:2] {
			n.Pod.MustRun(t, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(st.InnerMTU))
		}
		clusters[i] = c
	}
	results, errs := make([]traffic, len(setups)), make([]error, len(setups))
	var all sync.WaitGroup
	for i, c := range clusters {
		all.Go(func() { results[i], errs[i] = c.verify(float64(rate), duration) })
	}
	all.Wait()

	var names []string
	for _, s := range results[0].Shapes {
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "mode\tcipher\t%s\tall, bytes verified\tdatagrams lost\tof\tbytes corrupt\t\n", strings.Join(names, "\t"))
	for i, s := range setups {
		if errs[i] != nil {
			t.Errorf("%s %s: %v", s.mode, s.cipher, errs[i])
		}
		verified := map[string]uint64{}
		for _, f := range results[i].Shapes {
			verified[f.Name] += f.Verified
		}
		fmt.Fprintf(w, "%s\t%s\t", s.mode, s.cipher)
		for _, name := range names {
			fmt.Fprintf(w, "%d\t", verified[name])
		}
		lost, sent := results[i].lost()
		fmt.Fprintf(w, "%d\t%d\t%d\t%d\t\n", results[i].Verified, lost, sent, results[i].Corrupt)
		if results[i].Verified == 0 && errs[i] == nil {
			t.Errorf("%s %s: nothing was verified", s.mode, s.cipher)
		}
	}
	w.Flush()
	t.Logf("%s of mixed traffic, %d setups at once, %d bit/s of payload from each end:\n%s", duration, len(setups), rate, table.String())
}
