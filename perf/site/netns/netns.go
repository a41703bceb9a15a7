// Package netns is the lab's site: every contender has a testbed of its own, out of network namespaces on this machine (package testbed),
// and the generators are processes in its pods.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"weft/perf/machine"
	"weft/perf/probe"
	"weft/perf/result"
	"weft/perf/run"
	"weft/perf/site"
	"weft/perf/testbed"
)

// Run carries out a plan of the lab; see run.Run. Whatever happens, namespaces, processes and files are gone when Run returns.
func Run(ctx context.Context, p *Plan, show func(run.Event)) (*result.Result, error) {
	if err := p.Check(); err != nil {
		return nil, &run.UsageError{Err: err}
	}
	if err := p.supported(); err != nil {
		return nil, err
	}
	dir, err := testbed.Dir()
	if err != nil {
		return nil, err
	}
	s := &lab{plan: p, dir: dir}
	if s.dir, err = filepath.Abs(dir); err != nil { // TMPDIR may be relative
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return run.Run(ctx, s, p.rounds(), show)
}

// lab implements site.Site.
type lab struct {
	plan   *Plan
	dir    string
	setups []*setup
}

// Hosts implements site.Site.
func (l *lab) Hosts() []result.Host {
	return []result.Host{machine.Fingerprint(l.plan.Version, l.plan.Congestion)}
}

// Settings implements site.Site.
func (l *lab) Settings() result.Settings {
	p := l.plan
	return result.Settings{MTU: p.MTU, Nodes: p.Nodes, Layout: string(p.Layout), Queues: p.Queues, Fault: p.Fault}
}

// Open implements site.Site.
func (l *lab) Open(ctx context.Context, name string) ([]site.Setup, error) {
	i := slices.Index(l.plan.names(), name)
	if i < 0 {
		return nil, fmt.Errorf("no contender of the plan is called %q", name)
	}
	s, err := openSetup(ctx, l.plan, l.plan.Contenders[i], l.plan.labels()[i], l.dir)
	if err != nil {
		return nil, err
	}
	l.setups = append(l.setups, s)
	return []site.Setup{s}, nil
}

// Close implements site.Site.
func (l *lab) Close() error {
	var errs []error
	for _, s := range l.setups {
		errs = append(errs, s.close())
	}
	l.setups = nil
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// Alone implements site.Site: from node to node over the bare wire, in the nodes' own namespaces, without pods, routing or overlay. It is
// in the testbed of the contender without overlay, whose wire nobody else touches; without one there is none.
func (l *lab) Alone(ctx context.Context) (site.Alone, error) {
	i := slices.IndexFunc(l.setups, func(s *setup) bool { return s.Name == result.Baseline })
	if i < 0 {
		return nil, nil
	}
	s := l.setups[i]
	_, far := s.ends()
	server, err := s.startServer(ctx, far.Host)
	if err != nil {
		return nil, err
	}
	return &alone{s, server}, nil
}

// alone implements site.Alone.
type alone struct {
	*setup
	server *testbed.Process
}

// Generate implements site.Alone.
func (a *alone) Generate(ctx context.Context, t probe.Selection, d time.Duration) (probe.Result, error) {
	near, far := a.ends()
	r, _, err := a.generate(ctx, near.Host, netip.AddrPortFrom(far.Endpoints[familyIndex(t)], probe.DefaultPort), t, d)
	return r, err
}

// Close implements site.Alone.
func (a *alone) Close() error {
	a.server.Stop(context.Background())
	return nil
}

// familyIndex is the place of a test's address family in a node's addresses.
func familyIndex(t probe.Selection) int {
	if t.Params["family"] == 6 {
		return 1
	}
	return 0
}
