package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// load offers numbered UDP packets from one pod to another by the lab's generators (`weft bench`).
type load struct {
	t    *testing.T
	from *nettest.NS
	to   netip.AddrPort
}

// loaded is what `weft bench run` says.
type loaded struct {
	Payload     int               `json:"payload"`
	Generated   uint64            `json:"generated"`
	Delivered   uint64            `json:"delivered"`
	Duplicates  uint64            `json:"duplicates"`
	KernelDrops map[string]uint64 `json:"kernel_drops"` // of the receiver's socket
	SendErrors  map[string]uint64 `json:"send_errors"`
	Metrics     []struct {
		Name  string  `json:"name"`
		Value float64 `json:"value"`
	} `json:"metrics"`
}

func (l loaded) metric(name string) float64 {
	for _, m := range l.Metrics {
		if m.Name == name {
			return m.Value
		}
	}
	return 0
}

// newLoad starts the receiver.
func newLoad(t *testing.T, from, to *nettest.ClusterNode) *load {
	t.Helper()
	at := netip.AddrPortFrom(to.PodAddrs[0], 8479)
	server := to.Pod.MustStart(t, weft, "lab", "generator", "serve", "--listen", at.String())
	nettest.Eventually(t, patience, func() error {
		if !strings.Contains(server.Output(), "listening") {
			return fmt.Errorf("the receiver does not listen:\n%s", server.Output())
		}
		return nil
	})
	return &load{t, from.Pod, at}
}

// run runs one test and returns what became of its packets.
func (l *load) run(test string, duration time.Duration) (r loaded, err error) {
	out, err := l.from.Run(weft, "lab", "generator", "run", "--to", l.to.String(), "--test", test, "--duration", duration.String(), "-o", "json")
	if err != nil {
		return r, fmt.Errorf("%s: %w\n%s", test, err, out)
	}
	return r, json.Unmarshal([]byte(out), &r)
}

// lossFree finds the highest rate with a loss of at most 0.1 %, packets a second; payload is theirs, bytes.
func (l *load) lossFree(duration time.Duration) (rate float64, payload int) {
	l.t.Helper()
	var r loaded
	for range 3 { // a machine that does other things may leave a search without an answer
		var err error
		if r, err = l.run("udp-rate", duration); err != nil {
			l.t.Fatal(err)
		}
		if rate = r.metric("rate"); rate > 0 {
			return rate, r.Payload
		}
	}
	l.t.Fatalf("no rate without loss is found: %+v", r)
	return 0, 0
}

// stream offers packets at a rate a second.
func (l *load) stream(rate float64, payload int, duration time.Duration) (loaded, error) {
	return l.run(fmt.Sprintf("udp-stream:size=64:rate=%.0f", rate*float64(payload)*8), duration)
}

// losses reads every counter of packets that died between the pods: the lanes' drops, what daemons say of the kernel, and the devices.
func (c *cluster) losses() map[string]uint64 {
	c.t.Helper()
	all := map[string]uint64{}
	for _, n := range c.Nodes {
		select {
		case <-c.daemons[n.Name].Done():
			continue
		default:
		}
		for _, l := range c.lanes(n) {
			for reason, count := range l.drops() {
				all[n.Name+" "+l.Name+" "+reason] = count
			}
		}
		var s struct {
			Devices     []string          `json:"devices"`
			KernelDrops map[string]uint64 `json:"kernel_drops"`
		}
		if err := c.ask(n, &s, "status"); err != nil {
			c.t.Fatal(err)
		}
		for reason, count := range s.KernelDrops {
			// The machine's are of other tests, too, and the underlay's are read below.
			if !strings.HasPrefix(reason, "machine ") && !strings.HasPrefix(reason, n.Iface+" ") {
				all[n.Name+" kernel "+reason] = count
			}
		}
		for where, ns := range map[string]*nettest.NS{"node": n.NS, "pod": n.Pod} {
			links, err := ns.Netlink().LinkList()
			if err != nil {
				c.t.Fatal(err)
			}
			for _, l := range links {
				if st := l.Attrs().Statistics; st != nil && !slices.Contains(s.Devices, l.Attrs().Name) { // those the daemon has told of
					all[fmt.Sprintf("%s %s %s", n.Name, where, l.Attrs().Name)] = st.TxDropped + st.RxDropped
				}
			}
		}
	}
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}
