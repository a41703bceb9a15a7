package hostnet

import (
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/internal/nettest"
)

// TestPassage: what is forwarded passes the firewalls that hosts have, and their own rules about pods still come first. A table that another
// process owns stays as it is, is no error, and is told of.
func TestPassage(t *testing.T) {
	nettest.RequireTool(t, "nft", "iptables-nft")
	established := "ct state established,related accept"
	for name, c := range map[string]struct {
		rules []string // of nft
		shell string
		shut  bool // pods are not let through, by somebody's own word
	}{
		"policy drop":          {rules: []string{"add chain inet fw f { type filter hook forward priority 10; policy drop; }", "add rule inet fw f " + established}},
		"ends in a reject":     {rules: []string{"add chain inet fw f { type filter hook forward priority 10; }", "add rule inet fw f " + established, "add rule inet fw f reject with icmpx type admin-prohibited"}},
		"ends in a drop":       {rules: []string{"add chain inet fw f { type filter hook forward priority 10; }", "add rule inet fw f counter log prefix \"x\" drop"}},
		"rules behind the end": {rules: []string{"add chain inet fw f { type filter hook forward priority 10; policy drop; }", "add rule inet fw f drop", "add rule inet fw f accept"}},
		"iptables-nft":         {shell: "iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables-nft -A FORWARD -j REJECT"},
		"iptables-nft, policy": {shell: "iptables-nft -P FORWARD DROP"},
		"its own word":         {rules: []string{"add chain inet fw f { type filter hook forward priority 10; policy drop; }", "add rule inet fw f ip saddr 10.244.1.0/24 drop"}, shut: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			pod, far := nettest.New(t), nettest.New(t)
			nettest.Pair(t, nettest.End{NS: b.ns, Dev: "in", Addrs: nettest.Prefixes("10.244.1.1/24")}, nettest.End{NS: pod, Dev: "eth0", Addrs: nettest.Prefixes("10.244.1.2/24")}, 1500)
			nettest.Pair(t, nettest.End{NS: b.ns, Dev: "out", Addrs: nettest.Prefixes("10.244.2.1/24")}, nettest.End{NS: far, Dev: "eth0", Addrs: nettest.Prefixes("10.244.2.2/24")}, 1500)
			for ns, via := range map[*nettest.NS]string{pod: "10.244.1.1", far: "10.244.2.1"} {
				if err := ns.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(via), "eth0"); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.ns.Sysctl("ipv4/ip_forward", "1"); err != nil {
				t.Fatal(err)
			}
			passes := func() bool {
				_, err := pod.Run("ping", "-n", "-c1", "-W1", "10.244.2.2")
				return err == nil
			}
			load := func() {
				t.Helper()
				if len(c.rules) > 0 {
					b.ns.MustRun(t, "nft", "flush ruleset; add table inet fw; "+strings.Join(c.rules, "; "))
				} else {
					b.ns.MustRun(t, "sh", "-ec", c.shell)
				}
			}
			load()
			if passes() {
				t.Fatal("the firewall stops nothing: the test shows nothing")
			}
			w := Want{Passage: nettest.Prefixes("10.244.0.0/16")}
			asItShould := func() error {
				if passes() == c.shut {
					return errors.New("not yet as it should be")
				}
				return nil
			}
			b.guarded(w)
			nettest.Eventually(t, 20*time.Second, asItShould) // an answer may be late on a busy machine
			load()                                            // once more: it is put back, once
			nettest.Eventually(t, 20*time.Second, asItShould)
			if n := strings.Count(b.ns.MustRun(t, "nft", "list", "ruleset"), ruleMark); n != 2 {
				t.Errorf("%d rules of ours:\n%s", n, b.ns.MustRun(t, "nft", "list", "ruleset"))
			}
			if _, err := b.host.Cleanup(); err != nil || strings.Contains(b.ns.MustRun(t, "nft", "list", "ruleset"), ruleMark) {
				t.Errorf("cleanup: %v", err)
			}
		})
	}
	t.Run("owned", func(t *testing.T) {
		b := newBench(t)
		owner := b.ns.MustStart(t, "sh", "-ec", "mkfifo $0; exec 3<>$0; echo 'add table inet fw { flags owner; }; add chain inet fw f { type filter hook forward priority 0; policy drop; }; add table inet weft-fw { flags owner; }' >&3; exec nft -i <&3", filepath.Join(t.TempDir(), "fifo"))
		nettest.Eventually(t, 10*time.Second, func() error {
			_, err := b.ns.Run("nft", "list", "chain", "inet", "fw", "f")
			return err
		})
		b.apply(Want{Passage: nettest.Prefixes("10.244.0.0/16")})
		if got := b.host.Obstacles(); len(got) != 1 || got[0].Chain != "inet fw f" || !strings.Contains(got[0].Why, "(nft) owns the table") || strings.Contains(got[0].Why, "CAP_NET_ADMIN") {
			t.Errorf("%v", got)
		}
		// One of our own name.
		table := policy("10.244.1.7")
		table.Name = "fw"
		for name, want := range map[string]string{"fw": "is not ours", "weft-fw": "(nft) owns the table"} {
			table.Name = name
			if err := b.host.Apply("test", Want{Tables: []Table{table}}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("table %s: %v, want %q", name, err, want)
			}
		}
		if _, err := b.host.Cleanup(); err == nil || !strings.Contains(err.Error(), "(nft) owns the table") {
			t.Errorf("cleanup: %v", err)
		}
		b.apply(Want{Passage: nettest.Prefixes("10.244.0.0/16")})
		owner.Kill()
		nettest.Eventually(t, 10*time.Second, func() error {
			if out := b.ns.MustRun(t, "nft", "list", "tables"); strings.Contains(out, "fw") {
				return errors.New(out)
			}
			return nil
		})
		b.apply(Want{Passage: nettest.Prefixes("10.244.0.0/16")})
		if got := b.host.Obstacles(); len(got) != 0 {
			t.Errorf("it is gone, and told of: %v", got)
		}
	})
}
