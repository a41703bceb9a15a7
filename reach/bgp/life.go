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
	eor   map[wire.Family]bool // the peer has told of all, since it is up
	why   string               // it is not up any more
}

func (l *life) begin(now time.Time) { l.up, l.since, l.why = true, now, "" }

// end is the end of a session. One that was short, and in which the peer did not tell of all, leaves the time of the one before: what is stale is from there.
func (l *life) end(now time.Time, why string) {
	if l.ended.IsZero() || len(l.eor) > 0 || now.Sub(l.since) > staleTime {
		l.ended = now
	}
	l.up, l.why = false, why
	clear(l.eor)
}

// waitedFor says whether what the peer told of in an earlier session still counts. The library keeps it for as long as the peer said that it may be gone, and
// once the peer is back until it says that it has told of all, which it may never do.
func (l *life) waitedFor(now time.Time) bool {
	if l.up {
		return l.since.Sub(l.ended) <= restartTime && now.Sub(l.since) <= staleTime
	}
	return now.Sub(l.ended) <= restartTime
}
