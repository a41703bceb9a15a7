package sealed

import (
	"encoding/binary"
	"sync/atomic"

	"weft/packet"
)

// laneLimit is how many packets a lane may seal under one key, and rekeyPackets after how many of all
// lanes the key is replaced: RFC 9001 Appendix B.1 allows AES-GCM 2^28 packets of 2^11 bytes.
const (
	laneLimit    = 1 << 28
	rekeyPackets = 1 << 28
)

// stage seals and opens for one lane.
type stage struct {
	table *atomic.Pointer[table]
	lane  uint32
	nonce [12]byte // here, since what is passed to an AEAD escapes
}

// Name returns "sealed".
func (s *stage) Name() string { return "sealed" }

// Overhead is the header and the tag.
func (s *stage) Overhead() packet.Overhead { return packet.Overhead{Front: HeaderLen, Tail: TagLen} }

// Added implements packet.Opaque: nothing to what went out in clear.
func (s *stage) Added(p *packet.Packet) packet.Overhead {
	if data := p.Bytes(); len(data) == 0 || data[0] != TypeData {
		return packet.Overhead{}
	}
	return s.Overhead()
}

// Undo implements packet.Opaque: it opens a packet with the key that has sealed it, and fails if that was replaced meanwhile.
func (s *stage) Undo(p *packet.Packet) bool {
	data := p.Bytes()
	if s.Added(p).Front == 0 {
		return true
	}
	f := s.table.Load().lanePeer(p.Hop)
	if f == nil {
		return false
	}
	ses := f.send.Load()
	if ses == nil || len(data) < HeaderLen+TagLen || binary.BigEndian.Uint64(data) != ses.word|uint64(s.lane)<<32 {
		return false
	}
	putNonce(&s.nonce, s.lane, binary.BigEndian.Uint64(data[8:]))
	plain, err := ses.seal.Open(data[HeaderLen:HeaderLen], s.nonce[:], data[HeaderLen:], data[:HeaderLen])
	if err != nil {
		return false
	}
	p.Strip(HeaderLen)
	p.Resize(len(plain))
	return true
}

// Out seals packets in place and points them at where the peer is. Without a session a packet dies
// as NoSession; only towards a peer that may be spoken to in clear it leaves as it is.
func (s *stage) Out(b *packet.Batch) {
	t := s.table.Load()
	var last, to *packet.Hop
	var ses *session
	var tx *sending
	var next uint64
	var word uint64
	packets := b.Packets()
	for i := range packets {
		p := &packets[i]
		if p.Drop != packet.Alive {
			continue
		}
		if p.Hop != last || last == nil {
			if tx != nil {
				tx.next.Store(next)
			}
			last = p.Hop
			ses, to = s.resolve(t, last)
			tx = nil
			if ses != nil {
				tx = &ses.tx[s.lane]
				next = tx.next.Load()
				word = ses.word | uint64(s.lane)<<32
			}
		}
		switch {
		case to == nil:
			p.Drop = packet.NoSession
			continue
		case ses == nil: // plaintext, permitted
			p.Hop = to
			continue
		case next >= laneLimit:
			p.Drop = packet.NoSession
			continue
		}
		n := p.Len()
		if cap(p.Tail())-n < TagLen || p.Headroom() < HeaderLen {
			p.Drop = packet.TooBig
			continue
		}
		h := p.Prepend(HeaderLen)
		putHeader(h, word, next)
		putNonce(&s.nonce, s.lane, next)
		next++
		buf := p.Tail()
		ses.seal.Seal(buf[:HeaderLen], s.nonce[:], buf[HeaderLen:HeaderLen+n], buf[:HeaderLen])
		p.Resize(HeaderLen + n + TagLen)
		p.Hop = to
	}
	if tx != nil {
		tx.next.Store(next)
	}
}

