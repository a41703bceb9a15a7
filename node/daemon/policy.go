package daemon

import (
	"errors"

	"weft/api"
	"weft/policy"
)

var _ api.Policer = (*Daemon)(nil)

// Policies tells the node's network policies and what they denied.
func (d *Daemon) Policies() api.Policies {
	if d.policies == nil {
		return api.Policies{}
	}
	s := d.policies.Status()
	p := api.Policies{Enabled: true, File: s.File, Problem: s.Problem, Since: s.Since}
	if s.World != nil {
		p.Pods, p.Policies = len(s.World.Pods()), s.World.List()
	}
	for _, c := range s.Denied {
		p.Denied = append(p.Denied, api.PolicyDenied{Tier: c.Tier, Policy: c.Policy, Rule: c.Rule, Packets: c.Packets})
	}
	return p
}

// Explain says what the policies in force say about connections.
func (d *Daemon) Explain(src, dst, port string) ([]policy.Explained, error) {
	if d.policies == nil {
		return nil, errors.New("network policy is off on this node: set policy.enabled, or name a file with --file")
	}
	return d.policies.Explain(src, dst, port)
}
