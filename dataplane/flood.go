package dataplane

import "weft/packet"

// maxCopies bounds the copies of one turn, 64 batches of them, and so how long a storm of broadcasts keeps a lane from
// everything else. One packet is always copied to all peers, however many they are.
const maxCopies = 64 * packet.BatchSize

// floods is the lane's own step behind a Bridge: it sends a copy of each packet for everyone to every peer but the last, and
// leaves the packet itself in the batch, on its way to that one (head-end replication). Copies go out before the rest of
// their batch: a packet that was sent to a station alone never overtakes an earlier one that was flooded to it.
//
// Dropped are no-route (there is no peer) and flood-limit.
func (l *Lane) floods(b *packet.Batch) {
	var hops []*packet.Hop
	made, n := 0, 0
	live := b.Packets()
	for i := range live {
		p := &live[i]
		if p.Hop != &everyone || p.Drop != packet.Alive {
			continue
		}
		if hops == nil { // asked once a batch, and only where needed: a swap never splits one
			hops = l.cfg.Flood()
		}
		switch {
		case len(hops) == 0:
			p.Drop = packet.NoRoute
			continue
		case made > 0 && made+len(hops)-1 > maxCopies:
			p.Drop = packet.FloodLimit
			continue
		}
		last := len(hops) - 1
		for _, h := range hops[:last] {
			duplicate(&l.copies.Slots()[n], p, h)
			made++
			if n++; n == len(l.copies.Slots()) {
				l.sendCopies(n)
				n = 0
			}
		}
		p.Hop = hops[last]
	}
	if n > 0 {
		l.sendCopies(n)
	}
}

// sendCopies carries the first n copies through the steps behind flood. What they cost is flood's: their time is not
// charged to those steps again.
func (l *Lane) sendCopies(n int) {
	l.stats.Copied += uint64(n)
	l.copies.SetLen(n)
	l.copying = true
	if len(l.observers) > 0 {
		l.observe(l.flood, l.copies)
	}
	l.leave(l.copies, 0)
	l.copying = false
}

// duplicate makes c a copy of p on its way to a hop.
func duplicate(c, p *packet.Packet, h *packet.Hop) {
	data := p.Bytes()
	room := c.Reset()
	c.Hop, c.Flow = h, p.Flow
	if len(data) > len(room) {
		c.Drop = packet.TooBig // a borrowed super-packet: no inside port has one on the way out
		return
	}
	c.Resize(copy(room, data))
	if start, offset, ok := p.Partial(); ok {
		c.SetPartial(start, offset)
	} else {
		c.SetChecksum(p.Checksum())
	}
}