// resolve returns the session that seals for a hop and where the packets go; without a session where
// plaintext goes; nil where neither may.
func (s *stage) resolve(t *table, hop *packet.Hop) (*session, *packet.Hop) {
	f := t.lanePeer(hop)
	if f == nil {
		return nil, nil
	}
	if ses := f.send.Load(); ses != nil && int(s.lane) < len(ses.tx) {
		return ses, f.hop.Load()
	}
	plain := f.plain.Load()
	if plain == nil {
		f.unsealed.Add(1)
	}
	return nil, plain
}

// In opens packets in place, run by run of one session and lane.
func (s *stage) In(b *packet.Batch) {
	t := s.table.Load()
	packets := b.Packets()
	for i := 0; i < len(packets); {
		if packets[i].Drop != packet.Alive {
			i++
			continue
		}
		data := packets[i].Bytes()
		if len(data) == 0 || data[0] != TypeData {
			packets[i].Drop = judgePlain(t, &packets[i])
			i++
			continue
		}
		if len(data) < HeaderLen+TagLen {
			packets[i].Drop = packet.TooShort
			i++
			continue
		}
		word := binary.BigEndian.Uint64(data)
		j := i + 1
		for j < len(packets) && sameRun(&packets[j], word) {
			j++
		}
		s.openRun(t, packets[i:j], word)
		i = j
	}
}

func sameRun(p *packet.Packet, word uint64) bool {
	data := p.Bytes()
	return p.Drop == packet.Alive && len(data) >= HeaderLen+TagLen && binary.BigEndian.Uint64(data) == word
}

// leastPlain is the least first byte of a plaintext tunnel: VXLAN has 0x08 set (RFC 7348 §5), IP a version
// of 4 or 6 in the upper half.
const leastPlain = 8

// judgePlain decides on what is no sealed data: a tunnel packet in clear from a node that may send it goes on,
// all else dies.
func judgePlain(t *table, p *packet.Packet) packet.Drop {
	data := p.Bytes()
	if len(data) == 0 {
		return packet.TooShort
	}
	if data[0] < leastPlain {
		return packet.BadHeader
	}
	if t != nil {
		if _, ok := t.plain[p.From.Addr().Unmap()]; ok {
			return packet.Alive
		}
	}
	return packet.PlainRefused
}

// openRun opens packets that carry the same header but for the counter. First all are authenticated,
// then those that are go through the replay window: nothing unauthentic ever moves it.
func (s *stage) openRun(t *table, run []packet.Packet, word uint64) {
	flags, epoch, lane := uint8(word>>48), uint8(word>>40), uint8(word>>32)
	var ses *session
	if t != nil {
		ses = t.session(uint32(word))
	}
	drop := packet.Alive
	switch {
	case flags != 0:
		drop = packet.BadHeader
	case ses == nil || ses.epoch != epoch:
		drop = packet.NoSession
	case int(lane) >= len(ses.rx):
		drop = packet.BadHeader
	}
	if drop != packet.Alive {
		for i := range run {
			run[i].Drop = drop
		}
		return
	}
	alive := 0
	for i := range run {
		p := &run[i]
		data := p.Bytes()
		putNonce(&s.nonce, uint32(lane), binary.BigEndian.Uint64(data[8:]))
		if _, err := ses.open.Open(data[HeaderLen:HeaderLen], s.nonce[:], data[HeaderLen:], data[:HeaderLen]); err != nil {
			p.Drop = packet.AuthFailed
			ses.lanePeer.authFailed.Add(1)
			continue
		}
		alive++
	}
	if alive == 0 {
		return
	}
	hop := ses.lanePeer.hop.Load()
	r := &ses.rx[lane]
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range run {
		p := &run[i]
		if p.Drop != packet.Alive {
			continue
		}
		counter := binary.BigEndian.Uint64(p.Bytes()[8:])
		if !r.accept(counter) {
			p.Drop = packet.Replayed
			ses.lanePeer.replayed.Add(1)
			continue
		}
		if a := p.From.Addr(); a != r.from {
			ses.authentic(r, a.Unmap(), counter)
		}
		p.Strip(HeaderLen)
		p.Resize(p.Len() - TagLen)
		p.Hop = hop
	}
}
