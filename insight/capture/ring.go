package capture

import (
	"encoding/binary"
	"sync/atomic"

	"weft/packet"
)

// ring holds the frames of one lane until they are written: one goroutine puts, another takes, neither waits. A record is whole and
// in one piece:
//
//	 0 | size, 4: of the record, a multiple of 8; skip = go on at the start of buf |
//	 4 | length, 4: of the frame as it was, bytes                                   |
//	 8 | time, 8: nanoseconds since 1970                                            |
//	16 | captured, 4 | side, 1 | drop, 1 | step, 1 | flags, 1: 1 in, 2 made         |
//	24 | the frame's first captured bytes, padding to 8                             |
type ring struct {
	buf  []byte
	_    [64]byte
	head atomic.Uint64 // what has been taken, bytes
	_    [56]byte
	tail atomic.Uint64 // what has been put, bytes
	lost [sides]atomic.Uint64
}

const (
	recordHeader = 24
	skip         = 0
)

// record is one frame on its way to the file.
type record struct {
	length int // of the frame, bytes
	time   int64
	side   side
	drop   packet.Drop
	step   uint8
	in     bool // the lane's direction
	made   bool // it begins with outer headers that putOuter has written
	data   []byte
}

// newRing makes a ring of size bytes, a power of two.
func newRing(size int) *ring { return &ring{buf: make([]byte, size)} }

// put adds a frame made of two parts, head and as much of body as captured allows, or counts it as lost where there is no room.
// Of r it takes all but data.
func (q *ring) put(r *record, head, body []byte, captured int) {
	size := uint64(recordHeader+captured+7) &^ 7
	tail, capacity := q.tail.Load(), uint64(len(q.buf))
	at := tail % capacity
	gap := uint64(0)
	if at+size > capacity {
		gap = capacity - at
	}
	if tail+gap+size-q.head.Load() > capacity {
		q.lost[r.side].Add(1)
		return
	}
	if gap > 0 {
		binary.NativeEndian.PutUint32(q.buf[at:], skip)
		at = 0
	}
	b := q.buf[at : at+size]
	binary.NativeEndian.PutUint32(b[0:], uint32(size))
	binary.NativeEndian.PutUint32(b[4:], uint32(r.length))
	binary.NativeEndian.PutUint64(b[8:], uint64(r.time))
	binary.NativeEndian.PutUint32(b[16:], uint32(captured))
	b[20], b[21], b[22], b[23] = byte(r.side), byte(r.drop), r.step, 0
	if r.in {
		b[23] |= 1
	}
	if r.made {
		b[23] |= 2
	}
	data := b[recordHeader : recordHeader+captured]
	copy(data[copy(data, head):], body)
	q.tail.Store(tail + gap + size)
}

// peek returns the oldest record, whose data stays valid until release, and the size to release; false where there is none.
func (q *ring) peek() (r record, size int, ok bool) {
	head, tail, capacity := q.head.Load(), q.tail.Load(), uint64(len(q.buf))
	if head == tail {
		return record{}, 0, false
	}
	at := head % capacity
	if binary.NativeEndian.Uint32(q.buf[at:]) == skip {
		head += capacity - at
		q.head.Store(head)
		at = 0
	}
	b := q.buf[at:]
	n := binary.NativeEndian.Uint32(b[0:])
	captured := binary.NativeEndian.Uint32(b[16:])
	return record{
		length: int(binary.NativeEndian.Uint32(b[4:])), time: int64(binary.NativeEndian.Uint64(b[8:])),
		side: side(b[20]), drop: packet.Drop(b[21]), step: b[22], in: b[23]&1 != 0, made: b[23]&2 != 0,
		data: b[recordHeader : recordHeader+captured],
	}, int(n), true
}

// release gives a record's room back.
func (q *ring) release(size int) { q.head.Add(uint64(size)) }
