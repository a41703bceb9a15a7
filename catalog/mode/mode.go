// Package mode lists the ways to carry packets ("modes") as data: what each is called and what the rest of the house has to know
// about it. Anybody may import it; it imports vocabulary only. Package catalog has what makes the modes' backends.
package mode

import (
	"slices"

	"weft/control"
	"weft/packet"
)

// Mode is one way to carry packets between nodes.
type Mode struct {
	Name  string
	About string // one line: inside → outside
	For   string // what it stands for, in comparisons

	Wire    Wire
	Port    uint16 // default UDP port of the tunnel; 0 = it has none
	Inside  Side
	Outside Side

	Needs    []string // of the kernel: names of abilities in package internal/kernel
	Features []string // what its nodes announce (control.FeatureRCO, …)
	Super    bool     // hands the kernel super-packets: what that drops as one may be many
	Frame    int      // the largest IP packet that its AF_XDP ends take, bytes; 0 = it has none
}

// Wire is what goes over the underlay.
type Wire string

// What goes over the underlay; docs/wire.md has the formats.
const (
	Direct Wire = "direct" // inner packets as they are
	VXLAN  Wire = "vxlan"  // RFC 7348
	IPUDP  Wire = "ipudp"  // an inner IP packet, and nothing else, in a UDP datagram
)

// Side is what is at one end of a mode's lanes.
type Side string

// Ends of lanes.
const (
	Kernel Side = "kernel" // the kernel forwards: there are no lanes
	TUN    Side = "tun"
	TAP    Side = "tap"
	UDP    Side = "udp" // sockets
	AFXDP  Side = "af_xdp"
)

// SealOverhead is what sealing adds to a packet: header and tag, 16 bytes each.
const SealOverhead = 32

// Ciphers are what a mode that seals can seal with: one by itself, or the one that suits the machine.
func Ciphers() []string { return []string{"auto", "chacha20-poly1305", "aes-128-gcm", "aes-256-gcm"} }

// Overhead is how many bytes there are between the outer UDP header and the inner IP packet, unsealed.
func (w Wire) Overhead() int {
	if w == VXLAN {
		return packet.VXLANHeader + packet.EthernetHeader
	}
	return 0
}

// InnerMTU is the largest inner IP packet over an underlay of an MTU; v6 says whether outer headers may be IPv6.
func (w Wire) InnerMTU(underlay int, v6, sealed bool) int {
	if w == Direct {
		return underlay
	}
	overhead := w.Overhead()
	if sealed {
		overhead += SealOverhead
	}
	return packet.InnerMTU(underlay, v6, overhead)
}

// Ways are those by which a node in this mode takes packets and sends them, the one it likes best first. port is the tunnel's; sealed that of
// sealed traffic, 0 where nothing is; plain says that of some nodes plaintext is taken besides.
func (m Mode) Ways(port, sealed uint16, plain bool) []control.Way {
	name, seal := control.WayVXLAN, control.WaySealed
	switch {
	case m.Wire == Direct:
		return []control.Way{{Name: control.WayDirect}}
	case m.Wire == IPUDP:
		name, seal = control.WayIPUDP, control.WaySealedIPUDP
	case m.Inside == TAP:
		name, seal = control.WayFrames, control.WaySealedFrames
	}
	clear := []control.Way{{Name: name, Port: port}}
	if !m.Lanes() {
		clear = control.KernelVXLAN(port)
	}
	switch {
	case sealed == 0:
		return clear
	case plain:
		return append([]control.Way{{Name: seal, Port: sealed}}, clear...)
	}
	return []control.Way{{Name: seal, Port: sealed}}
}

// Lanes says whether packets pass through the daemon, which then can count, capture and seal them. Else the kernel forwards, also
// without it.
func (m Mode) Lanes() bool { return m.Inside != Kernel }

// Seals says whether the mode can seal packets.
func (m Mode) Seals() bool { return m.Lanes() }

// Uses says whether one end or the other is such.
func (m Mode) Uses(s Side) bool { return m.Inside == s || m.Outside == s }

// PastKernel says whether tunnel packets pass the kernel's filters and sockets by.
func (m Mode) PastKernel() bool { return m.Outside == AFXDP }

