// Package catalog is the roof of the house: what makes each replaceable part. A new part is its own folder and one line here; of a
// mode the list itself, with all that others know about modes, is package mode's.
package catalog

import (
	"weft/backend"
	"weft/backend/compose"
	"weft/backend/hostgw"
	"weft/backend/kernelvxlan"
	"weft/backend/userspace"
	"weft/catalog/mode"
	"weft/encap/ipudp"
	"weft/encap/vxlan"
	"weft/flowcache"
	"weft/packet"
	"weft/reach/link"
	"weft/tun"
	"weft/underlay"
	"weft/xdp"
	"weft/xdp/lib"
)

// Mode is one way to carry traffic between nodes, and what makes its backend.
type Mode struct {
	mode.Mode
	New func(backend.Settings) (backend.Backend, error) // of this mode alone
	making
}

// Modes lists every mode, in the order of the list.
var Modes = bind(mode.All(), makers)

var makers = map[string]func(mode.Mode) making{
	"host-gw":      kernel(hostgw.NewPlanner),
	"vxlan":        kernel(kernelvxlan.NewPlanner),
	"vxlan-nocsum": kernel(kernelvxlan.NewPlannerWithoutChecksum),
	"cached":       topped(flowcache.Over, kernelvxlan.NewPlannerWithoutChecksum),
	"udp":          lanes(singleTUN, ipudpStages),
	"tun":          lanes(plainTUN, vxlanStages),
	"tap":          lanes(plainTAP, frameStages),
	"tun-gso":      lanes(offloadTUN, offloadStages),
	"xdp":          lanes(pairXDP, vxlanStages),
	"xdp-lib":      lanes(libraryXDP, vxlanStages),
	"xdp-udp":      lanes(insideXDP, vxlanStages),
	"tun-xdp":      lanes(outsideXDP, vxlanStages),
}

// making is what makes a mode's part: the one that plans what the kernel forwards, or a backend with lanes.
type making struct {
	plan  func(backend.Settings) (backend.Planner, error)
	carry func(backend.Settings) (backend.Backend, error)
	over  func(backend.Backend, backend.Settings) backend.Backend // what is put over it where it is the node's only mode; nil = nothing
}

// bind joins the list of modes to what makes them.
func bind(list []mode.Mode, makers map[string]func(mode.Mode) making) (modes []Mode) {
	for _, m := range list {
		made := Mode{Mode: m}
		if mk, ok := makers[m.Name]; ok { // a test asks that it is
			made.making = mk(m)
			made.New = func(s backend.Settings) (backend.Backend, error) { return Backend(s, Use{made, s.Port}) }
		}
		modes = append(modes, made)
	}
	return modes
}

// Use is a mode, and the UDP port of its tunnel on this node; 0 where it has none.
type Use struct {
	Mode
	Port uint16
}

// Backend makes what carries traffic by modes, the preferred first. At most one of them may have lanes.
func Backend(s backend.Settings, uses ...Use) (backend.Backend, error) {
	carriers := make([]compose.Carrier, len(uses))
	own := 0 // the one with lanes, where there is one
	for i, u := range uses {
		set := s
		set.Mode, set.Port = u.Name, u.Port
		var sealed uint16
		if s.Seal != nil {
			sealed = s.Seal.Port
		}
		carriers[i] = compose.Carrier{Mode: u.Name, Ways: u.Ways(u.Port, sealed, sealed != 0 && len(s.Seal.PermitPlain) > 0)}
		if u.carry != nil {
			own = i
			continue
		}
		var err error
		if carriers[i].Planner, err = u.plan(set); err != nil {
			return nil, err
		}
	}
	s.Mode, s.Port = uses[own].Name, uses[own].Port
	var prober *link.Prober // where there is something to choose from
	if len(uses) > 1 {
		prober = link.New(s.Log)
	}
	s.Compose = func(p backend.Planner) backend.Chooser {
		carriers[own].Planner = p
		choice := compose.New(s, carriers...)
		if prober != nil {
			choice.Probe(prober)
		}
		return choice
	}
	carry := uses[own].carry
	if carry == nil {
		carry = func(s backend.Settings) (backend.Backend, error) { return kernelBackend(s, carriers[own].Planner) }
	}
	b, err := carry(s)
	if put := uses[own].over; err == nil && put != nil && len(uses) == 1 {
		b = put(b, s)
	}
	if err != nil || prober == nil {
		return b, err
	}
	return compose.WithProber(b, prober), nil
}

