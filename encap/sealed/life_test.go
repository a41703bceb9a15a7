package sealed

import (
	"bytes"
	"encoding/binary"
	"errors"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"weft/packet"
)

// TestRekey: keys are replaced before they are two minutes old, the old ones open for ten seconds
// more and seal nothing.
func TestRekey(t *testing.T) {
	w, a, b := two(t, AES256GCM, 1)
	epoch := func(n *node, to *node) uint8 { return n.Status()[to.peer().ID].Epoch }
	old, _ := a.seal(b, 0, inner(1))
	late, _ := a.seal(b, 0, inner(2))
	first := epoch(a, b)
	w.run(rekeyAfter - rekeyAfter/rekeyJitter - 2*time.Second)
	if epoch(a, b) != first {
		t.Error("new keys long before the old ones are due")
	}
	for epoch(a, b) == first {
		w.run(stepEvery)
		if s := a.Status()[b.peer().ID]; !s.Established || w.now.Sub(s.Since) > rekeyAfter+time.Second {
			t.Fatalf("no new keys in time: %+v", s)
		}
	}
	if epoch(b, a) != first+1 || epoch(a, b) != first+1 {
		t.Errorf("epochs %d and %d after %d", epoch(a, b), epoch(b, a), first)
	}
	fresh, _ := a.seal(b, 0, inner(3))
	if fresh[2] != first+1 {
		t.Errorf("sealed in epoch %d after the change to %d", fresh[2], first+1)
	}
	if _, _, drop := b.open(a.addr, old); drop != packet.Alive {
		t.Errorf("a packet of the old epoch that was under way: %v", drop)
	}
	refused(t, b, a.addr, old, "the same again", packet.Replayed)
	w.run(drainFor + 2*stepEvery)
	refused(t, b, a.addr, late, "a packet of the old epoch, too late", packet.NoSession)
	w.talk(a, b, 0)
	w.talk(b, a, 0)
}

// TestRekeyAfter: keys are replaced as often as told, and no more often than they can be.
func TestRekeyAfter(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 12 * time.Second} {
		w := newWorld(t)
		w.rekey = after
		a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
		a.meet([32]byte{})
		b.meet([32]byte{})
		w.run(3 * time.Second)
		w.settled(a, b)
		before := a.Status()[b.peer().ID].Handshakes
		for range 20 {
			w.run(after)
			w.talk(a, b, 0)
			w.talk(b, a, 0)
		}
		if n := a.Status()[b.peer().ID].Handshakes - before; n < 20*3/4 || n > 24 {
			t.Errorf("%d handshakes in twenty times %v", n, after)
		}
	}
	if _, err := New(Config{Cipher: AES256GCM, Lanes: 1, RekeyAfter: rekeyAfter + 1}); err == nil {
		t.Error("keys may grow older than what they may seal")
	}
}

// TestRekeyLosesNothing renews the keys a hundred times under traffic, while the network delays and
// reorders data and loses a third of the handshake messages.
func TestRekeyLosesNothing(t *testing.T) {
	w, a, b := two(t, AES128GCM, 2)
	rnd := mrand.New(mrand.NewPCG(3, 4))
	w.pass = func(datagram) bool { return rnd.IntN(3) > 0 }
	type flying struct {
		to, from *node
		data     []byte
		number   uint32
		at       time.Time
	}
	var air []flying
	var sent, arrived uint32
	got := map[uint32]bool{}
	handshakes := func() uint64 { return a.Status()[b.peer().ID].Handshakes }
	for start := handshakes(); handshakes() < start+100; {
		w.now = w.now.Add(50 * time.Millisecond)
		for _, n := range w.nodes {
			n.Step()
		}
		if sent++; sent%2 == 0 { // ten a second
			from, to := a, b
			if rnd.IntN(2) == 0 {
				from, to = b, a
			}
			number := binary.BigEndian.AppendUint32(nil, sent)
			data, drop := from.seal(to, rnd.IntN(2), number)
			if drop != packet.Alive {
				t.Fatalf("packet %d dropped: %v", sent, drop)
			}
			air = append(air, flying{to, from, data, sent, w.now.Add(time.Duration(rnd.IntN(300)) * time.Millisecond)})
		}
		// Handshakes pass between data, not around it.
		w.deliver()
		rnd.Shuffle(len(air), func(i, k int) { air[i], air[k] = air[k], air[i] })
		rest := air[:0]
		for _, f := range air {
			if f.at.After(w.now) {
				rest = append(rest, f)
				continue
			}
			data, _, drop := f.to.open(f.from.addr, f.data)
			if drop != packet.Alive || binary.BigEndian.Uint32(data) != f.number || got[f.number] {
				t.Fatalf("packet %d: %v, seen before: %v", f.number, drop, got[f.number])
			}
			got[f.number] = true
			arrived++
		}
		air = rest
		w.seen = nil
	}
	if int(sent/2-arrived) != len(air) || arrived < 50_000 {
		t.Errorf("%d sent, %d arrived, %d under way", sent, arrived, len(air))
	}
}

