package sealed

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flynn/noise"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"weft/internal/backoff"
	"weft/packet"
)

const (
	// rekeyAfter is the age at which, as a rule, the side that has initiated a session replaces it; the other one
	// does if that has not happened lateAfter later. Jitter, a twelfth, spreads what began together.
	rekeyAfter  = 120 * time.Second
	rekeyJitter = 12
	lateAfter   = 15 * time.Second
	// rejectAfter ends a session that could not be replaced.
	rejectAfter = 180 * time.Second
	// drainFor is how long packets of the session before the current one are still accepted.
	drainFor = 10 * time.Second
	// confirmFor is how long a responder waits for the first authentic packet of a session.
	confirmFor = 30 * time.Second

	// An initiation without an answer is repeated at these intervals, give or take a quarter; no sooner than after the first
	// where packets wait.
	retryFirst = time.Second
	retryMax   = 8 * time.Second
	// crossing is how long an initiation of ours may be under way and win over the peer's.
	crossing = 900 * time.Millisecond
	// confirmRetry is when a confirmation that nothing has answered is repeated.
	confirmRetry = 250 * time.Millisecond

	// startsPerStep bounds the initiations of one step.
	startsPerStep = 64

	// Initiations a second that are answered without asking for a cookie, and that are answered at
	// all. One costs 0.3 ms.
	easyRate, easyBurst = 200, 400
	hardRate, hardBurst = 1000, 1000
	// cookieRate bounds cookie messages: beyond it, silence is cheaper.
	cookieRate, cookieBurst = 20000, 2000
	// peerRate bounds the authentic initiations of one peer.
	peerRate, peerBurst = 5, 10
)

// Config is what a Manager is made from.
type Config struct {
	Cipher Cipher // what we seal with; the peers choose for themselves
	Lanes  int    // out lanes, at most MaxLanes
	// RekeyAfter is the age of keys at which the side that has initiated replaces them, at most two minutes; 0 = that.
	RekeyAfter time.Duration
	Log        *zap.Logger      // of the slow path
	Now        func() time.Time // nil = time.Now
	Rand       io.Reader        // nil = crypto/rand
}

// Identity is what this node proves itself by.
type Identity struct {
	Private [32]byte // X25519
	PSK     [32]byte // shared by the cluster; zero = none
}

// Peer is another node that traffic goes to and comes from sealed.
type Peer struct {
	ID     uint32 // Hop.Peer.ID
	Name   string
	Public [32]byte    // X25519; zero = unknown: nothing is carried
	Hop    *packet.Hop // where sealed packets go until the peer turns out to be elsewhere
	// Plain is where plaintext goes while there is no session, and PlainFrom where it may come from:
	// only for peers that are permitted it. nil = nowhere, ever.
	Plain     *packet.Hop
	PlainFrom []netip.Addr
}

// Manager keeps the sessions with all peers: it makes and replaces them outside the lanes, which see
// what it publishes and never wait for it. One Manager lives as long as the daemon; ports and lanes
// may come and go.
type Manager struct {
	cfg   Config
	table atomic.Pointer[table]
	wake  chan struct{}                       // a lane has news
	write func(msg []byte, to netip.AddrPort) // sends a handshake message; under mu

	mu       sync.Mutex
	me       noise.DHKey
	identity Identity
	mac1Key  [32]byte           // of messages to us
	ownKey   [32]byte           // of cookies from us
	peers    map[uint32]*member // by ID
	byKey    map[[32]byte]*member
	byAddr   map[netip.Addr]*member // for reports only: addresses are claims
	pending  map[uint32]*member     // by the index of the initiation under way
	free     []uint32               // slot numbers
	stamp    uint64                 // of our last initiation
	rejected rejections             // of messages that no peer could be named for

	baker      baker
	easy, hard *rate.Limiter // initiations without a cookie, and with one
	cookies    *rate.Limiter
	addresses  addresses

	cookiesSent uint64 // to whom no peer could be named
}

