package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/run"
	"weft/perf/testbed"
)

// Plan says what the lab compares and how.
type Plan struct {
	Contenders []contender.Contender
	Tests      []probe.Selection // with all their parameters
	Duration   time.Duration     // of one sample, a search included
	Repeat     int               // measured rounds
	Warmup     int               // rounds before them, dropped
	MTU        int               // of the underlay, bytes
	Nodes      int
	Layout     testbed.Layout
	Queues     int    // queue pairs of lane-based contenders; 0 = by cores
	Congestion string // TCP congestion control, set on the generators' sockets
	Fault      string // STAGE:TIME, a stage of the contenders with lanes slowed on purpose; "" = none

	Weft    string // path of the weft binary that daemons and generators are
	Version string // of that binary, for the fingerprint
}

// Check says everything that is wrong with the plan.
func (p *Plan) Check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := p.rounds().Check(); err != nil {
		errs = append(errs, err)
	}
	// The underlay has IPv6 addresses, which need 1280 bytes (RFC 8200 §5).
	if p.MTU < 1280 || p.MTU > 9000 {
		wrong("mtu %d: give 1280 to 9000", p.MTU)
	}
	for _, t := range p.Tests {
		if t.Params["family"] != 4 && !testbed.HasIPv6() {
			wrong("test %s: this machine's kernel has no IPv6: give family=4", t)
		}
		if p.MTU < testbed.MinMTU6 && t.Params["family"] != 4 {
			wrong("test %s: an underlay MTU of %d leaves too little for IPv6 inside: give at least %d, or family=4", t, p.MTU, testbed.MinMTU6)
		}
	}
	for _, t := range p.Tests {
		target := netip.AddrPortFrom(netip.IPv4Unspecified(), probe.DefaultPort)
		if t.Params["family"] == 6 {
			target = netip.AddrPortFrom(netip.IPv6Unspecified(), probe.DefaultPort)
		}
		spec := probe.Spec{Test: t.Test, Params: t.Params, Target: target, Duration: p.Duration, Congestion: p.Congestion}
		if err := spec.Validate(); err != nil {
			wrong("test %s: %w", t, err)
		}
	}
	if p.Fault != "" && !slices.ContainsFunc(p.Contenders, func(c contender.Contender) bool { return c.Lanes }) {
		wrong("fault %s: none of the contenders has stages that can be slowed: name one of weft's userspace modes", p.Fault)
	}
	if p.Nodes < 2 || p.Nodes > 26 {
		wrong("nodes %d: give 2 to 26", p.Nodes)
	}
	if p.Queues < 0 || p.Queues > 64 {
		wrong("queues %d: give 0 (by cores) to 64", p.Queues)
	}
	return errors.Join(errs...)
}

// supported says why this machine cannot take any sample of the plan.
func (p *Plan) supported() error {
	for _, t := range p.Tests {
		if !strings.HasPrefix(t.Test, "udp") {
			if err := probe.Congestion(p.Congestion); err != nil {
				return &contender.UnsupportedError{Reason: err.Error()}
			}
		}
	}
	return nil
}

// labels are short names of the contenders, for namespaces and folders, each another.
func (p *Plan) labels() []string {
	const longest = 48 // of a file's name 255 are allowed, and more is in it
	var list []string
	for i, c := range p.Contenders {
		label := testbed.Label(c.Name)
		if len(label) > longest || slices.Contains(list, label) {
			label = fmt.Sprintf("%s-%d", label[:min(len(label), longest)], i+1)
		}
		list = append(list, label)
	}
	return list
}

// names are the contenders' as in results.
func (p *Plan) names() []string {
	list := make([]string, len(p.Contenders))
	for i, c := range p.Contenders {
		list[i] = c.Name
	}
	return list
}

// rounds is what of the plan has nothing to do with namespaces.
func (p *Plan) rounds() *run.Plan {
	return &run.Plan{Contenders: p.names(), Tests: p.Tests, Duration: p.Duration, Repeat: p.Repeat, Warmup: p.Warmup}
}
