package sealed

import (
	"crypto/cipher"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"weft/packet"
)

// lanePeer is the side of a peer that lanes see. Its pointers are swapped whole by the manager.
type lanePeer struct {
	send  atomic.Pointer[session]    // seals what goes to the peer; nil = no keys (yet)
	hop   atomic.Pointer[packet.Hop] // where sealed packets go
	plain atomic.Pointer[packet.Hop] // where plaintext goes while there is no session; nil = nowhere

	authFailed, replayed atomic.Uint64 // packets that claimed a session with this peer
	unsealed             atomic.Uint64 // packets there was no session for
}

// session is one epoch of keys with a peer. The keys never change and are never used by another
// process: a restart makes new ones.
type session struct {
	lanePeer *lanePeer
	owner    *member // the manager's
	local    uint32  // our index: what the peer's packets carry
	epoch    uint8

	open     cipher.AEAD
	rx       []receiving // by the peer's lane
	rxCipher Cipher

	seal     cipher.AEAD
	word     uint64    // of our packets' headers: remote index, epoch; lane 0
	tx       []sending // by our lane
	txCipher Cipher

	// heard is whether an authentic packet has arrived in this session. A responder sends nothing
	// before: until then the handshake may have been somebody's replay, or the peer's password another.
	heard atomic.Bool
	poke  func() // tells the manager that heard, or moved, has changed; never blocks
	moved mailbox

	control receiving // of confirmations; with what follows under the manager's lock
	counter uint64    // the next confirmation's
	born    time.Time // when the handshake ended here
	started bool      // we sent the initiation
}

// sending is a lane's half of the nonces. One lane writes; the manager reads.
type sending struct {
	next atomic.Uint64
	_    [56]byte // lanes do not share a cache line
}

// receiving is what one of the peer's lanes has sent. Steering brings a lane's packets to one lane
// here, so that the lock is not waited for; where the kernel or the network card cannot steer, it
// keeps the window's one writer.
type receiving struct {
	mu     sync.Mutex
	window *window // allocated when used
	from   netip.Addr
}

// mailbox holds the newest address of a peer that has moved.
type mailbox struct {
	mu   sync.Mutex
	addr netip.Addr
}

func (m *mailbox) put(a netip.Addr) { m.mu.Lock(); m.addr = a; m.mu.Unlock() }

func (m *mailbox) take() (a netip.Addr) {
	m.mu.Lock()
	a, m.addr = m.addr, netip.Addr{}
	m.mu.Unlock()
	return a
}

// sent is how many packets all lanes have sealed, and the most that one has.
func (s *session) sent() (total, most uint64) {
	for i := range s.tx {
		n := s.tx[i].next.Load()
		total += n
		most = max(most, n)
	}
	return total, most
}

// authentic notes that a packet from a, just accepted, has proved to be the peer's. Only the newest one says where the peer is: one that
// was overtaken tells where it was.
func (s *session) authentic(r *receiving, a netip.Addr, counter uint64) {
	changed := r.from != a && r.window.next == counter+1
	if changed {
		r.from = a
		s.moved.put(a)
	}
	if !s.heard.Load() {
		s.heard.Store(true)
		changed = true
	}
	if changed {
		s.poke()
	}
}

// accept is the replay check of an authentic packet; r.mu is held.
func (r *receiving) accept(counter uint64) bool {
	if r.window == nil {
		r.window = &window{}
	}
	return r.window.accept(counter)
}

// table is what lanes look peers and sessions up in. Entries of lanePeers are immutable once published; slots are
// set and cleared one by one.
type table struct {
	lanePeers []*lanePeer               // by Hop.Peer.ID
	slots     []atomic.Pointer[session] // by index modulo their number
	plain     map[netip.Addr]struct{}   // outer addresses that may send plaintext
}

// lanePeer returns the lanePeer of the peer that a hop leads to, nil if there is none.
func (t *table) lanePeer(hop *packet.Hop) *lanePeer {
	if hop == nil || t == nil || int64(hop.Peer.ID) >= int64(len(t.lanePeers)) {
		return nil
	}
	return t.lanePeers[hop.Peer.ID]
}

// slotBits of an index are the slot's number; the rest is random.
const slotBits = 20

func (t *table) session(index uint32) *session {
	i := index & (1<<slotBits - 1)
	if i >= uint32(len(t.slots)) {
		return nil
	}
	if s := t.slots[i].Load(); s != nil && s.local == index {
		return s
	}
	return nil
}
