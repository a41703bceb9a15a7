// Package kernelvxlan carries traffic by the kernel's own VXLAN devices: no packet passes through weft.
//
// One device per underlay family of this node, weft-vx4 and weft-vx6, each told everything it needs: nothing is
// learnt, no ARP, no flooding. For a peer with prefix 10.244.2.0/24, VTEP MAC M and endpoint E there are
//
//	route      10.244.2.0/24 via 10.244.2.0 dev weft-vx4 onlink src 10.244.1.1
//	neighbour  10.244.2.0 lladdr M dev weft-vx4 permanent
//	FDB        M dst E dev weft-vx4 permanent
//
// so that a packet costs three look-ups. IPv6 prefixes use the same device in the same way: the next hop is the
// prefix's network address, which no host has (for IPv6 it is the subnet-router anycast address). A prefix of
// one address is its own next hop.
//
// The kernel keeps all of it: forwarding survives the daemon, and the next one adopts what it finds.
package kernelvxlan

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"go.uber.org/zap"

	"weft/backend"
	"weft/catalog/mode"
	"weft/control"
	"weft/internal/egress"
	"weft/internal/hostnet"
	"weft/internal/ipnet"
	"weft/packet"
)

// Device names, by the underlay's family.
const (
	device4 = "weft-vx4"
	device6 = "weft-vx6"
)

// overhead is what VXLAN adds to an inner IP packet besides the outer IP and UDP headers, bytes.
const overhead = packet.VXLANHeader + packet.EthernetHeader

// Backend programs the kernel's VXLAN. It implements backend.Backend.
type Backend struct {
	set      backend.Settings
	checksum bool
	log      *zap.Logger
	host     *hostnet.Host
	ways     *egress.Finder

	applying sync.Mutex // held by Apply; mu, which Status takes, is not held while the kernel works

	mu      sync.Mutex
	state   *control.State // the last applied; nil before the first
	carries bool           // a state has been in force
	path    path
	hops    []backend.Hop
	err     error // why the last state is not wholly in force
}

// path is what follows from how this node reaches the others.
type path struct {
	under    egress.Underlay
	devices  []string // ours, as under.Local
	innerMTU int
}

// New makes the backend of mode vxlan, with outer UDP checksums. It puts the unreachable routes of s.Network in
// force, and nothing else yet. It works in the network namespace of the calling thread.
func New(s backend.Settings) (backend.Backend, error) { return open(s, true) }

// NewWithoutChecksum makes the backend of mode vxlan-nocsum: the outer UDP checksum is zero, as RFC 7348 §4.1 has it
// and Flannel and Calico ship it. Over IPv6 zero is sent, and taken from any peer (RFC 6935); what then protects the
// VXLAN header is the link's own check.
func NewWithoutChecksum(s backend.Settings) (backend.Backend, error) { return open(s, false) }

func open(s backend.Settings, checksum bool) (*Backend, error) {
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	host := s.Host
	if err := host.Guard(s.Network); err != nil {
		return nil, err
	}
	if s.Seal != nil { // behind the guard: nothing leaves in clear while somebody mends this
		return nil, fmt.Errorf("kernelvxlan: mode %s cannot seal traffic: set encryption.cipher: none, or mode: %s", s.Mode, mode.Default)
	}
	if s.Fault != nil {
		return nil, errors.New("kernelvxlan: the kernel forwards: there is no stage for a fault: take a mode with lanes, or no --fault")
	}
	return &Backend{set: s, checksum: checksum, log: s.Log, host: host,
		ways: egress.NewFinder(host, egress.Choice{Interface: s.Interface, MTU: s.UnderlayMTU})}, nil
}

// Self returns what to publish about this node.
func (b *Backend) Self() control.Node {
	return control.Node{Name: b.set.Node, MAC: control.VTEPMAC(b.set.Node)}
}

// Apply makes the kernel follow s.
func (b *Backend) Apply(s control.State) error {
	b.applying.Lock()
	defer b.applying.Unlock()
	b.mu.Lock()
	b.state = &s
	b.mu.Unlock()
	return b.sync()
}

