package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/zap"

	"weft/control"
)

// Intervals of a session.
const (
	// gather is the least time between two States, or as long as three of them take to make, so that a thousand nodes that join at once make few.
	gather = 50 * time.Millisecond
	// lookAround is how often time itself may have changed something: claims that count by now, nodes that are silent too long.
	lookAround = 500 * time.Millisecond
	// lookLong is how often a State is made to see whether it is another one where nothing says so.
	lookLong = 2 * time.Second
	// echoPause is the least time between two records that are only to be newer than what somebody else says is this node's.
	echoPause = 10 * time.Second
	// confirm is how old a State's AsOf may get while members are heard.
	confirm = 10 * time.Second
	// compareEvery is how often digests are compared, give or take a quarter.
	compareEvery = 5 * time.Second
	// keepHeard is how often it is written down that this node is one of the mesh.
	keepHeard = 10 * time.Minute
)

// session is one Run. It is a listener.
type session struct {
	*Source
	sealer *sealer
	update func(control.State)
	key    ed25519.PrivateKey
	own    id

	traffic traffic       // since Run
	reading sync.Mutex    // one reads records at a time; before mu
	changes chan struct{} // holds a token while something is to be looked at

	mu        sync.Mutex // of all below
	memory    *memory
	self      control.Node // as announced
	book      *book
	gossip    gossip // nil = there is none yet
	name      string // of this member
	at        netip.AddrPort
	opened    string            // why there is no gossip, "" = there is
	reached   bool              // a member of Join was, or there is none to reach
	unreached map[string]string // Join: why not
	strangers strangers

	claims    []claim
	contested map[netip.Prefix]string    // own claims in force that an elder one of another node goes before: which node
	held      map[netip.Prefix]time.Time // own claims that are not in force yet: since when
	answered  map[id]time.Time           // when others last answered this node itself, while it has something to claim
	majority  time.Time                  // since when a majority is heard; zero = not
	waiting   string                     // why nothing is claimed, "" = there is nothing to claim
	waits     time.Time                  // since when
	told      bool                       // the log has it
	forgotten []forgotten                // by this node
	stale     bool                       // the own record is to be made anew
	stirred   bool                       // whom the mesh hears, or what is in the book, may be other than at the last walk
	walked    time.Time                  // when each record was last looked at
	double    string                     // why this node and another one are the same, "" = none
	echoed    time.Time                  // when the own record last came from elsewhere

	named     map[string]id // by name: whose it was in the last State
	news      bool          // something has changed since the last State
	last      control.State
	lastAt    time.Time
	lastCost  time.Duration // how long it took to make the last State
	wrote     time.Time
	confirmed time.Time
}

func newSession(s *Source, m *memory, seal *sealer, update func(control.State)) *session {
	key := ed25519.NewKeyFromSeed(m.Seed)
	run := &session{Source: s, sealer: seal, update: update, key: key, own: idOf(key.Public().(ed25519.PublicKey)), memory: m, book: newBook(),
		changes: make(chan struct{}, 1), unreached: map[string]string{}, contested: map[netip.Prefix]string{}, held: map[netip.Prefix]time.Time{}, answered: map[id]time.Time{},
		named: map[string]id{}, stale: true}
	old := time.Since(m.Heard) > s.set.Forget
	now := time.Now()
	for _, c := range m.Claims {
		if !slices.ContainsFunc(s.pools, func(p control.Pool) bool { return p.Has(c.Prefix) }) {
			continue
		}
		c.Held = !old
		if old { // others may have it by now
			run.held[c.Prefix] = now
		}
		run.claims = append(run.claims, c)
	}
	run.book.stamp = 1
	for _, c := range run.claims {
		run.book.stamp = max(run.book.stamp, c.Stamp)
	}
	return run
}

func (s *session) run(ctx context.Context) error {
	self, announced := s.Announced()
	s.self = self
	if err := s.open(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		s.mu.Lock()
		g := s.gossip
		s.mu.Unlock()
		if g != nil {
			g.close()
		}
		wg.Wait()
	}()
	wg.Go(func() { s.dial(ctx) })
	wg.Go(func() { s.ask(ctx) })

	compare := time.NewTimer(compareEvery)
	defer compare.Stop()
	look := time.NewTicker(lookAround)
	defer look.Stop()
	s.look()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-announced:
			self, _ = s.Announced()
			s.mu.Lock()
			s.self, s.stale = self, true
			s.mu.Unlock()
			if err := s.open(); err != nil {
				return err
			}
		case <-compare.C:
			s.compare()
			compare.Reset(compareEvery*3/4 + mrand.N(compareEvery/2))
			continue
		case <-look.C:
		case <-s.changes:
			if wait := time.Until(s.lastAt.Add(max(gather, 3*s.lastCost))); wait > 0 {
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(wait):
				}
			}
		}
		s.look()
	}
}

