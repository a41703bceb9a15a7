package userspace

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"

	"weft/backend"
	"weft/control"
	"weft/dataplane"
	"weft/hostnet/egress"
	"weft/packet"
)

// Path is everything that stays fixed while the ports are open; a change of it reopens them.
type Path struct {
	Device      string       // the inside interface, "weft0"
	Local       []netip.Addr // our endpoints, at most one per address family
	Port        uint16       // UDP port to receive on: the tunnel's, or that of sealed traffic
	Sealed      bool         // outside ports keep apart what is not for the lanes (packet.Handshakes)
	PlainPort   uint16       // a second port, for peers that may still send plaintext; 0 = none
	VNI         uint32
	MAC         control.MAC // our VTEP MAC
	Queues      int
	Underlay    string         // the device by which packets leave
	UnderlayMTU int            // bytes, its
	InnerMTU    int            // bytes
	Network     []netip.Prefix // the overlay's; the same for as long as the backend is

	Outside *backend.Outside // where the outside port is; nil = where the inside one is
}

func (p Path) equal(o Path) bool {
	return slices.Equal(p.Local, o.Local) && p.Underlay == o.Underlay && p.Device == o.Device && p.Port == o.Port && p.Sealed == o.Sealed && p.PlainPort == o.PlainPort && p.VNI == o.VNI && p.MAC == o.MAC &&
		p.Queues == o.Queues && p.UnderlayMTU == o.UnderlayMTU && p.InnerMTU == o.InnerMTU
}

// towards is the largest inner packet to the peer at an endpoint: what pods and the kernel's routes are told.
func (p Path) towards(endpoint netip.Addr, under *egress.Underlay) int {
	return under.Inner(endpoint, p.InnerMTU, p.Network)
}

// carries is the largest inner packet that lanes send there. It is not narrowed by what others say of the path: the kernel's routes let no other packet by
// that is larger than towards, and one that is sent in spite of them finds out whether it is true.
func (p Path) carries(endpoint netip.Addr, under *egress.Underlay) int {
	return under.Certain(endpoint, p.InnerMTU)
}

// Kind is what distinguishes one userspace mode from another.
type Kind struct {
	// Overhead is what the stages add in front of the inner IP packet, bytes.
	Overhead int
	// Features is what nodes in this mode may announce (control.FeatureRCO, …).
	Features []string
	// Inner is what the inside port's packets start with. With packet.Ethernet peers are found by the MACs they were heard
	// from, and the kernel is told nothing but which node has which prefix.
	Inner packet.Layer
	// Open opens the two ports. The inside one is a device named Path.Device.
	Open func(Path) (inside, outside packet.Port, err error)
	// Stages makes what a lane puts around packets, innermost first.
	Stages func(Path) []packet.Stage
	// Seal makes what seals packets, behind all other stages; nil = the mode cannot.
	Seal func(backend.Settings) (Sealer, error)
}

// forwarder is the stage that knows where packets go: dataplane's Route, or its Bridge for frames.
type forwarder interface {
	packet.Stage
	Publish(*dataplane.Table)
}

func newForwarder(inner packet.Layer) forwarder {
	if inner == packet.Ethernet {
		return dataplane.NewBridge()
	}
	return dataplane.NewRoute()
}

// engine is a running path: two ports and the lanes between them.
type engine struct {
	path            Path
	inside, outside packet.Port
	lanes           []*dataplane.Lane
	done            sync.WaitGroup
	sealed          func() // waits for the sealer's end of the port; nil where nothing is sealed
}

