package mesh

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"weft/control"
)

const (
	// settle is how long a majority has to be heard before anything is claimed.
	settle = time.Second
	// answerTime is how long an answer counts: what others say of who is there may be as old as it takes them to miss somebody.
	answerTime = 2 * time.Second
	// holdOut is how long a claim is held out before it counts. News take a second to be everywhere.
	holdOut = 2 * time.Second
	// deadline is after what time the log says that this node has no prefix, and why.
	deadline = 30 * time.Second
)

// claim sees to it that this node has a prefix of each pool, and says whether its claims have changed.
//
//   - A claim that does not count yet gives way to any that goes before it: another prefix is claimed.
//   - A claim that counts never gives way while this daemon runs: pods have addresses of it, and whoever sends to them goes on. Where an elder one of
//     another node turns up, which two halves of a cluster can only have made that did not know how many they are together, it is contested: this node claims
//     another prefix besides, which comes first when pods get addresses, and gives the contested one up when it starts the next time.
//   - Nothing is claimed without a majority, see blocker.
func (s *session) claim(now time.Time) (changed bool) {
	contested := map[netip.Prefix]string{}
	own := &record{Name: s.self.Name, id: s.own}
	kept := s.claims[:0:0]
	for _, c := range s.claims {
		rival, theirs := s.book.rival(s.own, c.Prefix)
		beaten := rival != nil && elder(theirs, rival.record, c, own)
		switch since, waits := s.held[c.Prefix]; {
		case !c.Held && beaten:
			delete(s.held, c.Prefix)
			changed = true
			continue
		case !c.Held && (!waits || now.Sub(since) >= holdOut) && s.blocker(now) == "":
			c.Held, changed = true, true
			delete(s.held, c.Prefix)
			s.log.Info("this node holds a prefix", zap.Stringer("prefix", c.Prefix))
		case c.Held && beaten:
			contested[c.Prefix] = rival.Name
			if s.contested[c.Prefix] == "" {
				changed = true // what is written down has
				s.log.Error("a prefix of this node is another one's by an elder claim: pods keep their addresses, and new ones get those of another prefix", zap.Stringer("prefix", c.Prefix), zap.String("peer", rival.Name))
			}
		}
		kept = append(kept, c)
	}
	changed = changed || len(contested) != len(s.contested)
	s.claims, s.contested = kept, contested

	need := slices.DeleteFunc(slices.Clone(s.pools), func(p control.Pool) bool {
		return slices.ContainsFunc(s.claims, func(c claim) bool { return p.Has(c.Prefix) && s.contested[c.Prefix] == "" })
	})
	s.waiting = ""
	if len(need) == 0 && len(s.held) > 0 {
		s.waiting = s.blocker(now) // else it is a matter of seconds
	}
	if len(need) > 0 {
		s.waiting = s.blocker(now)
		if s.waiting == "" && s.choose(need, now) {
			changed = true
		}
	}
	s.complain(now)
	return changed
}

// complain tells the log what this node waits for, once it is late.
func (s *session) complain(now time.Time) {
	switch {
	case s.waiting == "":
		s.waits, s.told = time.Time{}, false
	case s.waits.IsZero():
		s.waits = now
	case now.Sub(s.waits) >= deadline && !s.told:
		s.told = true
		s.log.Error("this node has no prefix", zap.String("reason", s.waiting), zap.Time("since", s.waits))
	}
}

