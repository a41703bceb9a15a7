package e2e

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/catalog"
	"weft/internal/nettest"
)

// TestEveryObjectIsPutBack deletes every single object that a daemon has made, on the node and in a pod, one at a time.
// Each is back, as it was. How long that took is logged: it is to be less than a second. WEFT_TEST_LONG=1: in every mode, else in those that
// make what no other does.
func TestEveryObjectIsPutBack(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	nettest.RequireTool(t, "ping", "bridge", "nft")
	for _, m := range catalog.Modes {
		if os.Getenv("WEFT_TEST_LONG") == "" && !slices.Contains([]string{"host-gw", "vxlan", "tun-gso", "xdp"}, m.Name) {
			continue
		}
		styles := []string{"routed"}
		if m.Name == "vxlan" {
			styles = append(styles, "bridge")
		}
		for _, style := range styles {
			t.Run(m.Name+"/"+style, func(t *testing.T) {
				t.Parallel()
				everyObject(t, m.Name, style)
			})
		}
	}
}

func everyObject(t *testing.T, mode, style string) {
	c := prepare(t, mode, 4, nettest.ClusterOptions{})
	c.extra = "cni: {attach: " + style + "}"
	a := c.Nodes[0].NS
	c.launch()
	// A firewall that drops what it does not know, so that there is a passage to be made for pods.
	a.MustRun(t, "nft", "add table inet others; add chain inet others forward { type filter hook forward priority 0; policy drop; }")
	client := api.NewClient(c.path(c.Nodes[0], "sock"))
	defer client.Close()
	pod := nettest.New(t)
	if _, err := client.Attach(t.Context(), api.AttachRequest{ContainerID: "x", IfName: "eth0", Netns: pod.Path(), Network: "weft"}); err != nil {
		t.Fatal(err)
	}
	all := func() map[string]removal {
		list := objects(t, a, false)
		maps.Copy(list, objects(t, pod, true))
		return list
	}
	// At first it may be on its way still.
	var before map[string]removal
	c.eventually("nothing is on its way any more", func() error {
		before = all()
		time.Sleep(300 * time.Millisecond) // between two looks
		return differ(before, all())
	})
	var slowest time.Duration
	var which string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		r := before[name]
		if out, err := r.in.Run("sh", "-ec", r.cmd); err != nil {
			t.Errorf("%s: %s: %v: %s", name, r.cmd, err, out)
			continue
		}
		began := time.Now()
		c.eventually("back is "+name, func() error { return differ(before, all()) })
		if took := time.Since(began); took > slowest {
			slowest, which = took, name
		}
	}
	t.Logf("%d objects; the slowest was back after %v: %s", len(before), slowest.Round(time.Millisecond), which)
	if len(before) < 15 {
		t.Errorf("only %d objects: the test looks at little: %q", len(before), slices.Sorted(maps.Keys(before)))
	}
	if out, err := a.Run("sh", "-ec", "nft list ruleset > "+c.path(c.Nodes[0], "ruleset")+"; nft -c -f "+c.path(c.Nodes[0], "ruleset")); err != nil {
		t.Errorf("nft does not read back what was made: %v: %s", err, out)
	}
	c.allReach()
}

// removal is how an object is deleted behind the daemon's back.
type removal struct {
	in  *nettest.NS
	cmd string
}