// start opens the ports and starts one lane per queue and direction. The first lane that stops for
// another reason than stop is reported to failed.
func start(kind Kind, path Path, route forwarder, seal Sealer, fault *backend.Fault, tooBig func([]byte, *packet.Path), failed chan<- failure) (*engine, error) {
	inside, outside, err := kind.Open(path)
	if err != nil {
		return nil, err
	}
	e := &engine{path: path, inside: inside, outside: outside}
	ins, outs := inside.Queues(), outside.Queues()
	if len(ins) != len(outs) {
		inside.Close()
		outside.Close()
		return nil, fmt.Errorf("userspace: %s opened %d queues and %s %d: they must be equal, or packets "+
			"hashed to the surplus ones are lost: set queues: 1", inside.Name(), len(ins), outside.Name(), len(outs))
	}
	if seal != nil {
		port, ok := outside.(packet.Handshakes)
		if !ok || len(port.Handshakes()) == 0 {
			inside.Close()
			outside.Close()
			return nil, fmt.Errorf("userspace: %s cannot keep handshakes out of the lanes: sealed traffic needs that", outside.Name())
		}
		e.sealed = seal.Serve(port.Handshakes())
	}
	room := path.UnderlayMTU + 64
	for i := range ins {
		for _, d := range []dataplane.Direction{dataplane.Out, dataplane.In} {
			cfg := dataplane.LaneConfig{
				Name: fmt.Sprintf("%s/%d", d, i), Direction: d, Room: room,
				Inside:  dataplane.End{Port: inside.Name(), Queue: ins[i]},
				Forward: route,
				Ways:    []dataplane.Way{{Wrap: wrap(kind, path, seal, i), Outside: dataplane.End{Port: outside.Name(), Queue: outs[i]}}},
			}
			if fault != nil {
				_ = slow(&cfg.Forward, cfg.Ways[0].Wrap, fault) // New has tried
			}
			if d == dataplane.Out {
				cfg.TooBig = tooBig
			}
			if bridge, ok := route.(*dataplane.Bridge); ok {
				cfg.Link, cfg.Flood = packet.EthernetHeader, bridge.Peers
			}
			e.lanes = append(e.lanes, dataplane.NewLane(cfg))
		}
	}
	// A lane holds its P through short system calls. With fewer Ps than lanes, one lane would wait
	// for another's whole turn however many cores are free: on one core the kernel shares it fairly,
	// the Go scheduler only every 10 ms. One more serves everything else.
	if want := len(e.lanes) + 1; runtime.GOMAXPROCS(0) < want {
		runtime.GOMAXPROCS(want)
	}
	for _, l := range e.lanes {
		e.done.Add(1)
		go func() {
			defer e.done.Done()
			if err := l.Run(); !errors.Is(err, net.ErrClosed) {
				select {
				case failed <- failure{e, err}:
				default:
				}
			}
		}()
	}
	return e, nil
}

// wrap makes what lane i puts around packets, innermost first.
func wrap(kind Kind, path Path, seal Sealer, i int) []packet.Stage {
	all := kind.Stages(path)
	if seal != nil {
		all = append(all, seal.Stage(i))
	}
	return all
}

// slow gives one of a lane's stages a fault.
func slow(forward *packet.Stage, wrap []packet.Stage, fault *backend.Fault) error {
	all := []*packet.Stage{forward}
	for i := range wrap {
		all = append(all, &wrap[i])
	}
	names := make([]string, len(all))
	for i, s := range all {
		if names[i] = (*s).Name(); names[i] == fault.Stage {
			*s = dataplane.Slow(*s, fault.PerPacket)
			return nil
		}
	}
	return fmt.Errorf("userspace: no stage %q for a fault: there are %s", fault.Stage, strings.Join(names, ", "))
}

// attach and detach show all lanes to an observer.
func (e *engine) attach(o dataplane.Observer) {
	for _, l := range e.lanes {
		l.Attach(o)
	}
}

func (e *engine) detach(o dataplane.Observer) {
	for _, l := range e.lanes {
		l.Detach(o)
	}
}

// stop closes the ports and waits for the lanes.
func (e *engine) stop() error {
	err := errors.Join(e.inside.Close(), e.outside.Close())
	e.done.Wait()
	if e.sealed != nil {
		e.sealed()
	}
	return err
}

// stats returns the lanes' snapshots and per-peer traffic by direction.
func (e *engine) stats() (lanes []dataplane.LaneStats, tx, rx []dataplane.PeerStats) {
	for _, l := range e.lanes {
		s := l.Stats()
		lanes = append(lanes, s)
		if s.Direction == dataplane.Out {
			tx = addPeers(tx, l.Peers())
		} else {
			rx = addPeers(rx, l.Peers())
		}
	}
	return lanes, tx, rx
}

func addPeers(sum, p []dataplane.PeerStats) []dataplane.PeerStats {
	if len(p) > len(sum) {
		sum = append(sum, make([]dataplane.PeerStats, len(p)-len(sum))...)
	}
	for i := range p {
		sum[i].Packets += p[i].Packets
		sum[i].Bytes += p[i].Bytes
	}
	return sum
}
