package sealed

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"weft/packet"
	"weft/packet/packettest"
)

// world is a cluster in memory: a clock that tests move, and a network that loses nothing unless a
// test says so. Messages arrive in the order they were sent, when the world turns.
type world struct {
	t     testing.TB
	now   time.Time
	rand  *rand.ChaCha8 // one stream for all nodes: worlds repeat, restarts do not
	nodes []*node
	wire  []datagram
	// pass decides on each handshake message on its way; nil = all pass.
	pass func(d datagram) bool
	seen []datagram // every handshake message that was sent

	rekey time.Duration // Config.RekeyAfter of nodes to come
}

type datagram struct {
	msg      []byte
	from, to netip.AddrPort
}

type node struct {
	*Manager
	w       *world
	name    string
	addr    netip.AddrPort
	private [32]byte
	public  [32]byte
	stages  []packet.Stage
	batch   *packet.Batch // of one packet, for seal and open
}

// secret is a private key made of a name, so that tests repeat.
func secret(name string) [32]byte { return derive([]byte("test"), name) }

func newWorld(t testing.TB) *world {
	return &world{t: t, rand: rand.NewChaCha8([32]byte{42}), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
}

// add makes a node that does not know anybody yet.
func (w *world) add(name string, cipher Cipher, lanes int) *node {
	w.t.Helper()
	n := &node{w: w, name: name, private: secret(name), batch: packet.NewBatch(1, 70000),
		addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(len(w.nodes) + 1)}), 8473)}
	n.public, _ = PublicKey(n.private)
	n.start(cipher, lanes)
	w.nodes = append(w.nodes, n)
	return n
}

// start gives a node a fresh manager, as a restart does.
func (n *node) start(cipher Cipher, lanes int) {
	n.w.t.Helper()
	m, err := New(Config{Cipher: cipher, Lanes: lanes, RekeyAfter: n.w.rekey, Rand: n.w.rand, Now: func() time.Time { return n.w.now }})
	if err != nil {
		n.w.t.Fatal(err)
	}
	m.write = func(msg []byte, to netip.AddrPort) {
		d := datagram{bytes.Clone(msg), n.addr, to}
		n.w.seen = append(n.w.seen, d)
		if n.w.pass == nil || n.w.pass(d) {
			n.w.wire = append(n.w.wire, d)
		}
	}
	n.Manager, n.stages = m, nil
	for lane := range lanes {
		n.stages = append(n.stages, m.Stage(lane))
	}
}

// peer is how others are told of a node.
func (n *node) peer() Peer {
	var id uint32
	for i, o := range n.w.nodes {
		if o == n {
			id = uint32(i)
		}
	}
	return Peer{ID: id, Name: n.name, Public: n.public, Hop: &packet.Hop{Peer: packet.Peer{ID: id}, Path: packet.NewPath(netip.Addr{}, n.addr, 1418)}}
}

// meet tells a node about all others.
func (n *node) meet(psk [32]byte) {
	n.w.t.Helper()
	var peers []Peer
	for _, o := range n.w.nodes {
		if o != n {
			peers = append(peers, o.peer())
		}
	}
	if err := n.Update(Identity{n.private, psk}, peers); err != nil {
		n.w.t.Fatal(err)
	}
}

// deliver carries all messages that are under way, and their answers.
func (w *world) deliver() {
	for i := 0; len(w.wire) > 0; i++ {
		if i > 10000 {
			w.t.Fatal("messages without end")
		}
		d := w.wire[0]
		w.wire = w.wire[1:]
		for _, n := range w.nodes {
			if n.addr == d.to {
				n.Receive(d.msg, d.from)
			}
		}
	}
}

// run lets time pass in steps as the manager takes them.
func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(stepEvery)
		for _, n := range w.nodes {
			n.Step()
		}
		w.deliver()
	}
}

// two is a world of two nodes that have keys with each other.
func two(t testing.TB, cipher Cipher, lanes int) (w *world, a, b *node) {
	t.Helper()
	w = newWorld(t)
	a, b = w.add("a", cipher, lanes), w.add("b", cipher, lanes)
	a.meet([32]byte{})
	b.meet([32]byte{})
	w.deliver()
	w.run(time.Second)
	w.settled(a, b)
	return w, a, b
}

// answerOnly keeps a node from beginning a handshake for a while.
func (n *node) answerOnly() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		n.abandon(p)
		p.retryAt = n.w.now.Add(time.Hour)
	}
}

