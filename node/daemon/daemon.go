// Package daemon is the node's daemon: it joins a control source to a backend, answers on the API,
// and does nothing else. What the parts are is decided by the caller.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"weft/api"
	"weft/backend"
	"weft/control"
	"weft/hostnet"
	"weft/hostnet/egress"
	"weft/internal/config"
	"weft/internal/txloss"
	"weft/node/metrics"
	"weft/node/pods"
	"weft/node/policies"
	"weft/node/probe"
	"weft/node/systemd"
	"weft/policy"
	"weft/reach/bgp"
)

// ErrConfiguration marks errors that a person has to mend in a file.
var ErrConfiguration = errors.New("configuration")

// Parts are what a daemon is put together from.
type Parts struct {
	Backend func(backend.Settings) (backend.Backend, error)
	Source  func(*config.Config, *zap.Logger) control.Source
	// Policies is where network policies come from.
	Policies func(*config.Config, *zap.Logger) policy.Source
	// Servers are the addresses, HOST:PORT, of the control plane that the daemon asks; nil = there is none.
	Servers func(*config.Config) []string
	Version string

	// Reload asks, whenever a signal arrives, to look at the configuration again (Reread) and to put the newest state in
	// force again, whether it is or not; nil = never.
	Reload <-chan os.Signal
	Reread func() (*config.Config, error)
}

// Daemon is one running daemon.
type Daemon struct {
	cfg     *config.Config
	version string
	log     *zap.Logger
	backend backend.Backend
	source  control.Source
	host    *hostnet.Host
	sized   *egress.Measured // what full-size packets have shown of the paths to the peers
	probe   *probe.Probe     // nil = nobody finds out whether pods' packets are forwarded
	no6     error            // why this node goes on without IPv6; nil = it need not
	started time.Time
	shown   []config.Shown // the configuration at the start
	wake    chan struct{}  // holds a token while there is a State that Apply has not seen
	looks   chan struct{}  // holds a token while the backend asks for another Apply
	around  func() uint64  // a digest of what Apply depends on and does not make itself
	service service
	hearing []func(control.InForce) // whoever wants to know what becomes of the States, in this order

	announced control.Node // the last that the source was told; of the goroutine of applyAll
	heard     uint64       // Host.UnderlayNews when that was made
	unsure    error        // why it may lack something; nil = it does not
	carried   bool         // a State has been in force
	spared    spared       // likewise

	surroundings *surroundings // nil = nothing is spared

	losses   lossWatch
	policies *policies.Manager // nil where policies are off
	bgp      *bgp.Speaker      // nil where BGP is
	verdicts verdicts

	life     context.Context // ends with the daemon
	captures atomic.Int32    // under way

	mu     sync.Mutex
	state  *control.State    // the newest; nil before the first
	tried  *control.State    // that Apply saw last
	lost   []control.Problem // what Apply did not see of it, and why
	apply  api.Apply
	broken error // what the backend said has broken, since applyAll last asked
}

