package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
)

// What payloads hold.
//
// Both ends make the same block of random bytes out of the session's token. What is sent is numbered: a TCP flow is a row of
// frames; a datagram, or one message of a round trip, is a frame of its own. Where in the block a frame begins is drawn from token, direction, flow and
// number, so that a sender writes straight out of the block and a receiver compares with it, at the speed of memory.
//
// A byte that changed is seen. So are bytes in another's place (shifted, swapped, left over in a buffer, of another flow, of the other direction), however
// far that place is, a whole number of slots or frames too: they go unseen only where two draws are equal, once in 131,072 times. Bytes
// of another session are random.
const (
	// frameSize is how many bytes are in one piece, what one write of a TCP stream moves: iperf3's default, too.
	frameSize = 128 << 10
	// spread is how many places there are to begin at. Block and receive buffer fit a core's cache.
	spread = 1 << 17
)

// direction is which end sends.
type direction uint8

const (
	toServer direction = iota
	toClient
)

func (d direction) String() string {
	if d == toServer {
		return "to the server"
	}
	return "to the client"
}

// pattern is the payloads of one session. It does not change.
type pattern struct {
	token uint64
	block []byte
	blind bool // verify=0: nothing but headers
}

func newPattern(token uint64) *pattern {
	p := &pattern{token: token, block: make([]byte, spread+frameSize)}
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], token)
	rand.NewChaCha8(seed).Read(p.block) // never fails
	return p
}

// frame is the bytes of frame n of a flow.
func (p *pattern) frame(d direction, flow int, n uint64) []byte {
	return p.from(mix(mix(p.token^(uint64(flow)<<1|uint64(d))) ^ n))
}

// from is the frame that a random number stands for.
func (p *pattern) from(drawn uint64) []byte {
	at := drawn % spread
	return p.block[at : at+frameSize]
}

// mix is the finalizer of splitmix64 (Steele, Lea, Flood 2014): each bit of x changes half of the result's.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Every probe datagram begins with
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-------------------------------+-------------------------------+
//	|             trial             |                               |
//	+-------------------------------+                               |
//	|              sequence number, from 0 in each trial            |
//	+---------------------------------------------------------------+
//	|                                                               |
//	|    tag over token, direction, length, trial, sequence number  |
//	+---------------------------------------------------------------+
//
// in network byte order; the frame that the tag stands for follows, up to the payload's length. 16 bytes fit a 64-byte IPv6 packet
// exactly. The tag tells the session's datagrams from strangers', and a damaged header from a good one.
const probeHeader = 16

type header struct {
	trial uint16
	seq   uint64 // 48 bits
}

func (h header) word() uint64 { return uint64(h.trial)<<48 | h.seq&(1<<48-1) }

func (p *pattern) tag(d direction, word uint64, length int) uint64 {
	return mix(mix(p.token^word) + uint64(length)<<1 + uint64(d))
}

// put fills a datagram.
func (p *pattern) put(b []byte, d direction, h header) {
	word := h.word()
	tag := p.tag(d, word, len(b))
	binary.BigEndian.PutUint64(b, word)
	binary.BigEndian.PutUint64(b[8:], tag)
	if !p.blind {
		copy(b[probeHeader:], p.from(tag))
	}
}

// open reads the header of a datagram of length bytes, of which b has the beginning. It is false for strangers' datagrams, and for
// those whose header or length is damaged.
func (p *pattern) open(b []byte, length int, d direction) (h header, ok bool) {
	if len(b) < probeHeader {
		return header{}, false
	}
	word := binary.BigEndian.Uint64(b)
	if binary.BigEndian.Uint64(b[8:]) != p.tag(d, word, length) {
		return header{}, false
	}
	return header{uint16(word >> 48), word & (1<<48 - 1)}, true
}

// Integrity says whether what arrived is what was sent, at both ends.
type Integrity struct {
	Verified       uint64   `json:"verified"`                  // bytes compared with what was sent
	Corrupt        uint64   `json:"corrupt"`                   // of these, bytes that differ
	CorruptPackets uint64   `json:"corrupt_packets,omitempty"` // UDP datagrams with such bytes: they are in no other count
	Damage         []string `json:"damage,omitempty"`          // the first of them, for people
}

