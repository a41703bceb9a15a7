package sealed

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"weft/packet"
)

// refused fails the test if a node takes a packet.
func refused(t *testing.T, n *node, from netip.AddrPort, data []byte, what string, want ...packet.Drop) {
	t.Helper()
	_, _, drop := n.open(from, data)
	if drop == packet.Alive {
		t.Fatalf("%s: accepted", what)
	}
	for _, w := range want {
		if drop == w {
			return
		}
	}
	if len(want) > 0 {
		t.Errorf("%s: dropped as %v, want %v", what, drop, want)
	}
}

func TestEveryTruncation(t *testing.T) {
	_, a, b := two(t, AES256GCM, 1)
	data, _ := a.seal(b, 0, inner(100))
	for n := range data {
		refused(t, b, a.addr, data[:n], fmt.Sprintf("%d of %d bytes", n, len(data)))
	}
	refused(t, b, a.addr, append(bytes.Clone(data), 0), "a byte too many", packet.AuthFailed)
	if _, _, drop := b.open(a.addr, data); drop != packet.Alive {
		t.Errorf("the packet itself, after all of that: %v", drop)
	}
}

func TestEveryBit(t *testing.T) {
	for _, c := range ciphersUnderTest() {
		_, a, b := two(t, c, 2)
		data, _ := a.seal(b, 1, inner(100))
		for bit := range 8 * len(data) {
			flipped := bytes.Clone(data)
			flipped[bit/8] ^= 1 << (bit % 8)
			refused(t, b, a.addr, flipped, fmt.Sprintf("%v: bit %d flipped", c, bit))
		}
		if _, _, drop := b.open(a.addr, data); drop != packet.Alive {
			t.Errorf("%v: the packet itself, after all of that: %v", c, drop)
		}
	}
}

func TestReplays(t *testing.T) {
	w, a, b := two(t, ChaCha20Poly1305, 1)
	var all [][]byte
	for i := range windowSize + 200 {
		data, drop := a.seal(b, 0, inner(i%7))
		if drop != packet.Alive {
			t.Fatal(drop)
		}
		all = append(all, data)
	}
	// The newest first, so that the oldest are behind the window.
	last := len(all) - 1
	if _, _, drop := b.open(a.addr, all[last]); drop != packet.Alive {
		t.Fatal(drop)
	}
	refused(t, b, a.addr, all[last], "at once again", packet.Replayed)
	refused(t, b, a.addr, all[0], "behind the window", packet.Replayed)
	for i := last - windowSize + 1; i < last; i += 97 {
		if _, _, drop := b.open(a.addr, all[i]); drop != packet.Alive {
			t.Errorf("late, but inside the window and the first time: %v", drop)
		}
		refused(t, b, a.addr, all[i], "inside the window, the second time", packet.Replayed)
		refused(t, b, netip.MustParseAddrPort("203.0.113.9:1"), all[i], "from elsewhere", packet.Replayed)
	}
	// Both restart with the same static keys: nothing of before means anything.
	handshake := w.seen
	a.start(ChaCha20Poly1305, 1)
	b.start(ChaCha20Poly1305, 1)
	b.meet([32]byte{})
	w.wire = nil
	for i := range all {
		if i%50 == 0 {
			refused(t, b, a.addr, all[i], "after a restart", packet.NoSession)
		}
	}
	for _, d := range handshake {
		if d.to == b.addr {
			b.Receive(d.msg, d.from)
		}
	}
	if _, drop := b.seal(a, 0, inner(1)); drop != packet.NoSession {
		t.Errorf("after replayed handshakes a packet leaves: %v", drop)
	}
	for i := range all {
		if i%50 == 0 {
			refused(t, b, a.addr, all[i], "after a restart and a replayed handshake")
		}
	}
	// And the honest ones still find each other.
	a.meet([32]byte{})
	w.deliver()
	w.run(10 * time.Second)
	w.settled(a, b)
	w.talk(a, b, 0)
}

