package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"go.uber.org/zap"

	"weft/control"
	"weft/internal/secretfile"
	"weft/reach"
)

const (
	// coalesce is how long more news is waited for before what was learnt is made anew: peers tell of many prefixes one after the other. It doubles
	// up to mostCoalesce while news keeps coming, so that a peer that never stops costs no processor.
	coalesce, mostCoalesce = 50 * time.Millisecond, time.Second
	// lookAgain is between two looks at what no news tells: counters, and whether next hops are on the link.
	lookAgain = 5 * time.Second
	// unsettled is how often is looked while not all has been told.
	unsettled = time.Second
	// restartTime is how long peers keep this node's prefixes while its daemon restarts, and this node theirs, whatever they ask for.
	restartTime = 120 * time.Second
	// staleTime is how long a peer that is back may take to tell of all again, before what it told of earlier no longer counts.
	staleTime = 60 * time.Second
	// Hold times in seconds: routers are told apart from dead ones soon, nodes have other means.
	holdRouter, holdNode = 9, 30
	// bfdInterval is between BFD's packets, which are sent and wanted alike: a router that is not heard for bfdMultiplier of them is gone. The peer says by its own
	// multiplier how many of its packets may be lost.
	bfdInterval   = 200 * time.Millisecond
	bfdMultiplier = 3
	// bfdPatience is how long BFD may take to come up behind its session.
	bfdPatience = 10 * time.Second
	// maxPassword is the longest key of TCP MD5 (RFC 2385, TCP_MD5SIG_MAXKEYLEN).
	maxPassword = 80
)

// waits is how long peers are waited for after a start. Until then what was known before counts as learnt.
type waits struct {
	peer     time.Duration // for a session with a peer, and then once more for the peer to tell of all
	all      time.Duration // for all peers together, however they come and go
	deferral time.Duration // for this node to tell the others of its prefixes (RFC 4724's Selection_Deferral_Timer), from each session's start: less than peer, for they wait for it
	mute     time.Duration // for a peer that does not say when it has told of all, once it is up
}

var usual = waits{peer: 20 * time.Second, all: 45 * time.Second, deferral: 10 * time.Second, mute: 2 * time.Second}

// Speaker speaks BGP. There is one in a process: the library has settings of the process's.
type Speaker struct {
	o   Options
	log *zap.Logger

	states chan *control.State // the newest, where it has not been seen yet
	news   chan struct{}       // holds a token while what was learnt may be something else
	drains chan struct{}       // holds a token while drained may be something else
	faults faults

	// Of Run's goroutine alone.
	settled   bool      // what was known before no longer counts
	until     time.Time // when it is settled at the latest; zero = nothing was started yet
	restarted bool      // peers may have prefixes of this node's from before

	mu       sync.Mutex
	learnt   *reach.Learnt
	known    bool                          // there was a State
	revision uint64                        // of the last State
	drained  bool                          // this node tells of nothing
	held     map[netip.Prefix][]netip.Addr // what was known before, while it counts
}

// Passwords reads the files that a configuration names.
func Passwords(files []string) (map[string]string, error) {
	read := map[string]string{"": ""}
	var errs []error
	for _, f := range files {
		data, err := secretfile.Read(f, 4096)
		text := strings.TrimRight(string(data), "\r\n")
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("bgp: password_file: %w", err))
		case text == "" || len(text) > maxPassword:
			errs = append(errs, fmt.Errorf("bgp: password_file: %s has %d bytes: write 1 to %d, all that TCP MD5 (RFC 2385) takes", f, len(text), maxPassword))
		}
		read[f] = text
	}
	return read, errors.Join(errs...)
}

// New makes a Speaker that speaks to nobody yet.
func New(o Options) *Speaker {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.port == 0 {
		o.port = Port
	}
	if o.waits == (waits{}) {
		o.waits = usual
	}
	return &Speaker{o: o, restarted: len(o.Held) > 0, held: o.Held, log: o.Log, states: make(chan *control.State, 1), news: make(chan struct{}, 1), drains: make(chan struct{}, 1), learnt: &reach.Learnt{}}
}

