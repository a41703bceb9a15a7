package backend

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
)

// Planner is a way to carry traffic. It says what this node needs, and touches nothing: what it asks of the kernel besides, it is
// given when it is made.
type Planner interface {
	// Self returns what to announce about this node.
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

// Frame keeps the plan for the newest State in force: this process's part first, where there is one, then the kernel's.
type Frame struct {
	set     Settings
	planner Planner
	choice  Chooser                       // the same; nil where nothing is chosen
	carry   func() (anew bool, err error) // makes this process follow the last plan; anew = traffic stopped for it. nil = the kernel forwards
	paths   *egress.Finder

	applying sync.Mutex // held by Apply; mu, which Status takes, is not held while the kernel works

	mu      sync.Mutex
	state   *control.State // the last applied; nil before the first
	carries bool           // a plan has been in force since traffic stopped last
	under   egress.Underlay
	plan    Plan
	err     error // why the last state is not wholly in force
}

// NewFrame puts the unreachable routes of s.Network in force, and nothing else yet.
func NewFrame(s Settings, p Planner, carry func() (anew bool, err error)) (*Frame, error) {
	if err := s.Host.Guard(s.Network); err != nil {
		return nil, err
	}
	underlay := s.Host
	if s.Outside != nil {
		underlay = s.Outside.Host
	}
	f := &Frame{set: s, planner: p, carry: carry, paths: egress.NewFinder(underlay, egress.Choice{Interface: s.Interface, MTU: s.UnderlayMTU})}
	f.paths.Measure(s.Measured)
	if s.Compose != nil {
		f.choice = s.Compose(p)
		f.planner = f.choice
	}
	return f, nil
}

// Hear makes the paths to the peers follow what an ICMPListener hears. Call it before the first Apply.
func (f *Frame) Hear(e *egress.ICMPListener) { f.paths.Hear(e) }

// Self implements Backend.
func (f *Frame) Self() control.Node { return f.planner.Self() }

// Apply implements Backend.
func (f *Frame) Apply(s control.State) error {
	f.applying.Lock()
	defer f.applying.Unlock()
	f.mu.Lock()
	f.state = &s
	under, last := f.under, f.plan
	f.mu.Unlock()
	plan, err := last, error(nil)
	u, err := f.paths.Derive(s.Self, s.Nodes)
	if err == nil {
		plan, err = f.planner.Plan(&s, u)
	}
	if err != nil {
		if len(under.Devices) == 0 {
			return f.done(err)
		}
		// The underlay is not well now; nodes still come and go.
		var again error
		if plan, again = f.planner.Plan(&s, &under); again != nil {
			return f.done(errors.Join(err, again))
		}
		u = &under
	}
	f.tell(&under, u, &last, &plan)
	f.mu.Lock()
	f.under, f.plan = *u, plan
	f.mu.Unlock()
	if f.carry != nil {
		anew, failed := f.carry()
		if anew {
			f.mu.Lock()
			f.carries = false
			f.mu.Unlock()
		}
		if failed != nil { // the device that the kernel's part is about may not be there
			return f.done(errors.Join(err, failed))
		}
	}
	return f.done(errors.Join(err, f.set.Host.Apply(Owner, plan.Want)))
}

// done takes note of how it went.
func (f *Frame) done(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.carries = err, f.carries || err == nil
	return err
}

// Broke takes note that what was in force is not any more.
func (f *Frame) Broke(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.carries = err, false
}

// tell logs what is otherwise than before.
func (f *Frame) tell(under, u *egress.Underlay, last, plan *Plan) {
	other := last.InnerMTU != plan.InnerMTU || !slices.Equal(under.Local, u.Local) || !slices.Equal(under.Devices, u.Devices)
	if other && f.carry == nil { // who carries tells it when the path is open
		f.set.Log.Info("path", zap.Strings("underlay", u.Devices), zap.Strings("device", plan.Devices), zap.Stringers("local", u.Local),
			zap.Uint16("port", f.set.Port), zap.Uint32("vni", f.set.VNI), zap.Int("mtu", plan.InnerMTU))
	}
	for _, problem := range plan.Problems {
		if !slices.Contains(last.Problems, problem) {
			f.set.Log.Warn("trouble with a peer", zap.String("peer", problem.Node), zap.String("reason", problem.Text))
		}
	}
}

// Choice implements Backend.
func (f *Frame) Choice(node string) (Choice, bool) {
	if f.choice == nil {
		return Choice{}, false
	}
	return f.choice.Choice(node)
}

// InnerMTU implements Backend.
func (f *Frame) InnerMTU() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.plan.InnerMTU
}

// Status reports the plan and its peers.
func (f *Frame) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Status{
		Ready: f.carries && f.err == nil, Underlay: f.under.Devices, UnderlayMTU: f.under.MTU, InnerMTU: f.plan.InnerMTU,
		Devices: slices.Clone(f.plan.Devices), Repairs: f.set.Host.Repairs(), Hops: slices.Clone(f.plan.Hops), Problems: slices.Clone(f.plan.Problems),
		Features: maps.Clone(f.plan.Features), KernelDrops: map[string]uint64{},
	}
	if s.Features == nil {
		s.Features = map[string]string{}
	}
	if f.choice != nil {
		s.Unreached = f.choice.Tell(s.Hops)
	}
	switch {
	case f.err != nil:
		s.Reason = f.err.Error()
	case f.state == nil:
		s.Reason = "no state from the control plane yet"
	case !f.carries:
		s.Reason = "the path is being put in force"
	}
	return s
}