func TestSplices(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.add("a", AES128GCM, 2), w.add("b", AES128GCM, 2), w.add("c", AES128GCM, 2)
	for _, n := range w.nodes {
		n.meet([32]byte{})
	}
	w.run(2 * time.Second)
	w.settled(a, b, c)
	toB, _ := a.seal(b, 0, inner(1))
	toC, _ := a.seal(c, 0, inner(2))

	reflected := bytes.Clone(toB)
	refused(t, a, b.addr, reflected, "reflected to its sender")
	refused(t, c, a.addr, toB, "brought to another node")
	crossed := append(bytes.Clone(toB[:HeaderLen]), toC[HeaderLen:]...)
	refused(t, b, a.addr, crossed, "the body of another peer's packet", packet.AuthFailed)
	otherLane := bytes.Clone(toB)
	otherLane[LaneOffset] = 1
	refused(t, b, a.addr, otherLane, "another lane", packet.AuthFailed)
	noLane := bytes.Clone(toB)
	noLane[LaneOffset] = 77
	refused(t, b, a.addr, noLane, "a lane that there is not", packet.BadHeader)
	control := bytes.Clone(toB)
	control[0] = typeConfirm
	refused(t, b, a.addr, control, "as a confirmation, in a lane", packet.BadHeader)
	b.Receive(control[:confirmLen], a.addr)
	for _, d := range w.seen {
		if d.to == b.addr && d.msg[0] == typeConfirm {
			data := bytes.Clone(d.msg)
			data[0] = TypeData
			refused(t, b, a.addr, data, "a confirmation as data")
		}
	}
	// From a's index at b, sealed with c's keys.
	forC, _ := c.seal(b, 0, inner(3))
	stolen := bytes.Clone(forC)
	copy(stolen[4:8], toB[4:8])
	refused(t, b, c.addr, stolen, "c's packet under a's index", packet.AuthFailed)
	if _, hop, drop := b.open(c.addr, toB); drop != packet.Alive || hop.Peer.ID != a.peer().ID {
		t.Errorf("a's packet by way of c's address is a's: %v %v", hop, drop)
	}
}

// TestForgedHandshakes flips every bit of every message of a handshake. The forgery changes nothing,
// and the honest message behind it still does its work.
func TestForgedHandshakes(t *testing.T) {
	kinds := map[byte]string{typeInitiation: "initiation", typeResponse: "response", typeCookie: "cookie", typeConfirm: "confirmation"}
	for kind, name := range kinds {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
			if kind == typeCookie {
				b.easy = rate.NewLimiter(0, 0) // under load from the start
			}
			tried := 0
			w.pass = func(d datagram) bool {
				if d.msg[0] != kind || tried > 0 {
					return true
				}
				to := a
				if d.to == b.addr {
					to = b
				}
				for bit := range 8 * len(d.msg) {
					forged := bytes.Clone(d.msg)
					forged[bit/8] ^= 1 << (bit % 8)
					tried++
					w.wire = append(w.wire, datagram{forged, d.from, to.addr})
				}
				return true // the honest one comes last
			}
			b.meet([32]byte{}) // b may not initiate: it would cross
			w.wire = nil
			b.answerOnly()
			a.meet([32]byte{})
			w.deliver()
			if tried == 0 {
				t.Fatal("no such message was sent")
			}
			w.run(3 * time.Second)
			w.settled(a, b)
			w.talk(a, b, 0)
			w.talk(b, a, 0)
			if s := a.Status()[b.peer().ID]; s.Handshakes != 1 {
				t.Errorf("%d handshakes: the forgeries made some", s.Handshakes)
			}
		})
	}
}

// TestReplayedInitiation: an initiation counts once, and only while it is the newest.
func TestReplayedInitiation(t *testing.T) {
	w, a, b := two(t, AES256GCM, 1)
	before := b.Status()[a.peer().ID]
	for _, d := range w.seen {
		if d.to == b.addr && d.msg[0] == typeInitiation {
			for range 100 {
				b.Receive(d.msg, d.from)
			}
		}
	}
	after := b.Status()[a.peer().ID]
	if after.Handshakes != before.Handshakes || after.Epoch != before.Epoch {
		t.Errorf("replayed initiations made sessions: before %+v, after %+v", before, after)
	}
	w.deliver()
	w.talk(a, b, 0)
	w.talk(b, a, 0)
}

// stranger makes an initiation with a right MAC 1 and nonsense inside: what anybody can send who
// knows a node's public key.
func stranger(to *node, rnd *mrand.ChaCha8) []byte {
	msg := make([]byte, initiationLen)
	rnd.Read(msg)
	putMessageHeader(msg, typeInitiation, uint32(rnd.Uint64()))
	key := hashKey("weft mac1", to.public)
	sum := mac(key[:], msg[:initiationLen-2*macLen])
	copy(msg[initiationLen-2*macLen:], sum[:])
	return msg
}

