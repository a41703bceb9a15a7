package sealed

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"go.uber.org/zap"
)

// Receive takes one datagram that is not a lane's. It is the attacker's door: the order of the
// checks is that of their cost, and nothing is remembered of who has not proved anything.
func (m *Manager) Receive(msg []byte, from netip.AddrPort) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Now()
	if m.me.Private == nil || len(msg) < messageHeader {
		m.reject(nil, from, malformed)
		return
	}
	switch {
	case msg[0] == typeInitiation && wellFormed(msg, initiationLen):
		m.onInitiation(msg, from, now)
	case msg[0] == typeResponse && wellFormed(msg, responseLen):
		m.onResponse(msg, from, now)
	case msg[0] == typeCookie && wellFormed(msg, cookieLen):
		m.onCookie(msg, from, now)
	case msg[0] == typeConfirm && len(msg) == confirmLen:
		m.onConfirm(msg, from, now)
	default:
		m.reject(nil, from, malformed)
	}
}

// reject counts a rejection: with the peer, where there is one, or the one that is expected at the
// source address; else with the strangers.
func (m *Manager) reject(p *member, from netip.AddrPort, why reason) {
	if p == nil {
		p = m.byAddr[from.Addr()]
	}
	if p == nil {
		m.rejected[why]++
		return
	}
	p.rejected[why]++
}

func (m *Manager) onInitiation(msg []byte, from netip.AddrPort, now time.Time) {
	at := initiationLen - 2*macLen
	if !equalMAC(mac(m.mac1Key[:], msg[:at]), msg[at:at+macLen]) {
		m.reject(nil, from, badMAC)
		return
	}
	if !m.easy.AllowN(now, 1) && !m.showsCookie(msg, from, now) {
		return
	}
	state, public, o, err := readInitiation(m.cfg.Rand, m.me, m.identity.PSK, msg)
	if err == errOffer {
		m.reject(m.byKey[public], from, badOffer)
		return
	} else if err != nil {
		m.reject(nil, from, badHandshake)
		return
	}
	p := m.byKey[public]
	switch {
	case p == nil:
		m.reject(nil, from, unknownKey)
		return
	case o.stamp <= p.lastStamp:
		m.reject(p, from, staleStamp)
		return
	case !p.limit.AllowN(now, 1):
		m.reject(p, from, rateLimited)
		return
	}
	p.lastStamp = o.stamp
	// Both have initiated: the handshake of the smaller key goes on, unless it has been under way for
	// too long to be on its way.
	if p.under != nil && now.Sub(p.under.at) < crossing && bytes.Compare(m.me.Public, public[:]) < 0 {
		m.reject(p, from, crossed)
		return
	}
	m.abandon(p)
	m.retire(p, p.next, now) // the peer may have our answer, and seal with it already
	p.next = nil
	index, err := m.allot()
	if err != nil {
		m.cfg.Log.Error("cannot answer a handshake", zap.String("peer", p.Name), zap.Error(err))
		return
	}
	keys, reply, err := respond(state, messageIndex(msg), offer{index: index, cipher: m.cfg.Cipher, lanes: uint8(m.cfg.Lanes)})
	if err == nil {
		p.next, err = m.newSession(p, index, messageIndex(msg), o.epoch, o, keys.toInitiator, keys.toResponder, now)
	}
	if err != nil {
		m.release(index)
		m.cfg.Log.Error("cannot answer a handshake", zap.String("peer", p.Name), zap.Error(err))
		return
	}
	p.retryAt = now.Add(retryFirst) // give it the time to confirm
	p.hurryAt = p.retryAt
	sum := mac(p.mac1Key[:], reply)
	m.write(append(reply, sum[:]...), from)
}

