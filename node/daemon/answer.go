package daemon

import (
	"cmp"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"weft/api"
	"weft/backend"
	"weft/backend/status"
	"weft/catalog/mode"
	"weft/control"
	"weft/internal/config"
	"weft/internal/txloss"
	"weft/node/pods"
)

// What the API asks. Each answer is made of one look at the State and one at the backend.
var (
	_ api.Daemon = (*Daemon)(nil)
	_ api.Flower = (*Daemon)(nil)
)

func (d *Daemon) look() (*control.State, api.Apply) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state, d.apply
}

// Status says how the daemon is, and what the kernel tells of packets that it lost behind the path.
func (d *Daemon) Status() api.Status {
	s := d.status()
	maps.Copy(s.KernelDrops, d.losses.since(s.Underlay, d.log))
	// Pods are attached nevertheless: what stops their packets may be mended, and some of them may pass.
	if stopped := d.probe.Verdict().Stopped(); s.Ready && stopped != "" {
		s.Ready, s.Reason = false, stopped
	}
	return s
}

// leftOut is what of the newest State is not in force on this node, and why.
func (d *Daemon) leftOut() []control.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

// lossWatch is what asks the kernel for packets that it lost.
type lossWatch struct {
	sync.Mutex
	watch *txloss.Watch
	wrong string // why it could not be asked the last time
}

// since returns what was lost since the daemon began, by name.
func (l *lossWatch) since(devices []string, log *zap.Logger) map[string]uint64 {
	l.Lock()
	defer l.Unlock()
	lost, err := l.watch.Since(devices)
	wrong := ""
	if err != nil {
		wrong = err.Error()
	}
	if wrong != l.wrong && err != nil {
		log.Warn("the kernel does not tell which packets it lost", zap.Error(err))
	}
	l.wrong = wrong
	return lost
}

// status says how the daemon is as far as the daemon itself knows.
func (d *Daemon) status() api.Status {
	state, apply := d.look()
	b := d.backend.Status()
	s := api.Status{
		Version: d.version, PID: os.Getpid(), Started: d.started, Now: time.Now(),
		Node: d.cfg.Node.Name, Mode: d.cfg.Mode.Name, Modes: mode.Names(d.cfg.Modes), Network: d.cfg.Network.Prefixes, VNI: d.cfg.Network.VNI, Port: d.cfg.Network.Port,
		Ready: b.Ready && state != nil, Reason: cmp.Or(sentence(b.Reason), apply.Error),
		Underlay: full(b.Underlay), UnderlayMTU: b.UnderlayMTU, InnerMTU: b.InnerMTU, Devices: full(b.Devices),
		Features: b.Features, KernelDrops: b.KernelDrops, Repairs: b.Repairs,
		Cipher: d.cfg.Encryption.Cipher, Rejected: b.Rejected, CookiesSent: b.CookiesSent,
		Control: api.Control{Kind: d.cfg.Control.Kind}, Apply: apply,
		Endpoints: []netip.Addr{}, Prefixes: []netip.Prefix{}, Problems: []api.Problem{}, Obstacles: []string{}, PeersByWay: map[string]int{},
	}
	for _, h := range b.Hops {
		if h.Way != "" { // else it is about to be known
			s.PeersByWay[h.Way]++
		}
	}
	if n := len(b.Unreached); n > 0 {
		s.PeersByWay["none"] = n
	}
	if b := settings(d.cfg, nil); b.Seal != nil {
		s.Port = b.Seal.Port
	}
	s.Rings = b.Rings
	if s.Features == nil {
		s.Features = map[string]string{}
	}
	s.KernelDrops = maps.Clone(s.KernelDrops)
	if s.KernelDrops == nil {
		s.KernelDrops = map[string]uint64{}
	}
	if s.Ready {
		s.Reason = "" // what failed was mended since by the backend itself
	}
	if state == nil {
		s.Reason = "the control source has not spoken yet"
		return s
	}
	if len(state.Self.Prefixes) == 0 {
		s.Ready, s.Reason = false, "this node holds no prefix: see the problems"
	}
	s.Endpoints, s.Prefixes = full(state.Self.Endpoints), full(state.Self.Prefixes)
	s.Control.Nodes, s.Control.AsOf = len(state.Nodes)+1, state.AsOf
	if d.policies != nil {
		for _, p := range slices.Concat(d.policies.Problems(), d.verdicts.problems()) {
			s.Problems = append(s.Problems, api.Problem{Text: "network policy: " + sentence(p)})
		}
	}
	for _, p := range slices.Concat(state.Problems, d.leftOut(), b.Problems) {
		s.Problems = append(s.Problems, api.Problem{Node: p.Node, Text: sentence(p.Text)})
	}
	if d.host != nil {
		for _, o := range d.host.Obstacles() {
			s.Obstacles = append(s.Obstacles, o.String())
		}
	}
	forwarded := d.probe.Verdict()
	for _, stopped := range []string{forwarded.Within, forwarded.Across} {
		if stopped != "" {
			s.Obstacles = append(s.Obstacles, stopped)
		}
	}
	if forwarded.Unclear != "" {
		s.Problems = append(s.Problems, api.Problem{Text: forwarded.Unclear})
	}
	return s
}

