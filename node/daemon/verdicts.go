package daemon

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/api"
	"weft/internal/backoff"
	"weft/node/pods"
	"weft/node/verdict"
	"weft/node/verdict/authz"
)

// verdicts are the sockets on which pods ask about their own connections. What is wrong with one is a problem of the daemon's, and no reason to end:
// it is tried again.
type verdicts struct {
	mu      sync.Mutex
	trouble map[string]string // by the configuration's key
}

// answerPods serves the sockets that the configuration names until ctx ends.
func (d *Daemon) answerPods(ctx context.Context, attached *pods.Manager) error {
	o := verdict.Options{Log: d.log, Allowed: d.policies.Allowed, PodOf: func(inode uint64) (verdict.Pod, bool) {
		p, ok := attached.In(inode)
		return verdict.Pod{Namespace: p.PodNamespace, Name: p.PodName, Addresses: p.IPs}, ok
	}}
	var group sync.WaitGroup
	defer group.Wait()
	for _, s := range []struct {
		key, path string
		serve     func(context.Context, net.Listener, verdict.Options) error
	}{{"policy.verdict_socket", d.cfg.Policy.VerdictSocket, verdict.Serve}, {"policy.authz_socket", d.cfg.Policy.AuthzSocket, authz.Serve}} {
		if s.path == "" {
			continue
		}
		group.Go(func() {
			again := backoff.Backoff{First: time.Second, Most: time.Minute}
			for {
				err := d.answerOn(ctx, s.key, s.path, func(l net.Listener) error { return s.serve(ctx, l, o) })
				if ctx.Err() != nil {
					return
				}
				d.verdicts.say(s.key, err)
				d.log.Error("pods are not told what policies say of their connections, trying again", zap.String("key", s.key), zap.Error(err))
				if !backoff.Sleep(ctx, again.Next()) {
					return
				}
			}
		})
	}
	return nil
}

// answerOn binds a socket and serves it.
func (d *Daemon) answerOn(ctx context.Context, key, path string, serve func(net.Listener) error) error {
	if err := api.RemoveStale(path, key); err != nil {
		return err
	}
	l, err := verdict.Listen(path)
	if err != nil {
		return err
	}
	d.verdicts.say(key, nil)
	return serve(l)
}

func (v *verdicts) say(key string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.trouble == nil {
		v.trouble = map[string]string{}
	}
	delete(v.trouble, key)
	if err != nil {
		v.trouble[key] = fmt.Sprintf("%s does not answer pods: %v", key, err)
	}
}

func (v *verdicts) problems() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Values(v.trouble))
}
