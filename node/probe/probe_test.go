package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/hostnet"
	"weft/internal/nettest"
)

// TestWrong: what stops forwarded packets is found out and named, whatever it is; and forgotten when it is gone. Without pods there is
// nothing to judge, and nothing of the probe.
func TestWrong(t *testing.T) {
	nettest.RequireTool(t, "nft", "ip", "iptables-legacy")
	t.Parallel()
	ns := nettest.New(t)
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := ns.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	node := Node{Prefixes: nettest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), MTU: 1450, Pods: true}
	var h *hostnet.Host
	var err error
	ns.Do(func() { h, err = hostnet.New(zaptest.NewLogger(t), Owner) })
	if err != nil {
		t.Fatal(err)
	}
	var gone atomic.Bool // the last pod
	p := New(h, func() Node {
		now := node
		now.Pods = !gone.Load()
		return now
	}, zaptest.NewLogger(t))
	p.every, p.wait = 50*time.Millisecond, 200*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := ns.Go(func() error { return p.Run(ctx) })
	watched := ns.Go(func() error { return h.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-watched, h.Close()); err != nil {
			t.Error(err)
		}
		if out := ns.MustRun(t, "ip", "-br", "link"); strings.Contains(out, link) {
			nettest.Eventually(t, time.Minute, func() error {
				if out := ns.MustRun(t, "ip", "-br", "link"); strings.Contains(out, link) {
					return errors.New("the link outlives the probe: " + out)
				}
				return nil
			})
		}
	})
	says := func(want string) {
		t.Helper()
		nettest.Eventually(t, time.Minute, func() error {
			got := p.Verdict().Stopped()
			if got == "" && want != "" || !strings.Contains(got, want) || want == "" && got != "" {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	nettest.Eventually(t, time.Minute, func() error { _, err := ns.Run("ip", "link", "show", link); return err })
	for _, c := range []struct{ do, undo, want string }{
		{"nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f reject with icmpx type admin-prohibited'", "nft delete table inet fw", "nftables chain inet fw f drops or rejects them by its rule of handle"},
		{"nft 'add table ip6 fw; add chain ip6 fw f { type filter hook forward priority 10; policy drop; }'", "nft delete table ip6 fw", "IPv6 packets are not forwarded from pod to pod: nftables chain ip6 fw f drops them by its policy"},
		{"nft 'add table inet fw; add chain inet fw x; add rule inet fw x ip saddr 10.0.0.0/8 drop; add chain inet fw f { type filter hook prerouting priority -200; }; add rule inet fw f ct state new jump x'", "nft delete table inet fw", "IPv4 packets are not forwarded from pod to pod: nftables chain inet fw x drops"},
		{"iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT", "iptables-legacy has rules"},
		{"echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding is 0"},
	} {
		says("")
		ns.MustRun(t, "sh", "-ec", c.do)
		says(c.want)
		ns.MustRun(t, "sh", "-ec", c.undo)
	}
	says("")
	before := ns.MustRun(t, "sh", "-c", "nft list tables; ip route show proto 87; ip -6 route show proto 87")
	gone.Store(true)
	nettest.Eventually(t, time.Minute, func() error {
		if out := ns.MustRun(t, "sh", "-c", "ip -br link; nft list tables; ip route show proto 87; ip -6 route show proto 87"); strings.Contains(out, link) || !strings.Contains(before, link) {
			return errors.New("left without pods: " + out)
		}
		return nil
	})
}

// TestAcross: what stops packets at the device that leads to other nodes, there or back, is found out and named; what somebody else does is not held against
// this node.
func TestAcross(t *testing.T) {
	nettest.RequireTool(t, "nft", "ip", "iptables-legacy")
	t.Parallel()
	ns, far := nettest.New(t), nettest.New(t)
	nettest.Pair(t, nettest.End{NS: ns, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.1/24", "2001:db8::1/64")}, nettest.End{NS: far, Dev: "eth0", Addrs: nettest.Prefixes("192.0.2.2/24", "2001:db8::2/64")}, 1500)
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := ns.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	ns.MustRun(t, "sh", "-ec", "ip route add 10.244.2.0/23 via 192.0.2.2; ip -6 route add fd00:10:244:2::/64 via 2001:db8::2")
	far.MustRun(t, "sh", "-ec", `ip addr add 10.244.2.1/32 dev lo; ip addr add 10.244.3.1/32 dev lo; ip addr add fd00:10:244:2::1/128 dev lo nodad
		ip route add 10.244.1.0/24 via 192.0.2.1; ip -6 route add fd00:10:244:1::/64 via 2001:db8::1`)
	node := Node{Prefixes: nettest.Prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), MTU: 1450, Pods: true,
		Peers: []netip.Addr{netip.MustParseAddr("10.244.2.1"), netip.MustParseAddr("fd00:10:244:2::1"), netip.MustParseAddr("10.244.3.1")}}
	var h *hostnet.Host
	var err error
	ns.Do(func() { h, err = hostnet.New(zaptest.NewLogger(t), Owner) })
	if err != nil {
		t.Fatal(err)
	}
	p := New(h, func() Node { return node }, zaptest.NewLogger(t))
	p.every, p.wait = 50*time.Millisecond, 200*time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := ns.Go(func() error { return p.Run(ctx) })
	watched := ns.Go(func() error { return h.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-watched, h.Close()); err != nil {
			t.Error(err)
		}
	})
	says := func(across, unclear string) {
		t.Helper()
		nettest.Eventually(t, time.Minute, func() error {
			v := p.Verdict()
			if v.Within != "" || (v.Across == "") != (across == "") || (v.Unclear == "") != (unclear == "") || !strings.Contains(v.Across, across) || !strings.Contains(v.Unclear, unclear) {
				return fmt.Errorf("%+v, want %q and %q", v, across, unclear)
			}
			return nil
		})
	}
	const chain = "nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f "
	for _, c := range []struct{ do, undo, across, unclear string }{
		{chain + "oifname eth0 drop'", "nft delete table inet fw", "IPv4 packets are not forwarded between pods and other nodes: nftables chain inet fw f drops or rejects them by its rule of handle", ""},
		{chain + "iifname eth0 meta nfproto ipv6 reject'", "nft delete table inet fw", "IPv6 packets are not forwarded between pods and other nodes: nftables chain inet fw f drops", ""},
		{"iptables-legacy -A FORWARD -i eth0 -j DROP", "iptables-legacy -F", "", "none of 2 peers answers them, no rule of nftables here drops them, and iptables-legacy has rules"},
		{"echo 0 >/proc/sys/net/ipv4/conf/eth0/forwarding", "echo 1 >/proc/sys/net/ipv4/conf/eth0/forwarding", "net.ipv4.conf.eth0.forwarding is 0", ""},
	} {
		says("", "")
		ns.MustRun(t, "sh", "-ec", c.do)
		says(c.across, c.unclear)
		ns.MustRun(t, "sh", "-ec", c.undo)
	}
	says("", "")
	// What a peer does not answer is not held against this node, whatever iptables-legacy has here, while another one answers.
	ns.MustRun(t, "iptables-legacy", "-A", "FORWARD", "-j", "ACCEPT")
	far.MustRun(t, "nft", "add table inet fw; add chain inet fw i { type filter hook input priority 0; }; add rule inet fw i ip saddr 10.244.1.0/24 ip daddr 10.244.2.1 drop")
	says("", "do not come back from 10.244.2.1, which this node's own do; nothing on this node is found to drop them: see the firewall there")
	if v := p.Verdict(); v.Stopped() != "" {
		t.Errorf("somebody else's firewall is held against this node: %+v", v)
	}
	ns.MustRun(t, "iptables-legacy", "-F")
	// All get their turn while that is so: what is lost besides is named.
	far.MustRun(t, "nft", "add rule inet fw i ip saddr 10.244.1.0/24 drop")
	ns.MustRun(t, "sh", "-ec", chain+"oifname eth0 meta nfproto ipv6 drop'")
	says("IPv6 packets", "do not come back from 10.244.2.1, 10.244.3.1")
	if out := ns.MustRun(t, "nft", "list", "tables"); strings.Contains(out, "inet "+link) {
		nettest.Eventually(t, time.Minute, func() error {
			if out := ns.MustRun(t, "nft", "list", "tables"); strings.Contains(out, "inet "+link) {
				return errors.New("answers are traced for ever: " + out)
			}
			return nil
		})
	}
}

// TestAnswers: what the probe sends is what it takes for an answer, and errors about it are not.
func TestAnswers(t *testing.T) {
	for _, pair := range [][2]string{{"10.244.1.253", "10.244.1.254"}, {"fd00::fffe", "fd00::ffff"}} {
		src, itself := netip.MustParseAddr(pair[0]), netip.MustParseAddr(pair[1])
		if !answers(frame([6]byte{}, [6]byte{}, src, itself, make([]byte, 16))) {
			t.Errorf("%v: its own packet", src)
		}
		request := frame([6]byte{}, [6]byte{}, src, src.Prev(), make([]byte, 16))
		if answers(request) {
			t.Errorf("%v: a request", src)
		}
		at, reply := 14+20, byte(0)
		if src.Is6() {
			at, reply = 14+40, 129
		}
		if request[at] = reply; !answers(request) {
			t.Errorf("%v: a reply", src)
		}
		if request[at] = 3; answers(request) {
			t.Errorf("%v: an error", src)
		}
		for n := range request {
			answers(request[:n])
		}
	}
}

// TestReserved: the last addresses of prefixes that have many.
func TestReserved(t *testing.T) {
	for text, want := range map[string]string{
		"10.244.1.0/24": "[[10.244.1.253 10.244.1.254]]", "10.244.1.0/27": "[]", "fd00::/64": "[[fd00::ffff:ffff:ffff:fffe fd00::ffff:ffff:ffff:ffff]]", "fd00::/124": "[]",
	} {
		if got := fmt.Sprint(reserved([]netip.Prefix{netip.MustParsePrefix(text)})); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	p := netip.MustParsePrefix("10.244.1.0/24")
	if !Reserved(p, netip.MustParseAddr("10.244.1.254")) || Reserved(p, netip.MustParseAddr("10.244.1.252")) {
		t.Error("another address is reserved")
	}
}
