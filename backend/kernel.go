package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft/catalog/mode"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
)

// Planner is a way for the kernel to carry traffic. It says what this node needs, and touches nothing: what it asks of the kernel
// besides, it is given when it is made.
type Planner interface {
	// Self returns what to publish about this node.
	Self() control.Node
	// Plan says what s needs, where this node reaches the others as u says. On an error, which is about the whole path, there is
	// no plan.
	Plan(s *control.State, u *egress.Underlay) (Plan, error)
}

// Plan is what a way of carrying traffic needs of the kernel for a State, and what comes of it. Immutable.
type Plan struct {
	Want     hostnet.Want
	InnerMTU int      // bytes
	Devices  []string // ours
	Hops     []Hop    // sorted by node
	Problems []control.Problem
	Features map[string]string // as Status has them
}

// Kernel is the Backend of a Planner: it keeps the plan for the newest State in force.
type Kernel struct {
	set     Settings
	planner Planner
	ways    *egress.Finder

	applying sync.Mutex // held by Apply; mu, which Status takes, is not held while the kernel works

	mu      sync.Mutex
	state   *control.State // the last applied; nil before the first
	carries bool           // a state has been in force
	under   egress.Underlay
	plan    Plan
	err     error // why the last state is not wholly in force
}

// ByKernel makes a Backend of a Planner. It puts the unreachable routes of s.Network in force, and nothing else yet. Where traffic is
// to be sealed it refuses, and takes the routes of an earlier, unsealed run out of force: they would go on sending in clear.
func ByKernel(s Settings, p Planner) (*Kernel, error) {
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	if err := s.Host.Guard(s.Network); err != nil {
		return nil, err
	}
	if s.Seal != nil {
		return nil, errors.Join(fmt.Errorf("backend: mode %s cannot seal traffic: set encryption.cipher: none, or mode: %s", s.Mode, mode.Default),
			s.Host.Refuse(s.Network))
	}
	if s.Fault != nil {
		return nil, errors.New("backend: the kernel forwards: there is no stage for a fault: take a mode with lanes, or no --fault")
	}
	return &Kernel{set: s, planner: p, ways: egress.NewFinder(s.Host, egress.Choice{Interface: s.Interface, MTU: s.UnderlayMTU})}, nil
}

// Self returns what to publish about this node.
func (b *Kernel) Self() control.Node { return b.planner.Self() }

// Apply makes the kernel follow s.
func (b *Kernel) Apply(s control.State) error {
	b.applying.Lock()
	defer b.applying.Unlock()
	b.mu.Lock()
	b.state = &s
	under, last := b.under, b.plan
	b.mu.Unlock()
	plan, err := last, error(nil)
	u, err := b.ways.Derive(s.Self, s.Nodes)
	if err == nil {
		plan, err = b.planner.Plan(&s, u)
	}
	if err != nil {
		if len(under.Devices) == 0 {
			return b.done(err)
		}
		// The underlay is not well now; nodes still come and go.
		var again error
		if plan, again = b.planner.Plan(&s, &under); again != nil {
			return b.done(errors.Join(err, again))
		}
		u = &under
	}
	b.tell(&under, u, &last, &plan)
	b.mu.Lock()
	b.under, b.plan = *u, plan
	b.mu.Unlock()
	return b.done(errors.Join(err, b.set.Host.Apply(Owner, plan.Want)))
}

// done takes note of how it went.
func (b *Kernel) done(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.carries = err, b.carries || err == nil
	return err
}

// tell logs what is otherwise than before.
func (b *Kernel) tell(under, u *egress.Underlay, last, plan *Plan) {
	if last.InnerMTU != plan.InnerMTU || !slices.Equal(under.Local, u.Local) || !slices.Equal(under.Devices, u.Devices) {
		b.set.Log.Info("path", zap.Strings("underlay", u.Devices), zap.Strings("device", plan.Devices), zap.Stringers("local", u.Local),
			zap.Uint16("port", b.set.Port), zap.Uint32("vni", b.set.VNI), zap.Int("mtu", plan.InnerMTU))
	}
	for _, problem := range plan.Problems {
		if !slices.Contains(last.Problems, problem) {
			b.set.Log.Warn("peer refused", zap.String("peer", problem.Node), zap.String("reason", problem.Text))
		}
	}
}

// Run follows the underlay until ctx ends; what others remove or change, the Host puts back.
func (b *Kernel) Run(ctx context.Context, look func(broken error)) error {
	changed := b.set.Host.Changed(Owner)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			look(nil)
		}
	}
}

// Close does nothing: the kernel goes on forwarding.
func (b *Kernel) Close() error { return nil }

// Lanes returns nil: no packet passes through this process.
func (b *Kernel) Lanes() Lanes { return nil }

// InnerMTU implements Backend.
func (b *Kernel) InnerMTU() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.plan.InnerMTU
}

// Status reports the path and its peers.
func (b *Kernel) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{
		Ready: b.carries && b.err == nil, Underlay: b.under.Devices, UnderlayMTU: b.under.MTU, InnerMTU: b.plan.InnerMTU,
		Devices: slices.Clone(b.plan.Devices), Repairs: b.set.Host.Repairs(), Hops: slices.Clone(b.plan.Hops), Problems: slices.Clone(b.plan.Problems),
		Features: b.plan.Features, KernelDrops: map[string]uint64{},
	}
	if s.Features == nil {
		s.Features = map[string]string{}
	}
	switch {
	case b.err != nil:
		s.Reason = b.err.Error()
	case b.state == nil:
		s.Reason = "no state from the control plane yet"
	case !b.carries:
		s.Reason = "the first state is being put in force"
	}
	for _, dev := range b.plan.Devices {
		c, err := b.set.Host.Counters(dev)
		if err != nil {
			continue // gone for the moment: the Host brings it back
		}
		for name, n := range map[string]uint64{
			"rx-errors": c.RxErrors, "rx-dropped": c.RxDropped,
			"tx-errors": c.TxErrors, "tx-dropped": c.TxDropped, "tx-carrier": c.TxCarrier,
		} {
			if n > 0 {
				s.KernelDrops[dev+" "+name] = n
			}
		}
	}
	return s
}