// TestCrossing: both begin at once. One handshake goes on, by the keys and not by chance.
func TestCrossing(t *testing.T) {
	for range 20 {
		w := newWorld(t)
		a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
		a.meet([32]byte{})
		b.meet([32]byte{})
		w.deliver()
		w.settled(a, b)
		sa, sb := a.Status()[b.peer().ID], b.Status()[a.peer().ID]
		smaller := bytes.Compare(a.public[:], b.public[:]) < 0
		if sa.Handshakes != 1 || sb.Handshakes != 1 || sa.Initiator != smaller || sb.Initiator == smaller {
			t.Fatalf("a %+v, b %+v; a's key is smaller: %v", sa, sb, smaller)
		}
		if sa.Rejected["crossed"]+sb.Rejected["crossed"] != 1 {
			t.Fatalf("crossed: a %v, b %v", sa.Rejected, sb.Rejected)
		}
		w.talk(a, b, 0)
		w.talk(b, a, 0)
	}
}

// TestOneSideStartsLater: the early one's initiations were lost; the late one's must not wait for it.
func TestOneSideStartsLater(t *testing.T) {
	for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
		w := newWorld(t)
		early, late := w.add(order[0], AES256GCM, 1), w.add(order[1], AES256GCM, 1)
		early.meet([32]byte{})
		w.run(time.Minute)
		for early.underWay(late, crossing) { // one that could still be answered crosses the late one's, and may win
			w.run(stepEvery)
		}
		w.wire = nil
		late.meet([32]byte{})
		w.deliver()
		w.run(stepEvery)
		w.settled(early, late)
	}
}

// TestNothingBeforeConfirmation: a responder seals nothing until the initiator has proved itself, and
// then at once.
func TestNothingBeforeConfirmation(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
	w.pass = func(d datagram) bool {
		return d.msg[0] != typeConfirm && !(d.from == b.addr && d.msg[0] == typeInitiation)
	}
	b.meet([32]byte{})
	b.answerOnly()
	a.meet([32]byte{})
	w.deliver()
	w.run(2 * time.Second)
	if _, drop := b.seal(a, 0, inner(1)); drop != packet.NoSession {
		t.Errorf("the responder sealed before anything was confirmed: %v", drop)
	}
	w.talk(a, b, 0) // data confirms as well
	b.Step()
	w.talk(b, a, 0)
}

// TestConfirmationIsRepeated until an answer comes.
func TestConfirmationIsRepeated(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
	lost := 0
	w.pass = func(d datagram) bool {
		if d.msg[0] == typeConfirm && lost < 7 {
			lost++
			return false
		}
		return true
	}
	a.meet([32]byte{})
	b.meet([32]byte{})
	w.run(4 * time.Second)
	w.settled(a, b)
	w.seen = nil
	w.run(10 * time.Second)
	if len(w.seen) > 0 {
		t.Errorf("%d messages although all is said", len(w.seen))
	}
}

// TestSilence: keys that cannot be renewed end, retries slow down, and nothing is sealed any more.
func TestSilence(t *testing.T) {
	w, a, b := two(t, AES256GCM, 1)
	w.pass = func(datagram) bool { return false }
	w.run(rejectAfter - 5*time.Second)
	w.talk(a, b, 0) // the old keys are still good
	w.run(10 * time.Second)
	for _, n := range w.nodes {
		for _, s := range n.Status() {
			if s.Established || s.Reason == "" {
				t.Errorf("%s: %+v", n.name, s)
			}
		}
	}
	if _, drop := a.seal(b, 0, inner(1)); drop != packet.NoSession {
		t.Error(drop)
	}
	w.seen = nil
	w.run(10 * time.Minute)
	if n := len(w.seen); n < 2*60 || n > 2*110 {
		t.Errorf("%d initiations of two nodes in ten minutes of silence", n)
	}
	w.pass = nil
	w.run(retryMax * 2)
	w.settled(a, b)
	w.talk(a, b, 0)
	w.talk(b, a, 0)
}

