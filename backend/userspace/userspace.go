// Package userspace carries traffic through this process: ports at both sides, stages and lanes
// between them, and the kernel's routes into the inside device. What the ports and stages are is
// the Kind's affair; package catalog has the list.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"weft/backend"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/ipnet"
	"weft/internal/wait"
	"weft/packet"
)

// device is the inside interface. One daemon per network namespace: a second finds it taken.
const device = "weft0"

// Backend carries packets in user space. It implements backend.Backend.
type Backend struct {
	kind  Kind
	set   backend.Settings
	log   *zap.Logger
	host  *hostnet.Host
	ways  *egress.Finder
	route forwarder
	reply *rejecter
	seal  Sealer // nil where nothing is sealed

	failed chan failure // engines report here when a lane dies

	applying sync.Mutex // held by Apply; mu, which Status takes, is not held while the kernel works

	mu     sync.Mutex
	state  *control.State // the last applied; nil before the first
	ready  bool           // the kernel's part of the path that is open has been in force
	engine *engine        // nil while there is no path
	past   ledger         // what closed engines counted
	ids    map[string]uint32
	built  built
	err    error // why the last state is not in force
	path   Path
	under  []string // underlay devices in use

	observers []dataplane.Observer // of all lanes, also of those to come
}

type failure struct {
	engine *engine
	err    error
}

// New returns the constructor of a mode of this kind.
func New(kind Kind) func(backend.Settings) (backend.Backend, error) {
	return func(s backend.Settings) (backend.Backend, error) {
		if err := wait.SlackTimers(); err != nil {
			s.Log.Info("round trips take longer than they need to", zap.Error(err))
		}
		host := s.Host
		reply, err := newRejecter()
		if err != nil {
			return nil, err
		}
		b := &Backend{kind: kind, set: s, log: s.Log, host: host,
			ways: egress.NewFinder(host, egress.Choice{Interface: s.Interface, MTU: s.UnderlayMTU}), route: newForwarder(kind.Inner), reply: reply,
			failed: make(chan failure, 1), ids: map[string]uint32{}}
		if err := host.Guard(s.Network); err != nil { // before anything can be sent
			return nil, errors.Join(err, b.Close())
		}
		if b.seal, err = newSealer(kind, s); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		if s.Fault != nil {
			if err := slowStage(stages(kind, Path{}, b.route, b.seal, 0), s.Fault); err != nil {
				return nil, errors.Join(err, b.Close())
			}
			s.Log.Warn("a stage is slow on purpose", zap.String("stage", s.Fault.Stage), zap.Duration("per packet", s.Fault.PerPacket))
		}
		return b, nil
	}
}

// Self returns what to publish about this node.
func (b *Backend) Self() control.Node {
	return control.Node{Name: b.set.Node, MAC: control.VTEPMAC(b.set.Node), Features: b.kind.Features}
}

// Apply makes lanes, table and kernel routes follow s.
func (b *Backend) Apply(s control.State) error {
	b.applying.Lock()
	defer b.applying.Unlock()
	b.mu.Lock()
	b.state = &s
	b.mu.Unlock()
	return b.sync()
}

// Run watches the lanes and follows the underlay until ctx ends. A path whose lane died, because a device was deleted, say, is
// closed, and opened anew by the next Apply. Kernel objects that others remove or change, the Host puts back.
func (b *Backend) Run(ctx context.Context, look func(broken error)) error {
	changed := b.host.Changed(backend.Owner)
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-b.failed:
			err := fmt.Errorf("userspace: the path over %s broke: %w", device, f.err)
			if b.drop(f.engine, err) {
				look(err)
			}
		case <-changed:
			look(nil)
		}
	}
}

// drop closes an engine that failed, if it is still the current one.
func (b *Backend) drop(e *engine, err error) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.engine != e {
		return false
	}
	b.closeEngine()
	b.err = err
	return true
}

func (b *Backend) closeEngine() {
	if b.engine == nil {
		return
	}
	if err := b.engine.stop(); err != nil {
		b.log.Warn("close path", zap.Error(err))
	}
	b.past.retire(b.engine)
	b.engine, b.ready = nil, false
}