// ownPrefixes are those of this node, and whether they are known.
func (d *Daemon) ownPrefixes() (prefixes []netip.Prefix, known bool) {
	state, _ := d.look()
	if state == nil {
		return nil, false
	}
	return state.Self.Prefixes, len(state.Self.Prefixes) > 0
}

// forPods is what attaching pods needs to know.
func (d *Daemon) forPods() pods.Node {
	s := d.status()
	if d.policies != nil && s.Ready {
		if err := d.policies.Ready(); err != nil {
			s.Ready, s.Reason = false, err.Error()
		}
	}
	return pods.Node{Prefixes: s.Prefixes, Network: s.Network, MTU: s.InnerMTU, Ports: overlayPorts(d.cfg), Ready: s.Ready, Reason: s.Reason}
}

// overlayPorts are the UDP ports by which nodes talk.
func overlayPorts(cfg *config.Config) (ports []uint16) {
	for _, m := range cfg.Modes {
		if m.Port != 0 {
			ports = append(ports, m.Port)
		}
	}
	if cfg.Encryption.Cipher != config.CipherNone && cfg.Encryption.Port != cfg.Network.Port {
		ports = append(ports, cfg.Encryption.Port)
	}
	return ports
}

// Nodes lists the cluster, sorted by name.
func (d *Daemon) Nodes() []api.Node {
	state, _ := d.look()
	if state == nil {
		return nil
	}
	nodes := []api.Node{node(state.Self, true)}
	for _, n := range state.Nodes {
		nodes = append(nodes, node(n, false))
	}
	slices.SortFunc(nodes, func(a, b api.Node) int { return cmp.Compare(a.Name, b.Name) })
	return nodes
}

func node(n control.Node, self bool) api.Node {
	ways := []string{}
	for _, w := range n.Ways {
		ways = append(ways, w.String())
	}
	return api.Node{Name: n.Name, Self: self, Endpoints: full(n.Endpoints), Prefixes: full(n.Prefixes),
		MAC: n.VTEP().String(), Features: full(n.Features), Ways: ways}
}

// Choice says how a peer is reached, and what else there is.
func (d *Daemon) Choice(node string) (api.Choice, bool) { return d.backend.Choice(node) }

// Peers lists how the other nodes are reached, sorted by name; also those that are not, if that is because of their ways.
func (d *Daemon) Peers() []api.Peer {
	s := d.backend.Status()
	peers := s.Hops
	if len(s.Unreached) > 0 {
		peers = append(peers, s.Unreached...)
		slices.SortFunc(peers, func(a, b api.Peer) int { return cmp.Compare(a.Node, b.Node) })
	}
	for i := range peers {
		peers[i].Prefixes = full(peers[i].Prefixes)
	}
	return peers
}

// Routes lists the overlay's prefixes, sorted.
func (d *Daemon) Routes() []api.Route {
	d.mu.Lock()
	state := cmp.Or(d.tried, d.state)
	d.mu.Unlock()
	if state == nil {
		return nil
	}
	status := d.backend.Status()
	hops := map[string]backend.Hop{}
	for _, h := range status.Hops {
		hops[h.Node] = h
	}
	var routes []api.Route
	for _, p := range state.Self.Prefixes {
		routes = append(routes, api.Route{Prefix: p, Node: state.Self.Name, Self: true, MTU: status.InnerMTU})
	}
	for _, n := range state.Nodes {
		for _, p := range n.Prefixes {
			h := hops[n.Name] // none where the peer cannot be reached: no endpoint, MTU 0
			routes = append(routes, api.Route{Prefix: p, Node: n.Name, Endpoint: h.Endpoint, MTU: h.MTU})
		}
	}
	slices.SortFunc(routes, func(a, b api.Route) int { return a.Prefix.Compare(b.Prefix) })
	return routes
}

// Flows lists the pods' flows that are cached, or not and why; none in modes without a cache.
func (d *Daemon) Flows() []api.Flow {
	if b, ok := d.backend.(interface{ Flows() []status.Flow }); ok {
		return b.Flows()
	}
	return nil
}

// Lanes lists what the lanes have done; none where the kernel forwards.
func (d *Daemon) Lanes() []api.Lane {
	b := d.backend.Lanes()
	if b == nil {
		return nil
	}
	var lanes []api.Lane
	for _, l := range b.LaneStats() {
		lane := api.Lane{Name: l.Name, Turns: l.Turns, Received: l.Received, Copied: l.Copied, Sent: l.Sent,
			Waited: l.Waited.Nanoseconds(), Age: l.Age.Nanoseconds(), Stages: []api.Stage{}}
		for _, s := range l.Stages {
			lane.Stages = append(lane.Stages, api.Stage{Name: s.Name, Calls: s.Calls, Packets: s.Packets,
				Timed: s.Timed, Nanos: s.Nanos, Drops: s.Drops.Map()})
		}
		lanes = append(lanes, lane)
	}
	return lanes
}

// full returns l, never nil: in JSON a list is a list.
func full[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
