package sealed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/packet"
	"weft/packet/packettest"
)

// sealModel is three nodes that talk through a network which delays, reorders, repeats, loses, shortens and changes what they seal,
// while keys are replaced, expire and are lost, and peers come, go and move. The oracle is slow: it looks for a session among all that
// there are, opens copies, and keeps every counter it has seen. When handshakes are repeated is not on the tape.
type sealModel struct {
	w     *world
	tape  *packettest.Tape
	quick bool // sessions are made without handshakes, which cost a thousand packets each
	air   []flying

	counters map[txLane]uint64      // the next one
	seen     map[rxLane]*seenBefore // what has been accepted
	nonces   map[string]bool        // of everything that was sealed
	arrived  map[string]bool        // plaintexts
	out, in  *packet.Batch
}

type txLane struct {
	*session
	lane int
}

type rxLane struct {
	*session
	lane uint8
}

type seenBefore struct {
	all  map[uint64]bool
	next uint64
}

// flying is a datagram on its way.
type flying struct {
	from     netip.AddrPort
	to       netip.AddrPort
	by, peer *node
	data     []byte
	plain    []byte // what was sealed
}

// fatal lets a world fail within a sequence.
type fatal struct{ testing.TB }

func (fatal) Helper()           {}
func (fatal) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func newSealModel(t testing.TB, quick bool) packettest.Play {
	out, in := packet.NewBatch(packet.BatchSize, 2000), packet.NewBatch(packet.BatchSize, 2100)
	return func(tape *packettest.Tape) error {
		m := &sealModel{w: newWorld(fatal{t}), tape: tape, quick: quick, counters: map[txLane]uint64{}, seen: map[rxLane]*seenBefore{}, nonces: map[string]bool{},
			arrived: map[string]bool{}, out: out, in: in}
		return m.play()
	}
}

func (m *sealModel) play() error {
	t := m.tape
	for i := range 3 {
		m.w.add([]string{"a", "b", "c"}[i], packettest.Pick(t, AES128GCM, AES256GCM, ChaCha20Poly1305), 1+t.N(3))
	}
	for _, n := range m.w.nodes {
		m.meet(n, nil)
	}
	m.w.deliver()
	m.w.run(time.Second)
	for i, n := range m.w.nodes {
		m.agree(n, m.w.nodes[(i+1)%3])
	}
	if err := m.send(m.w.nodes[0]); err != nil {
		return err
	}
	for t.More() {
		n := packettest.Pick(t, m.w.nodes...)
		var err error
		switch t.N(64) {
		default:
			err = m.send(n)
			if t.N(4) > 0 { // most of it comes before anything else happens
				for _, to := range m.w.nodes {
					err = errors.Join(err, m.deliver(to))
				}
			}
		case 8, 9, 10, 11, 12, 13, 14, 15, 16, 17:
			for range min(t.Run(), 1+len(m.air)) {
				err = errors.Join(err, m.deliver(n))
			}
		case 18:
			m.lose()
		case 19, 20:
			m.w.run(time.Duration(1+t.N(8)) * stepEvery)
		case 21:
			m.w.run(packettest.Pick(t, drainFor, confirmFor, m.rekey(), rekeyAfter+lateAfter))
		case 22: // the network has no handshakes for a while
			m.w.pass = packettest.Pick(t, nil, func(d datagram) bool { return false }, func(d datagram) bool { return len(d.msg)%2 == 0 })
		case 23:
			m.w.pass = nil
		case 32, 33, 34:
			m.agree(n, packettest.Pick(t, m.w.nodes...))
		case 24, 29: // a peer is forgotten, or may speak in clear, or all are as before
			m.meet(n, packettest.Pick(t, m.w.nodes...))
		case 25:
			m.meet(n, nil)
		case 30: // it has begun anew and knows nobody yet, so that there are no keys
			n.start(AES128GCM, 1+t.N(3))
		case 31:
			n.start(AES128GCM, 1+t.N(3))
			for _, o := range m.w.nodes {
				m.meet(o, n)
			}
		case 26:
			n.start(packettest.Pick(t, AES128GCM, AES256GCM, ChaCha20Poly1305), 1+t.N(3))
			m.meet(n, nil)
		case 27:
			n.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + t.N(200))}), n.addr.Port())
		case 28:
			m.jump(n)
		}
		if err != nil {
			return err
		}
		m.w.deliver()
		m.w.seen = nil
	}
	return nil
}

// rekey is the time in which keys are replaced.
func (m *sealModel) rekey() time.Duration { return rekeyAfter + time.Second }

