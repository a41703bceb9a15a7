package policies

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"weft/hostnet"
	"weft/internal/nettest"
	"weft/policy"
)

// saying is a source that says what a test has it say.
type saying chan policy.Cluster

func (s saying) String() string { return "the test" }

func (s saying) Run(ctx context.Context, update func(policy.Cluster)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-s:
			update(c)
		}
	}
}

// TestAdmit: a pod that is attached waits until its rules are in force, with the addresses that it has got; one that the source has not
// told of waits in vain; whose address another pod has left has it alone.
func TestAdmit(t *testing.T) {
	t.Parallel()
	nettest.RequireRoot(t)
	c := nettest.NewCluster(t, nettest.ClusterOptions{})
	n := c.Nodes[1]
	var host *hostnet.Host
	var err error
	n.NS.Do(func() { host, err = hostnet.New(zaptest.NewLogger(t), Owner) })
	if err != nil {
		t.Fatal(err)
	}
	source := make(saying)
	var mu sync.Mutex
	var local []policy.Attached
	m := New(Options{Source: source, Name: "b", Tells: true, Host: host, Log: zaptest.NewLogger(t),
		Node: func() ([]netip.Prefix, bool) { return n.Prefixes, true },
		Local: func() []policy.Attached {
			mu.Lock()
			defer mu.Unlock()
			return local
		}})
	m.rest = 1_000_000 // whoever waits is not to wait for that
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- host.Run(ctx) }()
	go func() { ended <- m.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, host.Close()); err != nil {
			t.Error(err)
		}
	}()
	attach := func(name string, addresses ...netip.Addr) policy.Attached {
		a := policy.Attached{Namespace: "x", Name: name, Addresses: addresses}
		mu.Lock()
		defer mu.Unlock()
		local = append(local, a)
		return a
	}
	admit := func(a policy.Attached, wait time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		return m.Admit(ctx, a)
	}
	refused := func(what string, err error, why string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", what, err, why)
		}
	}

	// The source has said nothing: nobody gets in, and it is told why.
	a := attach("a", n.PodAddrs...)
	attach("", n.PodAddrs...) // one of no name takes nothing from anybody
	source <- policy.Cluster{Outage: "it is away"}
	refused("a source that is away", admit(a, waits), "the test has not told of pod x/a, nobody knows what it may do: it is away")
	if err := m.Ready(); err == nil || !strings.Contains(err.Error(), "it is away") {
		t.Errorf("ready: %v", err)
	}
	// It tells of another pod; of this one while it waits.
	deny := policy.Policy{Namespace: "x", Name: "deny", Tier: policy.Namespaced, Subject: policy.Peer{Namespace: "x"}, Isolates: [2]bool{true, true}}
	other := policy.Pod{Namespace: "x", Name: "other", Node: "b", Addresses: n.PodAddrs[:1]} // it had the address before
	source <- policy.Cluster{Revision: 1, Pods: []policy.Pod{other}, Policies: []policy.Policy{deny}}
	refused("a pod that is not known", admit(a, waits), "has not told of pod x/a")
	done := make(chan error, 1)
	go func() { done <- admit(a, patience) }()
	source <- policy.Cluster{Revision: 2, Pods: []policy.Pod{other, {Namespace: "x", Name: "a", Node: "b"}}, Policies: []policy.Policy{deny}}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	world := m.Status().World
	if p := world.Pod("x", "a"); p == nil || len(p.Addresses) != len(n.PodAddrs) || world.Name(n.PodAddrs[0]) != "pod x/a" || len(world.Pod("x", "other").Addresses) != 0 {
		t.Errorf("in force: %+v, %s", p, world.Name(n.PodAddrs[0]))
	}
	if out := n.NS.MustRun(t, "nft", "list", "table", "inet", "weft-policy"); !strings.Contains(out, n.PodAddrs[0].String()) || !strings.Contains(out, n.PodAddrs[1].String()) {
		t.Errorf("the table does not know the pod:\n%s", out)
	}
	// A pod of no name is admitted, and stays unknown. Where the source does not tell of every pod nobody waits.
	if err := admit(policy.Attached{Addresses: n.PodAddrs}, waits); err != nil {
		t.Error(err)
	}
	m.o.Tells = false
	if err := admit(attach("stranger", netip.MustParseAddr("10.244.2.99")), patience); err != nil {
		t.Error(err)
	}
	m.o.Tells = true
	// Without any policy there is no table; pods are admitted all the same.
	source <- policy.Cluster{Revision: 3, Pods: []policy.Pod{{Namespace: "x", Name: "a", Node: "b"}}}
	if err := admit(a, patience); err != nil {
		t.Error(err)
	}
	nettest.Eventually(t, patience, func() error {
		if out, err := n.NS.Run("nft", "list", "tables"); err != nil || strings.Contains(string(out), "weft-policy") {
			return errors.Join(err, errors.New("there is a table without policies: "+string(out)))
		}
		return nil
	})
	// Whether something is allowed costs nothing then; to explain it puts all pods together once.
	if allowed, err := m.Allowed(policy.Traffic{Src: n.PodAddrs[0], Dst: n.PodAddrs[0], Protocol: policy.TCP, Port: 80}); !allowed || err != nil || m.everyone != nil {
		t.Errorf("allowed %v, %v, pods put together %v", allowed, err, m.everyone != nil)
	}
	first, _, err := m.now()
	if second, _, _ := m.now(); err != nil || first != second || first.Pod("x", "a") == nil {
		t.Errorf("pods were put together twice, or not: %v", err)
	}
	// The same again changes nothing, an outage neither.
	source <- policy.Cluster{Revision: 4, Pods: []policy.Pod{{Namespace: "x", Name: "a", Node: "b"}}, Policies: []policy.Policy{deny}}
	if err := admit(a, patience); err != nil {
		t.Error(err)
	}
	source <- policy.Cluster{Revision: 5, Pods: []policy.Pod{{Namespace: "x", Name: "a", Node: "b"}, {Namespace: "y", Name: "far", Node: "a", Addresses: c.Nodes[0].PodAddrs}}, Policies: []policy.Policy{deny}}
	source <- policy.Cluster{Revision: 5, Pods: []policy.Pod{{Namespace: "x", Name: "a", Node: "b"}}, Policies: []policy.Policy{deny}, Outage: "away again"}
	if err := admit(a, patience); err != nil {
		t.Error(err)
	}
	nettest.Eventually(t, patience, func() error {
		if s := m.Status(); s.Problem != "away again" || len(s.World.Policies()) != 1 {
			return fmt.Errorf("problem %q, policies %v", s.Problem, s.World.Policies())
		}
		return nil
	})
}
