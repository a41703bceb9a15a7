// Package catalog is the roof of the house: the only list of replaceable parts. A new part is its
// own folder and one line here.
package catalog

import (
	"weft/backend"
	"weft/backend/hostgw"
	"weft/backend/kernelvxlan"
	"weft/backend/userspace"
	"weft/control"
	"weft/encap/ipudp"
	"weft/encap/vxlan"
	"weft/packet"
	"weft/tun"
	"weft/underlay"
	"weft/xdp"
	"weft/xdp/lib"
)

// Mode is one way to carry traffic between nodes.
type Mode struct {
	Name  string
	Port  uint16 // default UDP port of the tunnel
	About string // one line: inside → outside
	New   func(backend.Settings) (backend.Backend, error)
}

// Modes lists every mode, in the order reports show them.
var Modes = []Mode{
	{"host-gw", 0, "kernel routes to the next hop, no tunnel", hostgw.New},
	{"vxlan", 4789, "Linux vxlan device, UDP checksum on", kernelvxlan.New},
	{"vxlan-nocsum", 4789, "Linux vxlan device, UDP checksum zero", kernelvxlan.NewWithoutChecksum},
	{"udp", 8285, "TUN (songgao/water) → raw IP in UDP, one packet a system call", carry(userspace.Kind{
		Open: singleTUN, Stages: ipudpStages,
	})},
	{"tun", 4789, "TUN (songgao/water) → VXLAN → UDP batches", carry(userspace.Kind{
		Overhead: vxlanOverhead, Open: plainTUN, Stages: vxlanStages,
	})},
	{"tap", 4789, "TAP, MAC learning → VXLAN → UDP batches", carry(userspace.Kind{
		Overhead: vxlanOverhead, Inner: packet.Ethernet, Open: plainTAP, Stages: frameStages,
	})},
	{"tun-gso", 4789, "TUN with vnet header → VXLAN → UDP GSO/GRO", carry(userspace.Kind{
		Overhead: vxlanOverhead, Features: []string{control.FeatureRCO}, Open: offloadTUN, Stages: offloadStages,
	})},
	{"xdp", 4789, "AF_XDP veth → VXLAN → AF_XDP underlay", carry(userspace.Kind{
		Overhead: vxlanOverhead, Open: pairXDP, Stages: vxlanStages,
	})},
	{"xdp-lib", 4789, "the same on asavie/xdp v0.3.3", carry(userspace.Kind{
		Overhead: vxlanOverhead, Open: libraryXDP, Stages: vxlanStages,
	})},
	{"xdp-udp", 4789, "AF_XDP veth → VXLAN → UDP batches", carry(userspace.Kind{
		Overhead: vxlanOverhead, Open: insideXDP, Stages: vxlanStages,
	})},
	{"tun-xdp", 4789, "TUN (songgao/water) → VXLAN → AF_XDP underlay", carry(userspace.Kind{
		Overhead: vxlanOverhead, Open: outsideXDP, Stages: vxlanStages,
	})},
}

// DefaultMode is the mode of a configuration that names none.
const DefaultMode = "tun-gso"

// ModeByName finds a mode.
func ModeByName(name string) (Mode, bool) {
	for _, m := range Modes {
		if m.Name == name {
			return m, true
		}
	}
	return Mode{}, false
}

const vxlanOverhead = packet.VXLANHeader + packet.EthernetHeader

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
	return over(socketUDP(p, batch), func(queues int) (packet.Port, error) {
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
func over(openOutside func() (packet.Port, error), openInside func(queues int) (packet.Port, error)) (inside, outside packet.Port, err error) {
	if outside, err = openOutside(); err != nil {
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
	return over(func() (packet.Port, error) {
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
	c.Rings = rings
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
	return over(socketUDP(p, true), func(queues int) (packet.Port, error) {
		c := xdpConfig(p)
		c.Queues = queues
		return xdp.OpenInside(c)
	})
}

// outsideXDP is for an inside that should stay a TUN device.
func outsideXDP(p userspace.Path) (inside, outside packet.Port, err error) {
	return over(func() (packet.Port, error) { return xdp.OpenOutside(xdpConfig(p)) }, func(queues int) (packet.Port, error) {
		return tun.Open(tun.Config{Name: p.Device, MTU: p.InnerMTU}, queues)
	})
}