// Run follows the underlay until ctx ends; what others remove or change, the Host puts back.
func (b *Backend) Run(ctx context.Context, look func(broken error)) error {
	changed := b.host.Changed(backend.Owner)
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
func (b *Backend) Close() error { return nil }

// sync brings the kernel in line with b.state. The caller holds b.applying, and so may read what b.mu guards.
func (b *Backend) sync() error {
	p, err := b.pathFor(b.state)
	if err != nil {
		if len(b.path.devices) == 0 {
			return b.done(err)
		}
		p = b.path // the underlay is not well now; nodes still come and go
	}
	if b.path.innerMTU != p.innerMTU || !slices.Equal(b.path.under.Local, p.under.Local) {
		b.log.Info("path", zap.Strings("device", p.devices), zap.Stringers("local", p.under.Local),
			zap.Uint16("port", b.set.Port), zap.Uint32("vni", b.set.VNI), zap.Int("mtu", p.innerMTU))
	}
	want, hops := b.want(p)
	b.mu.Lock()
	b.path, b.hops = p, hops
	b.mu.Unlock()
	return b.done(errors.Join(err, b.host.Apply(backend.Owner, want)))
}

// done takes note of how it went.
func (b *Backend) done(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.carries = err, b.carries || err == nil
	return err
}

// pathFor derives devices and MTU from what the source granted this node, and from how it reaches the others.
func (b *Backend) pathFor(s *control.State) (p path, err error) {
	under, err := b.ways.Derive(s.Self, s.Nodes)
	if err != nil {
		return p, err
	}
	p = path{under: *under, innerMTU: packet.InnerMTU(under.MTU, under.V6(), overhead)}
	for _, a := range under.Local {
		p.devices = append(p.devices, deviceFor(a))
	}
	return p, under.Fits(p.innerMTU, b.set.Network)
}

func deviceFor(endpoint netip.Addr) string {
	if endpoint.Is4() {
		return device4
	}
	return device6
}

// want says what the kernel must hold, and how each peer is reached.
func (b *Backend) want(p path) (hostnet.Want, []backend.Hop) {
	self, nodes := p.under.Self(b.state.Self), b.state.Nodes
	w := hostnet.Want{
		Network: b.set.Network,
		Sysctls: hostnet.Forwarding(b.set.Network),
		Watch:   p.under.Devices,
	}
	mac := self.VTEP()
	for i, local := range p.under.Local {
		w.Links = append(w.Links, hostnet.Link{
			Name: p.devices[i], MTU: p.innerMTU, MAC: mac,
			Vxlan: &hostnet.Vxlan{VNI: b.set.VNI, Port: b.set.Port, Local: local, Checksum: b.checksum},
		})
	}
	var source [2]netip.Addr // this node's own inner address, by family
	for _, prefix := range self.Prefixes {
		a := control.HostAddr(prefix)
		for _, dev := range p.devices {
			// On both devices: one without an IPv4 address fails even loose reverse path filtering.
			w.Addrs = append(w.Addrs, hostnet.Addr{Dev: dev, Prefix: ipnet.Host(a)})
		}
		if f := familyIndex(a); !source[f].IsValid() {
			source[f] = a
		}
	}
	w.Routes = make([]hostnet.Route, 0, 2*len(nodes))
	w.Neighbors = make([]hostnet.Neighbor, 0, 2*len(nodes))
	w.FDB = make([]hostnet.FDBEntry, 0, len(nodes))
	hops := make([]backend.Hop, 0, len(nodes))
	for i := range nodes {
		n := &nodes[i]
		endpoint, ok := control.Endpoint(self, *n)
		if !ok {
			continue
		}
		dev, vtep := deviceFor(endpoint), n.VTEP()
		w.FDB = append(w.FDB, hostnet.FDBEntry{Dev: dev, MAC: vtep, Remote: endpoint})
		way, _ := p.under.To(endpoint)
		mtu, routeMTU := p.innerMTU-(p.under.MTU-way.MTU), uint32(0)
		if mtu < p.innerMTU {
			routeMTU = uint32(mtu)
		}
		for _, prefix := range n.Prefixes {
			hop := prefix.Masked().Addr()
			w.Neighbors = append(w.Neighbors, hostnet.Neighbor{Dev: dev, IP: hop, MAC: vtep})
			w.Routes = append(w.Routes, hostnet.Route{Dst: prefix, Dev: dev, Via: hop, Src: source[familyIndex(hop)], MTU: routeMTU})
		}
		hops = append(hops, backend.Hop{
			Node: n.Name, Endpoint: netip.AddrPortFrom(endpoint, b.set.Port), Prefixes: n.Prefixes,
			VNI: b.set.VNI, MTU: mtu, MAC: vtep.String(),
		})
	}
	if len(p.devices) == 2 {
		// A peer may prefer the other family: its packets then come in by the other device than replies
		// leave by, which strict reverse path filtering would drop. Loose (2) overrides it.
		for _, dev := range p.devices {
			w.Sysctls = append(w.Sysctls, hostnet.Sysctl{Key: "ipv4/conf/" + dev + "/rp_filter", Value: "2"})
		}
	}
	return w, hops
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Status reports the path and its peers.
func (b *Backend) Status() backend.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := backend.Status{
		Ready: b.carries && b.err == nil, Underlay: b.path.under.Devices, UnderlayMTU: b.path.under.MTU, InnerMTU: b.path.innerMTU,
		Devices: slices.Clone(b.path.devices), Repairs: b.host.Repairs(), Hops: slices.Clone(b.hops),
		Features: map[string]string{"udp-checksum": "on"}, KernelDrops: map[string]uint64{},
	}
	if !b.checksum {
		s.Features["udp-checksum"] = "off: the mode sends zero"
	}
	switch {
	case b.err != nil:
		s.Reason = b.err.Error()
	case b.state == nil:
		s.Reason = "no state from the control plane yet"
	case !b.carries:
		s.Reason = "the first state is being put in force"
	}
	for _, dev := range b.path.devices {
		c, err := b.host.Counters(dev)
		if err != nil {
			continue // gone for the moment: Run brings it back
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
