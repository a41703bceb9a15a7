package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

// TestRealHosts does to nodes what operators' machines do, in every mode, one after the other to the same two nodes with pods: traffic goes on, or
// what stops it is named by status, doctor and trace.
func TestRealHosts(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "nft", "iptables-legacy", "ip", "sysctl", "python3")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := prepare(t, m.Name, 4, nettest.ClusterOptions{})
			for _, n := range c.Nodes { // devices begin as this machine's administrator wants them
				n.NS.MustRun(t, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1", "net.ipv4.conf.default.forwarding=0")
			}
			c.launch()
			h := &host{cluster: c, pods: make([]*nettest.NS, 2), results: make([]api.AttachResult, 2)}
			for i, n := range c.Nodes {
				client := api.NewClient(c.path(n, "sock"))
				defer client.Close()
				h.pods[i] = nettest.New(t)
				var err error
				h.results[i], err = client.Attach(t.Context(), api.AttachRequest{ContainerID: "c" + n.Name, IfName: "eth0", Netns: h.pods[i].Path(), Network: "weft"})
				if err != nil {
					t.Fatal(err)
				}
			}
			h.reach("devices that begin without IPv6 and forwarding")
			for _, f := range faults {
				h.fault(f)
			}
		})
	}
}

// host is a node with a pod, and a second one that it speaks with.
type host struct {
	*cluster
	pods    []*nettest.NS
	results []api.AttachResult
}

// fault is something that a host does. named is what status, doctor and trace have to say of it; "" = traffic goes on.
type fault struct{ name, do, undo, named string }

var faults = []fault{
	{"a forward chain that ends in a reject",
		`nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f ct state established,related accept; add rule inet fw f reject with icmpx type admin-prohibited'`,
		"nft delete table inet fw", ""},
	{"forwarding off on devices", `for d in /proc/sys/net/ipv4/conf/weft*; do echo 0 >$d/forwarding; done`, "true", ""},
	{"a rule that rejects from elsewhere", `nft 'add table inet fw; add chain inet fw x; add rule inet fw x reject; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f ct state new jump x'`,
		"nft delete table inet fw", "nftables chain inet fw x drops or rejects them by its rule of handle"},
	{"a rule about the device that leads to the others", `nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f oifname { weft0, weft-vx4, weft-vx6, eth0 } drop'`,
		"nft delete table inet fw", "nftables chain inet fw f drops or rejects them by its rule of handle"},
	{"one about what comes in by it", `nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f iifname { weft0, weft-vx4, weft-vx6, eth0 } reject'`,
		"nft delete table inet fw", "nftables chain inet fw f drops or rejects them by its rule of handle"},
	{"iptables-legacy", "iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "iptables-legacy has rules"},
	{"the firewall is loaded anew", "nft flush ruleset", "true", ""},
}

func (h *host) to(family int) netip.Addr { return h.results[1].IPs[family].Address.Addr() }

func (h *host) reach(why string) {
	h.t.Helper()
	for family := range 2 {
		h.eventually(why+": the pods reach each other", func() error { return ping(h.pods[0], h.to(family)) })
	}
}

func (h *host) fault(f fault) {
	h.t.Helper()
	a := h.Nodes[0]
	a.NS.MustRun(h.t, "sh", "-ec", f.do)
	if f.named != "" {
		var s api.Status
		h.eventually(f.name+": status names it", func() error {
			if err := h.ask(a, &s, "status"); err != nil {
				return err
			}
			if s.Ready || !strings.Contains(s.Reason, f.named) || len(s.Obstacles) == 0 {
				return fmt.Errorf("ready %v, %q, obstacles %q", s.Ready, s.Reason, s.Obstacles)
			}
			return nil
		})
		for what, cmd := range map[string][]string{
			"doctor": {weft, "doctor", "--peers=false", "--socket", h.path(a, "sock"), "--config", h.path(a, "weft.yaml")},
			"trace":  {weft, "trace", "--socket", h.path(a, "sock"), "--src", h.results[0].IPs[0].Address.Addr().String(), "--dst", h.to(0).String()},
		} {
			if out, _ := a.NS.Run(cmd[0], cmd[1:]...); !strings.Contains(out, f.named) {
				h.t.Errorf("%s: %s says\n%s", f.name, what, out)
			}
		}
	}
	a.NS.MustRun(h.t, "sh", "-ec", f.undo)
	h.reach(f.name)
	h.ready(a)
}

// TestPodsAreNotTrusted: what a pod sends as another pod, as a foreign host, as a router or to the tunnel's own port goes nowhere, in every mode.
func TestPodsAreNotTrusted(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "python3", "tcpdump")
	for _, m := range catalog.Modes {
		t.Run(m.Name, func(t *testing.T) {
			t.Parallel()
			c := up(t, m.Name, 4, nettest.ClusterOptions{})
			a, b := c.Nodes[0], c.Nodes[1]
			client := api.NewClient(c.path(a, "sock"))
			defer client.Close()
			pod := nettest.New(t)
			got, err := client.Attach(t.Context(), api.AttachRequest{ContainerID: "x", IfName: "eth0", Netns: pod.Path(), Network: "weft"})
			if err != nil {
				t.Fatal(err)
			}
			c.eventually("the pod reaches b's", func() error { return ping(pod, b.PodAddrs[0]) })
			script := fmt.Sprintf(`
import socket, struct
def send(src, dst, proto=17, body=struct.pack('!HHHH', 9, 9, 8, 0)):
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20+len(body), 1, 0, 64, proto, 0, socket.inet_aton(src), socket.inet_aton(dst)) + body, (dst, 0))
for i in range(3):
    send('10.244.1.99', '%[1]s'); send('203.0.113.5', '%[1]s'); send('203.0.113.5', '%[2]s')
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('%[2]s', %[3]d))
i = socket.if_nametoindex('eth0'); s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(struct.pack('!BBHBBHII', 134, 0, 0, 64, 0, 1800, 0, 0), ('ff02::1', 0, 0, i))
`, b.PodAddrs[0], b.Underlay[0], max(m.Port, 9))
			pod.MustRun(t, "python3", "-c", script)
			want := map[string]uint64{"wrong-source": 9, "router-advertisement": 1}
			if m.Port != 0 {
				want["overlay-port"] = 3
			}
			nettest.Eventually(t, time.Minute, func() error {
				pods, err := client.Pods(t.Context())
				if err != nil || len(pods) != 1 || pods[0].HostInterface != got.HostInterface {
					return fmt.Errorf("%+v, %w", pods, err)
				}
				for name, n := range want {
					if pods[0].Drops[name] != n {
						return fmt.Errorf("refused: %v, want %v", pods[0].Drops, want)
					}
				}
				return nil
			})
			if out := a.NS.MustRun(t, "ip", "-6", "route", "show", "default"); strings.Contains(out, "weft") {
				t.Errorf("the node's default route: %s", out)
			}
			// A process of the node's own that is bound to its underlay address, the same in every mode.
			c.eventually("a process bound to the node's address reaches a pod", func() error { return ping(a.NS, b.PodAddrs[0], "-I", a.Underlay[0].String()) })
		})
	}
}