// TestImpatience: packets that wait for a session have it begun sooner than silence would, but not more than once a second, whether
// nothing comes back or an initiation cannot even be made.
func TestImpatience(t *testing.T) {
	for name, broken := range map[string]bool{"silence": false, "no random bytes": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.add("a", ChaCha20Poly1305, 1), w.add("b", ChaCha20Poly1305, 1)
			core, logs := observer.New(zap.InfoLevel)
			a.cfg.Log = zap.New(core)
			w.pass = func(datagram) bool { return false }
			a.meet([32]byte{})
			if broken {
				a.cfg.Rand = iotest.ErrReader(errors.New("no random bytes"))
			}
			const seconds = 60
			for end := w.now.Add(seconds * time.Second); w.now.Before(end); w.run(stepEvery) {
				if _, drop := a.seal(b, 0, inner(1)); drop != packet.NoSession {
					t.Fatal(drop)
				}
			}
			n := len(w.seen)
			if broken {
				n = logs.FilterMessage("cannot begin a handshake").Len()
			}
			if n < seconds/2 || n > seconds+1 {
				t.Errorf("%d attempts in %d s", n, seconds)
			}
		})
	}
}

// TestCounterLimit: a lane that has used up its counters stops; before that new keys are made.
func TestCounterLimit(t *testing.T) {
	w, a, b := two(t, AES256GCM, 2)
	s := a.peers[b.peer().ID].cur
	s.tx[0].next.Store(laneLimit - 1)
	if data, drop := a.seal(b, 0, inner(1)); drop != packet.Alive {
		t.Error(drop)
	} else if _, _, drop := b.open(a.addr, data); drop != packet.Alive {
		t.Error(drop)
	}
	if _, drop := a.seal(b, 0, inner(1)); drop != packet.NoSession {
		t.Errorf("beyond the limit: %v", drop)
	}
	w.talk(a, b, 1)
	w.run(stepEvery)
	if a.peers[b.peer().ID].cur == s {
		t.Error("no new keys although a lane has used its own up")
	}
	w.talk(a, b, 0)
}

// TestOvertakenPacketDoesNotMoveItsSender: of two packets that a peer has sent while it moved the first comes last. The peer is where the
// second came from.
func TestOvertakenPacketDoesNotMoveItsSender(t *testing.T) {
	_, a, b := two(t, AES256GCM, 1)
	target := func() netip.Addr { return a.peers[b.peer().ID].lanePeer.hop.Load().Path.Dst.Addr() }
	away := netip.MustParseAddrPort("198.51.100.7:8473")
	first, _ := b.seal(a, 0, inner(1))
	second, _ := b.seal(a, 0, inner(2))
	third, _ := b.seal(a, 0, inner(3))
	for i, step := range []struct {
		data []byte
		from netip.AddrPort
		want netip.Addr
	}{{second, away, away.Addr()}, {first, b.addr, away.Addr()}, {third, b.addr, b.addr.Addr()}} {
		if _, _, drop := a.open(step.from, step.data); drop != packet.Alive {
			t.Fatal(drop)
		}
		if a.Step(); target() != step.want {
			t.Errorf("step %d: traffic goes to %v, want %v", i, target(), step.want)
		}
	}
}

// TestRoaming: traffic follows a peer to where its authentic packets come from, by address, not by
// port; and returns when it does, or when the configuration changes.
func TestRoaming(t *testing.T) {
	_, a, b := two(t, AES256GCM, 1)
	target := func() netip.AddrPort { return a.peers[b.peer().ID].lanePeer.hop.Load().Path.Dst }
	away := netip.MustParseAddrPort("198.51.100.7:55555")
	forged, _ := b.seal(a, 0, inner(1))
	forged[20] ^= 1
	a.open(away, forged)
	a.Step()
	if target() != b.addr {
		t.Fatalf("a forged packet moved the peer to %v", target())
	}
	data, _ := b.seal(a, 0, inner(1))
	if _, _, drop := a.open(away, data); drop != packet.Alive {
		t.Fatal(drop)
	}
	a.Step()
	if want := netip.AddrPortFrom(away.Addr(), b.addr.Port()); target() != want {
		t.Errorf("sealed traffic goes to %v, want %v", target(), want)
	}
	a.open(netip.MustParseAddrPort("203.0.113.66:1"), data) // a replay from elsewhere
	a.Step()
	if target().Addr() != away.Addr() {
		t.Errorf("a replayed packet moved the peer to %v", target())
	}
	data, _ = b.seal(a, 0, inner(2))
	a.open(b.addr, data)
	a.Step()
	if target() != b.addr {
		t.Errorf("back home, traffic goes to %v", target())
	}
	moved := b.peer()
	moved.Hop = &packet.Hop{Peer: packet.Peer{ID: moved.ID}, Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("[2001:db8::2]:8473"), 0)}
	if err := a.Update(Identity{Private: a.private}, []Peer{moved}); err != nil {
		t.Fatal(err)
	}
	if target() != moved.Hop.Path.Dst {
		t.Errorf("after a change of the configuration traffic goes to %v", target())
	}
	if s := a.Status()[moved.ID]; !s.Established {
		t.Error("a change of address cost the keys")
	}
}