// Update says who is in the cluster. It returns at once. From the first on Learnt has what the kernel had, so that nobody takes that away who asks
// before anything was learnt.
func (s *Speaker) Update(state *control.State) {
	s.mu.Lock()
	same := state.Revision != 0 && state.Revision == s.revision
	if !s.known {
		s.learnt = &reach.Learnt{Routes: newWorld(&s.o, state, nil).held(s.held, nil)}
	}
	s.known, s.revision = true, state.Revision
	s.mu.Unlock()
	if same {
		return
	}
	for {
		select {
		case s.states <- state:
			return
		case <-s.states: // one that nobody has looked at, and nobody needs to
		}
	}
}

// Learnt returns what is known. It is never nil.
func (s *Speaker) Learnt() *reach.Learnt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.learnt
}

// Drain has this node tell of none of its prefixes, or of them again. Sessions stay, and what was learnt.
func (s *Speaker) Drain(on bool) {
	s.mu.Lock()
	s.drained = on
	s.mu.Unlock()
	select {
	case s.drains <- struct{}{}:
	default:
	}
}

func (s *Speaker) isDrained() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drained
}

func (s *Speaker) poke() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// run is one life of the library's server.
type run struct {
	*Speaker
	server    *server.BgpServer
	stop      context.CancelFunc
	routerID  netip.Addr
	listen    []netip.Addr
	passwords map[string]string

	sessions map[netip.Addr]session
	problems []control.Problem
	told     []netip.Prefix // that this node originates
	drained  bool           // it originates none
	restarts bool           // peers that are added are told that this node has restarted
	began    time.Time

	mu    sync.Mutex
	lives map[netip.Addr]*life // of the sessions
}

// Run speaks until ctx ends, and calls changed whenever Learnt is something else. Peers keep this node's prefixes for a while when it returns.
func (s *Speaker) Run(ctx context.Context, changed func()) error {
	passwords, err := Passwords(s.o.Config.PasswordFiles())
	if err != nil {
		return err
	}
	var r *run
	var state *control.State
	defer func() {
		if r != nil {
			r.close()
		}
	}()
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	var due <-chan time.Time
	var again <-chan time.Time // the server is tried again
	var last time.Time         // what was learnt was made anew
	wait := coalesce
	for {
		select {
		case <-ctx.Done():
			return nil
		case state = <-s.states:
		case <-s.drains:
			if state == nil {
				continue
			}
		case <-again:
		case <-s.news:
			if due == nil {
				if wait = min(2*wait, mostCoalesce); time.Since(last) > wait {
					wait = coalesce
				}
				due = time.After(wait)
			}
			continue
		case <-look.C:
			s.poke()
			continue
		case <-due:
			due = nil
			if r == nil || state == nil {
				continue
			}
			if s.learn(r, state) {
				changed()
			}
			if last = time.Now(); s.settled {
				look.Reset(lookAgain)
			} else {
				look.Reset(unsettled)
			}
			continue
		}
		again = nil
		if s.until.IsZero() {
			s.until = time.Now().Add(s.o.waits.all)
		}
		if r != nil && (r.routerID != s.o.routerID(&state.Self) || !slices.Equal(r.listen, locals(&state.Self))) {
			s.log.Info("BGP begins anew: this node has other addresses", zap.Stringers("endpoints", state.Self.Endpoints))
			s.hold()
			r.close()
			r = nil
		}
		if r == nil {
			if r, err = s.start(&state.Self, passwords, s.restarted && !s.settled); err != nil {
				s.log.Error("BGP does not start, trying again", zap.Error(err))
				s.settle(false)
				l := &reach.Learnt{Settled: s.settled, Routes: newWorld(&s.o, state, nil).held(s.held, nil), Problems: []control.Problem{{Text: err.Error()}}}
				if s.publish(l, 0) {
					changed()
				}
				again = time.After(lookAgain)
				continue
			}
		}
		if err := r.follow(state); err != nil {
			s.log.Error("BGP follows the cluster in part only, trying again", zap.Error(err))
			again = time.After(lookAgain)
		}
		s.poke()
	}
}

// hold has what was learnt count until it was told of again, by sessions that are yet to be. Where something counts already, it counts no longer for it.
func (s *Speaker) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = map[netip.Prefix][]netip.Addr{}
	for _, r := range s.learnt.Routes {
		s.held[r.Prefix] = r.Via
	}
	if s.restarted = true; s.settled {
		s.settled, s.until = false, time.Now().Add(s.o.waits.all)
	}
}

// settle has what was known before count no more, once all has been told or the time for it is over.
func (s *Speaker) settle(told bool) {
	if s.settled || !told && time.Now().Before(s.until) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled, s.held = true, nil
}