// member is a peer and all that is known about the sessions with it.
type member struct {
	Peer
	lanePeer        *lanePeer
	mac1Key, ownKey [32]byte // of messages to it, of cookies from it
	cur, next       *session // next is one that we answered and that has not been confirmed
	past            []past   // sessions that only open what is on its way, the oldest first
	rekeyAt         time.Time
	under           *initiation
	tries           int // initiations since the last session
	retryAt         time.Time
	hurryAt         time.Time // the same while a packet waits for a session
	wanted          uint64    // lanePeer.unsealed at the last initiation
	confirmAt       time.Time
	lastStamp       uint64
	epoch           uint8
	cookie          []byte
	cookieUntil     time.Time
	limit           *rate.Limiter
	home            netip.Addr // the address of the configuration
	handshakes      uint64     // sessions since the daemon began
	rejected        rejections
	established     bool // and logged as such
	double          bool // another node has the same public key

	cookiesSent, cookiesReceived uint64
}

// past is a session that was replaced.
type past struct {
	*session
	until time.Time
}

// maxPast bounds the replaced sessions of a peer that are still open: more than one there are only
// when both sides have begun handshakes that crossed.
const maxPast = 4

// initiation is a handshake of ours that waits for its answer.
type initiation struct {
	state *noise.HandshakeState
	index uint32
	mac1  []byte
	at    time.Time
	epoch uint8
}