// underWay says whether an initiation to a peer was sent within a time and not answered.
func (n *node) underWay(to *node, within time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	u := n.peers[to.peer().ID].under
	return u != nil && n.w.now.Sub(u.at) < within
}

// settled fails the test unless each has keys for the other.
func (w *world) settled(nodes ...*node) {
	w.t.Helper()
	for _, n := range nodes {
		for _, o := range nodes {
			if s := n.Status()[o.peer().ID]; n != o && !s.Established {
				w.t.Fatalf("%s has no session with %s: %s", n.name, o.name, s.Reason)
			}
		}
	}
}

// inner is a packet that tells its number.
func inner(i int) []byte {
	return packettest.UDP(netip.MustParseAddrPort("10.244.1.2:1000"), netip.MustParseAddrPort("10.244.2.3:2000"), 64+i%900, byte(i))
}

// seal makes one sealed packet from a to b through a lane, nil if it was dropped.
func (n *node) seal(to *node, lane int, data []byte) ([]byte, packet.Drop) {
	b := n.batch
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data))
	p.Hop = to.peer().Hop
	b.SetLen(1)
	n.stages[lane].Out(b)
	if p.Drop != packet.Alive {
		return nil, p.Drop
	}
	return bytes.Clone(p.Bytes()), packet.Alive
}

// open gives a node one packet from an address and returns what came out.
func (n *node) open(from netip.AddrPort, data []byte) ([]byte, *packet.Hop, packet.Drop) {
	b := n.batch
	p := &b.Slots()[0]
	p.Resize(copy(p.Reset(), data))
	p.From = from
	b.SetLen(1)
	n.stages[0].In(b)
	return bytes.Clone(p.Bytes()), p.Hop, p.Drop
}

// talk sends one packet and fails unless it arrives whole.
func (w *world) talk(from, to *node, lane int) {
	w.t.Helper()
	data := inner(lane)
	sealed, drop := from.seal(to, lane, data)
	if drop != packet.Alive {
		w.t.Fatalf("%s → %s: dropped going out: %v", from.name, to.name, drop)
	}
	got, hop, drop := to.open(from.addr, sealed)
	if drop != packet.Alive || !bytes.Equal(got, data) || hop == nil || hop.Peer.ID != from.peer().ID {
		w.t.Fatalf("%s → %s: drop %v, hop %+v, %d bytes of %d", from.name, to.name, drop, hop, len(got), len(data))
	}
}

func ciphersUnderTest() []Cipher { return []Cipher{ChaCha20Poly1305, AES128GCM, AES256GCM} }

func TestTwoNodes(t *testing.T) {
	for _, c := range ciphersUnderTest() {
		t.Run(c.String(), func(t *testing.T) {
			w, a, b := two(t, c, 3)
			for lane := range 3 {
				w.talk(a, b, lane)
				w.talk(b, a, lane)
			}
			for _, n := range []*node{a, b} {
				for id, s := range n.Status() {
					if len(s.Rejected) > 1 || s.Rejected["crossed"] > 1 || s.TxCipher != c || s.RxCipher != c {
						t.Errorf("%s: peer %d: %+v", n.name, id, s)
					}
				}
			}
		})
	}
}

// TestConformance runs the suite of all stages: the node is its own peer.
func TestConformance(t *testing.T) {
	for _, c := range ciphersUnderTest() {
		t.Run(c.String(), func(t *testing.T) {
			hop := &packet.Hop{Path: packet.NewPath(netip.Addr{}, netip.MustParseAddrPort("192.0.2.2:8473"), 1418)}
			packettest.Stage(t, func() packet.Stage { return mirror(t, c, hop) }, hop, packet.IP)
		})
	}
}

// mirror is a stage with a session whose both directions have one key: what it seals, it opens.
func mirror(t testing.TB, c Cipher, hop *packet.Hop) packet.Stage {
	t.Helper()
	m, err := New(Config{Cipher: c, Lanes: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &lanePeer{}
	f.hop.Store(hop)
	p := &member{lanePeer: f}
	m.mu.Lock()
	defer m.mu.Unlock()
	index, err := m.allot()
	if err != nil {
		t.Fatal(err)
	}
	s, err := m.newSession(p, index, index, 7, offer{cipher: c, lanes: 1}, [32]byte{1}, [32]byte{1}, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	f.send.Store(s)
	tbl := *m.table.Load()
	tbl.lanePeers = []*lanePeer{f}
	m.table.Store(&tbl)
	return m.Stage(0)
}

func ExampleCipher() {
	fmt.Println(AES256GCM)
	// Output: aes-256-gcm
}
