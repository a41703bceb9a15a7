package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestFallback: fast path and sleeve. Where the fast way's port is blocked in the middle, in one direction or in both, traffic goes on by the
// other way, with the reason shown; and it returns by itself once the port is open again, without a loss.
func TestFallback(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "nft")
	c := prepare(t, "vxlan", 4, nettest.ClusterOptions{Bridge: true})
	a, b := c.Nodes[0], c.Nodes[1]
	c.told, c.features = true, "probe"
	c.modes = map[string]string{a.Name: "[vxlan, tun-gso]", b.Name: "[vxlan, tun-gso]"}
	c.startAll()
	c.allReach()
	reached := func(by, state string) func() error {
		return func() error {
			for _, pair := range [][2]*nettest.ClusterNode{{a, b}, {b, a}} {
				if p := c.towards(pair[0], pair[1]); p.Way != by || p.State != state {
					return fmt.Errorf("%s reaches %s: %+v", pair[0].Name, pair[1].Name, p)
				}
			}
			return nil
		}
	}
	c.eventually("the kernel's VXLAN is proven", reached("vxlan:4789", "up"))

	// Where the two ports of the fabric's bridge meet, what comes from one node or both to the fast port is dropped.
	block := func(ports ...string) {
		for _, port := range ports {
			c.Fabric.MustRun(t, "sh", "-ec", fmt.Sprintf("nft add table netdev %[1]s; nft 'add chain netdev %[1]s in { type filter hook ingress device %[1]s priority 0; }'; nft add rule netdev %[1]s in udp dport 4789 drop", port))
		}
	}
	// On a machine that is short of time answers are late, a way fails again, and is watched for longer each time: both times together have this.
	deadline := time.Now().Add(3 * patience)
	for _, blocked := range [][]string{{"port1", "port2"}, {"port1"}} {
		flows := []*stream{startStream(t, a.Pod, b.Pod, b.PodAddrs[0]), startStream(t, b.Pod, a.Pod, a.PodAddrs[1])}
		c.someTraffic(flows)
		sent, received := flows[0].sent.Load(), flows[0].received.Load()
		began := time.Now()
		block(blocked...)
		c.eventually("the sleeve carries", func() error {
			if p := c.towards(a, b); p.Way != "vxlan:4788" || p.State != "up" || !strings.Contains(p.Reason, "vxlan:4789 is down: the peer has not answered 3 probes in a row by weft-vx4") {
				return fmt.Errorf("%+v", p)
			}
			return nil
		})
		switched := time.Since(began)
		c.eventually("traffic goes on", flowing(flows))
		c.ready(a)
		lost := (flows[0].sent.Load() - sent) - (flows[0].received.Load() - received)
		t.Logf("blocked at %v: by the other way after %v, about %d packets lost of one every 2 ms", blocked, switched.Round(time.Millisecond), lost)
		out, err := a.NS.Run(weft, "peers", "--why", b.Name, "--socket", c.path(a, "sock"))
		if err != nil || !strings.Contains(out, "> vxlan:4788, mode tun-gso: up") {
			t.Errorf("why: %v\n%s", err, out)
		}
		t.Logf("weft peers --why %s, blocked:\n%s", b.Name, out)
		for _, port := range blocked {
			c.Fabric.MustRun(t, "nft", "delete", "table", "netdev", port)
		}
		opened := time.Now()
		c.eventually("nothing is lost any more", flowing(flows))
		sent, received = flows[0].sent.Load(), flows[0].received.Load()
		for ; ; <-time.After(20 * time.Millisecond) { // between looks at a condition
			err := reached("vxlan:4789", "up")()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the fast way does not carry again: %v", err)
			}
		}
		back := time.Since(opened)
		c.eventually("traffic goes on", flowing(flows))
		for _, f := range flows {
			f.pause.Store(true)
		}
		c.eventually("all that was sent has arrived", func() error {
			if s, r := flows[0].sent.Load()-sent, flows[0].received.Load()-received; r < s {
				return fmt.Errorf("%d sent, %d arrived", s, r)
			}
			return nil
		})
		if back < 5*time.Second {
			t.Errorf("back after %v: it was to be watched for 5 s", back)
		}
		t.Logf("opened: back by the fast way after %v, without a loss; flow: %d sent", back.Round(time.Millisecond), flows[0].sent.Load()-sent)
		out, _ = a.NS.Run(weft, "peers", "--why", b.Name, "--socket", c.path(a, "sock"))
		t.Logf("weft peers --why %s, opened:\n%s", b.Name, out)
	}
}
