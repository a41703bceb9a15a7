package policies

import (
	"errors"
	"os"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"weft/hostnet"
	"weft/policy"
	"weft/policy/nft"
)

// How many packets the log tells of in a second, beside the table's own limit for each rule.
const (
	linesPerSecond = 10
	linesAtOnce    = 50
)

// logs are the packets that the table shows: those that rules log go to the daemon's log.
type logs struct {
	from *hostnet.Logs // nil = the kernel cannot, or somebody else listens: rules that log count only

	mu      sync.Mutex
	of      nft.Rules // in force, and those before: what was logged by them may still come
	before  nft.Rules
	world   *policy.World
	skipped uint64

	watchers map[*func(DeniedPacket)]bool
}

// DeniedPacket is one of the packets that policies denied: of each rule's some, LogsPerSecond of package nft at most.
type DeniedPacket struct {
	In     bool   // by ingress: it was for a pod, or for this node
	Why    string // tier, policy and rule
	Packet []byte // from its IP header on; its beginning at least
}

// Watch has some of the packets shown that are denied from now on, one call at a time, until stop. Nothing is shown where the log only counts.
func (m *Manager) Watch(show func(DeniedPacket)) (stop func()) {
	l := &m.logs
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchers == nil {
		l.watchers = map[*func(DeniedPacket)]bool{}
	}
	key := &show
	l.watchers[key] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, key)
	}
}

// denied shows a packet to who watches. The caller holds l.mu.
func (l *logs) denied(p *hostnet.Logged) {
	if len(l.watchers) == 0 || l.world == nil {
		return
	}
	r, ok := l.of.Denied[p.Prefix]
	if !ok {
		r, ok = l.before.Denied[p.Prefix]
	}
	t, _ := traffic(p.Packet)
	d := DeniedPacket{In: !l.world.Evaluate(t).Egress.Reason.Deny, Packet: p.Packet}
	switch {
	case ok:
		d.Why = r.String()
	case p.Prefix == nft.Ended:
		d.Why = "a change of policies denied its connection"
	case p.Prefix == nft.Unknown:
		d.Why = "denied: nothing is known of the pod that has the address of this node's prefixes"
	default:
		return
	}
	for show := range l.watchers {
		(*show)(d)
	}
}

func (l *logs) listening() bool { return l.from != nil }

// rules says what the counters' names mean from now on.
func (l *logs) rules(now nft.Rules, world *policy.World) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.before, l.of, l.world = l.of, now, world
}

// listen begins to listen to what the table logs, and returns what ends it.
func (m *Manager) listen() (end func()) {
	from, err := m.o.Host.Logs(nft.Group)
	if err != nil {
		why := "the kernel lacks nfnetlink_log"
		if errors.Is(err, unix.EBUSY) {
			why = "another process listens to that group"
		}
		m.o.Log.Warn("policies' rules that log will only count: "+why, zap.Error(err))
		return func() {}
	}
	m.logs.from = from
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := rate.NewLimiter(linesPerSecond, linesAtOnce)
		for {
			packets, err := from.Receive()
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				m.o.Log.Warn("policies' rules that log only count from now on", zap.Error(err))
				return
			}
			for i := range packets {
				m.logged(&packets[i], lines)
			}
		}
	}()
	return func() { from.Close(); <-ended }
}

// logged tells of a packet that a rule logs.
func (m *Manager) logged(p *hostnet.Logged, lines *rate.Limiter) {
	l := &m.logs
	l.mu.Lock()
	l.denied(p)
	world := l.world
	n, ok := l.of.Noted[p.Prefix]
	if !ok {
		n, ok = l.before.Noted[p.Prefix]
	}
	skipped := l.skipped
	t, readable := traffic(p.Packet)
	if !ok || !readable || world == nil {
		l.mu.Unlock()
		return
	}
	if !lines.Allow() {
		l.skipped++
		l.mu.Unlock()
		return
	}
	l.skipped = 0
	l.mu.Unlock()
	m.o.Log.Info("a policy logs a connection", zap.String("policy", n.Policy), zap.String("rule", n.Rule), zap.String("tier", n.Tier.String()),
		zap.String("from", world.Name(t.Src)), zap.String("to", world.Name(t.Dst)), zap.Stringer("traffic", t), zap.Uint64("skipped", skipped))
}