// kernelBackend is backend.ByKernel without a nil in an interface.
func kernelBackend(s backend.Settings, p backend.Planner) (backend.Backend, error) {
	b, err := backend.ByKernel(s, p)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// kernel is a mode whose packets the kernel forwards.
func kernel(plan func(backend.Settings) (backend.Planner, error)) func(mode.Mode) making {
	return func(mode.Mode) making { return making{plan: plan} }
}

// topped is a mode whose packets the kernel forwards, with something put over it.
func topped(put func(backend.Backend, backend.Settings) backend.Backend, plan func(backend.Settings) (backend.Planner, error)) func(mode.Mode) making {
	return func(mode.Mode) making { return making{plan: plan, over: put} }
}

// lanes is a mode whose packets pass through this process, sealed where the configuration says so.
func lanes(open func(userspace.Path) (inside, outside packet.Port, err error), stages func(userspace.Path) []packet.Stage) func(mode.Mode) making {
	return func(m mode.Mode) making {
		inner := packet.IP
		if m.Inside == mode.TAP {
			inner = packet.Ethernet
		}
		return making{carry: userspace.New(userspace.Kind{Overhead: m.Wire.Overhead(), Features: m.Features, Inner: inner, Open: open, Stages: stages, Seal: newSealer})}
	}
}

// ModeByName finds a mode.
func ModeByName(name string) (Mode, bool) {
	for _, m := range Modes {
		if m.Name == name {
			return m, true
		}
	}
	return Mode{}, false
}

func vxlanStages(p userspace.Path) []packet.Stage {
	return []packet.Stage{vxlan.New(vxlan.Config{VNI: p.VNI, MAC: p.MAC, Inner: packet.IP, MTU: p.InnerMTU})}
}

// frameStages carry the frames of a TAP as they are.
func frameStages(p userspace.Path) []packet.Stage {
	return []packet.Stage{vxlan.New(vxlan.Config{VNI: p.VNI, MAC: p.MAC, Inner: packet.Ethernet, MTU: p.InnerMTU})}
}

// offloadStages serves an inside port that finishes checksums itself, or has the kernel do it.
func offloadStages(p userspace.Path) []packet.Stage {
	return []packet.Stage{vxlan.New(vxlan.Config{VNI: p.VNI, MAC: p.MAC, Inner: packet.IP, MTU: p.InnerMTU, RCO: true})}
}

func ipudpStages(p userspace.Path) []packet.Stage { return []packet.Stage{ipudp.New(p.InnerMTU)} }

func plainTUN(p userspace.Path) (inside, outside packet.Port, err error) {
	return plainPorts(p, tun.Open, true)
}

// singleTUN moves one packet with each system call, on both sides.
func singleTUN(p userspace.Path) (inside, outside packet.Port, err error) {
	return plainPorts(p, tun.Open, false)
}

func plainTAP(p userspace.Path) (inside, outside packet.Port, err error) {
	return plainPorts(p, tun.OpenTAP, true)
}

func plainPorts(p userspace.Path, open func(tun.Config, int) (packet.Port, error), batch bool) (inside, outside packet.Port, err error) {
	return over(p, socketUDP(p, batch), func(queues int) (packet.Port, error) {
		return open(tun.Config{Name: p.Device, MTU: p.InnerMTU}, queues)
	})
}

// socketUDP opens an outside port over UDP sockets; batch moves many packets with a system call.
func socketUDP(p userspace.Path, batch bool) func() (packet.Port, error) {
	return func() (packet.Port, error) {
		return underlay.Listen(underlay.Config{Local: p.Local, Port: p.Port, PlainPort: p.PlainPort, Steer: steering(p), Batch: batch}, p.Queues)
	}
}

// over opens the outside port, which may be refused and may have fewer queues than asked for, and the inside one with as many.
func over(p userspace.Path, openOutside func() (packet.Port, error), openInside func(queues int) (packet.Port, error)) (inside, outside packet.Port, err error) {
	if err = p.Outside.Do(func() (err error) { outside, err = openOutside(); return err }); err != nil {
		return nil, nil, err
	}
	if inside, err = openInside(len(outside.Queues())); err != nil {
		outside.Close()
		return nil, nil, err
	}
	return inside, outside, nil
}

func offloadTUN(p userspace.Path) (inside, outside packet.Port, err error) {
	filter, err := vxlan.FilterRCO()
	if err != nil {
		return nil, nil, err
	}
	return over(p, func() (packet.Port, error) {
		return underlay.Listen(underlay.Config{Local: p.Local, Port: p.Port, PlainPort: p.PlainPort, Steer: steering(p), Batch: true, Offload: true,
			Length: vxlan.Length, Filter: filter}, p.Queues)
	}, func(queues int) (packet.Port, error) {
		return tun.OpenOffload(tun.Config{Name: p.Device, MTU: p.InnerMTU}, queues)
	})
}

func pairXDP(p userspace.Path) (inside, outside packet.Port, err error) { return overXDP(p, nil) }

// libraryXDP moves frames by a library instead of rings of our own.
func libraryXDP(p userspace.Path) (inside, outside packet.Port, err error) {
	return overXDP(p, lib.Open)
}

func overXDP(p userspace.Path, rings func(xdp.Request) (xdp.Rings, error)) (inside, outside packet.Port, err error) {
	c := xdpConfig(p)
	c.Rings, c.At = rings, p.Outside.Do
	in, out, err := xdp.OpenPair(c)
	if err != nil {
		return nil, nil, err
	}
	return in, out, nil
}

func xdpConfig(p userspace.Path) xdp.Config {
	return xdp.Config{Inside: p.Device, InnerMTU: p.InnerMTU, Device: p.Underlay, Local: p.Local, Port: p.Port, PlainPort: p.PlainPort, Steer: steering(p), Queues: p.Queues}
}

// insideXDP is for an underlay whose device AF_XDP cannot have.
func insideXDP(p userspace.Path) (inside, outside packet.Port, err error) {
	return over(p, socketUDP(p, true), func(queues int) (packet.Port, error) {
		c := xdpConfig(p)
		c.Queues = queues
		return xdp.OpenInside(c)
	})
}

// outsideXDP is for an inside that should stay a TUN device.
func outsideXDP(p userspace.Path) (inside, outside packet.Port, err error) {
	return over(p, func() (packet.Port, error) { return xdp.OpenOutside(xdpConfig(p)) }, func(queues int) (packet.Port, error) {
		return tun.Open(tun.Config{Name: p.Device, MTU: p.InnerMTU}, queues)
	})
}
