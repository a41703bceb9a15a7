package daemon

import (
	"context"
	"net"

	"weft/api"
	"weft/node/pods"
	"weft/node/verdict"
	"weft/node/verdict/authz"
)

// verdicts are the sockets on which pods ask about their own connections.
type verdicts struct {
	options verdict.Options
	serve   []func(ctx context.Context) error
	close   func()
}

// listenVerdicts binds the sockets that the configuration names.
func (d *Daemon) listenVerdicts(attached *pods.Manager) (v verdicts, err error) {
	v.options = verdict.Options{Log: d.log, Allowed: d.policies.Allowed, PodOf: func(inode uint64) (verdict.Pod, bool) {
		p, ok := attached.In(inode)
		return verdict.Pod{Namespace: p.PodNamespace, Name: p.PodName, Addresses: p.IPs}, ok
	}}
	var open []net.Listener
	v.close = func() {
		for _, l := range open {
			l.Close()
		}
	}
	for _, s := range []struct {
		path  string
		serve func(context.Context, net.Listener, verdict.Options) error
	}{{d.cfg.Policy.VerdictSocket, verdict.Serve}, {d.cfg.Policy.AuthzSocket, authz.Serve}} {
		if s.path == "" {
			continue
		}
		if err := api.RemoveStale(s.path); err != nil {
			v.close()
			return v, err
		}
		l, err := verdict.Listen(s.path)
		if err != nil {
			v.close()
			return v, err
		}
		open = append(open, l)
		v.serve = append(v.serve, func(ctx context.Context) error { return s.serve(ctx, l, v.options) })
	}
	return v, nil
}