// meet tells a node about the others; about one of them, odd, nothing, or that plaintext is permitted.
func (m *sealModel) meet(n, odd *node) {
	var peers []Peer
	for _, o := range m.w.nodes {
		if o == n {
			continue
		}
		p := o.peer()
		if o == odd {
			if m.tape.N(2) == 0 {
				continue
			}
			plain := *p.Hop
			plain.Path = plain.Path.To(netip.AddrPortFrom(plain.Path.Dst.Addr(), 4789))
			p.Plain, p.PlainFrom = &plain, []netip.Addr{plain.Path.Dst.Addr()}
		}
		peers = append(peers, p)
	}
	if err := n.Update(Identity{n.private, [32]byte{}}, peers); err != nil {
		m.w.t.Fatal(err)
	}
	if m.quick {
		m.w.wire = nil
		n.answerOnly()
	}
}

// agree gives two nodes a new session with each other, as a handshake would have.
func (m *sealModel) agree(a, b *node) {
	far, near := a.peers[b.peer().ID], b.peers[a.peer().ID]
	if !m.quick || far == nil || near == nil {
		return
	}
	var keys [2][32]byte
	m.tape.Fill(keys[0][:])
	m.tape.Fill(keys[1][:])
	epoch := max(far.epoch, near.epoch) + 1
	i, _ := a.allot()
	j, _ := b.allot()
	here, err := a.newSession(far, i, j, epoch, offer{cipher: b.cfg.Cipher, lanes: uint8(b.cfg.Lanes)}, keys[0], keys[1], m.w.now)
	there, err2 := b.newSession(near, j, i, epoch, offer{cipher: a.cfg.Cipher, lanes: uint8(a.cfg.Lanes)}, keys[1], keys[0], m.w.now)
	if err != nil || err2 != nil {
		m.w.t.Fatal(err, err2)
	}
	a.rotate(far, here, m.w.now)
	b.rotate(near, there, m.w.now)
}

// jump makes a session as old as if it had sealed many packets.
func (m *sealModel) jump(n *node) {
	for _, p := range n.peers {
		if p.cur == nil {
			continue
		}
		lane := m.tape.N(len(p.cur.tx))
		next := p.cur.tx[lane].next.Load() + uint64(packettest.Pick(m.tape, 1, 63, 64, 65, windowSize-1, windowSize, windowSize+64, 1<<20))
		if m.tape.Chance(6) {
			next = max(next, laneLimit-uint64(m.tape.N(20)))
		}
		p.cur.tx[lane].next.Store(next)
		m.counters[txLane{p.cur, lane}] = next
	}
}

// send seals a batch, packet by packet as the oracle says, and puts it on its way.
func (m *sealModel) send(n *node) error {
	t, b := m.tape, m.out
	lane, count := t.N(len(n.stages)), packettest.Pick(t, 1, 2, 1+t.N(packet.BatchSize))
	var hops []*packet.Hop
	for id := range m.w.nodes { // its own number too, which leads nowhere
		hops = append(hops, &packet.Hop{Peer: packet.Peer{ID: uint32(id)}}, &packet.Hop{Peer: packet.Peer{ID: uint32(id)}})
	}
	if t.Chance(6) {
		hops = append(hops, nil, &packet.Hop{Peer: packet.Peer{ID: 4_000_000_000}}, &packet.Hop{Peer: packet.Peer{ID: 5}})
	}
	plain := make([][]byte, count)
	for i := 0; i < count; {
		hop := packettest.Pick(t, hops...)
		for range min(t.Run(), count-i) {
			p := &b.Slots()[i]
			plain[i] = make([]byte, packettest.Pick(t, 42, 100, 1400, 9+t.N(1500), 2000))
			t.Fill(plain[i])
			plain[i][0] = 8 // a VXLAN header
			binary.BigEndian.PutUint64(plain[i][1:], uint64(len(m.nonces))<<16|uint64(i))
			p.Resize(copy(p.Reset(), plain[i]))
			p.Hop = hop
			if t.Chance(40) {
				p.Drop = packet.NoRoute
			}
			i++
		}
	}
	b.SetLen(count)
	hopOf := make([]*packet.Hop, count)
	for i := range b.Packets() {
		hopOf[i] = b.Packets()[i].Hop
	}
	n.stages[lane].Out(b)
	for i := range b.Packets() {
		p := &b.Packets()[i]
		if p.Drop == packet.NoRoute {
			continue
		}
		if err := m.sealed(n, lane, p, hopOf[i], plain[i]); err != nil {
			return fmt.Errorf("%s seals packet %d of %d: %w", n.name, i, count, err)
		}
	}
	t.Step(count)
	return nil
}