// open becomes a member at this node's first endpoint, and another one where that has changed.
func (s *session) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.self.Endpoints) == 0 {
		s.opened = "this node has no endpoint to be reached at: set node.interface"
		return nil
	}
	at := netip.AddrPortFrom(s.self.Endpoints[0], s.set.Port)
	if s.set.listen == nil && s.gossip != nil && s.at == at || s.set.listen != nil && s.gossip != nil {
		return nil
	}
	if old := s.gossip; old != nil { // it speaks to this session while it ends
		s.gossip = nil
		s.mu.Unlock()
		old.close()
		s.mu.Lock()
	}
	listen := s.set.listen
	if listen == nil {
		listen = func() (memberlist.NodeAwareTransport, netip.AddrPort, error) {
			t, err := openNetwork(s.set.Port)
			return t, at, err
		}
	}
	under, at, err := listen()
	if err != nil {
		return err
	}
	boot := make([]byte, 4)
	rand.Read(boot) // never fails
	s.name, s.at, s.opened, s.stale = memberName(s.own, boot), at, "", true
	t := newTransport(under, s.sealer, &s.traffic, at, s.refused)
	s.mu.Unlock()
	g, err := openGossip(s.name, t, s)
	s.mu.Lock()
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	s.gossip = g
	return nil
}

// look brings everything up to date, and publishes what came of it.
func (s *session) look() {
	now := time.Now()
	s.mu.Lock()
	s.lookAt(now)
	var state control.State
	publish := false
	if s.news || now.Sub(s.lastAt) >= lookLong {
		state, publish = s.state(now)
		s.lastAt, s.lastCost, s.news = now, time.Since(now), false
	}
	s.mu.Unlock()
	if publish {
		s.update(state)
	}
}

// lookAt is look without the State. The lock is held, here and in all that it calls.
func (s *session) lookAt(now time.Time) {
	if s.gossip == nil {
		return
	}
	if s.stirred || now.Sub(s.walked) >= lookAround {
		s.stirred, s.walked = false, now
		s.walk(now)
	}
	waiting := s.waiting
	if s.claim(now) {
		s.stale = true
	}
	s.news = s.news || s.stale || s.waiting != waiting
	if s.stale {
		s.say(now)
	}
}

// walk looks at each record: whose node is heard by now, and who is to be forgotten.
func (s *session) walk(now time.Time) {
	live := map[id]bool{s.own: true}
	for _, m := range s.gossip.live() {
		if m.id != s.own {
			live[m.id] = true
		}
	}
	s.news = s.book.hear(live, now) || s.news
	if len(live) > 1 {
		s.memory.Heard = time.Now()
		if now.Sub(s.wrote) > keepHeard {
			s.keep(now)
		}
	}
	s.expire(now)
	s.news = s.book.forget(s.own) || s.news
	s.again()
}

// expire forgets who was silent for too long.
func (s *session) expire(now time.Time) {
	for who, e := range s.book.entries {
		if who != s.own && !e.live && now.Sub(e.silent) > s.set.Forget {
			s.log.Info("a node is forgotten: it was silent for too long, and its prefixes are free", zap.String("node", e.Name), zap.Stringers("prefixes", e.prefixes))
			s.drop(e)
		}
	}
}

// drop forgets a record for good, and tells the others.
func (s *session) drop(e *entry) {
	s.book.gone[e.id] = max(s.book.gone[e.id], e.Seq)
	s.book.drop(e)
	s.forgotten = append(s.forgotten, forgotten{e.id, e.Seq})
	if over := len(s.forgotten) - mostForgotten; over > 0 {
		s.forgotten = slices.Delete(s.forgotten, 0, over)
	}
	s.stale = true
}

// again has this node speak up where others have forgotten it: what it claims is then younger than all else.
func (s *session) again() {
	seq, gone := s.book.gone[s.own]
	if !gone || s.memory.Seq > seq {
		return
	}
	s.memory.Seq = seq
	s.book.stamp++
	for i := range s.claims {
		s.claims[i].Stamp = s.book.stamp
	}
	if len(s.claims) > 0 {
		s.memory.Born = s.book.stamp
	}
	s.stale = true
}

// say makes this node's record anew, writes down what it says, and spreads it.
func (s *session) say(now time.Time) {
	s.memory.Seq++
	r := &record{Seq: s.memory.Seq, Name: s.self.Name, Gossip: s.at, Born: s.memory.Born, VNI: s.set.VNI, Claims: slices.Clone(s.claims), Endpoints: s.self.Endpoints,
		MAC: s.self.VTEP().String(), PublicKey: s.self.PublicKey, Features: s.self.Features, Ways: s.self.Ways, Forgotten: slices.Clone(s.forgotten)}
	if err := r.sign(s.key); err != nil {
		s.opened = err.Error()
		return
	}
	s.stale = false
	s.book.put(r, now)
	if e := s.book.entries[s.own]; e != nil {
		e.live, e.silent = true, time.Time{}
	}
	s.keep(now)
	s.gossip.spread(s.own.String(), encodeRecords([]*record{r}))
}

