package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/api"
	"weft/hostnet"
	"weft/internal/ipnet"
	"weft/internal/nettest"
)

// TestEverythingOfPodsIsPutBack: whatever somebody removes or changes of a pod's on the node, its link itself, or inside, is back, and
// the pod reaches the other one and the outside. How long each took is logged.
func TestEverythingOfPodsIsPutBack(t *testing.T) {
	nettest.RequireTool(t, "ping", "nft")
	for _, style := range []string{Routed, Bridge} {
		t.Run(style, func(t *testing.T) {
			r := newRig(t, style)
			r.m.every = time.Hour // so that nothing but news of it makes it right
			r.run()
			x, y := nettest.New(t), nettest.New(t)
			a, b := r.attach(request(x, "x")), r.attach(request(y, "y"))
			link, ip4, ip6 := a.HostInterface, a.IPs[0].Address.Addr().String(), a.IPs[1].Address.Addr().String()
			for _, c := range []struct {
				where *nettest.NS
				cmd   string
			}{
				{r.host, "ip route flush proto 87; ip -6 route flush proto 87"},
				{r.host, "ip link set " + link + " down"},
				{r.host, "ip link set " + link + " mtu 1300"},
				{r.host, "ip neigh flush dev " + link + " nud all"},
				{r.host, "ip addr flush dev " + link},
				{r.host, "ip link set " + link + " nomaster"},
				{r.host, "ip link del " + link},
				{r.host, "nft flush ruleset"},
				{r.host, "nft flush chain inet weft postrouting"},
				{r.host, "if ip link show weftbr0; then ip link set weftbr0 down; fi"},
				{r.host, "if ip link show weftbr0; then ip addr flush dev weftbr0; fi"},
				{r.host, "if ip link show weftbr0; then ip link del weftbr0; fi"},
				{x, "ip link set eth0 down"},
				{x, "ip link set eth0 mtu 1300"},
				{x, "ip addr flush dev eth0 scope global"},
				{x, "ip route flush all; ip -6 route del default"},
				{x, "ip addr del " + a.IPs[0].Address.String() + " dev eth0"},
				{x, "ip -6 addr del " + a.IPs[1].Address.String() + " dev eth0"},
				{x, "ip route del default"},
				{x, "ip -6 route del default"},
				{x, "ip -4 route flush dev eth0 scope link"},
				{x, "ip neigh flush dev eth0 nud all; ip -6 neigh flush dev eth0 nud all"},
				{x, "ip neigh replace " + a.IPs[0].Gateway.String() + " dev eth0 lladdr 02:00:00:00:00:99 nud stale"},
				{x, "ip link del eth0"},
			} {
				if style == Bridge && strings.Contains(c.cmd, "02:00:00:00:00:99") {
					continue // there the pod asks for its neighbours itself
				}
				c.where.MustRun(t, "sh", "-c", c.cmd)
				began := time.Now()
				q := api.CheckRequest{AttachRequest: request(x, "x"), Expect: a}
				nettest.Eventually(t, nettest.Patience, func() error {
					if err := r.m.Check(t.Context(), q); err != nil {
						return err
					}
					out := r.host.MustRun(t, "sh", "-c", "ip -4 addr show; ip -6 addr show; ip neigh show nud permanent; nft list ruleset")
					for _, what := range r.mustHave(style, link, ip4, ip6) {
						if !strings.Contains(out, what) {
							return fmt.Errorf("after %q the node lacks %q", c.cmd, what)
						}
					}
					return nil
				})
				t.Logf("%6d ms  %s", time.Since(began).Milliseconds(), c.cmd)
				for i := range a.IPs {
					reach(t, x, b.IPs[i].Address.Addr())
					reach(t, x, outside(b.IPs[i].Address.Addr().Is6()))
				}
			}
		})
	}
}

// run runs the Host and the Manager until the test ends.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 2)
	go func() { done <- r.o.Host.Run(ctx) }()
	go func() { done <- r.m.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done); err != nil {
			r.t.Error(err)
		}
	})
}

// TestListeningLetsGo: the socket that listens in a pod's namespace does not keep it alive, whether the pod is detached or just gone.
func TestListeningLetsGo(t *testing.T) {
	r := newRig(t, Routed)
	r.run()
	gone, detached := nettest.New(t), nettest.New(t)
	r.attach(request(gone, "gone"))
	r.attach(request(detached, "detached"))
	gone.MustRun(t, "ip", "route", "del", "default") // and wait until it is listened to
	q := api.CheckRequest{AttachRequest: request(gone, "gone")}
	nettest.Eventually(t, nettest.Patience, func() error { return r.m.Check(t.Context(), q) })
	if err := r.m.Detach(t.Context(), api.DetachRequest{ContainerID: "detached", IfName: "eth0", Network: "weft"}); err != nil {
		t.Fatal(err)
	}
	// A veth pair between the namespace and the outside goes when the namespace does.
	nettest.Pair(t, nettest.End{NS: detached, Dev: "far"}, nettest.End{NS: r.outside, Dev: "canary"}, 1500)
	if err := errors.Join(gone.Close(), detached.Close()); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, nettest.Patience, func() error {
		if left := r.left(); len(left) > 0 {
			return fmt.Errorf("left behind: %q", left)
		}
		if out, err := r.outside.Run("ip", "link", "show", "canary"); err == nil {
			return fmt.Errorf("the namespace is still there: %s", out)
		}
		return nil
	})
}

