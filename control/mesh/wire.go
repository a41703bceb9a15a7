package mesh

import (
	"encoding/binary"
	"errors"
)

// Messages between members, inside what memberlist carries. The first byte says which one; numbers are big-endian.
//
//	R  ( length 2 | record )*                                 records: news, or what the other one lacks
//	D  name length 1 | name | 64 × hash 8                     digest of all that the sender knows
//	H  name length 1 | name | buckets 8 | ( id 8 | seq 8 )*   what the sender has in the buckets that differ
//	W  name length 1 | name | ( id 8 )*                       records that the sender wants
//
// name is the sender's among members, to answer to. A D is answered with an H where buckets differ, an H with R and W, a W with R.
const (
	kindRecords = 'R'
	kindDigest  = 'D'
	kindHave    = 'H'
	kindWant    = 'W'
)

var errShort = errors.New("mesh: a message that is cut off")

// have is what a node knows of one record.
type have struct {
	ID  id
	Seq uint64
}

func encodeRecords(records []*record) []byte {
	out := []byte{kindRecords}
	for _, r := range records {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(r.raw))), r.raw...)
	}
	return out
}

// decodeRecords reads some of the records of an R, without its first byte, and returns what is behind them. Those that are known are left out,
// and so is what is wrong, for it harms no other.
func decodeRecords(in []byte, most int, known func(raw []byte) bool) (records []*record, rest []byte) {
	for range most {
		if len(in) < 2 || len(in) < 2+int(binary.BigEndian.Uint16(in)) {
			return records, nil
		}
		raw := in[2 : 2+int(binary.BigEndian.Uint16(in))]
		in = in[2+len(raw):]
		if known(raw) {
			continue
		}
		if r, err := decodeRecord(append([]byte(nil), raw...)); err == nil {
			records = append(records, r)
		}
	}
	return records, in
}

func header(kind byte, from string) []byte {
	return append([]byte{kind, byte(len(from))}, from...)
}

// sender reads the name, and returns what is behind it.
func sender(in []byte) (from string, rest []byte, err error) {
	if len(in) < 1 || len(in) < 1+int(in[0]) {
		return "", nil, errShort
	}
	return string(in[1 : 1+in[0]]), in[1+in[0]:], nil
}

func encodeDigest(from string, d digest) []byte {
	out := header(kindDigest, from)
	for _, h := range d {
		out = binary.BigEndian.AppendUint64(out, h)
	}
	return out
}

func decodeDigest(in []byte) (from string, d digest, err error) {
	from, in, err = sender(in)
	if err != nil || len(in) != 8*buckets {
		return "", d, errShort
	}
	for i := range d {
		d[i] = binary.BigEndian.Uint64(in[8*i:])
	}
	return from, d, nil
}

func encodeHave(from string, differ uint64, list []have) []byte {
	out := binary.BigEndian.AppendUint64(header(kindHave, from), differ)
	for _, h := range list {
		out = binary.BigEndian.AppendUint64(append(out, h.ID[:]...), h.Seq)
	}
	return out
}

func decodeHave(in []byte) (from string, differ uint64, list []have, err error) {
	from, in, err = sender(in)
	if err != nil || len(in) < 8 || (len(in)-8)%16 != 0 {
		return "", 0, nil, errShort
	}
	differ = binary.BigEndian.Uint64(in)
	for in = in[8:]; len(in) > 0; in = in[16:] {
		list = append(list, have{id(in[:8]), binary.BigEndian.Uint64(in[8:])})
	}
	return from, differ, list, nil
}

func encodeWant(from string, list []id) []byte {
	out := header(kindWant, from)
	for _, i := range list {
		out = append(out, i[:]...)
	}
	return out
}

func decodeWant(in []byte) (from string, list []id, err error) {
	from, in, err = sender(in)
	if err != nil || len(in)%8 != 0 {
		return "", nil, errShort
	}
	for ; len(in) > 0; in = in[8:] {
		list = append(list, id(in[:8]))
	}
	return from, list, nil
}

// answer is what a node says to an H: the records that the other one lacks, and those to ask for.
func (b *book) answer(differ uint64, theirs []have) (give []*record, want []id) {
	have := make(map[id]uint64, len(theirs))
	for _, h := range theirs {
		have[h.ID] = h.Seq
		if e := b.entries[h.ID]; (e == nil || e.Seq < h.Seq) && b.gone[h.ID] < h.Seq {
			want = append(want, h.ID)
		}
	}
	for who, e := range b.entries {
		if differ&(1<<who.bucket()) != 0 && have[who] < e.Seq {
			give = append(give, e.record)
		}
	}
	return give, want
}

// compare answers a D: the buckets that differ, and what is in them here.
func (b *book) compare(theirs digest) (differ uint64, list []have) {
	for i, h := range b.digest() {
		if h != theirs[i] {
			differ |= 1 << i
		}
	}
	for who, e := range b.entries {
		if differ&(1<<who.bucket()) != 0 {
			list = append(list, have{who, e.Seq})
		}
	}
	return differ, list
}