// locals are the addresses that sessions are had from: the first endpoint of each family. Others that come and go, those of keepalived say, change nothing.
func locals(self *control.Node) (list []netip.Addr) {
	for _, v6 := range []bool{false, true} {
		if a, ok := first(self.Endpoints, v6); ok {
			list = append(list, a)
		}
	}
	return list
}

// start opens the server: at this node's endpoints, without anybody to speak to.
func (s *Speaker) start(self *control.Node, passwords map[string]string, restarts bool) (*run, error) {
	r := &run{Speaker: s, routerID: s.o.routerID(self), listen: locals(self), passwords: passwords, sessions: map[netip.Addr]session{}, restarts: restarts, began: time.Now(), lives: map[netip.Addr]*life{}}
	if len(r.listen) == 0 {
		return nil, errors.New("BGP: this node has no endpoint to listen on: see `weft status`")
	}
	level := &slog.LevelVar{}
	level.Set(slog.LevelDebug)
	r.server = server.NewBgpServer(server.LoggerOption(slog.New(&s.faults), level))
	go r.server.Serve()
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	global := &api.Global{Asn: s.o.Config.AS, RouterId: r.routerID.String(), ListenPort: int32(s.o.port)}
	for _, a := range r.listen {
		global.ListenAddresses = append(global.ListenAddresses, a.String())
	}
	if err := r.server.StartBgp(ctx, &api.StartBgpRequest{Global: global}); err != nil {
		r.close()
		return nil, fmt.Errorf("BGP: listen on TCP port %d of %v: %w: see `ss -tlnp`, and stop the other BGP daemon", s.o.port, r.listen, err)
	}
	err := errors.Join(r.onlyOwn(ctx), r.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPathUpdate: func([]*apiutil.Path, time.Time) { s.poke() },
		OnBestPath:   func([]*apiutil.Path, time.Time) { s.poke() },
		OnPathEor:    r.hearEOR,
		OnPeerUpdate: r.hearPeer,
	}, server.WatchPostUpdate(false, "", ""), server.WatchBestPath(false), server.WatchEor(false), server.WatchPeer()))
	if err != nil {
		r.close()
		return nil, fmt.Errorf("BGP: %w", err)
	}
	s.log.Info("BGP speaks", zap.Uint32("as", s.o.Config.AS), zap.Stringer("router_id", r.routerID), zap.Stringers("endpoints", r.listen), zap.Bool("restarted", restarts))
	return r, nil
}

// close ends all sessions without a word, where the peers then keep this node's prefixes for a while.
func (r *run) close() {
	r.stop()
	_ = r.server.StopBgp(context.Background(), &api.StopBgpRequest{AllowGracefulRestart: true}) // it was never started, at worst
	r.server.Stop()
}

// onlyOwn has the server pass on nothing but what this node originates.
func (r *run) onlyOwn(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{Name: "own", Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT}}}}
	if err := r.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return r.server.AddPolicyAssignment(ctx, &api.AddPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_EXPORT,
		Policies: []*api.Policy{{Name: own.Name}}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT}})
}

func (r *run) hearEOR(p *apiutil.Path, _ time.Time) {
	r.mu.Lock()
	r.life(p.PeerAddress).eor[p.Family] = true
	r.mu.Unlock()
	r.poke()
}

func (r *run) hearPeer(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
	if e.Type != apiutil.PEER_EVENT_STATE {
		return
	}
	at := e.Peer.State.NeighborAddress
	r.mu.Lock()
	switch l := r.life(at); {
	case e.Peer.State.SessionState == wire.BGP_FSM_ESTABLISHED:
		l.begin(time.Now())
		r.faults.forget(at)
	case l.up:
		l.end(time.Now(), e.Peer.State.DisconnectMessage)
	}
	r.mu.Unlock()
	r.poke()
}

// life returns what was heard of a session. It needs mu.
func (r *run) life(at netip.Addr) *life {
	l := r.lives[at]
	if l == nil {
		l = &life{eor: map[wire.Family]bool{}}
		r.lives[at] = l
	}
	return l
}