// TestFlood: a second of 100,000 initiations from strangers, beside which two nodes talk and renew
// their keys. What strangers send leaves nothing behind.
func TestFlood(t *testing.T) {
	w, a, b := two(t, AES256GCM, 1)
	rnd := mrand.NewChaCha8([32]byte{1})
	w.now = w.now.Add(rekeyAfter - time.Second) // the keys are due in the middle of it
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 100_000
	for i := range n {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), uint16(i))
		b.Receive(stranger(b, rnd), from)
		w.wire = nil // answers go to strangers
		if i%100 == 0 {
			w.now = w.now.Add(time.Millisecond)
			w.talk(a, b, 0)
			w.talk(b, a, 0)
		}
		if i%25_000 == 0 {
			a.Step()
			b.Step()
			w.deliver()
		}
	}
	w.seen = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("%d bytes are held after the flood", grown)
	}
	b.mu.Lock()
	if len(b.pending) > 1 || len(b.peers) != 1 || len(b.addresses) > maxAddresses || len(b.table.Load().slots) > 32 {
		t.Errorf("%d pending, %d peers, %d addresses, %d slots", len(b.pending), len(b.peers), len(b.addresses), len(b.table.Load().slots))
	}
	easy := b.rejected[badHandshake] + b.peers[a.peer().ID].rejected[badHandshake]
	b.mu.Unlock()
	if easy > easyBurst+2*easyRate {
		t.Errorf("%d of the strangers' initiations cost us a key agreement", easy)
	}
	rejected, cookies := b.Unassigned()
	if sum := rejected["bad-handshake"] + rejected["rate-limited"] + cookies; sum != n {
		t.Errorf("of %d initiations %d are accounted for: rejected %v, %d answered with cookies", n, sum, rejected, cookies)
	}
	// Under the same load, which never ends, a third node joins: it shows a cookie.
	b.mu.Lock()
	b.easy = rate.NewLimiter(0, 0)
	b.mu.Unlock()
	c := w.add("c", AES256GCM, 1)
	for _, n := range w.nodes {
		n.meet([32]byte{})
	}
	w.run(10 * time.Second)
	w.settled(a, b, c)
	w.talk(c, b, 0)
	if sent, received := b.Status()[c.peer().ID].CookiesSent, c.Status()[b.peer().ID].CookiesReceived; sent == 0 || received != sent {
		t.Errorf("b counts %d cookies to c, c %d from b", sent, received)
	}
}

// TestCookie: one that is for another address, or that is too old, is none.
func TestCookie(t *testing.T) {
	k := baker{rand: rand.Reader}
	now := time.Unix(1000, 0)
	from := netip.MustParseAddrPort("192.0.2.1:8473")
	msg := make([]byte, initiationLen)
	sign := func() {
		cookie := cookieOf(k.secrets[0], from)
		sum := mac(cookie[:], msg[:len(msg)-macLen])
		copy(msg[len(msg)-macLen:], sum[:])
	}
	if err := k.refresh(now); err != nil {
		t.Fatal(err)
	}
	zero := cookieOf([32]byte{}, from)
	sum := mac(zero[:], msg[:len(msg)-macLen])
	copy(msg[len(msg)-macLen:], sum[:])
	if k.valid(msg, from) {
		t.Error("a cookie of the zero secret is valid")
	}
	sign()
	if !k.valid(msg, from) || k.valid(msg, netip.MustParseAddrPort("192.0.2.1:8474")) || k.valid(msg, netip.MustParseAddrPort("192.0.2.2:8473")) {
		t.Error("a cookie is for one address and port")
	}
	k.refresh(now.Add(cookieSecretAge))
	if !k.valid(msg, from) {
		t.Error("a cookie must outlive one change of the secret")
	}
	k.refresh(now.Add(2 * cookieSecretAge))
	if k.valid(msg, from) {
		t.Error("a cookie outlived two changes of the secret")
	}
}

