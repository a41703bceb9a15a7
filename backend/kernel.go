package backend

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"weft/catalog/mode"
)

// Kernel is the Backend of a Planner where the kernel carries traffic.
type Kernel struct{ *Frame }

// ByKernel makes a Backend of a Planner. It puts the unreachable routes of s.Network in force, and nothing else yet. Where traffic is
// to be sealed it refuses, and takes the routes of an earlier, unsealed run out of force: they would go on sending in clear.
func ByKernel(s Settings, p Planner) (*Kernel, error) {
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	f, err := NewFrame(s, p, nil)
	if err != nil {
		return nil, err
	}
	if s.Seal != nil {
		return nil, errors.Join(fmt.Errorf("backend: mode %s cannot seal traffic: set encryption.cipher: none, or mode: %s", s.Mode, mode.Default),
			s.Host.Refuse(s.Network))
	}
	if s.Fault != nil {
		return nil, errors.New("backend: the kernel forwards: there is no stage for a fault: take a mode with lanes, or no --fault")
	}
	return &Kernel{f}, nil
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

// Status adds what the kernel has dropped at the devices.
func (b *Kernel) Status() Status {
	s := b.Frame.Status()
	for _, dev := range s.Devices {
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
