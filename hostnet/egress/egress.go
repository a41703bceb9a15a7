// Package egress derives how this node's packets reach its peers: from which of its addresses, by which devices, and how
// large they may be. It is the one derivation: every mode, the pods' MTU, `weft doctor` and `weft config show` have it from here.
//
// The addresses are the node's endpoints: of each family the first, or, where node.interface is set, the first that this device
// has. The device is node.interface, or the one that has the first of those addresses. A loopback or dummy device or a VRF may have addresses
// too, but nothing leaves by it: for such an address the device is the one that the routes to the peers name.
//
// The MTU is that device's, or node.mtu. Towards a single peer it is less where a device by which the kernel's routes lead there
// from our address carries less, or the route says so; and where a router in the middle does, or packets of that size are lost. It is never more: devices
// inside and pods have one MTU.
package egress

import (
	"fmt"
	"net/netip"
	"slices"

	"weft/control"
	"weft/hostnet"
	"weft/packet"
)

// Choice is what the configuration says.
type Choice struct {
	Interface string // node.interface; "" = the device that has the endpoint
	MTU       int    // node.mtu, bytes; 0 = the device's
}

// Kernel is what is asked of the machine: a *hostnet.Host.
type Kernel interface {
	Holders() (map[netip.Addr][]int, error)
	Device(name string) (hostnet.Device, error)
	DeviceAt(index int) (hostnet.Device, error)
	DefaultDevice() (string, error)
	Exits(dst, src netip.Addr) ([]hostnet.Exit, error)
	PathMTU(dst, src netip.Addr) int
}

// Underlay is how this node sends. It holds until the Finder's next Derive.
type Underlay struct {
	Local   []netip.Addr // own addresses in use: one a family, the preferred first; at least one
	Device  string       // see the package
	Why     string       // it is that one
	MTU     int          // bytes
	Devices []string     // all that matter: Device first, those that have Local, those that peers are reached by

	// Revision differs from that of an earlier Underlay of the same Finder where a peer's path does that both know.
	Revision uint64

	Paths map[netip.Addr]Path // by the peer's endpoint; zero = the kernel has no route
}

// Path is how an endpoint of a peer is reached.
type Path struct {
	Source netip.Addr // ours
	Device string     // the first, where the route has several next hops
	Via    netip.Addr // its router; invalid = the endpoint is on the link
	MTU    int        // bytes, the least of all next hops'
	Heard  int        // bytes, less than MTU: what was heard of the path, or measured, and is not this machine's own to say; 0 = nothing
	By     string     // who says that
}

// Who says that a path carries less than its devices and routes do.
const (
	ByKernel = "the kernel, by a router's word"
	ByRouter = "a router"
	ByProbes = "full-size packets that were lost"
)

// hear narrows the path to what somebody says.
func (p *Path) hear(mtu int, by string) {
	if mtu < p.MTU && (p.Heard == 0 || mtu < p.Heard) {
		p.Heard, p.By = mtu, by
	}
}

// certain is the path without what was heard of it.
func (p Path) certain() Path {
	p.Heard, p.By = 0, ""
	return p
}

// To returns the path to a peer's endpoint, one that control.Endpoint chose. False where the kernel has no route.
func (u *Underlay) To(endpoint netip.Addr) (p Path, ok bool) {
	p = u.Paths[endpoint]
	if p.Device == "" || p.MTU > u.MTU {
		p.MTU = u.MTU
	}
	if p.Heard >= p.MTU {
		p.Heard, p.By = 0, ""
	}
	return p, p.Device != ""
}

// Certain is how large inner packets to a peer's endpoint may be by this machine's own devices and routes, where those of the underlay's device may have
// so many bytes.
func (u *Underlay) Certain(endpoint netip.Addr, inner int) int {
	p, _ := u.To(endpoint)
	return inner - (u.MTU - p.MTU)
}

// Inner is how large they may be by all that is known. What was heard narrows that no further than the network's families need: below, nobody
// could be told.
func (u *Underlay) Inner(endpoint netip.Addr, inner int, network []netip.Prefix) int {
	p, _ := u.To(endpoint)
	mtu := u.Certain(endpoint, inner)
	if p.Heard == 0 {
		return mtu
	}
	heard := inner - (u.MTU - p.Heard)
	return min(mtu, heard+u.Lacks(heard, network))
}

// Narrow is what is wrong with the path to a peer's endpoint where it carries less than the network's families need; "" = nothing.
func (u *Underlay) Narrow(endpoint netip.Addr, inner int, network []netip.Prefix) string {
	p, _ := u.To(endpoint)
	carries := p.MTU
	if p.Heard != 0 {
		carries = min(carries, p.Heard)
	}
	lacks := u.Lacks(inner-(u.MTU-carries), network)
	if lacks == 0 {
		return ""
	}
	return fmt.Sprintf("the path to %v carries packets of %d bytes, and %d are needed: large packets may be lost; raise the MTU on the way, or take IPv6 out of network.prefixes",
		endpoint, carries, carries+lacks)
}

// V6 says whether any of the addresses is an IPv6 one.
func (u *Underlay) V6() bool { return slices.ContainsFunc(u.Local, netip.Addr.Is6) }

// Self returns the node with the addresses in use for its endpoints.
func (u *Underlay) Self(n control.Node) control.Node {
	n.Endpoints = u.Local
	return n
}

// Lacks returns how many bytes the MTU is too small for inner packets of at most that many bytes to do for the network's
// families; 0 = none.
func (u *Underlay) Lacks(inner int, network []netip.Prefix) int {
	least := packet.MinIPv4MTU
	if slices.ContainsFunc(network, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		least = packet.MinIPv6MTU
	}
	return max(0, least-inner)
}

// Fits is an error with its remedy where Lacks any.
func (u *Underlay) Fits(inner int, network []netip.Prefix) error {
	lacks := u.Lacks(inner, network)
	if lacks == 0 {
		return nil
	}
	return fmt.Errorf("an underlay MTU of %d leaves %d bytes for inner packets and %d are needed: raise the MTU of %s to %d, or take IPv6 out of network.prefixes",
		u.MTU, inner, inner+lacks, u.Device, u.MTU+lacks)
}
