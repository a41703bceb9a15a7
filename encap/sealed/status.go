package sealed

import (
	"fmt"
	"net/netip"
	"time"
)

// Status is how it stands with one peer.
type Status struct {
	Established bool   // there are keys, and packets go out sealed
	Reason      string // why not; "" when Established
	Epoch       uint8
	TxCipher    Cipher // 0 where there is no session
	RxCipher    Cipher
	Since       time.Time // when the session began; zero = there is none
	Initiator   bool      // we began it
	Handshakes  uint64    // sessions since the daemon began
	Attempts    int       // initiations without an answer, in a row
	Endpoint    netip.AddrPort
	Plain       bool              // plaintext goes to it and is taken from it meanwhile
	Sealed      uint64            // packets sealed in this session
	Rejected    map[string]uint64 // by reason: handshake messages, and data that claimed a session

	// Cookies sent to its address instead of answers, and received from it, since the daemon began.
	CookiesSent, CookiesReceived uint64
}

// Status reports on every peer, by ID.
func (m *Manager) Status() map[uint32]Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now()
	all := make(map[uint32]Status, len(m.peers))
	for id, p := range m.peers {
		s := Status{Handshakes: p.handshakes, Attempts: p.tries, Endpoint: p.lanePeer.hop.Load().Path.Dst,
			Plain: p.Plain != nil && p.cur == nil, Rejected: map[string]uint64{}, CookiesSent: p.cookiesSent, CookiesReceived: p.cookiesReceived}
		if c := p.cur; c != nil {
			s.Established, s.Epoch, s.TxCipher, s.RxCipher = true, c.epoch, c.txCipher, c.rxCipher
			s.Since, s.Initiator = c.born, c.started
			s.Sealed, _ = c.sent()
		} else {
			s.Reason = p.why(now)
		}
		p.rejected.addTo(s.Rejected)
		if n := p.lanePeer.authFailed.Load(); n > 0 {
			s.Rejected["auth-failed"] = n
		}
		if n := p.lanePeer.replayed.Load(); n > 0 {
			s.Rejected["replayed"] = n
		}
		all[id] = s
	}
	return all
}

// Unassigned is what was rejected without a peer to name, by reason, and how many cookies went to such addresses.
func (m *Manager) Unassigned() (rejected map[string]uint64, cookies uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	rejected = map[string]uint64{}
	m.rejected.addTo(rejected)
	return rejected, m.cookiesSent
}

// why says why there is no session, as far as it can be told from here.
func (p *member) why(now time.Time) string {
	r := &p.rejected
	switch {
	case p.Public == ([32]byte{}):
		return "no public key of this node is known: publish one, or set psk_file on all nodes"
	case p.double:
		return "another node has the same public key: give every node one of its own (`weft keys gen`)"
	case r[badResponse] > 0:
		return "its answers do not open: it has another password (psk_file)"
	case p.next != nil:
		return "it has initiated and not confirmed yet: if that stays, it has another password (psk_file), or our answers do not reach it"
	case r[badMAC] > 0:
		return "it takes us for somebody else: it has another public key for us, or another password (psk_file)"
	case r[staleStamp] > 0 && p.handshakes == 0:
		return "its initiations are older than ones before: its clock has gone back, or somebody repeats them"
	case r[badOffer] > 0:
		return "it offers a cipher this version does not know: use one version of weft on all nodes"
	case p.tries > 2:
		return fmt.Sprintf("%d handshakes without an answer: it is down, UDP to %v is blocked, or it has another public key for us or another password",
			p.tries, p.lanePeer.hop.Load().Path.Dst)
	}
	return "a handshake is under way"
}