// Run is a daemon's life. It returns nil when ctx ended and everything was closed in order; what the
// kernel forwards by itself, and the guard that keeps traffic from leaving in clear, stays. cfg must
// have been through Detect.
func Run(ctx context.Context, cfg *config.Config, parts Parts, log *zap.Logger) error {
	if err := nodesFile(cfg); err != nil {
		return err
	}
	manager, err := systemd.New()
	if err != nil {
		return err
	}
	lock, err := Acquire(cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Release()
	for _, s := range lock.Squatters {
		log.Warn("a process that is not weft's has a name which keeps two daemons apart: see `ss -xlp`", zap.String("name", s.Name), zap.Int32("pid", s.PID), zap.Uint32("uid", s.UID))
	}
	socket, err := api.Listen(cfg.API.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	watched, err := listenMetrics(cfg)
	if err != nil {
		return err
	}
	if watched != nil {
		defer watched.Close()
	}
	owners := []string{backend.Owner, pods.Owner, probe.Owner}
	if cfg.Policy.Enabled {
		owners = append(owners, policies.Owner)
	}
	host, err := hostnet.New(log, owners...)
	if err != nil {
		return err
	}
	defer host.Close()
	if _, err := readAndRefuse(cfg, parts, host, zap.NewNop()); err != nil {
		return err
	}
	told := settings(cfg, log)
	told.Host, told.Measured = host, egress.NewMeasured()
	no6 := host.IPv6()
	if !without6(told.Network, no6) {
		no6 = nil
	} else {
		told.Network = onlyIPv4(told.Network)
	}
	outside := &surroundings{cfg: cfg, host: host}
	var speaker *bgp.Speaker
	if cfg.BGP.AS != 0 {
		if speaker, err = speak(cfg, host, told.Network, outside.reserved, log); err != nil {
			return err
		}
		told.Learnt = speaker.Learnt
	}
	b, err := parts.Backend(told)
	if err != nil {
		return fmt.Errorf("daemon: mode %s: %w", cfg.Mode.Name, err)
	}
	d := &Daemon{cfg: cfg, version: parts.Version, log: log, backend: b, host: host, surroundings: outside, bgp: speaker, sized: told.Measured, started: time.Now(), no6: no6,
		shown: cfg.Show(), wake: make(chan struct{}, 1), looks: make(chan struct{}, 1),
		around: func() uint64 { return host.Surroundings(backend.Owner) }}

	d.service = service{manager: manager, log: log, summary: d.summary}
	d.source = parts.Source(cfg, log)
	d.hearing = []func(control.InForce){d.tell, d.service.hear, d.handOver, d.source.Hear}
	if err := d.announce(); err != nil {
		log.Warn("no address of this node that others could reach", zap.Error(err))
	}

	var attached *pods.Manager
	var admit func(context.Context, string, string, []netip.Addr) error
	if cfg.Policy.Enabled {
		if err := checkPolicies(cfg); err != nil {
			return errors.Join(err, b.Close())
		}
		d.policies = policies.New(policies.Options{Source: parts.Policies(cfg, log), Name: cfg.Node.Name, Node: d.ownPrefixes, NoPods: probe.Addresses, Host: host, Log: log, Open: func() [2][]policy.Port { return open(cfg, b.Self().Ways, parts.Servers) },
			Tells: cfg.Policy.Source == config.PolicyKubernetes, Local: func() (list []policy.Attached) {
				attached.Each(func(namespace, name string, addresses []netip.Addr) {
					list = append(list, policy.Attached{Namespace: namespace, Name: name, Addresses: addresses})
				})
				return list
			}})
		admit = func(ctx context.Context, namespace, name string, addresses []netip.Addr) error {
			return d.policies.Admit(ctx, policy.Attached{Namespace: namespace, Name: name, Addresses: addresses})
		}
	}
	if attached, err = pods.New(pods.Options{StateDir: cfg.StateDir, Attach: cfg.CNI.Attach, Masquerade: cfg.CNI.Masquerade, SpoofCheck: cfg.CNI.SpoofCheck,
		Node: d.forPods, Admit: admit, Host: host, Log: log}); err != nil {
		return errors.Join(err, b.Close())
	}
	defer attached.Close()
	d.probe = probe.New(host, func() probe.Node {
		n := d.forPods()
		judged := probe.Node{Prefixes: n.Prefixes, MTU: n.MTU, Pods: attached.Count() > 0}
		if judged.Pods {
			judged.Peers = d.innerAddresses(n.Prefixes)
		}
		return judged
	}, log)
	if d.losses.watch, err = txloss.New(); err != nil {
		return errors.Join(err, b.Close())
	}
	defer d.losses.watch.Close()

	group, ctx := errgroup.WithContext(ctx)
	d.life = ctx
	group.Go(func() error { return api.Serve(ctx, socket, d, attached) })
	group.Go(func() error { return attached.Run(ctx) })
	if watched != nil {
		group.Go(func() error { return metrics.Serve(ctx, watched, d, attached) })
	}
	group.Go(func() error { return host.Run(ctx) })
	if d.policies != nil {
		group.Go(func() error { return d.policies.Run(ctx) })
		group.Go(func() error { return d.answerPods(ctx, attached) })
	}
	group.Go(func() error { return d.probe.Run(ctx) })
	if cfg.Node.ProbeMTU {
		group.Go(func() error { return d.measure(ctx) })
	}
	group.Go(func() error { return b.Run(ctx, d.lookAt) })
	if speaker != nil {
		group.Go(func() error { return speaker.Run(ctx, func() { d.lookAt(nil) }) })
	}
	group.Go(func() error { return d.follow(ctx) })
	group.Go(func() error { d.applyAll(ctx, parts); return nil })
	group.Go(func() error { d.report(ctx); return nil })
	err = errors.Join(group.Wait(), b.Close())
	if err == nil {
		log.Info("stopped", zap.String("node", cfg.Node.Name))
	}
	return err
}

// listenMetrics binds api.metrics; nil where there is to be none.
func listenMetrics(cfg *config.Config) (net.Listener, error) {
	if cfg.API.Metrics == "" {
		return nil, nil
	}
	return metrics.Listen(cfg.API.Metrics)
}

func settings(cfg *config.Config, log *zap.Logger) backend.Settings {
	s := backend.Settings{
		Mode: cfg.Mode.Name, Node: cfg.Node.Name, Network: cfg.Network.Prefixes, VNI: cfg.Network.VNI, Port: cfg.Network.Port,
		Interface: cfg.Node.Interface, UnderlayMTU: cfg.Node.MTU, Queues: cfg.Queues, Log: log,
	}
	if e := cfg.Encryption; e.Cipher != config.CipherNone {
		s.Seal = &backend.Seal{Cipher: e.Cipher, Port: e.Port, KeyFile: e.KeyFile, PSKFile: e.PSKFile, PermitPlain: e.PermitPlain, RekeyAfter: e.RekeyAfter}
	}
	return s
}

// follow runs the source. One that refuses before its first State was told something wrong.
func (d *Daemon) follow(ctx context.Context) error {
	err := d.source.Run(ctx, d.update)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil && ctx.Err() == nil:
		return errors.New("daemon: the control source ended by itself")
	case err != nil && d.state == nil:
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	case err != nil:
		return fmt.Errorf("daemon: control source: %w", err)
	}
	return nil
}

// self is what this node knows about itself. The error says why it has no endpoints.
func self(cfg *config.Config, host *hostnet.Host, of control.Node) (control.Node, error) {
	of.Name = cfg.Node.Name
	var err error
	of.Endpoints, err = host.Endpoints(cfg.Node.Interface)
	return of, err
}

// announce tells the source what this node is by now, where that is something else than before.
func (d *Daemon) announce() error {
	d.heard = d.host.UnderlayNews()
	now, err := self(d.cfg, d.host, d.backend.Self())
	d.unsure = err
	first := d.announced.Name == ""
	if err != nil && !first || now.Equal(d.announced) {
		return err // for the time being; what was said stays
	}
	if !first {
		d.log.Info("this node has something else to tell the others", zap.Stringers("endpoints", now.Endpoints))
	}
	d.announced = now
	d.source.Announce(now)
	return err
}

// announceAgain is announce, once something has happened to the underlay's devices, while what leads there is not known, or where the backend has found
// out that it can do something else than it said.
func (d *Daemon) announceAgain() {
	if d.host != nil && (d.unsure != nil || d.host.UnderlayNews() != d.heard || !slices.Equal(d.backend.Self().Features, d.announced.Features)) {
		_ = d.announce() // a device without an address is the backend's to tell of
	}
}

// update takes a State from the source. One of the same Revision is nothing for the backend to do.
func (d *Daemon) update(s control.State) {
	if d.no6 != nil {
		s = inIPv4(s, d.no6)
	}
	if d.bgp != nil { // first: what is put in force next asks it
		d.bgp.Update(&s)
	}
	d.mu.Lock()
	same := d.state != nil && d.state.Revision == s.Revision
	d.state = &s
	d.mu.Unlock()
	if d.policies != nil {
		d.policies.Look()
	}
	if same {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default: // applyAll will see this one too
	}
}

// Check reads all that a daemon would read and reports every mistake, without touching the machine.
func Check(cfg *config.Config, parts Parts, log *zap.Logger) error {
	h, err := hostnet.New(nil)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := errors.Join(checkPolicies(cfg), checkBGP(cfg)); err != nil {
		return err
	}
	state, err := readAndRefuse(cfg, parts, h, log)
	if err != nil || state == nil {
		return err
	}
	all, _, err := reserved(cfg, h, nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range state.Spare(cfg.Network.Prefixes, all).Problems {
		if p.Node == "" {
			errs = append(errs, fmt.Errorf("%w: %s", ErrConfiguration, p.Text))
		} else {
			errs = append(errs, fmt.Errorf("%w: node %s: %s", ErrConfiguration, p.Node, p.Text))
		}
	}
	return errors.Join(errs...)
}

// checkPolicies reads the file of policies, where that is what they come from.
func checkPolicies(cfg *config.Config) error {
	if !cfg.Policy.Enabled || cfg.Policy.Source != config.PolicyFile {
		return nil
	}
	if err := policies.Check(cfg.Policy.File); err != nil {
		return fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return nil
}

// nodesFile refuses a nodes file that was asked for and is not there: a node whose file is missing
// by accident must not take the whole network for its own.
func nodesFile(cfg *config.Config) error {
	if cfg.Control.Kind != "static" {
		return nil
	}
	file := cfg.Control.Static.File
	if _, err := os.Stat(file); cfg.Set("control.static.file") && errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: control.static.file: %s does not exist: write it, or remove the key for a node without peers",
			ErrConfiguration, file)
	}
	return nil
}

// read returns the cluster as its source tells it, nil where that takes joining it, and this node as it would announce itself.
func read(cfg *config.Config, parts Parts, h *hostnet.Host, log *zap.Logger) (*control.State, control.Node, error) {
	if err := nodesFile(cfg); err != nil {
		return nil, control.Node{}, err
	}
	me, _ := self(cfg, h, control.Node{}) // who reads looks at endpoints himself
	source := parts.Source(cfg, log)
	source.Announce(me)
	state, err := source.Read()
	switch {
	case errors.Is(err, control.ErrJoin):
		return nil, me, nil
	case err != nil:
		return nil, me, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	return &state, me, nil
}

// Cluster returns what is known of this node and the others without joining them: all where a file says it, else what this node
// would tell the source about itself.
func Cluster(cfg *config.Config, parts Parts, h *hostnet.Host) (me control.Node, nodes []control.Node, err error) {
	state, me, err := read(cfg, parts, h, zap.NewNop())
	if err != nil || state == nil {
		return me, nil, err
	}
	return state.Self, state.Nodes, nil
}

// DetectUnderlay finds the underlay's device and MTU as the backend would, for `config show`.
func DetectUnderlay(cfg *config.Config, parts Parts) error {
	h, err := hostnet.New(nil)
	if err != nil {
		return err
	}
	defer h.Close()
	me, nodes, err := Cluster(cfg, parts, h)
	if err != nil {
		return err
	}
	u, err := egress.NewFinder(h, egress.Choice{Interface: cfg.Node.Interface, MTU: cfg.Node.MTU}).Derive(me, nodes)
	if err == nil {
		cfg.DetectedUnderlay(u.Device, u.MTU, u.Why)
	}
	return err
}