// MaxMTU is the largest MTU, bytes, of an underlay of IPv4; 0 = any.
func (m Mode) MaxMTU(sealed bool) int {
	if m.Frame > 0 && m.Outside != AFXDP { // the inside's packets are smaller
		return 2*m.Frame - m.Wire.InnerMTU(m.Frame, false, sealed)
	}
	return m.Frame
}

// Default is the mode of a configuration that names none.
const Default = "tun-gso"

// All returns every mode, in the order in which tables have them.
func All() []Mode {
	const tun, vxlan, xdp = "tun", "vxlan", "af_xdp" // abilities
	const frame, libraryFrame = 3506, 1762           // xdp.MaxMTU, lib.MaxMTU
	rco := []string{control.FeatureRCO}
	return []Mode{
		{Name: "host-gw", About: "kernel routes to the next hop, no tunnel: nodes share a link", For: "Flannel host-gw, Calico without encapsulation",
			Wire: Direct, Inside: Kernel, Outside: Kernel},
		{Name: "vxlan", About: "Linux vxlan device, UDP checksum on", For: "kernel VXLAN at its best: Flannel's and Calico's fast path",
			Wire: VXLAN, Port: 4789, Inside: Kernel, Outside: Kernel, Needs: []string{vxlan}},
		{Name: "vxlan-nocsum", About: "Linux vxlan device, UDP checksum zero", For: "kernel VXLAN as Flannel and Calico ship it",
			Wire: VXLAN, Port: 4789, Inside: Kernel, Outside: Kernel, Needs: []string{vxlan}},
		{Name: "cached", About: "Linux vxlan device, UDP checksum zero; established flows past it by eBPF", For: "what an overlay costs at its best: ONCache, Weave's fast datapath",
			Wire: VXLAN, Port: 4789, Inside: Kernel, Outside: Kernel, Needs: []string{vxlan}},
		{Name: "udp", About: "TUN (songgao/water) → raw IP in UDP, one packet a system call", For: "Flannel's udp",
			Wire: IPUDP, Port: 8285, Inside: TUN, Outside: UDP, Needs: []string{tun}},
		{Name: "tun", About: "TUN (songgao/water) → VXLAN → UDP batches", For: "the plain userspace overlay",
			Wire: VXLAN, Port: 4789, Inside: TUN, Outside: UDP, Needs: []string{tun}},
		{Name: "tap", About: "TAP, MAC learning → VXLAN → UDP batches", For: "Weave sleeve's L2: frames, MACs learnt",
			Wire: VXLAN, Port: 4789, Inside: TAP, Outside: UDP, Needs: []string{tun}},
		{Name: "tun-gso", About: "TUN with vnet header → VXLAN → UDP GSO/GRO", For: "the userspace overlay for streams",
			Wire: VXLAN, Port: 4789, Inside: TUN, Outside: UDP, Needs: []string{tun}, Features: rco, Super: true},
		{Name: "xdp", About: "AF_XDP on a veth → VXLAN → AF_XDP on the underlay, one UMEM", For: "the userspace overlay for packets",
			Wire: VXLAN, Port: 4789, Inside: AFXDP, Outside: AFXDP, Needs: []string{xdp}, Frame: frame},
		{Name: "xdp-lib", About: "the same on asavie/xdp v0.3.3", For: "what that library gives",
			Wire: VXLAN, Port: 4789, Inside: AFXDP, Outside: AFXDP, Needs: []string{xdp}, Frame: libraryFrame},
		{Name: "xdp-udp", About: "AF_XDP on a veth → VXLAN → UDP batches", For: "AF_XDP where the underlay's device has none",
			Wire: VXLAN, Port: 4789, Inside: AFXDP, Outside: UDP, Needs: []string{xdp}, Frame: frame},
		{Name: "tun-xdp", About: "TUN (songgao/water) → VXLAN → AF_XDP on the underlay", For: "AF_XDP where the inside stays a TUN",
			Wire: VXLAN, Port: 4789, Inside: TUN, Outside: AFXDP, Needs: []string{tun, xdp}, Frame: frame},
	}
}

// Names returns the modes' names.
func Names(modes []Mode) []string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = m.Name
	}
	return names
}

// Find finds a mode by its name.
func Find(modes []Mode, name string) (Mode, bool) {
	i := slices.IndexFunc(modes, func(m Mode) bool { return m.Name == name })
	if i < 0 {
		return Mode{}, false
	}
	return modes[i], true
}