// showsCookie decides on an initiation under load: its sender has to show that it receives at its
// address, and even then may only ask so often.
func (m *Manager) showsCookie(msg []byte, from netip.AddrPort, now time.Time) bool {
	if err := m.baker.refresh(now); err != nil {
		m.cfg.Log.Error("cannot make cookies", zap.Error(err))
		return false
	}
	if m.baker.valid(msg, from) {
		if !m.addresses.take(from.Addr(), now) || !m.hard.AllowN(now, 1) {
			m.reject(nil, from, rateLimited)
			return false
		}
		return true
	}
	if !m.cookies.AllowN(now, 1) {
		m.reject(nil, from, rateLimited)
		return false
	}
	reply, err := m.baker.reply(msg, from, m.ownKey)
	if err != nil {
		m.cfg.Log.Error("cannot make a cookie", zap.Error(err))
		return false
	}
	if p := m.byAddr[from.Addr()]; p != nil {
		p.cookiesSent++
	} else {
		m.cookiesSent++
	}
	m.write(reply, from)
	return false
}

func (m *Manager) onResponse(msg []byte, from netip.AddrPort, now time.Time) {
	p := m.pending[messageIndex(msg)]
	if p == nil {
		m.reject(nil, from, strayAnswer)
		return
	}
	at := responseLen - macLen
	if !equalMAC(mac(m.mac1Key[:], msg[:at]), msg[at:]) {
		m.reject(p, from, badMAC)
		return
	}
	keys, o, err := readResponse(p.under.state, msg)
	if err == errOffer {
		m.reject(p, from, badOffer)
		return
	} else if err != nil {
		m.reject(p, from, badResponse)
		return
	}
	index, epoch := p.under.index, p.under.epoch
	delete(m.pending, index) // the session keeps the index
	p.under = nil
	s, err := m.newSession(p, index, o.index, epoch, o, keys.toResponder, keys.toInitiator, now)
	if err != nil {
		m.release(index)
		m.cfg.Log.Error("cannot use the keys of a handshake", zap.String("peer", p.Name), zap.Error(err))
		return
	}
	s.started = true
	if a := from.Addr(); a != p.lanePeer.hop.Load().Path.Dst.Addr() {
		p.moveTo(a)
	}
	m.retire(p, p.next, now)
	p.next = nil
	m.rotate(p, s, now)
	m.confirm(s, flagAsk)
	p.confirmAt = now.Add(confirmRetry)
}

func (m *Manager) onCookie(msg []byte, from netip.AddrPort, now time.Time) {
	p := m.pending[messageIndex(msg)]
	if p == nil {
		m.reject(nil, from, strayAnswer)
		return
	}
	cookie, err := openCookie(msg, p.under.mac1, p.ownKey)
	if err != nil {
		m.reject(p, from, badCookie)
		return
	}
	p.cookiesReceived++
	fresh := p.cookie == nil || !now.Before(p.cookieUntil)
	p.cookie, p.cookieUntil = cookie, now.Add(cookieSecretAge)
	if fresh { // at once, but only once: it is the answer that was lacking, not patience
		m.start(p, now)
	}
}

func (m *Manager) onConfirm(msg []byte, from netip.AddrPort, now time.Time) {
	word, counter := binary.BigEndian.Uint64(msg), binary.BigEndian.Uint64(msg[8:])
	flags, epoch, lane := uint8(word>>48), uint8(word>>40), uint8(word>>32)
	s := m.table.Load().session(uint32(word))
	if s == nil || s.epoch != epoch || lane != controlLane || flags&^flagAsk != 0 {
		m.reject(nil, from, strayAnswer)
		return
	}
	p := s.owner
	var nonce [12]byte
	putNonce(&nonce, controlLane, counter)
	if _, err := s.open.Open(nil, nonce[:], msg[HeaderLen:], msg[:HeaderLen]); err != nil || !s.control.accept(counter) {
		m.reject(p, from, badConfirm)
		return
	}
	s.authentic(&s.control, from.Addr(), counter)
	m.settle(p, now)
	if flags&flagAsk != 0 {
		m.confirm(s, 0)
	}
}