// follow makes neighbours and originated prefixes be those of a State. What stays is not touched.
func (r *run) follow(state *control.State) error {
	want, problems := r.o.sessions(state, r.passwords)
	r.problems = problems
	ctx := context.Background()
	var errs []error
	for at, have := range r.sessions {
		if want[at] == have {
			continue
		}
		if err := r.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: at.String()}); err != nil {
			errs = append(errs, fmt.Errorf("forget peer %v: %w", at, err))
		}
		delete(r.sessions, at)
		r.mu.Lock()
		delete(r.lives, at)
		r.mu.Unlock()
		r.faults.forget(at)
	}
	// Own prefixes first: a peer that is told of all at once need not be told twice.
	r.drained = r.isDrained()
	if r.drained {
		errs = append(errs, r.originate(nil))
	} else {
		errs = append(errs, r.originate(state.Self.Prefixes))
	}
	for _, s := range sorted(want) {
		if _, have := r.sessions[s.remote]; have {
			continue
		}
		if err := r.server.AddPeer(ctx, &api.AddPeerRequest{Peer: r.peer(s)}); err != nil {
			errs = append(errs, fmt.Errorf("peer %v: %w", s.remote, err))
			continue
		}
		r.sessions[s.remote] = s
	}
	r.restarts = false // who comes later has never known this node
	return errors.Join(errs...)
}

// family is the library's.
func family(v6 bool) (wire.Family, *api.Family) {
	if v6 {
		return wire.RF_IPv6_UC, &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
	}
	return wire.RF_IPv4_UC, &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
}

// peer is a neighbour in the library's words.
func (r *run) peer(s session) *api.Peer {
	hold := uint64(holdRouter)
	if s.node != "" {
		hold = holdNode
	}
	p := &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: s.remote.String(), PeerAsn: s.as, LocalAsn: r.o.Config.AS, AuthPassword: s.password},
		Transport: &api.Transport{LocalAddress: s.local.String(), PassiveMode: s.passive, RemotePort: uint32(r.o.port)},
		Timers:    &api.Timers{Config: &api.TimersConfig{ConnectRetry: 3, HoldTime: hold, KeepaliveInterval: hold / 3, IdleHoldTimeAfterReset: 2}},
		GracefulRestart: &api.GracefulRestart{Enabled: s.graceful, RestartTime: uint32(restartTime / time.Second), DeferralTime: uint32(r.o.waits.deferral / time.Second),
			LocalRestarting: r.restarts && s.graceful},
	}
	if s.bfd {
		p.Bfd = &api.BfdPeerConfig{Enabled: true, DesiredMinimumTxInterval: uint32(bfdInterval.Microseconds()), RequiredMinimumReceive: uint32(bfdInterval.Microseconds()), DetectionMultiplier: bfdMultiplier}
	}
	for i, on := range []bool{s.v4, s.v6} {
		if !on {
			continue
		}
		_, f := family(i == 1)
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: s.graceful}},
			PrefixLimits:      &api.PrefixLimit{Family: f, MaxPrefixes: uint32(s.most)}})
	}
	return p
}

// originate tells the peers of these prefixes, and of no others.
func (r *run) originate(prefixes []netip.Prefix) error {
	var errs []error
	for _, p := range r.told {
		if slices.Contains(prefixes, p) {
			continue
		}
		if err := r.server.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{own(p)}}); err != nil {
			errs = append(errs, fmt.Errorf("withdraw %v: %w", p, err))
		}
	}
	var told []netip.Prefix
	for _, p := range prefixes {
		if !slices.Contains(r.told, p) {
			if _, err := r.server.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{own(p)}}); err != nil {
				errs = append(errs, fmt.Errorf("announce %v: %w", p, err))
				continue
			}
		}
		told = append(told, p)
	}
	r.told = told
	return errors.Join(errs...)
}

// own is a prefix of this node's. Its next hop is for each peer this node's address in the session with it.
func own(p netip.Prefix) *apiutil.Path {
	f, _ := family(p.Addr().Is6())
	nlri, _ := wire.NewIPAddrPrefix(p) // fails for an invalid one only
	path := &apiutil.Path{Family: f, Nlri: nlri, Attrs: []wire.PathAttributeInterface{wire.NewPathAttributeOrigin(wire.BGP_ORIGIN_ATTR_TYPE_IGP)}}
	if p.Addr().Is4() {
		hop, _ := wire.NewPathAttributeNextHop(netip.IPv4Unspecified())
		path.Attrs = append(path.Attrs, hop)
	} else {
		hop, _ := wire.NewPathAttributeMpReachNLRI(f, []wire.PathNLRI{{NLRI: nlri}}, netip.IPv6Unspecified())
		path.Attrs = append(path.Attrs, hop)
	}
	return path
}

