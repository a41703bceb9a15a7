package mesh

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// book is all records that this node knows, its own among them, and what has become of the others' nodes. It does no locking.
type book struct {
	entries map[id]*entry
	signed  map[signature]id // whose newest record has it
	gone    map[id]uint64    // forgotten: the Seq up to which a record does not count
	stamp   uint64           // the highest of all records ever seen
}

type entry struct {
	*record
	live   bool      // the mesh hears its node
	silent time.Time // since when not; zero while live
}

func newBook() *book {
	return &book{entries: map[id]*entry{}, signed: map[signature]id{}, gone: map[id]uint64{}}
}

// mostGone bounds what is remembered of the forgotten.
const mostGone = 4096

// put takes a record, and says whether it is news. A record that another one has made forget is none, nor is one as old as what is there.
func (b *book) put(r *record, now time.Time) bool {
	if seq, gone := b.gone[r.id]; gone && r.Seq <= seq {
		return false
	}
	e := b.entries[r.id]
	if e != nil && r.Seq <= e.Seq {
		return false
	}
	if e == nil {
		e = &entry{silent: now}
		b.entries[r.id] = e
	}
	if e.record != nil {
		delete(b.signed, e.signature())
	}
	e.record = r
	b.signed[r.signature()] = r.id
	b.stamp = max(b.stamp, r.stamp())
	return true
}

// has says whether these very bytes are a record that is here: it was checked then, which costs more than all else that is done with it.
func (b *book) has(raw []byte) bool {
	if len(raw) < len(signature{}) {
		return false
	}
	e := b.entries[b.signed[signature(raw)]]
	return e != nil && bytes.Equal(e.raw, raw)
}

// drop takes a record out.
func (b *book) drop(e *entry) {
	delete(b.signed, e.signature())
	delete(b.entries, e.id)
}

// forget drops what records say is forgotten, but never own, and nobody whom the mesh hears: the node itself is about to say more.
// It says whether anything changed.
func (b *book) forget(own id) (changed bool) {
	for _, e := range b.entries {
		for _, f := range e.Forgotten {
			if f.Seq > b.gone[f.ID] && (len(b.gone) < mostGone || b.gone[f.ID] > 0) {
				b.gone[f.ID] = f.Seq
				changed = true
			}
		}
	}
	for who, seq := range b.gone {
		if e := b.entries[who]; e != nil && e.Seq <= seq && who != own && !e.live {
			b.drop(e)
			changed = true
		}
	}
	return changed
}

// hear notes whom the mesh hears by now, and says whether that is news.
func (b *book) hear(live map[id]bool, now time.Time) (changed bool) {
	for who, e := range b.entries {
		switch {
		case e.live == live[who]:
			continue
		case live[who]:
			e.live, e.silent = true, time.Time{}
		default:
			e.live, e.silent = false, now
		}
		changed = true
	}
	return changed
}

// rival returns who else claims what overlaps p, the eldest; nil where nobody does.
func (b *book) rival(own id, p netip.Prefix) (e *entry, c claim) {
	for who, other := range b.entries {
		if who == own {
			continue
		}
		for _, cl := range other.Claims {
			if cl.Prefix.Overlaps(p) && (e == nil || elder(cl, other.record, c, e.record)) {
				e, c = other, cl
			}
		}
	}
	return e, c
}

// elder says whether claim a of r goes before claim b of s: what is in force before what is not, and then what was claimed first. It is a total
// order of the claims of different nodes, so that all decide alike.
func elder(a claim, r *record, b claim, s *record) bool {
	switch {
	case a.Held != b.Held:
		return a.Held
	case a.Stamp != b.Stamp:
		return a.Stamp < b.Stamp
	case r.Name != s.Name:
		return r.Name < s.Name
	}
	return slices.Compare(r.id[:], s.id[:]) < 0
}

// buckets is into how many parts a digest divides the records, by the first byte of their identities.
const buckets = 64

// digest is one hash for each bucket: where two nodes' differ, so do records in it.
type digest [buckets]uint64

func (i id) bucket() int { return int(i[0]) % buckets }

func (b *book) digest() (d digest) {
	for who, e := range b.entries {
		h := fnv.New64a()
		var seq [8]byte
		binary.BigEndian.PutUint64(seq[:], e.Seq)
		h.Write(who[:])
		h.Write(seq[:])
		d[who.bucket()] ^= h.Sum64()
	}
	return d
}
