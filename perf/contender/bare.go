package contender

import (
	"context"

	"weft/perf/testbed"
)

// Bare is the name of the contender without overlay.
const Bare = "bare"

// bare is no overlay at all: the nodes route each other's prefixes over the underlay.
type bare struct{ mtu int }

func upBare(_ context.Context, env Env, _, _ string) (Overlay, error) {
	for _, n := range env.Bed.Nodes {
		for _, far := range env.Bed.Nodes {
			if far == n {
				continue
			}
			for i, prefix := range far.Prefixes {
				if err := n.Host.Route(prefix, testbed.Underlay, far.Endpoints[i]); err != nil {
					return nil, err
				}
			}
		}
	}
	return bare{env.Bed.MTU}, nil
}

func (b bare) InnerMTU() int                       { return b.mtu }
func (bare) Processes() []*testbed.Process         { return nil }
func (bare) Lanes(context.Context) ([]Lane, error) { return nil, nil }
func (bare) Drops(context.Context) (Drops, error)  { return Drops{}, nil }