// learn makes what was learnt anew, and says whether it is something else.
func (s *Speaker) learn(r *run, state *control.State) bool {
	paths, err := r.paths()
	sessions, pending, cut := r.look()
	s.settle(!pending)
	now := time.Now()
	stale := map[netip.Addr]bool{}
	for i := range paths {
		stale[paths[i].from] = stale[paths[i].from] || paths[i].stale
	}
	r.mu.Lock()
	for at, l := range r.lives {
		l.see(stale[at], now)
	}
	paths = slices.DeleteFunc(paths, func(p path) bool {
		l := r.lives[p.from]
		return cut[p.from] || p.stale && l != nil && !l.waitedFor(now)
	})
	r.mu.Unlock()
	w := newWorld(&s.o, state, r.sessions)
	l := &reach.Learnt{Settled: s.settled, Drained: r.drained, Sessions: sessions, Problems: slices.Clone(r.problems)}
	if r.drained {
		l.Problems = append(l.Problems, control.Problem{Text: "BGP: this node is drained, and tells nobody of its prefixes: `weft drain --undo` when the maintenance is over"})
	}
	l.Routes, l.Refused, l.RefusedMore = w.decide(paths)
	l.Routes = w.held(s.held, l.Routes)
	if err != nil {
		l.Problems = append(l.Problems, control.Problem{Text: "BGP: " + err.Error()})
	}
	for _, x := range sessions {
		if x.Node == "" && !x.Up && s.settled {
			l.Problems = append(l.Problems, control.Problem{Text: fmt.Sprintf("BGP: no session with %v: %s", x.Peer, x.Reason)})
		}
	}
	for _, x := range sessions {
		if x.Up && x.BFD != "" && x.BFD != "up" && s.settled && time.Since(x.Since) > bfdPatience {
			l.Problems = append(l.Problems, control.Problem{Text: fmt.Sprintf("BGP: %v is not heard by BFD, so that only the hold time tells when it is gone: switch BFD on there, single hop, and let UDP port %d pass both ways, or remove bfd here", x.Peer, BFDPort)})
		}
	}
	named := l.Refused[:min(len(l.Refused), mostProblems)]
	for _, f := range named {
		l.Problems = append(l.Problems, control.Problem{Text: fmt.Sprintf("BGP: %v from %s is not taken: %s", f.Prefix, f.From, f.Reason)})
	}
	return s.publish(l, len(l.Refused)-len(named)+l.RefusedMore)
}

// mostProblems is how many refused prefixes are told of as problems: a router may announce thousands.
const mostProblems = 16

// publish has others learn it, and says whether it is something else. more are the problems that were not made.
func (s *Speaker) publish(l *reach.Learnt, more int) (changed bool) {
	if n := len(l.Problems); n > mostProblems {
		l.Problems, more = slices.Clip(l.Problems[:mostProblems]), more+n-mostProblems
	}
	if more > 0 {
		l.Problems = append(l.Problems, control.Problem{Text: fmt.Sprintf("BGP: %d more: see `weft bgp routes`", more)})
	}
	s.mu.Lock()
	last := s.learnt
	s.learnt = l
	s.mu.Unlock()
	s.tell(last, l)
	return !l.Equal(last)
}

// tell logs what is new of sessions.
func (s *Speaker) tell(last, l *reach.Learnt) {
	was := map[netip.Addr]bool{}
	for _, x := range last.Sessions {
		was[x.Peer] = x.Up
	}
	for _, x := range l.Sessions {
		switch up := was[x.Peer]; {
		case x.Up && !up:
			s.log.Info("BGP session is up", zap.String("peer", x.Peer.String()), zap.String("node", x.Node))
		case up && !x.Up:
			s.log.Warn("BGP session is down", zap.String("peer", x.Peer.String()), zap.String("node", x.Node), zap.String("reason", x.Reason))
		}
	}
}

