package kubernetes

import "time"

// SetDownAfter changes how long a node does not forward before it says so.
func (s *Source) SetDownAfter(d time.Duration) {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	s.downAfter = d
}

// LookAgain sets how often a server is asked whether it has ClusterNetworkPolicies.
func (p *Policies) LookAgain(d time.Duration) { p.lookAgain = d }
