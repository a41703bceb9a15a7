package etcd_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zaptest"

	"weft/control/etcd"
	"weft/internal/nettest"
	"weft/policy"
)

// told is what a source of policies told last.
type told struct {
	t    testing.TB
	mu   sync.Mutex
	last policy.Cluster
}

func follow(t testing.TB, source policy.Source) *told {
	f := &told{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- source.Run(ctx, func(c policy.Cluster) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.last = c
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *told) await(what string, is func(policy.Cluster) bool) (now policy.Cluster) {
	f.t.Helper()
	nettest.Eventually(f.t, nettest.Patience, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if now = f.last; !is(now) {
			return fmt.Errorf("%s: %+v", what, now)
		}
		return nil
	})
	return now
}

// TestPolicies: the keys are one file together, strict as one; a store that is gone, comes back or was wiped takes nothing away.
func TestPolicies(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	s.settings.Log = zaptest.NewLogger(t)
	f := follow(t, etcd.NewPolicies(s.settings))
	f.await("nothing is there yet", func(c policy.Cluster) bool {
		return c.Revision == 0 && strings.Contains(c.Outage, "no key below /weft/policy/")
	})
	const np = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}}}`
	s.put("/weft/policy/shop", "policies: ["+np+"]\nnamespaces: [{name: shop, labels: {team: blue}}]")
	s.put("/weft/policy/pods/a", "pods: [{name: web, namespace: shop, node: a, labels: {app: web}, addresses: [10.244.1.5]}]")
	is := func(pods, policies int) func(policy.Cluster) bool {
		return func(c policy.Cluster) bool {
			return c.Outage == "" && c.Revision > 0 && len(c.Pods) == pods && len(c.Policies) == policies
		}
	}
	f.await("two keys", is(1, 1))
	s.put("/weft/policy/pods/b", "pods: [{name: db, namespace: shop, addresses: [10.244.2.5]}]")
	f.await("a third", is(2, 1))
	stays := func(what, wrong string) {
		t.Helper()
		now := f.await(what, func(c policy.Cluster) bool { return strings.Contains(c.Outage, wrong) })
		if len(now.Pods) != 2 || len(now.Policies) != 1 {
			t.Errorf("%s took something away: %+v", what, now)
		}
	}
	s.put("/weft/policy/pods/b", "pods: [{name: db, namespace: shop, adresses: [10.244.2.5]}]")
	stays("a mistake", "/weft/policy/pods/b:1: pods[0].adresses: unknown key: did you mean addresses?")
	s.put("/weft/policy/pods/b", "pods: [{name: db, namespace: shop, addresses: [10.244.1.5]}]")
	stays("an address twice", "both have address 10.244.1.5")
	s.put("/weft/policy/pods/b", "")
	stays("an empty value", "is empty")
	s.delete("/weft/policy/pods/b")
	f.await("a key is gone", is(1, 1))
	s.put("/weft/policy/pods/b", "pods: [{name: db, namespace: shop, addresses: [10.244.2.5]}]")
	f.await("and back", is(2, 1))
	s.delete("/weft/policy/", clientv3.WithPrefix())
	stays("all keys are gone", "no key below")
	s.kill()
	stays("no server", "does not answer")
	s.start()
	s.await()
	s.put("/weft/policy/all", "policies: ["+np+"]")
	f.await("a server again", is(0, 1))
}