// TestRestartsNeverRepeatANonce restarts both nodes a hundred times (WEFT_TEST_LONG: a thousand), in turn and together, with the
// same static keys, and looks at every packet: no key ever meets a nonce twice.
func TestRestartsNeverRepeatANonce(t *testing.T) {
	w, a, b := two(t, AES128GCM, 2)
	used := map[string]bool{}
	// A key shows by what it makes of a nonce that is never used.
	print := func(s *session) string {
		never := bytes.Repeat([]byte{0xff}, 12)
		return string(s.seal.Seal(nil, never, nil, nil))
	}
	send := func(from, to *node) {
		s := from.peers[to.peer().ID].lanePeer.send.Load()
		key := print(s)
		for lane := range 2 {
			for range 3 {
				data, drop := from.seal(to, lane, inner(lane))
				if drop != packet.Alive {
					t.Fatal(drop)
				}
				id := key + string(data[LaneOffset:LaneOffset+1]) + string(data[8:16])
				if used[id] {
					t.Fatalf("the pair of key and nonce %x has been used before", id)
				}
				used[id] = true
			}
		}
	}
	restarts := 100
	if os.Getenv("WEFT_TEST_LONG") != "" {
		restarts = 1000
	}
	for i := range restarts {
		if i%3 != 1 {
			a.start(AES128GCM, 2)
			a.meet([32]byte{})
		}
		if i%3 != 0 {
			b.start(AES128GCM, 2)
			b.meet([32]byte{})
		}
		w.deliver()
		w.run(3 * time.Second)
		w.settled(a, b)
		send(a, b)
		send(b, a)
		w.seen = nil
	}
	if len(used) != 12*restarts {
		t.Errorf("%d pairs of key and nonce, want %d", len(used), 12*restarts)
	}
}

// TestWrongPSK: without the cluster's secret nothing is ever sealed, by either side.
func TestWrongPSK(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1)
	a.meet([32]byte{1})
	b.meet([32]byte{2})
	w.deliver()
	w.run(time.Minute)
	for _, n := range w.nodes {
		for id, s := range n.Status() {
			if s.Established || s.Reason == "" {
				t.Errorf("%s: peer %d: %+v", n.name, id, s)
			}
		}
	}
	for _, dir := range [][2]*node{{a, b}, {b, a}} {
		if _, drop := dir[0].seal(dir[1], 0, inner(1)); drop != packet.NoSession {
			t.Errorf("%s → %s: %v", dir[0].name, dir[1].name, drop)
		}
	}
	if a.Status()[b.peer().ID].Rejected["bad-response"]+b.Status()[a.peer().ID].Rejected["bad-response"] == 0 {
		t.Error("nobody noticed that a response does not open")
	}
}

// TestStrangersKey: an authentic initiation of a key that no node has.
func TestStrangersKey(t *testing.T) {
	w, a, b := two(t, AES256GCM, 1)
	c := w.add("c", AES256GCM, 1)
	if err := c.Update(Identity{Private: c.private}, []Peer{b.peer()}); err != nil {
		t.Fatal(err)
	}
	w.run(5 * time.Second)
	if rejected, _ := b.Unassigned(); rejected["unknown-key"] == 0 || c.Status()[b.peer().ID].Established {
		t.Errorf("b: strangers %v; c: %+v", rejected, c.Status())
	}
	w.talk(a, b, 0)
}

// TestTwoNodesWithOneKey: neither may pass for the other, so neither is spoken to.
func TestTwoNodesWithOneKey(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.add("a", AES256GCM, 1), w.add("b", AES256GCM, 1), w.add("c", AES256GCM, 1)
	c.private, c.public = b.private, b.public
	for _, n := range w.nodes {
		n.meet([32]byte{})
	}
	w.run(3 * time.Second)
	for id, s := range a.Status() {
		if s.Established || s.Reason == "" {
			t.Errorf("peer %d: %+v", id, s)
		}
	}
	if _, drop := a.seal(b, 0, inner(1)); drop != packet.NoSession {
		t.Error(drop)
	}
}

