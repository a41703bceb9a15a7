package perf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/perf/contender"
	"weft/perf/probe"
	"weft/perf/testbed"
)

// MaxRepeat bounds the rounds of a run.
const MaxRepeat = 1000

// Plan says what to compare and how.
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
	if len(p.Contenders) == 0 {
		wrong("no contenders: name at least one")
	}
	if len(p.Tests) == 0 {
		wrong("no tests: name at least one")
	}
	for i, t := range p.Tests {
		if slices.ContainsFunc(p.Tests[:i], func(o probe.Selection) bool { return o.String() == t.String() }) {
			wrong("test %s is named twice", t)
		}
	}
	if p.Duration < 100*time.Millisecond || p.Duration > 10*time.Minute {
		wrong("duration %s: give 100ms to 10m", p.Duration)
	}
	if p.Repeat < 1 || p.Repeat > MaxRepeat {
		wrong("repeat %d: give 1 to %d", p.Repeat, MaxRepeat)
	}
	if p.Warmup < 0 || p.Warmup > MaxRepeat {
		wrong("warmup %d: give 0 to %d", p.Warmup, MaxRepeat)
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
		if strings.HasPrefix(t.Test, "tcp") || t.Test == "cpu-fixed" {
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

// samples is how many samples the plan takes, warm-up included, and a guess at how long each lasts.
func (p *Plan) samples() int {
	return len(p.Contenders) * len(p.Tests) * (p.Warmup + p.Repeat)
}

func (p *Plan) settings() Settings {
	return Settings{
		Duration: p.Duration.Seconds(), Repeat: p.Repeat, Warmup: p.Warmup, MTU: p.MTU,
		Nodes: p.Nodes, Layout: string(p.Layout), Queues: p.Queues, Fault: p.Fault,
	}
}