// blocker says why nothing may be claimed now, "" when it may: who begins at others has to have reached one; the name has to be free; and a
// majority of all nodes that are known, or expected if those are more, has to be heard, for a second.
func (s *session) blocker(now time.Time) string {
	if s.opened != "" {
		return s.opened
	}
	if !s.reached {
		var why []string
		for _, host := range s.set.Join {
			if w := s.unreached[host]; w != "" {
				why = append(why, host+": "+w)
			}
		}
		if len(why) == 0 {
			return "this node is about to reach " + strings.Join(s.set.Join, ", ")
		}
		return "none of the nodes in control.mesh.join is reached (" + strings.Join(why, "; ") + "): start one, or mend the address"
	}
	if e := s.namesake(); e != nil && e.live && e.Gossip.Addr() != s.at.Addr() {
		return fmt.Sprintf("a node at %v is heard that has the name %s too: set another node.name on one of the two", e.Gossip.Addr(), e.Name)
	}
	known, live, silent := 0, 0, []string(nil)
	for who, e := range s.book.entries {
		known++
		if who == s.own || e.live && now.Sub(s.answered[who]) < answerTime {
			live++
		} else {
			silent = append(silent, e.Name)
		}
	}
	if s.book.entries[s.own] == nil {
		known, live = known+1, live+1
	}
	all := max(known, s.set.Expect)
	if live <= all/2 {
		s.majority = time.Time{}
		slices.Sort(silent)
		text := fmt.Sprintf("%d of %d nodes are heard, and %d are needed before a prefix is claimed, so that two parts of a cluster never take the same one", live, all, all/2+1)
		if missing := all - known; missing > 0 {
			text += fmt.Sprintf(": %d more are expected, start them or write a smaller control.mesh.expect", missing)
		}
		if len(silent) > 0 {
			text += ": start " + strings.Join(silent[:min(8, len(silent))], ", ") + ", or say `weft forget NODE` of those that do not come back"
		}
		return text
	}
	if s.majority.IsZero() {
		s.majority = now
	}
	if now.Sub(s.majority) < settle {
		return "this node has just met the others, and claims a prefix within a second"
	}
	return ""
}

// namesake is another identity that has this node's name, the eldest; nil where there is none.
func (s *session) namesake() (found *entry) {
	for who, e := range s.book.entries {
		if who != s.own && e.Name == s.self.Name && (found == nil || e.Born < found.Born) {
			found = e
		}
	}
	return found
}

// choose claims a prefix of each pool. A namesake that is silent, or was at this node's address, is this node before it lost its memory: it is forgotten,
// and what it had comes first.
func (s *session) choose(pools []control.Pool, now time.Time) bool {
	var before []netip.Prefix
	if len(s.claims) == 0 {
		if e := s.namesake(); e != nil {
			s.log.Info("this node takes the place of an earlier one of its name", zap.Stringers("prefixes", e.prefixes))
			before = e.prefixes
			s.drop(e)
		}
	}
	made := false
	for _, pool := range pools {
		p, ok := s.free(pool, before)
		if !ok {
			s.waiting = fmt.Sprintf("all of %v is given out: widen network.prefixes on all nodes, or say `weft forget NODE` of those that do not come back", pool.Prefix)
			continue
		}
		s.book.stamp++
		if s.memory.Born == unborn {
			s.memory.Born = s.book.stamp
		}
		s.claims = append(s.claims, claim{Prefix: p, Stamp: s.book.stamp})
		s.held[p] = now
		made = true
	}
	return made
}

// wellKnown is how many prefixes a node's name stands for. A node that comes back without a memory looks for the same ones, and nodes that
// claim at the same time look in different places.
const wellKnown = 32

// free returns a prefix of the pool that nobody claims: one of before, or of those that the name stands for, or any.
func (s *session) free(pool control.Pool, before []netip.Prefix) (netip.Prefix, bool) {
	ok := func(p netip.Prefix) bool {
		rival, _ := s.book.rival(s.own, p)
		return rival == nil && !slices.ContainsFunc(s.claims, func(c claim) bool { return c.Prefix.Overlaps(p) })
	}
	for _, p := range before {
		if pool.Has(p) && ok(p) {
			return p, true
		}
	}
	first, count := pool.Span()
	seed := sha256.Sum256([]byte("weft prefix of " + s.self.Name))
	start := binary.BigEndian.Uint64(seed[:]) % count
	for i := range min(uint64(wellKnown), count) {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(seed[:], i))
		if p := pool.Nth(first + binary.BigEndian.Uint64(sum[:])%count); ok(p) {
			return p, true
		}
	}
	for i := range min(count, 1<<20) { // as many records are more than there are
		if p := pool.Nth(first + (start+i)%count); ok(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
