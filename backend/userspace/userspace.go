// Package userspace carries traffic through this process: ports at both sides, stages and lanes
// between them, and the kernel's routes into the inside device. planner says what is needed, carry makes this
// process's part of it, and backend.Frame keeps both in force. What the ports and stages are is
// the Kind's affair; package catalog has the list.
package userspace

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"weft/backend"
	"weft/dataplane"
	"weft/hostnet/egress"
	"weft/internal/wait"
	"weft/packet"
)

// device is the inside interface. One daemon per network namespace: a second finds it taken.
const device = "weft0"

// Backend carries packets in user space. It implements backend.Backend.
type Backend struct {
	*backend.Frame
	plan  *planner
	kind  Kind
	set   backend.Settings
	log   *zap.Logger
	route forwarder
	reply *rejecter
	ear   *egress.ICMPListener // nil only while New fails
	seal  Sealer               // nil where nothing is sealed

	failed chan failure // engines report here when a lane dies

	mu     sync.Mutex
	engine *engine // nil while there is no path
	past   ledger  // what closed engines counted

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
		reply, err := newRejecter()
		if err != nil {
			return nil, err
		}
		b := &Backend{plan: &planner{kind: kind, set: s, ids: map[string]uint32{}}, kind: kind, set: s, log: s.Log,
			route: newForwarder(kind.Inner), reply: reply, failed: make(chan failure, 1)}
		if b.Frame, err = backend.NewFrame(s, b.plan, b.carry); err != nil { // before anything can be sent
			return nil, errors.Join(err, b.Close())
		}
		ports := []uint16{s.Port}
		if s.Seal != nil {
			ports = append(ports, s.Seal.Port)
		}
		// Where packets leave, routers' words of them come in.
		if err = s.Outside.Do(func() (err error) { b.ear, err = egress.Listen(ports...); return err }); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.Hear(b.ear)
		if b.seal, err = newSealer(kind, s); err != nil {
			return nil, errors.Join(err, b.Close())
		}
		if b.seal != nil {
			b.plan.seal, b.plan.key = b.seal.Overhead(), b.seal.PublicKey()
		}
		if s.Fault != nil {
			forward := packet.Stage(b.route)
			if err := slow(&forward, wrap(kind, Path{}, b.seal, 0), s.Fault); err != nil {
				return nil, errors.Join(err, b.Close())
			}
			s.Log.Warn("a stage is slow on purpose", zap.String("stage", s.Fault.Stage), zap.Duration("per packet", s.Fault.PerPacket))
		}
		return b, nil
	}
}

// Run watches the lanes and follows the underlay until ctx ends. A path whose lane died, because a device was deleted, say, is
// closed, and opened anew by the next Apply. Kernel objects that others remove or change, the Host puts back.
func (b *Backend) Run(ctx context.Context, look func(broken error)) error {
	changed := b.set.Host.Changed(backend.Owner)
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
		case <-b.ear.News():
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
	b.Broke(err)
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
	b.engine = nil
}

// carry makes ports, lanes and table follow the last plan.
func (b *Backend) carry() (anew bool, err error) {
	now := b.plan.last()
	path := now.path
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.engine != nil && !b.engine.path.equal(path) {
		b.log.Info("path changed, reopening", zap.Stringers("local", path.Local), zap.Int("mtu", path.InnerMTU))
		b.closeEngine()
	}
	if b.engine == nil {
		anew = true
		if err := b.set.Host.Clear(device); err != nil {
			return anew, err
		}
		b.reply.SetSource(hostAddrs(now.self))
		e, err := start(b.kind, path, b.route, b.seal, b.set.Fault, b.reply.Offer, b.failed)
		if err != nil {
			return anew, err
		}
		b.engine = e
		for _, o := range b.observers {
			e.attach(o)
		}
		b.log.Info("path open", zap.String("device", path.Device), zap.Stringers("local", path.Local),
			zap.Uint16("port", path.Port), zap.Uint32("vni", path.VNI), zap.Int("mtu", path.InnerMTU),
			zap.Int("queues", path.Queues), zap.Any("features", features(e)))
	}
	now.learn()
	b.route.Publish(now.table)
	if b.seal != nil {
		err = b.seal.Update(now.self, now.peers)
	}
	return anew, err
}

// Status adds this process's part: the path that is open, its traffic and its sessions.
func (b *Backend) Status() backend.Status {
	s := b.Frame.Status()
	b.mu.Lock()
	defer b.mu.Unlock()
	_, tx, rx, kernel := b.past.total(b.engine)
	s.KernelDrops = kernel
	if b.engine == nil {
		s.Ready, s.Reason = false, cmp.Or(s.Reason, "the path is being reopened")
		s.Devices = slices.DeleteFunc(s.Devices, func(name string) bool { return name == device })
	} else {
		s.Features = maps.Clone(s.Features) // the plan's
		maps.Copy(s.Features, features(b.engine))
		s.Rings = rings(b.engine)
	}
	sessions := map[uint32]backend.Session{}
	if b.seal != nil {
		sessions = b.seal.Sessions()
		s.Rejected, s.CookiesSent = b.seal.Unassigned()
	}
	for i := range s.Hops {
		h := &s.Hops[i]
		id, known := b.plan.id(h.Node)
		if !known { // it was always reached by another way
			continue
		}
		if session, ok := sessions[id]; ok {
			h.Session = &session
		}
		if int(id) < len(tx) {
			h.TxPackets, h.TxBytes = tx[id].Packets, tx[id].Bytes
		}
		if int(id) < len(rx) {
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
	id, known := b.plan.id(peer)
	sealed := b.set.Seal != nil
	b.mu.Lock()
	running := b.engine != nil
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
	path := b.plan.last().path
	b.mu.Lock()
	defer b.mu.Unlock()
	t := backend.Tunnel{Local: path.Local, Port: path.Port, PlainPort: path.PlainPort, Ethernet: b.kind.Inner == packet.Ethernet,
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
	if b.ear != nil {
		b.ear.Close()
	}
	return nil
}
