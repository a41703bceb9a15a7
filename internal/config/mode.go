package config

import (
	"slices"
	"strings"

	"weft/internal/config/strict"
	"weft/packet"
)

// Mode is a way to carry packets, as users name it.
type Mode struct {
	Name     string
	Port     uint16 // default UDP port of its tunnel; 0 = it has none
	Overhead int    // bytes between the outer UDP header and the inner IP packet
	Tunnel   bool   // false: inner packets go out as they are
	Sealable bool   // its packets pass through this process, which can seal them
}

const vxlanOverhead = packet.VXLANHeader + packet.EthernetHeader

// Modes are all modes a daemon can be told, built into this weft or not.
func Modes() []Mode {
	return []Mode{
		{"tun-gso", 4789, vxlanOverhead, true, true},
		{"tun", 4789, vxlanOverhead, true, true},
		{"vxlan", 4789, vxlanOverhead, true, false},
		{"vxlan-nocsum", 4789, vxlanOverhead, true, false},
		{"host-gw", 0, 0, false, false},
		{"udp", 8285, 0, true, true},
		{"tap", 4789, vxlanOverhead, true, true},
		{"xdp", 4789, vxlanOverhead, true, true},
		{"xdp-lib", 4789, vxlanOverhead, true, true},
		{"xdp-udp", 4789, vxlanOverhead, true, true},
		{"tun-xdp", 4789, vxlanOverhead, true, true},
		{"cached", 4789, vxlanOverhead, true, false},
	}
}

func modeByName(name string) (Mode, bool) {
	modes := Modes()
	i := slices.IndexFunc(modes, func(m Mode) bool { return m.Name == name })
	if i < 0 {
		return Mode{}, false
	}
	return modes[i], true
}

// sealOverhead is what sealing adds to a packet: header and tag, 16 bytes each.
const sealOverhead = 32

// innerMTU is the largest inner IP packet over an IPv4 underlay of the given MTU.
func (m Mode) innerMTU(underlay int, sealed bool) int {
	if !m.Tunnel {
		return underlay
	}
	overhead := m.Overhead
	if sealed {
		overhead += sealOverhead
	}
	return packet.InnerMTU(underlay, false, overhead)
}

func readMode(c *Config, v strict.Value) {
	s, ok := v.String()
	if !ok {
		return
	}
	_, known := modeByName(s)
	base, cipher, sealed := strings.Cut(s, "+")
	switch {
	case sealed:
		v.Fail("%q names a cipher: write `mode: %s` and `encryption: {cipher: %s}`", s, base, cipher)
	case slices.Contains(c.built.Modes, s):
		c.Mode = s
	case known:
		v.Fail("this weft is built without mode %s: write one of %s", s, strings.Join(c.built.Modes, ", "))
	default:
		v.Fail("%q is not a mode%s", s, meant(s, c.built.Modes))
	}
}
