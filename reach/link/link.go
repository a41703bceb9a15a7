// Package link finds out which ways to the peers work, by probes of its own. A direction is proven by nothing but the peer's answer to this
// node's probe on that way: what else is heard from there says that the other direction works.
//
// Probes are UDP packets from the node's inner address to the peer's, port Port, sent by the device of the way, so that they go where traffic
// goes: in the tunnel, sealed where that is. An answer goes by the way that the peer uses towards this node.
//
//	0 | "wf" | kind (1 = probe, 2 = answer) | 0 |
//	4 | nonce, 64 bits                          |
//	12 | zero, up to the size of the probe      |
package link

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"weft/control"
)

// Port is the UDP port of probes, inside the overlay.
const Port = 4787

const (
	probeSize  = 64 // bytes of UDP payload
	headerSize = 12

	kindProbe  = 1
	kindAnswer = 2
)

// message is what a packet says.
type message struct {
	kind  byte
	nonce uint64
}

// put writes a message into the beginning of b, which is as long as the packet is to be.
func (m message) put(b []byte) {
	clear(b)
	b[0], b[1], b[2] = 'w', 'f', m.kind
	binary.BigEndian.PutUint64(b[4:], m.nonce)
}

// parse reads a packet; false where it is none of ours.
func parse(b []byte) (m message, ok bool) {
	if len(b) < headerSize || b[0] != 'w' || b[1] != 'f' || b[3] != 0 || b[2] != kindProbe && b[2] != kindAnswer {
		return m, false
	}
	return message{b[2], binary.BigEndian.Uint64(b[4:])}, true
}

// Target is one way to a peer that is to be probed.
type Target struct {
	Node   string
	Way    control.Way
	Addr   netip.Addr // the peer's own inner address
	Source netip.Addr // ours
	Device string     // by which packets go that way
	Chosen bool       // traffic goes that way
}

// State is what is known of a way to a peer.
type State struct {
	Known  bool      // a probe was answered, or too many were not
	Up     bool      // the last ones were answered
	Reason string    // why not
	Since  time.Time // of Up: the first answer after the last loss; else of the failure
	RTT    time.Duration
}

const (
	interval = 200 * time.Millisecond // between the probes of a way that traffic goes
	standby  = time.Second            // and of others
	budget   = 1000                   // probes a second of a node; with more peers the intervals grow

	lostMost = 3 // in a row, and the way is down
	memory   = 8 // probes whose answers are still known

	patienceMost = (memory - 1) * interval // for an answer: a probe is judged before it is forgotten
)

// track is what is remembered of one target. It is for one goroutine, and knows no clock.
type track struct {
	Target
	State
	sent   [memory]sent // the last probes, the newest at next-1
	next   int
	judged int       // probes before this one were answered or are lost; those from here on may still be answered in time
	lost   int       // in a row
	due    time.Time // when the next probe is sent
}

// sent is a probe.
type sent struct {
	nonce    uint64
	at       time.Time
	answered bool
}

// patience is how long an answer may take.
func (t *track) patience() time.Duration { return min(max(interval, 2*t.RTT), patienceMost) }

// probe takes note of a probe that was sent now.
func (t *track) probe(nonce uint64, now time.Time) {
	t.sent[t.next%memory] = sent{nonce, now, false}
	t.next++
	t.judged = max(t.judged, t.next-memory)
}

// expires is when the oldest probe that was not judged yet is lost; false where there is none.
func (t *track) expires() (at time.Time, waiting bool) {
	for ; t.judged < t.next; t.judged++ {
		if s := &t.sent[t.judged%memory]; !s.answered {
			return s.at.Add(t.patience()), true
		}
	}
	return at, false
}

// expired takes note of probes whose answers have not come in time; it says whether State has changed. Each is judged by its own age: where answers take
// longer than the pause between probes, there always is a newer one.
func (t *track) expired(now time.Time) (changed bool) {
	for {
		at, waiting := t.expires()
		if !waiting || now.Before(at) {
			break
		}
		t.judged++
		t.lost++
	}
	if t.lost < lostMost || t.Known && !t.Up {
		return false
	}
	t.Known, t.Up, t.Since, t.Reason = true, false, now, fmt.Sprintf("the peer has not answered %d probes in a row by %s", t.lost, t.Device)
	return true
}

// answered takes note of an answer; it says whether State has changed.
func (t *track) answered(nonce uint64, now time.Time) (changed bool) {
	for i := range t.sent {
		s := &t.sent[i]
		if s.nonce != nonce || s.answered || s.at.IsZero() {
			continue
		}
		s.answered = true
		t.RTT = now.Sub(s.at)
		changed = !t.Known || !t.Up
		if changed || t.lost > 0 { // clean from here on
			t.Since = now
		}
		t.Known, t.Up, t.Reason, t.lost = true, true, "", 0
		return changed
	}
	return false
}

// failed takes note that the kernel refuses to send; it says whether State has changed.
func (t *track) failed(err error, now time.Time) (changed bool) {
	changed = !t.Known || t.Up
	t.Known, t.Up, t.Reason, t.judged = true, false, fmt.Sprintf("probes by %s: %v", t.Device, err), t.next
	if changed {
		t.Since = now
	}
	return changed
}