// look says how the sessions are, whether one may yet have something to tell, and whose was ended for it told of too much: what came from there the
// library keeps where graceful restart was agreed on.
func (r *run) look() (list []reach.Session, pending bool, cut map[netip.Addr]bool) {
	cut = map[netip.Addr]bool{}
	now := time.Now()
	peers := map[netip.Addr]*api.Peer{}
	_ = r.server.ListPeer(context.Background(), &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) { // fails where the server has ended
		if a, err := netip.ParseAddr(p.GetConf().GetNeighborAddress()); err == nil {
			peers[a] = p
		}
	})
	for _, s := range sorted(r.sessions) {
		is := reach.Session{Peer: s.remote, Node: s.node, AS: s.as, Local: s.local, Passive: s.passive, Families: s.families(), Phase: "idle"}
		p := peers[s.remote]
		is.Phase = strings.ToLower(strings.TrimPrefix(p.GetState().GetSessionState().String(), "SESSION_STATE_"))
		is.Up = p.GetState().GetSessionState() == api.PeerState_SESSION_STATE_ESTABLISHED
		if is.Up {
			is.RouterID = p.GetState().GetRouterId()
			is.Since = p.GetTimers().GetState().GetUptime().AsTime()
		}
		is.Told = is.Up
		for i, on := range []bool{s.v4, s.v6} {
			f, _ := family(i == 1)
			r.mu.Lock()
			is.Told = is.Told && (!on || r.life(s.remote).eor[f])
			r.mu.Unlock()
		}
		for _, a := range p.GetAfiSafis() {
			is.Received += a.GetState().GetReceived()
			is.Advertised += a.GetState().GetAdvertised()
			is.Restarts = is.Restarts || is.Up && a.GetMpGracefulRestart().GetState().GetReceived()
		}
		if s.bfd {
			is.BFD = strings.ToLower(strings.TrimPrefix(p.GetState().GetBfdState().GetSessionState().String(), "BFD_SESSION_STATE_"))
		}
		if p.GetState().GetAdminState() == api.PeerState_ADMIN_STATE_PFX_CT {
			cut[s.remote] = true
		}
		if !is.Up {
			r.mu.Lock()
			ended := r.life(s.remote).why
			r.mu.Unlock()
			is.Reason = r.faults.why(&s, ended, cut[s.remote])
		}
		pending = pending || !cut[s.remote] && r.o.waits.pending(&is, r.began, now)
		list = append(list, is)
	}
	return list, pending, cut
}

// pending says whether a peer is waited for, by a server that began at a time.
func (w *waits) pending(is *reach.Session, began, now time.Time) bool {
	switch {
	case is.Told:
		return false
	case !is.Up:
		return now.Sub(began) < w.peer
	case is.Restarts: // it says when it has told of all, and waits itself where it has restarted, too
		return now.Sub(is.Since) < w.peer
	}
	return now.Sub(is.Since) < w.mute
}

// paths are all that the peers have told of.
func (r *run) paths() (list []path, err error) {
	for _, v6 := range []bool{false, true} {
		f, _ := family(v6)
		err = errors.Join(err, r.server.ListPath(apiutil.ListPathRequest{TableType: api.TableType_TABLE_TYPE_GLOBAL, Family: f}, func(_ wire.NLRI, all []*apiutil.Path) {
			for _, p := range all {
				if x, ok := pathOf(p, r.o.Config.AS); ok {
					list = append(list, x)
				}
			}
		}))
	}
	return list, err
}

// pathOf reads a path of the library's; false where it is none that a peer told of.
func pathOf(p *apiutil.Path, as uint32) (x path, ok bool) {
	nlri, ok := p.Nlri.(*wire.IPAddrPrefix)
	if !ok || !p.PeerAddress.IsValid() || p.PeerAddress.IsUnspecified() || p.Withdrawal {
		return x, false
	}
	x = path{prefix: nlri.Prefix, from: p.PeerAddress, stale: p.Stale, pref: 100, internal: p.PeerASN == as}
	for _, a := range p.Attrs {
		switch a := a.(type) {
		case *wire.PathAttributeNextHop:
			x.via = a.Value
		case *wire.PathAttributeMpReachNLRI:
			x.via = a.Nexthop
		case *wire.PathAttributeLocalPref:
			x.pref = a.Value
		case *wire.PathAttributeMultiExitDisc:
			x.med = a.Value
		case *wire.PathAttributeOrigin:
			x.origin = a.Value
		case *wire.PathAttributeAsPath:
			for _, part := range a.Value {
				x.length += part.ASLen()
			}
			x.as = wire.AsPathString(a)
		}
	}
	x.via = x.via.Unmap().WithZone("") // wrong looks whether it is of a family that the prefix can have
	return x, x.via.IsValid()
}
