package dataplane

import (
	"encoding/binary"
	"sync/atomic"
	"time"
)

const (
	// ageing is how long a station is remembered after its last frame. Ethernet bridges use 5 minutes (IEEE 802.1D
	// §7.9.2); 10 outlast what a host's neighbour cache keeps.
	ageing = 10 * time.Minute

	// 1024 sets of 8: 8192 stations, one a node in normal life, in 128 KB.
	fdbSets = 1 << 10
	fdbWays = 8

	// station marks a slot that holds a MAC; a MAC alone could be 0, which is a free slot. busy is a slot whose two words
	// are just being written.
	station = 1 << 48
	busy    = 1 << 49
)

// fdb is the forwarding database of one network: behind which peer each station (MAC) was last heard. All lanes share
// one: lanes in write, lanes out read, nobody waits. Its size is fixed, so that nobody who invents stations can
// make it grow: in a full set the station heard longest ago is forgotten, and flooded to until it speaks again.
type fdb struct{ sets [fdbSets][fdbWays]slot }

type slot struct {
	mac  atomic.Uint64 // station | MAC, busy, or 0
	seen atomic.Uint64 // peer << 32 | seconds since epoch
}

// key is a MAC as a number, with the mark.
func key(mac [6]byte) uint64 {
	return station | uint64(binary.BigEndian.Uint32(mac[:]))<<16 | uint64(binary.BigEndian.Uint16(mac[4:]))
}

// set is where a MAC may be. Multiplying spreads vendors' prefixes and counting suffixes alike.
func (f *fdb) set(k uint64) *[fdbWays]slot { return &f.sets[k*0x9e3779b97f4a7c15>>54%fdbSets] }

func seconds(now time.Duration) uint64 { return uint64(now / time.Second) }

// learn notes that a station was heard behind a peer. A station that was behind another one has moved.
func (f *fdb) learn(mac [6]byte, peer uint32, now time.Duration) {
	k, seen := key(mac), uint64(peer)<<32|seconds(now)
	set := f.set(k)
	oldest, least := -1, ^uint64(0)
	for i := range set {
		s := &set[i]
		switch m := s.mac.Load(); {
		case m == k:
			if s.seen.Load() != seen { // once a second, and when it moved: other cores read this line
				s.seen.Store(seen)
			}
			return
		case m == 0:
			if least != 0 {
				oldest, least = i, 0
			}
		case m != busy:
			if at := s.seen.Load()&0xffffffff + 1; at < least {
				oldest, least = i, at
			}
		}
	}
	if oldest < 0 {
		return // others are writing all of the set; the station's next frame is as good
	}
	s := &set[oldest]
	if m := s.mac.Load(); m == busy || !s.mac.CompareAndSwap(m, busy) {
		return
	}
	s.seen.Store(seen)
	s.mac.Store(k)
}

// lookup returns the peer behind which a station was heard within the ageing time.
func (f *fdb) lookup(mac [6]byte, now time.Duration) (peer uint32, ok bool) {
	k := key(mac)
	set := f.set(k)
	for i := range set {
		s := &set[i]
		if s.mac.Load() != k {
			continue
		}
		seen := s.seen.Load()
		if s.mac.Load() != k || seconds(now) >= seen&0xffffffff+uint64(ageing/time.Second) {
			return 0, false // overwritten while we read, or too old
		}
		return uint32(seen >> 32), true
	}
	return 0, false
}

// forget takes a station out: it is on our own side now.
func (f *fdb) forget(mac [6]byte) {
	k := key(mac)
	set := f.set(k)
	for i := range set {
		set[i].mac.CompareAndSwap(k, 0)
	}
}
