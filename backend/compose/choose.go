package compose

import (
	"fmt"
	"slices"
	"time"

	"weft/backend/status"
	"weft/control"
)

// Damping of a way that fails again and again: it has to work for a time before it is used again, which doubles with each failure that
// follows on another within flapsWithin.
const (
	holdFirst   = 5 * time.Second
	holdMost    = 5 * time.Minute
	flapsWithin = 10 * time.Minute
)

// offer is what one carrier says of one peer.
type offer struct {
	way   control.Way
	mode  string
	unfit string // why it cannot carry; "" = it can
	link  Link
}

// Link is what is known of a way to a peer besides: whether what is sent that way arrives. The zero Link is nothing.
type Link struct {
	State  string    // status.StateUp or status.StateDown; "" = nobody knows
	Reason string    // of that
	Since  time.Time // of that
}

// candidate is a way to a peer, and what its past says of it.
type candidate struct {
	way    control.Way
	mode   string
	state  string // status.State…
	reason string
	since  time.Time
	until  time.Time // of status.StateHeld

	flaps  int       // failures that followed on one another
	failed time.Time // the last of them; zero = none
}

// usable says whether traffic may go that way.
func (c *candidate) usable() bool { return c.state == status.StateUp || c.state == status.StateAssumed }

// none is the chosen one where there is none.
const none = -1

// choice is what there is to choose from for a peer, the preferred first, and what is chosen.
type choice struct {
	candidates []candidate
	chosen     int
}

// choose chooses one of the offers, which are in order of preference: the first that works. Where none works that did before, what was
// chosen last stays: there is nothing better to try, and packets may arrive. It depends on nothing but its arguments.
func choose(offers []offer, before choice, now time.Time) choice {
	next := choice{candidates: make([]candidate, len(offers)), chosen: none}
	for i, o := range offers {
		var was *candidate
		if at := slices.IndexFunc(before.candidates, func(c candidate) bool { return c.way == o.way && c.mode == o.mode }); at >= 0 {
			was = &before.candidates[at]
		}
		next.candidates[i] = judge(o, was, now)
	}
	next.chosen = slices.IndexFunc(next.candidates, func(c candidate) bool { return c.usable() })
	if next.chosen >= 0 {
		return next
	}
	fits := func(c candidate) bool { return c.state != status.StateUnfit }
	if before.chosen >= 0 {
		last := before.candidates[before.chosen]
		next.chosen = slices.IndexFunc(next.candidates, func(c candidate) bool { return c.way == last.way && c.mode == last.mode && fits(c) })
	}
	if next.chosen < 0 {
		next.chosen = slices.IndexFunc(next.candidates, fits)
	}
	return next
}

// judge says how it stands with one way, given how it stood.
func judge(o offer, was *candidate, now time.Time) candidate {
	c := candidate{way: o.way, mode: o.mode, state: status.StateAssumed, since: now}
	if was != nil {
		c.flaps, c.failed = was.flaps, was.failed
	}
	switch {
	case o.unfit != "":
		c.state, c.reason = status.StateUnfit, o.unfit
	case o.link.State == status.StateDown:
		c.state, c.reason = status.StateDown, o.link.Reason
		if now.Sub(c.failed) > flapsWithin {
			c.flaps = 0
		}
		// What was not proven yet has not failed: a peer that starts answers late.
		if was != nil && (was.state == status.StateUp || was.state == status.StateHeld) {
			c.flaps, c.failed = c.flaps+1, now
		}
	case o.link.State == status.StateUp:
		c.state, c.reason = status.StateUp, o.link.Reason
		if hold := o.link.Since.Add(held(c.flaps)); c.flaps > 0 && now.Before(hold) && (was == nil || was.state != status.StateUp) {
			c.state, c.until = status.StateHeld, hold
			c.reason = fmt.Sprintf("works again, is watched for %v after %d failures", held(c.flaps), c.flaps)
		}
	}
	if was != nil && was.state == c.state {
		c.since = was.since
	}
	return c
}

// held is how long a way has to work after so many failures.
func held(flaps int) time.Duration {
	hold := holdFirst
	for range flaps - 1 {
		if hold = 2 * hold; hold >= holdMost {
			return holdMost
		}
	}
	return hold
}