// ExitCorrupt is the exit code of a generator whose result is complete and says that bytes arrived other than they were sent.
const ExitCorrupt = 5

// CorruptError is such a result.
type CorruptError struct{ Integrity }

func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt: %d of %d bytes arrived other than they were sent: %s", e.Corrupt, e.Verified, strings.Join(e.Damage, "; "))
}

// Err is a *CorruptError where bytes are corrupt, else nil.
func (i Integrity) Err() error {
	if i.Corrupt == 0 {
		return nil
	}
	return &CorruptError{i}
}

// maxDamage is how many examples one end keeps.
const maxDamage = 3

// Add joins two accounts.
func (i *Integrity) Add(o Integrity) {
	i.Verified += o.Verified
	i.Corrupt += o.Corrupt
	i.CorruptPackets += o.CorruptPackets
	i.Damage = append(i.Damage, o.Damage...)
}

// compare checks bytes that arrived against the beginning of want and says whether they are as sent. where is asked only if
// they are not.
func (i *Integrity) compare(p *pattern, got, want []byte, where func() string) bool {
	if p.blind {
		return true
	}
	want = want[:len(got)]
	i.Verified += uint64(len(got))
	if bytes.Equal(got, want) {
		return true
	}
	first, wrong := -1, 0
	for k := range got {
		if got[k] != want[k] {
			if wrong++; first < 0 {
				first = k
			}
		}
	}
	i.Corrupt += uint64(wrong)
	if len(i.Damage) < maxDamage {
		i.Damage = append(i.Damage, fmt.Sprintf("%s: %d of %d bytes differ, from byte %d; there are %s", where(), wrong, len(got), first, p.kind(got[first:])))
	}
	return false
}

// datagram checks one that arrived on a connected socket.
func (i *Integrity) datagram(p *pattern, b []byte, d direction) (h header, ok bool) {
	if h, ok = p.open(b, len(b), d); !ok {
		i.stray(p, b, d)
		return h, false
	}
	rest := b[probeHeader:]
	i.Verified += probeHeader
	if !i.compare(p, rest, p.from(binary.BigEndian.Uint64(b[8:])), func() string { return fmt.Sprintf("%s: datagram %d of trial %d", d, h.seq, h.trial) }) {
		i.CorruptPackets++
		return h, false
	}
	return h, true
}

// stray counts a datagram whose header is wrong. All of it is: what it should have been is in the header.
func (i *Integrity) stray(p *pattern, b []byte, d direction) {
	i.Verified += uint64(len(b))
	i.Corrupt += uint64(max(len(b), 1))
	i.CorruptPackets++
	if len(i.Damage) < maxDamage {
		i.Damage = append(i.Damage, fmt.Sprintf("%s: a datagram of %d bytes with a header or length that was never sent; there are %s", d, len(b), p.kind(b)))
	}
}

// kind says what wrong bytes are.
func (p *pattern) kind(wrong []byte) string {
	const telling = 8 // bytes; fewer are somewhere in the block by chance
	run := wrong[:min(len(wrong), 4*telling)]
	switch {
	case len(bytes.Trim(run, "\x00")) == 0:
		return "zeros"
	case len(run) >= telling && bytes.Contains(p.block, run):
		return "bytes that this session sends elsewhere"
	}
	return "others"
}

// flowCheck follows one direction of a TCP flow. One goroutine uses it.
type flowCheck struct {
	Integrity
	p    *pattern
	dir  direction
	flow int
	pos  uint64 // in the flow, bytes
}

// take checks the next bytes of the flow.
func (c *flowCheck) take(got []byte) {
	for len(got) > 0 {
		in := c.pos % frameSize
		n := min(len(got), int(frameSize-in))
		c.compare(c.p, got[:n], c.p.frame(c.dir, c.flow, c.pos/frameSize)[in:], c.where)
		got, c.pos = got[n:], c.pos+uint64(n)
	}
}

func (c *flowCheck) where() string { return fmt.Sprintf("%s: flow %d, byte %d", c.dir, c.flow, c.pos) }