// TestPlaintext: only from the addresses of permitted peers, and only while there is no session does
// any go to them.
func TestPlaintext(t *testing.T) {
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, inner(1)...)
	ip := inner(1)
	w, a, b := two(t, AES256GCM, 1)
	for _, data := range [][]byte{vxlan, ip} {
		refused(t, b, a.addr, data, "plaintext of a sealed peer", packet.PlainRefused)
		refused(t, b, netip.MustParseAddrPort("203.0.113.1:4789"), data, "plaintext of a stranger", packet.PlainRefused)
	}
	c := w.add("c", AES256GCM, 1) // never started: it does not seal
	p := c.peer()
	plain := *p.Hop
	plain.Path = plain.Path.To(netip.AddrPortFrom(plain.Path.Dst.Addr(), 4789))
	p.Plain, p.PlainFrom = &plain, []netip.Addr{plain.Path.Dst.Addr()}
	if err := b.Update(Identity{Private: b.private}, []Peer{a.peer(), p}); err != nil {
		t.Fatal(err)
	}
	if got, hop, drop := b.open(c.addr, vxlan); drop != packet.Alive || hop != nil || !bytes.Equal(got, vxlan) {
		t.Errorf("permitted plaintext: %v, hop %v", drop, hop)
	}
	refused(t, b, a.addr, vxlan, "plaintext of the sealed peer, while another is permitted", packet.PlainRefused)
	batch := packet.NewBatch(1, 2048)
	out := &batch.Slots()[0]
	out.Resize(copy(out.Reset(), vxlan))
	out.Hop = p.Hop
	batch.SetLen(1)
	b.stages[0].Out(batch)
	if out.Drop != packet.Alive || out.Hop != &plain || !bytes.Equal(out.Bytes(), vxlan) {
		t.Errorf("to a permitted peer: %v, %v", out.Drop, out.Hop)
	}
	// It seals now: nothing leaves in clear any more.
	c.meet([32]byte{})
	w.run(10 * time.Second)
	w.settled(b, c)
	if data, drop := b.seal(c, 0, inner(1)); drop != packet.Alive || data[0] != TypeData {
		t.Errorf("to a permitted peer that seals: %v, first byte %d", drop, data[0])
	}
	// No longer permitted, and without keys: nothing at all.
	c.start(AES256GCM, 1)
	b.start(AES256GCM, 1)
	b.meet([32]byte{})
	w.wire = nil
	if _, drop := b.seal(c, 0, inner(1)); drop != packet.NoSession {
		t.Error(drop)
	}
	refused(t, b, c.addr, vxlan, "plaintext of a peer that was permitted once", packet.PlainRefused)
}

// TestUnknownPeers: hops that were never told of, and stages before the first Update.
func TestUnknownPeers(t *testing.T) {
	m, err := New(Config{Cipher: AES256GCM, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	b := packet.NewBatch(2, 2048)
	for i := range b.Slots() {
		p := &b.Slots()[i]
		p.Resize(copy(p.Reset(), inner(1)))
		if i == 1 {
			p.Hop = &packet.Hop{Peer: packet.Peer{ID: 4_000_000_000}}
		}
	}
	b.SetLen(2)
	m.Stage(0).Out(b)
	for i := range b.Packets() {
		if d := b.Packets()[i].Drop; d != packet.NoSession {
			t.Errorf("packet %d: %v", i, d)
		}
	}
	var data [64]byte
	binary.BigEndian.PutUint64(data[:], headerWord(TypeData, 0, 0, 0, ^uint32(0)))
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data[:]))
	b.SetLen(1)
	m.Stage(0).In(b)
	if p.Drop != packet.NoSession {
		t.Error(p.Drop)
	}
}

func FuzzReceive(f *testing.F) {
	w, a, b := two(f, AES256GCM, 1)
	for _, d := range w.seen {
		f.Add(d.msg)
	}
	f.Add(stranger(b, mrand.NewChaCha8([32]byte{2})))
	f.Fuzz(func(t *testing.T, msg []byte) {
		before := b.Status()[a.peer().ID]
		b.Receive(msg, a.addr)
		w.wire, w.seen = nil, nil
		after := b.Status()[a.peer().ID]
		if after.Handshakes != before.Handshakes || !after.Established {
			t.Fatalf("a message that nobody sent changed the session: %+v, then %+v", before, after)
		}
	})
}

func FuzzIn(f *testing.F) {
	_, a, b := two(f, AES256GCM, 2)
	sealed, _ := a.seal(b, 1, inner(3))
	f.Add(sealed)
	f.Add(sealed[:HeaderLen+TagLen])
	f.Add([]byte{8, 0, 0, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 60000 {
			return
		}
		got, _, drop := b.open(a.addr, data)
		if drop == packet.Alive && !bytes.Equal(data, sealed) {
			t.Fatalf("accepted %x as %x", data, got)
		}
	})
}