func differ(want, got map[string]removal) error {
	for name := range want {
		if _, ok := got[name]; !ok {
			return fmt.Errorf("gone: %s", name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return fmt.Errorf("new: %s", name)
		}
	}
	return nil
}

// lists are what objects reads, by one shell: a process for each would be most of what the test costs.
var lists = []string{"ip -o link", "ip -4 -o addr show scope global", "ip -6 -o addr show scope global", "ip -4 route show", "ip -6 route show", "ip -d -4 rule show",
	"ip -d -6 rule show", "ip -4 neigh show nud permanent", "ip -6 neigh show nud permanent", "ip nexthop show proto 87", "bridge fdb show", "nft -s list ruleset"}

// objects lists what is weft's in a namespace, each as iproute2 and nft show it, without what differs from one making to the next.
func objects(t *testing.T, ns *nettest.NS, pod bool) map[string]removal {
	t.Helper()
	marked, where := " proto 87", "node"
	if pod {
		marked, where = "", "pod"
	}
	script := strings.Replace(strings.Join(lists, " || true; echo @@; "), "route show", "route show"+marked, 2)
	shown := strings.Split(ns.MustRun(t, "sh", "-c", script), "@@\n")
	if len(shown) != len(lists) {
		t.Fatalf("%d lists, want %d: %q", len(shown), len(lists), shown)
	}
	all := map[string]removal{}
	add := func(what, cmd string) { all[where+" "+what] = removal{ns, cmd} }
	ours := func(dev string) bool { return pod && dev == "eth0" || !pod && strings.HasPrefix(dev, "weft") }
	for i, list := range lists {
		shown[i] = withoutProbe(shown[i])
		ip := "ip -4 "
		if strings.Contains(list, "-6") {
			ip = "ip -6 "
		}
		if strings.HasPrefix(list, "nft") && !pod {
			ruleset(shown[i], add)
			continue
		}
		for line := range strings.Lines(shown[i]) {
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			line = strings.Join(f, " ")
			switch {
			case strings.HasSuffix(list, "link"):
				dev, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@")
				if ours(dev) {
					up := slices.Contains(strings.Split(strings.Trim(f[2], "<>"), ","), "UP")
					add(fmt.Sprintf("link %s mtu %s up %v", dev, f[slices.Index(f, "mtu")+1], up), "ip link del "+dev)
				}
			case strings.Contains(list, "addr"):
				if dev := f[1]; ours(dev) || dev == "lo" && !pod {
					add(fmt.Sprintf("addr %s dev %s", f[3], dev), fmt.Sprintf("ip addr del %s dev %s", f[3], dev))
				}
			case strings.Contains(list, "route"):
				if line = strings.NewReplacer(" linkdown", "", " pref medium", "").Replace(line); !strings.Contains(line, "proto kernel") {
					add("route "+line, ip+"route del "+line+marked)
				}
			case strings.Contains(list, "rule"):
				if strings.Contains(line, "proto 87") {
					add("rule "+line, ip+"rule del priority "+strings.TrimSuffix(f[0], ":"))
				}
			case strings.Contains(list, "neigh"):
				if mac := slices.Index(f, "lladdr"); ours(f[2]) && mac > 0 {
					name := fmt.Sprintf("neigh %s dev %s", f[0], f[2])
					if !pod { // there it is that of the node's end of the link, which is another one after each making
						name += " lladdr " + f[mac+1]
					}
					add(name, fmt.Sprintf("ip neigh del %s dev %s", f[0], f[2]))
				}
			case strings.Contains(list, "nexthop"):
				add("nexthop "+line, "ip nexthop del id "+f[1])
			case strings.Contains(list, "fdb"):
				if ours(f[2]) && slices.Contains(f, "dst") {
					add("fdb "+line, "bridge fdb del "+line)
				}
			}
		}
	}
	return all
}

// ruleset adds the tables of ours and the chains that have rules, by all that they are.
func ruleset(shown string, add func(what, cmd string)) {
	var table, chain string
	var rules []string
	for line := range strings.Lines(shown) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "table":
			if table = f[1] + " " + f[2]; strings.HasPrefix(f[2], "weft") {
				add("nft table "+table, "nft delete table "+table)
			}
		case f[0] == "chain":
			chain, rules = f[1], nil
		case f[0] == "}" && chain != "":
			if len(rules) > 0 {
				add("nft chain "+table+" "+chain+": "+strings.Join(rules, "; "), "nft flush chain "+table+" "+chain)
			}
			chain = ""
		case chain != "" && f[0] != "type":
			rules = append(rules, strings.Join(f, " "))
		}
	}
}