// New makes a manager without peers: everything is dropped.
func New(cfg Config) (*Manager, error) {
	if cfg.Lanes < 1 || cfg.Lanes > MaxLanes {
		return nil, fmt.Errorf("sealed: %d lanes: 1 to %d are possible: set queues", cfg.Lanes, MaxLanes)
	}
	if _, ok := ciphers[cfg.Cipher]; !ok {
		return nil, fmt.Errorf("sealed: unknown %v", cfg.Cipher)
	}
	if cfg.RekeyAfter < 0 || cfg.RekeyAfter > rekeyAfter {
		return nil, fmt.Errorf("sealed: keys replaced after %v: at most %v are possible", cfg.RekeyAfter, rekeyAfter)
	}
	if cfg.RekeyAfter == 0 {
		cfg.RekeyAfter = rekeyAfter
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	m := &Manager{cfg: cfg, wake: make(chan struct{}, 1), write: func([]byte, netip.AddrPort) {},
		peers: map[uint32]*member{}, byKey: map[[32]byte]*member{}, byAddr: map[netip.Addr]*member{}, pending: map[uint32]*member{},
		baker: baker{rand: cfg.Rand}, easy: rate.NewLimiter(easyRate, easyBurst), hard: rate.NewLimiter(hardRate, hardBurst),
		cookies: rate.NewLimiter(cookieRate, cookieBurst), addresses: addresses{}}
	m.table.Store(&table{})
	return m, nil
}

// Stage makes the stage of a lane. Each lane number may be used by one running out lane at a time:
// nonces are unique by it.
func (m *Manager) Stage(lane int) packet.Stage {
	if lane < 0 || lane >= m.cfg.Lanes {
		panic(fmt.Sprintf("sealed: lane %d of %d", lane, m.cfg.Lanes))
	}
	return &stage{table: &m.table, lane: uint32(lane)}
}

func (m *Manager) poke() {
	select {
	case m.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Update says who we are and who the peers are, all of them. Peers whose key has not changed keep
// their sessions.
func (m *Manager) Update(id Identity, peers []Peer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id != m.identity || m.me.Private == nil {
		public, err := PublicKey(id.Private)
		if err != nil {
			return err
		}
		for _, p := range m.peers {
			m.remove(p)
		}
		m.identity, m.me = id, noise.DHKey{Private: slices.Clone(id.Private[:]), Public: public[:]}
		m.mac1Key, m.ownKey = hashKey("weft mac1", public), hashKey("weft cookie", public)
	}
	now := m.cfg.Now()
	keep := map[uint32]bool{}
	clear(m.byAddr)
	for _, p := range peers {
		keep[p.ID] = true
		old := m.peers[p.ID]
		if old != nil && old.Public != p.Public {
			m.remove(old)
			old = nil
		}
		if old == nil {
			old = &member{lanePeer: &lanePeer{}, limit: rate.NewLimiter(peerRate, peerBurst), retryAt: now,
				mac1Key: hashKey("weft mac1", p.Public), ownKey: hashKey("weft cookie", p.Public)}
			m.peers[p.ID] = old
		}
		old.Peer = p
		if home := p.Hop.Path.Dst.Addr(); old.home != home || old.lanePeer.hop.Load() == nil {
			old.home = home
			old.lanePeer.hop.Store(p.Hop)
		} else {
			old.moveTo(old.lanePeer.hop.Load().Path.Dst.Addr()) // what else changed in the hop holds
		}
		old.lanePeer.plain.Store(p.Plain)
		m.byAddr[p.Hop.Path.Dst.Addr().Unmap()] = old
	}
	for id, p := range m.peers {
		if !keep[id] {
			m.remove(p)
		}
	}
	m.claimKeys()
	m.publish()
	m.step(now)
	m.poke()
	return nil
}

// claimKeys says which key is whose. A key that two nodes claim is nobody's, nor is ours theirs: either
// could pass for the other.
func (m *Manager) claimKeys() {
	clear(m.byKey)
	claims := map[[32]byte]int{{}: 1, [32]byte(m.me.Public): 1} // no key, and our own
	for _, p := range m.peers {
		claims[p.Public]++
	}
	for _, p := range m.peers {
		p.double = p.Public != [32]byte{} && claims[p.Public] > 1
		if claims[p.Public] == 1 {
			m.byKey[p.Public] = p
			continue
		}
		m.silence(p)
	}
}

// moveTo points sealed traffic at another address of the peer; the port stays.
func (p *member) moveTo(a netip.Addr) {
	hop := *p.Hop
	hop.Path = p.Hop.Path.To(netip.AddrPortFrom(a, p.Hop.Path.Dst.Port()))
	p.lanePeer.hop.Store(&hop)
}

// remove ends everything with a peer.
func (m *Manager) remove(p *member) {
	p.lanePeer.plain.Store(nil)
	m.silence(p)
	delete(m.peers, p.ID)
}

// silence ends all sessions with a peer.
func (m *Manager) silence(p *member) {
	p.lanePeer.send.Store(nil)
	m.abandon(p)
	m.drop(p.cur)
	m.drop(p.next)
	for _, s := range p.past {
		m.drop(s.session)
	}
	p.cur, p.next, p.past, p.established = nil, nil, nil, false
}

// publish makes lanes see the peers.
func (m *Manager) publish() {
	old := m.table.Load()
	t := &table{slots: old.slots, plain: map[netip.Addr]struct{}{}}
	for id, p := range m.peers {
		if int(id) >= len(t.lanePeers) {
			t.lanePeers = append(t.lanePeers, make([]*lanePeer, int(id)+1-len(t.lanePeers))...)
		}
		t.lanePeers[id] = p.lanePeer
		if p.Plain != nil {
			for _, a := range p.PlainFrom {
				t.plain[a.Unmap()] = struct{}{}
			}
		}
	}
	m.table.Store(t)
}

// allot reserves an index.
func (m *Manager) allot() (uint32, error) {
	t := m.table.Load()
	if len(m.free) == 0 {
		n := len(t.slots)
		if n == 1<<slotBits {
			return 0, errors.New("sealed: no free session index")
		}
		bigger := *t
		bigger.slots = make([]atomic.Pointer[session], max(16, 2*n))
		for i := range t.slots {
			bigger.slots[i].Store(t.slots[i].Load())
		}
		for i := len(bigger.slots) - 1; i >= n; i-- {
			m.free = append(m.free, uint32(i))
		}
		m.table.Store(&bigger)
	}
	var b [4]byte
	if _, err := io.ReadFull(m.cfg.Rand, b[:]); err != nil {
		return 0, fmt.Errorf("sealed: read random bytes: %w", err)
	}
	slot := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	return binary.BigEndian.Uint32(b[:])<<slotBits | slot, nil
}

// release gives an index back. The oldest freed is used again last.
func (m *Manager) release(index uint32) {
	m.free = slices.Insert(m.free, 0, index&(1<<slotBits-1))
}

// drop ends a session: nothing is opened with its keys any more.
func (m *Manager) drop(s *session) {
	if s == nil {
		return
	}
	m.table.Load().slots[s.local&(1<<slotBits-1)].Store(nil)
	m.release(s.local)
}

// retire lets a session open what is on its way, and no more.
func (m *Manager) retire(p *member, s *session, now time.Time) {
	if s == nil {
		return
	}
	if len(p.past) == maxPast {
		m.drop(p.past[0].session)
		p.past = slices.Delete(p.past, 0, 1)
	}
	p.past = append(p.past, past{s, now.Add(drainFor)})
}

// abandon ends an initiation that waits for its answer.
func (m *Manager) abandon(p *member) {
	if p.under != nil {
		delete(m.pending, p.under.index)
		m.release(p.under.index)
		p.under = nil
	}
}

// newSession makes the keys of a session live for receiving.
func (m *Manager) newSession(p *member, index, remote uint32, epoch uint8, peer offer, sealKey, openKey [32]byte, now time.Time) (*session, error) {
	seal, err := newAEAD(m.cfg.Cipher, sealKey)
	if err != nil {
		return nil, err
	}
	open, err := newAEAD(peer.cipher, openKey)
	if err != nil {
		return nil, err
	}
	s := &session{lanePeer: p.lanePeer, owner: p, local: index, epoch: epoch,
		open: open, rx: make([]receiving, peer.lanes), rxCipher: peer.cipher,
		seal: seal, word: headerWord(TypeData, 0, epoch, 0, remote), tx: make([]sending, m.cfg.Lanes), txCipher: m.cfg.Cipher,
		poke: m.poke, born: now}
	m.table.Load().slots[index&(1<<slotBits-1)].Store(s)
	p.epoch = epoch
	p.handshakes++
	return s, nil
}

// rotate makes s the session we seal with; the one before stays open for what is on its way.
func (m *Manager) rotate(p *member, s *session, now time.Time) {
	m.retire(p, p.cur, now)
	p.cur = s
	p.rekeyAt = s.born.Add(m.cfg.RekeyAfter - mrand.N(m.cfg.RekeyAfter/rekeyJitter+1))
	if !s.started {
		p.rekeyAt = s.born.Add(m.cfg.RekeyAfter + lateAfter)
	}
	p.lanePeer.send.Store(s)
	p.tries = 0
	if !p.established {
		p.established = true
		m.cfg.Log.Info("sealed", zap.String("peer", p.Name), zap.Stringer("cipher", s.txCipher), zap.Uint8("epoch", s.epoch))
	}
}

// Step does what is due. It is called several times a second and when a lane has news.
func (m *Manager) Step() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step(m.cfg.Now())
}

func (m *Manager) step(now time.Time) {
	starts := 0
	for _, p := range m.peers {
		m.settle(p, now)
		if p.cur != nil && p.cur.started && !p.cur.heard.Load() && !now.Before(p.confirmAt) {
			m.confirm(p.cur, flagAsk)
			p.confirmAt = now.Add(confirmRetry)
		}
		if starts < startsPerStep && m.due(p, now) {
			m.start(p, now)
			starts++
		}
	}
	m.addresses.forget(now)
}

// settle takes in what lanes have seen, and ends what is over.
func (m *Manager) settle(p *member, now time.Time) {
	for _, s := range []*session{p.cur, p.next} {
		if s == nil {
			continue
		}
		if a := s.moved.take(); a.IsValid() && a != p.lanePeer.hop.Load().Path.Dst.Addr() {
			m.cfg.Log.Info("peer moved", zap.String("peer", p.Name), zap.Stringer("to", a))
			p.moveTo(a)
		}
	}
	if p.next != nil && p.next.heard.Load() {
		s := p.next
		p.next = nil
		m.rotate(p, s, now)
	}
	if p.next != nil && now.Sub(p.next.born) >= confirmFor {
		m.drop(p.next)
		p.next = nil
	}
	for len(p.past) > 0 && !now.Before(p.past[0].until) {
		m.drop(p.past[0].session)
		p.past = slices.Delete(p.past, 0, 1)
	}
	if p.cur != nil && now.Sub(p.cur.born) >= rejectAfter {
		p.lanePeer.send.Store(nil)
		m.drop(p.cur)
		p.cur, p.established = nil, false
		m.cfg.Log.Warn("keys expired, nothing is carried", zap.String("peer", p.Name), zap.String("reason", p.why(now)))
	}
}

// due says whether an initiation is to be sent now.
func (m *Manager) due(p *member, now time.Time) bool {
	if m.byKey[p.Public] != p || m.me.Private == nil {
		return false
	}
	if p.under != nil || p.cur == nil {
		wanted := p.cur == nil && p.lanePeer.unsealed.Load() > p.wanted // since the last initiation
		return wanted && !now.Before(p.hurryAt) || !now.Before(p.retryAt)
	}
	if now.Before(p.retryAt) { // the peer has begun one that waits for its confirmation
		return false
	}
	total, most := p.cur.sent()
	return !now.Before(p.rekeyAt) || total >= rekeyPackets || most >= laneLimit/8*7
}

// start sends an initiation.
func (m *Manager) start(p *member, now time.Time) {
	m.abandon(p)
	p.hurryAt, p.retryAt = now.Add(retryFirst), now.Add(backoff.Pause(p.tries, retryFirst, retryMax))
	p.tries++
	p.wanted = p.lanePeer.unsealed.Load()
	index, err := m.allot()
	if err != nil {
		m.cfg.Log.Error("cannot begin a handshake", zap.String("peer", p.Name), zap.Error(err))
		return
	}
	// Nanoseconds of the clock, and more than the last where the clock stands still or goes back.
	m.stamp = max(m.stamp+1, uint64(now.UnixNano()))
	o := offer{stamp: m.stamp, cipher: m.cfg.Cipher, lanes: uint8(m.cfg.Lanes), epoch: p.epoch + 1}
	state, msg, err := initiate(m.cfg.Rand, m.me, m.identity.PSK, p.Public, index, o)
	if err != nil {
		m.release(index)
		m.cfg.Log.Error("cannot begin a handshake", zap.String("peer", p.Name), zap.Error(err))
		return
	}
	sum := mac(p.mac1Key[:], msg)
	msg = append(msg, sum[:]...)
	var sum2 [macLen]byte
	if p.cookie != nil && now.Before(p.cookieUntil) {
		sum2 = mac(p.cookie, msg)
	}
	msg = append(msg, sum2[:]...)
	p.under = &initiation{state: state, index: index, mac1: sum[:], at: now, epoch: o.epoch}
	m.pending[index] = p
	// Where the peer is not heard of, it may have come home.
	if p.tries > 2 && p.tries%2 == 0 {
		m.write(msg, p.Hop.Path.Dst)
	} else {
		m.write(msg, p.lanePeer.hop.Load().Path.Dst)
	}
}

// confirm sends a packet without data in a session: a proof of its keys.
func (m *Manager) confirm(s *session, flags uint8) {
	msg := make([]byte, HeaderLen, confirmLen)
	putHeader(msg, headerWord(typeConfirm, flags, s.epoch, controlLane, uint32(s.word)), s.counter)
	var nonce [12]byte
	putNonce(&nonce, controlLane, s.counter)
	s.counter++
	m.write(s.seal.Seal(msg, nonce[:], nil, msg), s.lanePeer.hop.Load().Path.Dst)
}