// sealed holds a packet that Out was given to what must become of it.
func (m *sealModel) sealed(n *node, lane int, p *packet.Packet, hop *packet.Hop, plain []byte) error {
	var peer *member
	if hop != nil {
		peer = n.peers[hop.Peer.ID]
	}
	switch {
	case peer == nil || peer.cur == nil && peer.Plain == nil:
		if p.Drop != packet.NoSession {
			return fmt.Errorf("%v without a session", p.Drop)
		}
		return nil
	case peer.cur == nil:
		if p.Drop != packet.Alive || p.Hop != peer.Plain || !bytes.Equal(p.Bytes(), plain) {
			return fmt.Errorf("in clear: %v, hop %+v", p.Drop, p.Hop)
		}
		m.air = append(m.air, flying{from: n.addr, to: p.Hop.Path.Dst, by: n, data: bytes.Clone(plain), plain: plain})
		return nil
	}
	key := txLane{peer.cur, lane}
	counter := m.counters[key]
	if counter >= laneLimit {
		if p.Drop != packet.NoSession {
			return fmt.Errorf("%v, with counter %d", p.Drop, counter)
		}
		return nil
	}
	if p.Drop != packet.Alive {
		return fmt.Errorf("%v, with a session", p.Drop)
	}
	m.counters[key] = counter + 1
	data := p.Bytes()
	if want := headerWord(TypeData, 0, peer.cur.epoch, uint8(lane), uint32(peer.cur.word)); binary.BigEndian.Uint64(data) != want ||
		binary.BigEndian.Uint64(data[8:]) != counter {
		return fmt.Errorf("header %x, want %x and counter %d", data[:HeaderLen], want, counter)
	}
	if nonce := fmt.Sprintf("%p %x", peer.cur, data[3:HeaderLen]); m.nonces[nonce] {
		return fmt.Errorf("nonce %x for the second time", data[3:HeaderLen])
	} else {
		m.nonces[nonce] = true
	}
	if p.Hop == hop || p.Hop.Peer.ID != hop.Peer.ID || len(data) != len(plain)+HeaderLen+TagLen {
		return fmt.Errorf("hop %+v, %d bytes of %d", p.Hop, len(data), len(plain))
	}
	var to *node
	for id, o := range m.w.nodes {
		if uint32(id) == hop.Peer.ID {
			to = o
		}
	}
	m.air = append(m.air, flying{from: n.addr, to: p.Hop.Path.Dst, by: n, peer: to, data: bytes.Clone(data), plain: plain})
	if m.tape.Chance(16) { // somebody has to answer it, and wants to see what it was
		if !n.stages[lane].(packet.Opaque).Undo(p) {
			return fmt.Errorf("not undone")
		}
		if err := packettest.Same(p.Bytes(), plain); err != nil {
			return fmt.Errorf("undone: %w", err)
		}
	}
	return nil
}

// lose forgets part of what is on its way, so that it does not pile up.
func (m *sealModel) lose() {
	n := m.tape.N(len(m.air)%65536 + 1)
	m.air = append([]flying(nil), m.air[n:]...)
}

// deliver gives a node a batch of what is on its way to it, in any order, some of it damaged or again.
func (m *sealModel) deliver(n *node) error {
	t, b := m.tape, m.in
	room := packettest.Pick(t, 1, 8, packet.BatchSize)
	var got []flying
	run := 0
	for i := 0; i < len(m.air) && len(got) < room; {
		f := m.air[i]
		if f.to.Addr() != n.addr.Addr() {
			i++
			continue
		}
		if run == 0 { // the network's mood, for some packets
			run = t.Run()
		}
		run--
		mood := t.N(16)
		switch mood {
		case 0: // it comes later
			i++
			continue
		case 1: // and comes again
			i++
		case 2:
			f.data = bytes.Clone(f.data[:t.N(len(f.data))])
		case 3:
			f.data = bytes.Clone(f.data)
			f.data[t.N(packettest.Pick(t, len(f.data), min(len(f.data), HeaderLen)))] ^= 1 << t.N(8)
		case 4: // in clear
			if f.peer != nil {
				f.data = f.plain
			}
		case 5: // from elsewhere
			f.from = netip.MustParseAddrPort("203.0.113.9:50000")
		}
		if mood > 1 {
			m.air = append(m.air[:i:i], m.air[i+1:]...)
		}
		got = append(got, f)
	}
	for i := 1; i < len(got); i++ { // neighbours change places
		if t.Chance(6) {
			got[i], got[i-1] = got[i-1], got[i]
		}
	}
	for i, f := range got {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), f.data))
		p.From = f.from
		if t.Chance(40) {
			p.Drop = packet.Truncated
		}
	}
	b.SetLen(len(got))
	n.stages[t.N(len(n.stages))].In(b)
	for i, f := range got {
		p := &b.Packets()[i]
		if p.Drop == packet.Truncated {
			continue
		}
		if err := m.opened(n, p, f); err != nil {
			return fmt.Errorf("%s opens packet %d of %d: %w", n.name, i, len(got), err)
		}
		copy(p.Bytes(), "what a lane does with it") // nothing that is kept may lie there
	}
	t.Step(len(got))
	return nil
}