// sync brings everything in line with b.state: first this process's part, then the kernel's. The caller holds b.applying, and so may
// read state and built.
func (b *Backend) sync() error {
	want, err := b.open()
	if err == nil {
		err = b.host.Apply(backend.Owner, want)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err, b.ready = err, b.engine != nil && (b.ready || err == nil)
	return err
}

// open makes ports, lanes and table as b.state says, and returns what the kernel must hold for them. The caller holds b.applying.
func (b *Backend) open() (w hostnet.Want, err error) {
	under, err := b.ways.Derive(b.state.Self, b.state.Nodes)
	if err != nil {
		return w, err
	}
	state := *b.state
	state.Self = under.Self(state.Self) // with the endpoints in use
	s := &state
	path, err := b.pathFor(s.Self, under)
	if err != nil {
		return w, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.engine != nil && !b.engine.path.equal(path) {
		b.log.Info("path changed, reopening", zap.Stringers("local", path.Local), zap.Int("mtu", path.InnerMTU))
		b.closeEngine()
	}
	if b.engine == nil {
		if err := b.host.Clear(device); err != nil {
			return w, err
		}
		b.reply.SetSource(hostAddrs(s.Self))
		e, err := start(b.kind, path, b.route, b.seal, b.set.Fault, b.reply.Offer, b.failed)
		if err != nil {
			return w, err
		}
		b.engine = e
		for _, o := range b.observers {
			e.attach(o)
		}
		b.log.Info("path open", zap.String("device", path.Device), zap.Stringers("local", path.Local),
			zap.Uint16("port", path.Port), zap.Uint32("vni", path.VNI), zap.Int("mtu", path.InnerMTU),
			zap.Int("queues", path.Queues), zap.Any("features", features(e)))
	}
	b.path, b.under = path, under.Devices
	b.built = b.build(s, path, under)
	b.route.Publish(b.built.table)
	if b.seal != nil {
		if err := b.seal.Update(s.Self, b.built.peers); err != nil {
			return w, err
		}
	}
	return b.want(s, path, under), nil
}

// pathFor derives the fixed part of the path from what the source granted this node, and from how it reaches the others.
func (b *Backend) pathFor(self control.Node, under *egress.Underlay) (Path, error) {
	p := Path{Device: device, Local: under.Local, Underlay: under.Device, UnderlayMTU: under.MTU, Port: b.set.Port, VNI: b.set.VNI,
		MAC: self.VTEP(), Queues: b.set.Queues}
	overhead := b.kind.Overhead
	if seal := b.set.Seal; seal != nil {
		p.Port, p.Sealed = seal.Port, true
		overhead += b.seal.Overhead()
		if len(seal.PermitPlain) > 0 {
			p.PlainPort = b.set.Port
		}
	}
	p.InnerMTU = packet.InnerMTU(p.UnderlayMTU, under.V6(), overhead)
	return p, under.Fits(p.InnerMTU, b.set.Network)
}

// want says what the kernel must hold for this path.
func (b *Backend) want(s *control.State, path Path, under *egress.Underlay) hostnet.Want {
	w := hostnet.Want{
		Network: b.set.Network,
		Sysctls: hostnet.Forwarding(b.set.Network),
		Links:   []hostnet.Link{{Name: device, MTU: path.InnerMTU}},
		Watch:   under.Devices,
	}
	ethernet := b.kind.Inner == packet.Ethernet
	if ethernet {
		w.Links[0].MAC, w.Links[0].Quiet = path.MAC, true
		w.Addrs = append(w.Addrs, hostnet.Addr{Dev: device, Prefix: netip.PrefixFrom(linkLocal(path.MAC), 64)})
	}
	own := hostAddrs(s.Self)
	for _, a := range own {
		w.Addrs = append(w.Addrs, hostnet.Addr{Dev: device, Prefix: ipnet.Host(a)})
	}
	w.Routes = make([]hostnet.Route, 0, 2*len(s.Nodes))
	for _, n := range s.Nodes {
		at, ok := control.Endpoint(s.Self, n)
		if !ok {
			continue
		}
		for _, p := range n.Prefixes {
			r := hostnet.Route{Dst: p, Dev: device}
			if mtu := path.towards(at, under); mtu < path.InnerMTU {
				r.MTU = uint32(mtu)
			}
			if ethernet {
				r.Via = control.HostAddr(p) // which the peer itself holds: it answers ARP and neighbour discovery
			}
			for _, a := range own {
				if a.Is4() == p.Addr().Is4() {
					r.Src = a
					break
				}
			}
			w.Routes = append(w.Routes, r)
		}
	}
	return w
}

// linkLocal returns the IPv6 link-local address that follows from a MAC (RFC 4291 appendix A). Neighbour discovery on an
// Ethernet device starts from one. Ours is added ready for use: the kernel's own would be checked for duplicates for a
// second first, and until then no neighbour would be asked for.
func linkLocal(mac control.MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 0x02, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

func hostAddrs(self control.Node) (own []netip.Addr) {
	for _, p := range self.Prefixes {
		own = append(own, control.HostAddr(p))
	}
	return own
}

// InnerMTU implements backend.Backend.
func (b *Backend) InnerMTU() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.path.InnerMTU
}

// Status reports the path, its peers and their traffic.
func (b *Backend) Status() backend.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := backend.Status{Ready: b.ready && b.err == nil, Underlay: b.under, UnderlayMTU: b.path.UnderlayMTU, InnerMTU: b.path.InnerMTU,
		Repairs: b.host.Repairs(), Hops: slices.Clone(b.built.hops)}
	switch {
	case b.err != nil:
		s.Reason = b.err.Error()
	case b.state == nil:
		s.Reason = "no state from the control plane yet"
	case b.engine == nil:
		s.Reason = "the path is being reopened"
	case !b.ready:
		s.Reason = "the path is being put in force"
	}
	_, tx, rx, kernel := b.past.total(b.engine)
	s.KernelDrops = kernel
	if b.engine != nil {
		s.Devices = []string{device}
		s.Features = features(b.engine)
		s.Rings = rings(b.engine)
	}
	sessions := map[uint32]backend.Session{}
	if b.seal != nil {
		sessions = b.seal.Sessions()
		s.Rejected, s.CookiesSent = b.seal.Strangers()
	}
	for i := range s.Hops {
		h := &s.Hops[i]
		if session, ok := sessions[b.ids[h.Node]]; ok {
			h.Session = &session
		}
		if id := int(b.ids[h.Node]); id < len(tx) {
			h.TxPackets, h.TxBytes = tx[id].Packets, tx[id].Bytes
		}
		if id := int(b.ids[h.Node]); id < len(rx) {
			h.RxPackets, h.RxBytes = rx[id].Packets, rx[id].Bytes
		}
	}
	return s
}

// Lanes returns the backend itself.
func (b *Backend) Lanes() backend.Lanes { return b }

// LaneStats implements backend.Lanes.
func (b *Backend) LaneStats() []dataplane.LaneStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	lanes, _, _, _ := b.past.total(b.engine)
	slices.SortFunc(lanes, func(a, c dataplane.LaneStats) int { return strings.Compare(a.Name, c.Name) })
	return lanes
}