// TestUpdate: a peer that is removed, or has another key, is spoken to no more; the others keep theirs.
func TestUpdate(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.add("a", AES256GCM, 1), w.add("b", ChaCha20Poly1305, 3), w.add("c", AES128GCM, 2)
	for _, n := range w.nodes {
		n.meet([32]byte{})
	}
	w.run(3 * time.Second)
	w.settled(a, b, c)
	toB, _ := a.seal(b, 0, inner(1))
	epoch := a.Status()[c.peer().ID]
	if err := a.Update(Identity{Private: a.private}, []Peer{c.peer()}); err != nil {
		t.Fatal(err)
	}
	if _, drop := a.seal(b, 0, inner(1)); drop != packet.NoSession {
		t.Errorf("to a removed peer: %v", drop)
	}
	fromB, _ := b.seal(a, 0, inner(1))
	refused(t, a, b.addr, fromB, "from a removed peer", packet.NoSession)
	if _, _, drop := b.open(a.addr, toB); drop != packet.Alive {
		t.Errorf("b was not told: %v", drop)
	}
	if s := a.Status()[c.peer().ID]; s.Since != epoch.Since || s.Handshakes != epoch.Handshakes {
		t.Errorf("the other peer's session changed: %+v, then %+v", epoch, s)
	}
	w.talk(a, c, 0)
	w.talk(c, a, 1)
	// Another identity of our own: nothing of before is left.
	if err := a.Update(Identity{Private: secret("other")}, []Peer{c.peer()}); err != nil {
		t.Fatal(err)
	}
	if _, drop := a.seal(c, 0, inner(1)); drop != packet.NoSession {
		t.Errorf("with another identity: %v", drop)
	}
}

// TestManyPeers: sessions with more peers than the first table has slots, and all memory given back.
func TestManyPeers(t *testing.T) {
	w := newWorld(t)
	for i := range 12 {
		w.add(string(rune('a'+i)), AES256GCM, 1)
	}
	for _, n := range w.nodes {
		n.meet([32]byte{})
	}
	w.run(10 * time.Second)
	w.settled(w.nodes...)
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a != b {
				w.talk(a, b, 0)
			}
		}
	}
	w.run(5 * time.Minute)
	w.settled(w.nodes...)
	n := w.nodes[0]
	if err := n.Update(Identity{Private: n.private}, nil); err != nil {
		t.Fatal(err)
	}
	if slots := n.table.Load().slots; len(n.free) != len(slots) || len(slots) > 64 || len(n.pending) != 0 {
		t.Errorf("%d of %d slots are free, %d pending", len(n.free), len(slots), len(n.pending))
	}
}