// keep writes down who this node is. What is contested is not kept: it is given up with the next start.
func (s *session) keep(now time.Time) {
	s.memory.Claims = slices.DeleteFunc(slices.Clone(s.claims), func(c claim) bool { return s.contested[c.Prefix] != "" })
	s.wrote = now
	if err := s.memory.save(); err != nil {
		s.log.Error("this node's identity cannot be written down: after a restart it may get another prefix", zap.Error(err))
	}
}

// compare sends the digest of all that is known to one who is there.
func (s *session) compare() {
	s.mu.Lock()
	g, d, name := s.gossip, s.book.digest(), s.name
	s.mu.Unlock()
	if g == nil {
		return
	}
	if live := g.live(); len(live) > 0 {
		g.send(live[mrand.IntN(len(live))].name, encodeDigest(name, d))
	}
}

// wake has the session look.
func (s *session) wake() {
	select {
	case s.changes <- struct{}{}:
	default:
	}
}

// changed implements listener.
func (s *session) changed() {
	s.mu.Lock()
	s.stirred = true
	s.mu.Unlock()
	s.wake()
}

// heard implements listener.
func (s *session) heard(msg []byte) {
	if len(msg) == 0 {
		return
	}
	switch msg[0] {
	case kindRecords:
		s.read(msg[1:])
	case kindDigest:
		if from, theirs, err := decodeDigest(msg[1:]); err == nil {
			s.mu.Lock()
			differ, list := s.book.compare(theirs)
			s.reply(from, differ != 0, func() []byte { return encodeHave(s.name, differ, list) })
		}
	case kindHave:
		if from, differ, theirs, err := decodeHave(msg[1:]); err == nil {
			s.mu.Lock()
			give, want := s.book.answer(differ, theirs)
			s.reply(from, len(give) > 0, func() []byte { return encodeRecords(give) })
			s.mu.Lock()
			s.reply(from, len(want) > 0, func() []byte { return encodeWant(s.name, want) })
		}
	case kindWant:
		if from, want, err := decodeWant(msg[1:]); err == nil {
			s.mu.Lock()
			var give []*record
			for _, who := range want {
				if e := s.book.entries[who]; e != nil {
					give = append(give, e.record)
				}
			}
			s.reply(from, len(give) > 0, func() []byte { return encodeRecords(give) })
		}
	}
}

// reply unlocks, and then sends a message where there is one.
func (s *session) reply(to string, any bool, msg func() []byte) {
	g := s.gossip
	var out []byte
	if any && g != nil {
		out = msg()
	}
	s.mu.Unlock()
	if out != nil {
		g.send(to, out)
	}
}

// readMost is how many records are read at a time.
const readMost = 64

// read takes the records of an R, without its first byte. What several tell at once, as they do after a join, is checked once: each part is in the book
// before anybody reads on.
func (s *session) read(in []byte) {
	alone := len(in) >= 2 && len(in) == 2+int(binary.BigEndian.Uint16(in))
	for len(in) > 0 {
		s.reading.Lock()
		var records []*record
		records, in = decodeRecords(in, readMost, s.knows)
		s.take(records, alone)
		s.reading.Unlock()
	}
}

// take puts records into the book. One that came alone is passed on: it is news that spreads.
func (s *session) take(records []*record, passOn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, news := time.Now(), false
	for _, r := range records {
		if r.id == s.own {
			s.echo(r)
			continue
		}
		if s.book.put(r, now) {
			news = true
			if passOn && s.gossip != nil {
				s.gossip.spread(r.id.String(), encodeRecords([]*record{r}))
			}
		}
	}
	if news {
		s.news, s.stirred = true, true
		s.wake()
	}
}

// knows says whether a record is in the book already, byte by byte.
func (s *session) knows(raw []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.book.has(raw)
}

// echo is a record of this node's own that came from elsewhere. One that it knows nothing of is of an earlier start, whose end was not written down, or
// of a copy of this machine: this node's is made to be the newer.
func (s *session) echo(r *record) {
	if r.Seq <= s.memory.Seq && s.memory.Seq > 0 {
		if e := s.book.entries[s.own]; e == nil || r.Seq < e.Seq || string(r.raw) == string(e.raw) {
			return
		}
	}
	if r.Gossip != s.at && r.Seq >= s.memory.Seq {
		s.double = fmt.Sprintf("a machine at %v has this node's identity: one is a copy of the other; stop weft on the copy and remove %s from its state_dir", r.Gossip.Addr(), MemoryFile)
	}
	if now := time.Now(); s.echoed.IsZero() || now.Sub(s.echoed) >= echoPause { // two copies would shout at each other
		s.memory.Seq = max(s.memory.Seq, r.Seq)
		s.echoed, s.stale = now, true
	}
}

// everything implements listener.
func (s *session) everything() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*record, 0, len(s.book.entries))
	for _, e := range s.book.entries {
		all = append(all, e.record)
	}
	return encodeRecords(all)
}

// merge implements listener.
func (s *session) merge(all []byte) {
	if len(all) == 0 || all[0] != kindRecords {
		return
	}
	s.read(all[1:])
}
