package status

import "time"

// States of a way to a peer.
const (
	StateUp      = "up"      // the peer acknowledges what is sent to it that way
	StateAssumed = "assumed" // nothing says that it does not work; the peer does not answer probes
	StateHeld    = "held"    // it works again, and is watched for a while before it is used
	StateDown    = "down"    // it does not work
	StateUnfit   = "unfit"   // it cannot be used: the peer does not take it, or does not lie that way
)

// Reached says whether some way leads to the peer.
func (p *Peer) Reached() bool { return p.State != StateUnfit }

// Candidate is one way to reach a peer.
type Candidate struct {
	Way    string    `json:"way"`  // as Peer has it
	Mode   string    `json:"mode"` // what makes it on this node
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"` // of the state
	Since  time.Time `json:"since"`            // of the state
	Until  time.Time `json:"until,omitzero"`   // when a way that is held is used again, if it goes on working
	Chosen bool      `json:"chosen"`
}

// Change is one time that a peer was reached by another way than before.
type Change struct {
	At     time.Time `json:"at"`
	From   string    `json:"from"` // "" = none
	To     string    `json:"to"`   // "" = none
	Reason string    `json:"reason"`
}

// Choice is how one peer is reached, and what else there is.
type Choice struct {
	Node       string      `json:"node"`
	Takes      []string    `json:"takes"`          // the ways that the peer publishes; empty = it does not say
	Way        string      `json:"way"`            // the chosen one; "" = none
	Since      time.Time   `json:"since,omitzero"` // of the last change
	Candidates []Candidate `json:"candidates"`     // the preferred one first
	Changes    []Change    `json:"changes"`        // the last ones, the newest last
}
