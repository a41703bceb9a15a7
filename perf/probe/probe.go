// Package probe is the lab's load generator: one process serves, another runs a test against it
// and says what the path between them carried. It imports nothing of weft, so that every contender
// is measured by the same stranger, and it works between any two hosts.
//
// How it measures: each flow is one goroutine in blocking system calls of its own thread, past Go's poller, as iperf3
// and sockperf do; memory is laid out before the traffic starts and nothing is allocated per packet;
// what arrived is what the receiver says, over a control connection. docs/perf-method.md says how
// that compares.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DefaultPort is the control port of a server.
const DefaultPort = 8479

// Spec is one test to run.
type Spec struct {
	Test       string         // a name of Tests
	Params     Params         // missing ones mean their defaults
	Target     netip.AddrPort // a server's control address
	Duration   time.Duration  // of the traffic; a search has to fit into it
	Congestion string         // TCP congestion control, or HostCongestion; "" = cubic

	Source netip.Addr // where to send from; the zero Addr = as the system chooses
	Key    []byte     // that the server must have, too; nil = a server without one
	Limit  Limit      // of what this end sends
}

// Result is what one test found.
//
// For UDP, Generated = Delivered + CorruptPackets + KernelDrops + what was lost on the path, search trials and path
// check included, both directions of udp-rr together; Duplicates come on top of Delivered.
type Result struct {
	Test       string   `json:"test"`
	Params     Params   `json:"params"`
	Target     string   `json:"target"`
	Seconds    float64  `json:"seconds"` // of traffic
	Congestion string   `json:"congestion,omitempty"`
	Payload    int      `json:"payload,omitempty"` // bytes a packet or transaction carried
	Metrics    []Metric `json:"metrics"`

	// Unanswered is why the test has no figures although it ran; "" = it has them.
	Unanswered string `json:"unanswered,omitempty"`
	Integrity         // both ends together

	Generated    uint64            `json:"generated,omitempty"`    // UDP packets the kernel took
	Delivered    uint64            `json:"delivered,omitempty"`    // UDP packets received, without duplicates
	Duplicates   uint64            `json:"duplicates,omitempty"`   // UDP packets received again
	Reordered    uint64            `json:"reordered,omitempty"`    // UDP packets received after a later one (RFC 4737)
	Transactions uint64            `json:"transactions,omitempty"` // completed, *-rr and tcp-crr
	Bytes        uint64            `json:"bytes"`                  // payload received at the far end
	Retransmits  uint64            `json:"retransmits,omitempty"`  // TCP segments
	KernelDrops  map[string]uint64 `json:"kernel_drops,omitempty"` // by name; both ends
	SendErrors   map[string]uint64 `json:"send_errors,omitempty"`  // packets the kernel refused, by error name

	Latency   []Quantile `json:"latency,omitempty"` // of transactions, ascending
	Intervals []Interval `json:"intervals,omitempty"`
	Trials    []Trial    `json:"trials,omitempty"` // of a search, in order
	Shapes    []Shape    `json:"shapes,omitempty"` // of mixed, a family and kind of traffic each
	Notes     []string   `json:"notes,omitempty"`  // what a reader should know about the figures

	kinds []MetricKind // of the test's figures
}

// Metric is one figure.
type Metric struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// Quantile is a point of a distribution: a share Quantile of all transactions took at most Us microseconds.
type Quantile struct {
	Quantile float64 `json:"quantile"`
	Us       float64 `json:"us"`
}

// Interval is what the receiver counted in one slice of the test.
type Interval struct {
	Seconds float64 `json:"seconds"` // length of the slice
	Bytes   uint64  `json:"bytes"`   // payload
	Packets uint64  `json:"packets"`
}

// Metric returns a figure by name.
func (r *Result) Metric(name string) (float64, bool) {
	for _, m := range r.Metrics {
		if m.Name == name {
			return m.Value, true
		}
	}
	return 0, false
}

// report adds the test's figures in the order of Tests.
func (r *Result) report(values map[string]float64) {
	for _, kind := range r.kinds {
		if v, ok := values[kind.Name]; ok {
			r.Metrics = append(r.Metrics, Metric{kind.Name, kind.Unit, v})
		}
	}
}

// Run runs one test against a server. On an error, cancellation included, there is no result.
func Run(ctx context.Context, spec Spec) (Result, error) {
	spec, err := spec.complete()
	if err != nil {
		return Result{}, err
	}
	test, err := Lookup(spec.Test)
	if err != nil {
		return Result{}, err
	}
	r := Result{Test: spec.Test, Params: spec.Params, Target: spec.Target.String(), Metrics: []Metric{}, kinds: test.Metrics}
	if err := test.run(ctx, spec, &r); err != nil {
		at, ends := ctx.Deadline()
		switch cause := context.Cause(ctx); {
		case cause != nil:
			err = cause
		case ends && !time.Now().Before(at): // what was asked of the network ended by it, a moment before ctx does
			err = context.DeadlineExceeded
		}
		return Result{}, fmt.Errorf("%s to %s: %w", spec.Test, spec.Target, err)
	}
	return r, nil
}

// Validate says what is wrong with a spec without touching the network.
func (s Spec) Validate() error {
	_, err := s.complete()
	return err
}

// complete checks the spec and fills in what it leaves out.
func (s Spec) complete() (Spec, error) {
	test, err := Lookup(s.Test)
	if err != nil {
		return s, err
	}
	if !s.Target.IsValid() || s.Target.Port() == 0 {
		return s, fmt.Errorf("target %q: an address and port are needed, as in 192.0.2.1:%d", s.Target, DefaultPort)
	}
	s.Target = netip.AddrPortFrom(s.Target.Addr().Unmap(), s.Target.Port())
	if s.Duration < time.Millisecond || s.Duration > maxDuration {
		return s, fmt.Errorf("duration %s: must be between 1ms and %s", s.Duration, maxDuration)
	}
	if s.Congestion == "" {
		s.Congestion = "cubic"
	}
	if !congestionName.MatchString(s.Congestion) {
		return s, fmt.Errorf("congestion control %q is not a name", s.Congestion)
	}
	version := 6.0
	if s.Target.Addr().Is4() {
		version = 4
	}
	given := Params{family.Name: version}
	if test.BothFamilies() {
		given = Params{}
	}
	for k, v := range s.Params {
		given[k] = v
	}
	if s.Params, err = test.Fill(given); err != nil {
		return s, err
	}
	if s.Params[family.Name] != version && s.Params[family.Name] != 0 {
		return s, fmt.Errorf("family %v: %s is an IPv%v address", s.Params[family.Name], s.Target.Addr(), version)
	}
	if sizes := s.mix(); sizes != nil {
		if s.Params[gso.Name] == 1 || s.Params[imix.Name] == 1 && s.Params[second.Name] > 0 {
			return s, errors.New("give one of imix=1, second and gso=1: a super-packet's datagrams have one size")
		}
		if least := slices.Min(sizes); s.Params[second.Name] > 0 {
			if _, err := udpPayload(least, s.Target.Addr()); err != nil {
				return s, err
			}
		}
	}
	if size, ok := s.Params[size.Name]; ok { // what the path carries is known only once it is there
		payload := udpPayload
		if strings.HasPrefix(s.Test, "tcp") {
			payload = func(size int, to netip.Addr) (int, error) { return tcpPayload(size, to, false, size) }
		}
		_, err = payload(int(size), s.Target.Addr())
	}
	return s, err
}

func (s Spec) param(name string) int { return int(s.Params[name]) }