// TestLanesBesideTheManager runs lanes of both nodes at full speed while keys change under them, for
// the race detector and for the rule that nothing is lost on the way.
func TestLanesBesideTheManager(t *testing.T) {
	var clock atomic.Int64 // seconds
	clock.Store(1_800_000_000)
	read := func() time.Time { return time.Unix(clock.Load(), 0) }
	var flying sync.RWMutex // held by lanes while a packet is under way: no two minutes pass meanwhile
	var managers [2]*Manager
	var messages [2]chan []byte
	addr := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:8473"), netip.MustParseAddrPort("192.0.2.2:8473")}
	for i := range managers {
		m, err := New(Config{Cipher: AES128GCM, Lanes: 2, Now: read})
		if err != nil {
			t.Fatal(err)
		}
		messages[1-i] = make(chan []byte, 1024)
		m.write = func(msg []byte, _ netip.AddrPort) {
			select {
			case messages[1-i] <- bytes.Clone(msg):
			default:
			}
		}
		managers[i] = m
	}
	for i, m := range managers {
		public, err := PublicKey(secret(string(rune('a' + 1 - i))))
		if err != nil {
			t.Fatal(err)
		}
		hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, addr[1-i], 0)}
		if err := m.Update(Identity{Private: secret(string(rune('a' + i)))}, []Peer{{Public: public, Hop: hop}}); err != nil {
			t.Fatal(err)
		}
	}
	pump := func() {
		for i, m := range managers {
			for len(messages[i]) > 0 {
				m.Receive(<-messages[i], addr[1-i])
			}
			m.Step()
		}
	}
	established := func(want uint64) bool {
		for _, m := range managers {
			if s := m.Status()[0]; !s.Established || s.Handshakes < want {
				return false
			}
		}
		return true
	}
	for !established(1) {
		pump()
	}
	stop := make(chan struct{})
	var lanes sync.WaitGroup
	for i := range managers {
		for lane := range 2 {
			lanes.Go(func() {
				out, in := managers[i].Stage(lane), managers[1-i].Stage(lane)
				ob, ib := packet.NewBatch(16, 256), packet.NewBatch(16, 256)
				hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, addr[1-i], 0)}
				for {
					select {
					case <-stop:
						return
					default:
					}
					for k := range ob.Slots() {
						p := &ob.Slots()[k]
						p.Resize(copy(p.Reset(), "a packet like all the others"))
						p.Hop = hop
					}
					ob.SetLen(16)
					flying.RLock()
					out.Out(ob)
					for k := range ob.Packets() {
						o, p := &ob.Packets()[k], &ib.Slots()[k]
						if o.Drop != packet.Alive {
							t.Errorf("dropped going out: %v", o.Drop)
							flying.RUnlock()
							return
						}
						p.Resize(copy(p.Reset(), o.Bytes()))
						p.From = addr[i]
					}
					ib.SetLen(16)
					in.In(ib)
					flying.RUnlock()
					for k := range ib.Packets() {
						if d := ib.Packets()[k].Drop; d != packet.Alive {
							t.Errorf("dropped coming in: %v", d)
							return
						}
					}
				}
			})
		}
	}
	for n := uint64(2); n <= 20 && !t.Failed(); n++ {
		flying.Lock()
		clock.Add(int64(rekeyAfter / time.Second))
		flying.Unlock()
		for !established(n) && !t.Failed() {
			pump()
		}
		for range 50 {
			pump()
		}
	}
	close(stop)
	lanes.Wait()
}

// memoryConn is a packet.Conn in memory.
type memoryConn struct {
	at     netip.AddrPort
	in     chan datagram
	out    func(datagram)
	closed chan struct{}
}

func (c *memoryConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	select {
	case d := <-c.in:
		return copy(b, d.msg), d.from, nil
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	}
}

func (c *memoryConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	c.out(datagram{bytes.Clone(b), c.at, to})
	return len(b), nil
}

func (c *memoryConn) Crowded() bool { return false }

func (c *memoryConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.at) }

// TestServe runs two managers with their own goroutines and timers through an hour of keys.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addr := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:8473"), netip.MustParseAddrPort("192.0.2.2:8473")}
		var conns [2]*memoryConn
		var managers [2]*Manager
		var waits [2]func()
		for i := range conns {
			conns[i] = &memoryConn{at: addr[i], in: make(chan datagram, 64), closed: make(chan struct{})}
			conns[i].out = func(d datagram) { conns[1-i].in <- d }
		}
		for i := range managers {
			m, err := New(Config{Cipher: AES256GCM, Lanes: 1, Log: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			managers[i], waits[i] = m, m.Serve([]packet.Conn{conns[i]})
			public, _ := PublicKey(secret(string(rune('a' + 1 - i))))
			if err := m.Update(Identity{Private: secret(string(rune('a' + i)))}, []Peer{{Public: public, Hop: &packet.Hop{Path: packet.NewPath(netip.Addr{}, addr[1-i], 0)}}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second) // of the bubble's clock
		synctest.Wait()
		for _, m := range managers {
			if s := m.Status()[0]; !s.Established {
				t.Fatalf("%+v", s)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		for i, m := range managers {
			if s := m.Status()[0]; !s.Established || s.Handshakes < 30 || s.Handshakes > 34 {
				t.Errorf("after an hour: %+v", s)
			}
			close(conns[i].closed)
			waits[i]()
		}
	})
}