// Observe implements backend.Lanes. Lanes call o at the same time: it tells them apart by Point.Lane.
func (b *Backend) Observe(o dataplane.Observer) (stop func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.observers = append(b.observers, o)
	if b.engine != nil {
		b.engine.attach(o)
	}
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.observers = slices.DeleteFunc(b.observers, func(x dataplane.Observer) bool { return x == o })
		if b.engine != nil {
			b.engine.detach(o)
		}
	}
}

// Decide implements backend.Lanes.
func (b *Backend) Decide(d dataplane.Direction, ip []byte, peer string, from netip.AddrPort) (hop *packet.Hop, drop packet.Drop, ok bool) {
	b.mu.Lock()
	id, known := b.ids[peer]
	running, sealed := b.engine != nil, b.path.Sealed
	b.mu.Unlock()
	if !running || b.kind.Inner == packet.Ethernet {
		return nil, packet.Alive, false
	}
	batch := packet.NewBatch(1, len(ip))
	batch.SetLen(1)
	p := &batch.Packets()[0]
	p.Resize(copy(p.Reset(), ip))
	if d == dataplane.Out {
		b.route.Out(batch)
		return p.Hop, p.Drop, true
	}
	if p.From = from; sealed && known {
		p.Hop = &packet.Hop{Peer: packet.Peer{ID: id}} // as the seal would prove
	}
	b.route.In(batch)
	return p.Hop, p.Drop, true
}

// Tunnel implements backend.Lanes.
func (b *Backend) Tunnel() backend.Tunnel {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := backend.Tunnel{Local: b.path.Local, Port: b.path.Port, PlainPort: b.path.PlainPort, Ethernet: b.kind.Inner == packet.Ethernet,
		Inside: device, Outside: "underlay"}
	if b.engine != nil {
		t.Inside, t.Outside = b.engine.inside.Name(), b.engine.outside.Name()
	}
	return t
}

// Close closes the ports. The unreachable routes stay, on purpose.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closeEngine()
	b.reply.Close()
	return nil
}