// TestListenerThatFails: it is forgotten, and another one opened that hears again.
func TestListenerThatFails(t *testing.T) {
	t.Parallel()
	r := newRig(t, Routed)
	pod := nettest.New(t)
	r.attach(request(pod, "x"))
	w := watches{r.m, map[string]*watch{}}
	defer w.closeAll()
	w.follow(r.m.attached())
	k := key("weft", "x", "eth0")
	number := w.open[k].inode
	w.close(k)
	none, end, err := os.Pipe() // no socket: to receive of it fails
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	broken := &watch{inode: number, file: none, closed: make(chan struct{})}
	w.open[k] = broken
	go r.m.hear(k, broken)
	nettest.Eventually(t, nettest.Patience, func() error {
		if w.follow(r.m.attached()); w.open[k] == broken {
			return errors.New("the listener that failed is still there")
		}
		return nil
	})
	r.m.suspected()
	pod.MustRun(t, "ip", "link", "set", "eth0", "mtu", "1300")
	nettest.Eventually(t, nettest.Patience, func() error {
		if !r.m.suspected()[k] {
			return errors.New("a change in the pod was not heard")
		}
		return nil
	})
}

func (r *rig) mustHave(style, link, ip4, ip6 string) []string {
	list := []string{"masquerade"}
	if style == Bridge {
		return append(list, "10.244.1.1/24", "fd00:10:244:1::1/64")
	}
	return append(list, "169.254.1.1/32 scope global "+link, "fe80::1/128", ip4+" dev "+link+" lladdr", ip6+" dev "+link+" lladdr")
}

// TestPlan: what is planned for pods needs no kernel.
func TestPlan(t *testing.T) {
	o := Options{Attach: Routed, Masquerade: true}
	if w := plan(nil, node, o); len(w.Links)+len(w.Passage) != 0 || len(w.Tables) != 1 {
		t.Errorf("without pods %+v", w)
	}
	if w := plan(nil, Node{}, o); len(w.Tables) != 0 {
		t.Errorf("of a node that is not known %+v", w)
	}
	r := &record{Network: "weft", ContainerID: "x", IfName: "eth0", Netns: "/run/netns/x", Inode: 7, MAC: "02:00:00:00:00:09"}
	for _, p := range prefixes("10.244.1.9/24", "fd00:10:244:1::9/64") {
		r.Addrs = append(r.Addrs, p.Addr())
	}
	name := hostName(r.key())
	w := plan([]*attachment{newAttachment(r, 1450)}, node, o)
	if len(w.Links) != 1 || w.Links[0].Name != name || w.Links[0].Veth.Inode != 7 || w.Links[0].MTU != 1450 ||
		!slices.Equal(w.Addrs, []hostnet.Addr{{Dev: name, Prefix: ipnet.Host(gateway4)}, {Dev: name, Prefix: ipnet.Host(gateway6)}}) ||
		!slices.Equal(w.Routes, []hostnet.Route{{Dst: ipnet.Host(r.Addrs[0]), Dev: name}, {Dst: ipnet.Host(r.Addrs[1]), Dev: name}}) ||
		len(w.Neighbors) != 2 || w.Neighbors[0].MAC != [6]byte{2, 0, 0, 0, 0, 9} || len(w.Tables) != 1 || len(w.Tables[0].Chains[0].Rules) != 10 ||
		!slices.Equal(w.Passage, node.Network) {
		t.Errorf("%+v", w)
	}
	nameless := *r
	nameless.MAC = ""
	if w := plan([]*attachment{newAttachment(&nameless, 1450)}, node, Options{Attach: Routed, SpoofCheck: true}); len(w.Tables)+len(w.Neighbors) != 0 || len(w.Routes) != 2 {
		t.Errorf("of a pod whose MAC nobody knows %+v", w)
	}
	r.Bridged, o.Attach, o.Masquerade = true, Bridge, false
	w = plan([]*attachment{newAttachment(r, 1450)}, node, o)
	if len(w.Links) != 2 || w.Links[0].Name != hostnet.Bridge || w.Links[1].Master != hostnet.Bridge || len(w.Routes)+len(w.Neighbors)+len(w.Tables) != 0 ||
		len(w.Addrs) != 2 || !w.Addrs[0].OnLink {
		t.Errorf("bridged: %+v", w)
	}
}
