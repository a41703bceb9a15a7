package bgp

import (
	"time"

	wire "github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// life is what was heard of a session.
type life struct {
	up    bool
	since time.Time            // when it was last established
	ended time.Time            // when the session ended that what is stale now came by; zero = none has
	stale time.Time            // since when something stale was seen, at the earliest since; zero = nothing is
	eor   map[wire.Family]bool // the peer has told of all, since it is up
	why   string               // it is not up any more
}

func (l *life) begin(now time.Time) { l.up, l.since, l.stale, l.why = true, now, now, "" }

// end is the end of a session. One that was short, and in which the peer did not tell of all, leaves the time of the one before: what is stale is from there.
func (l *life) end(now time.Time, why string) {
	if l.ended.IsZero() || len(l.eor) > 0 || now.Sub(l.since) > staleTime {
		l.ended = now
	}
	l.up, l.why = false, why
	clear(l.eor)
}

// see says whether something of the peer's is stale.
func (l *life) see(stale bool, now time.Time) {
	if !stale {
		l.stale = time.Time{}
	} else if l.stale.IsZero() {
		l.stale = now
	}
}

// waitedFor says whether what is stale still counts. The library keeps it for as long as the peer said that it may be gone, and once the peer is back until it
// says that it has told of all, which it may never do.
func (l *life) waitedFor(now time.Time) bool {
	switch {
	case !l.up:
		return now.Sub(l.ended) <= restartTime
	case l.stale.After(l.since): // the session has ended, which is heard in a moment
		return true
	}
	return l.since.Sub(l.ended) <= restartTime && now.Sub(l.since) <= staleTime
}