// opened holds a packet that In was given to what must become of it.
func (m *sealModel) opened(n *node, p *packet.Packet, f flying) error {
	want, s, plain := m.judge(n, f)
	if p.Drop != want {
		return fmt.Errorf("%v, want %v", p.Drop, want)
	}
	if p.Drop != packet.Alive {
		return nil
	}
	if err := packettest.Same(p.Bytes(), plain); err != nil {
		return err
	}
	if s == nil {
		if p.Hop != nil {
			return fmt.Errorf("in clear, and said to be from %+v", p.Hop)
		}
		return nil
	}
	id := s.owner.ID
	if p.Hop == nil || p.Hop.Peer.ID != id || m.w.nodes[id] != f.by || f.peer != n || !bytes.Equal(plain, f.plain) {
		return fmt.Errorf("said to be from %+v, sealed by %s for %s", p.Hop, f.by.name, f.peer.name)
	}
	if m.arrived[string(plain)] {
		return fmt.Errorf("for the second time")
	}
	m.arrived[string(plain)] = true
	return nil
}

// judge says slowly what must become of a datagram.
func (m *sealModel) judge(n *node, f flying) (drop packet.Drop, s *session, plain []byte) {
	data := f.data
	if len(data) == 0 {
		return packet.TooShort, nil, nil
	}
	if data[0] != TypeData {
		if data[0] < leastPlain {
			return packet.BadHeader, nil, nil
		}
		for _, p := range n.peers {
			for _, a := range p.PlainFrom {
				if p.Plain != nil && a == f.from.Addr() {
					return packet.Alive, nil, data
				}
			}
		}
		return packet.PlainRefused, nil, nil
	}
	if len(data) < HeaderLen+TagLen {
		return packet.TooShort, nil, nil
	}
	if data[1] != 0 {
		return packet.BadHeader, nil, nil
	}
	index, counter := binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint64(data[8:])
	for _, p := range n.peers {
		all := []*session{p.cur, p.next}
		for _, old := range p.past {
			all = append(all, old.session)
		}
		for _, o := range all {
			if o != nil && o.local == index && o.epoch == data[2] {
				s = o
			}
		}
	}
	if s == nil {
		return packet.NoSession, nil, nil
	}
	if int(data[3]) >= len(s.rx) {
		return packet.BadHeader, nil, nil
	}
	nonce := append([]byte{0, 0, 0, data[3]}, data[8:HeaderLen]...)
	plain, err := s.open.Open(nil, nonce, bytes.Clone(data[HeaderLen:]), data[:HeaderLen])
	if err != nil {
		return packet.AuthFailed, nil, nil
	}
	w := m.seen[rxLane{s, data[3]}]
	if w == nil {
		w = &seenBefore{all: map[uint64]bool{}}
		m.seen[rxLane{s, data[3]}] = w
	}
	if w.all[counter] || counter+windowSize < w.next {
		return packet.Replayed, nil, nil
	}
	w.all[counter], w.next = true, max(w.next, counter+1)
	return packet.Alive, s, plain
}

func TestSealModel(t *testing.T) { packettest.Sequences(t, 100_000, newSealModel(t, false)) }
func FuzzSealModel(f *testing.F) { packettest.FuzzSequences(f, newSealModel(f, true)) }

// TestWindowModel holds the replay window to a list of all counters that were accepted.
func TestWindowModel(t *testing.T) { packettest.Sequences(t, 2_000_000, playWindow) }
func FuzzWindowModel(f *testing.F) { packettest.FuzzSequences(f, playWindow) }

func playWindow(t *packettest.Tape) error {
	var w window
	seen, next := map[uint64]bool{}, uint64(0)
	at := uint64(t.N(70)) * 1000
	if t.Chance(4) {
		at = ^uint64(0) - uint64(t.N(30000))
	}
	for t.More() {
		switch t.N(8) { // where the sender is now
		case 0:
			at += uint64(packettest.Pick(t, blockBits, blockBits-1, windowSize, windowSize-1, windowSize+1, windowSize+blockBits, 1<<30, t.N(3*windowSize)))
		case 1:
			at -= min(at, uint64(t.N(2*windowSize)))
		case 2:
			at = next - min(next, uint64(windowSize-2+t.N(5)))
		}
		step := uint64(t.N(3))
		for range t.Run() {
			want := !seen[at] && next-min(next, at) <= windowSize && at != ^uint64(0)
			if got := w.accept(at); got != want {
				return fmt.Errorf("counter %d, with %d seen last: accepted %v", at, next-1, got)
			}
			if want {
				seen[at], next = true, max(next, at+1)
			}
			t.Step(1)
			if at += step; at < step {
				at = ^uint64(0)
			}
		}
	}
	return nil
}
